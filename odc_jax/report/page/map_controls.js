function swatch({ colour, shape }) {
  const paths = {
    circle: "M7 2a5 5 0 1 0 .01 0z",
    square: "M2.5 2.5h9v9h-9z",
    triangle: "M7 1.5l5.5 10h-11z",
    diamond: "M7 1l5 6-5 6-5-6z",
    cross: "M5.2 1h3.6v4.2H13v3.6H8.8V13H5.2V8.8H1V5.2h4.2z",
  };
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 14 14");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", paths[shape]);
  path.setAttribute("fill", colour || "currentColor");
  svg.append(path);
  return svg;
}

function renderLegend() {
  const legend = $("map-legend");
  if (mode === "outlier") {
    const bar = make("span", { class: "ramp", "aria-hidden": "true" });
    bar.style.background = `linear-gradient(to right, ${ramp(0)}, ${ramp(0.5)}, ${ramp(1)})`;
    legend.replaceChildren(
      make("li", {}, "outlier score 0", bar, "1"),
      make(
        "li",
        {},
        swatch({ colour: ramp(1), shape: "diamond" }),
        "flagged as an outlier",
      ),
    );
    return;
  }
  const found = new Set();
  for (let point = 0; point < numPoints; point++) found.add(category(point));
  const list = [...found].sort((a, b) => a - b);
  if (list.length > looks) {
    legend.replaceChildren(
      make(
        "li",
        {},
        `${list.length.toLocaleString("en")} of them share ${looks} colours and shapes; the numbers on the map tell them apart, more of them as you zoom in.`,
      ),
    );
    return;
  }
  legend.replaceChildren(
    ...list.map((value) =>
      make("li", {}, swatch(look(value)), categoryName(value)),
    ),
  );
}

function renderMapControls() {
  const group = $("map-group");
  const chosen = group.value;
  group.replaceChildren(make("option", { value: "" }, "All groups"));
  $("map-group-control").hidden = !grouping;
  if (grouping) {
    for (const [g, { size }] of [...groupSizes].sort((a, b) => a[0] - b[0])) {
      group.append(
        make("option", { value: g }, `${groupTitle(g)} (${inImages(size)})`),
      );
    }
    if (groupSizes.has(Number(chosen)) && chosen !== "") group.value = chosen;
  }
  const modes = {
    cluster: "Cluster",
    ...(grouping && {
      group: `Group (${state.g.toLocaleString("en")}, as set above)`,
    }),
    ...(labelled && { label: "True label" }),
    outlier: "Outlier score",
  };
  if (!modes[mode]) mode = "cluster";
  $("colour").replaceChildren(
    ...Object.entries(modes).map(([value, text]) =>
      make("option", { value }, text),
    ),
  );
  $("colour").value = mode;
  renderLegend();
  filterMap();
}

function startMap() {
  $("map-text").textContent =
    `Each point is an image; near points look alike to the network. ` +
    `${numPoints.toLocaleString("en")} of ${inImages(data.num_images)} shown` +
    (numPoints < data.num_images ? ", drawn at random." : ".");
  $("colour").addEventListener("change", (event) => {
    mode = event.target.value;
    renderLegend();
    findMiddles();
    draw();
  });
  $("map-search").addEventListener("input", later(filterMap));
  $("map-group").addEventListener("change", filterMap);
  $("map-controls").addEventListener("submit", (event) => {
    event.preventDefault();
    filterMap();
  });
  $("zoom-in").addEventListener("click", () => zoom(1.6));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.6));
  $("zoom-reset").addEventListener("click", fit);
  canvas.addEventListener("keydown", (event) => {
    const arrow = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    }[event.key];
    if (arrow && event.shiftKey) pan(-60 * arrow[0], -60 * arrow[1]);
    else if (arrow) step(...arrow);
    else if (event.key === "+" || event.key === "=") zoom(1.6);
    else if (event.key === "-") zoom(1 / 1.6);
    else if (event.key === "0") fit();
    else if (event.key === "Enter" && pointed >= 0)
      openCluster(images.cluster[points.image[pointed]]);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      // Until the map is clicked, the wheel scrolls the page.
      if (document.activeElement !== canvas && !event.ctrlKey) return;
      event.preventDefault();
      zoom(2 ** (-event.deltaY / 300), event.offsetX, event.offsetY);
    },
    { passive: false },
  );
  startPointers();
  new ResizeObserver(() => (view.scale ? draw() : fit())).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

// One pointer drags, two pinch; one that did not move is a click.
function startPointers() {
  const down = new Map();
  let moved = 0;
  const spread = () => {
    const [a, b] = [...down.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (!down.size) moved = 0;
    down.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    const last = down.get(event.pointerId);
    if (!last) {
      select(nearestPoint(x, y, 14), false);
      return;
    }
    const before = down.size === 2 ? spread() : 0;
    down.set(event.pointerId, { x, y });
    moved += Math.abs(x - last.x) + Math.abs(y - last.y);
    if (down.size === 2) zoom(spread() / Math.max(1, before), x, y);
    else if (moved > 4) pan(x - last.x, y - last.y);
  });
  const up = (event) => {
    const click = event.type === "pointerup" && down.size === 1 && moved <= 4;
    down.delete(event.pointerId);
    if (!click) return;
    const point = nearestPoint(
      event.offsetX,
      event.offsetY,
      event.pointerType === "touch" ? 24 : 14,
    );
    if (point < 0) return;
    select(point, true);
    openCluster(images.cluster[points.image[point]]);
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => {
    if (!down.size && document.activeElement !== canvas) select(-1, false);
  });
}
