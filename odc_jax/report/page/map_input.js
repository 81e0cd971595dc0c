// Mouse, touch and keys on the map, and what is set above it.
let lasso = null; // the line that is being drawn, or null

function drawLasso(style) {
  if (!lasso) return;
  pen.strokeStyle = style.getPropertyValue("--accent");
  pen.lineWidth = 2;
  pen.setLineDash([6, 4]);
  pen.beginPath();
  for (const { x, y } of lasso) pen.lineTo(x, y);
  pen.closePath();
  pen.stroke();
  pen.setLineDash([]);
}

// Whether a place lies within a closed line: crossings to its right are odd.
function within(line, x, y) {
  let inside = false;
  for (let i = 0, j = line.length - 1; i < line.length; j = i++) {
    const [a, b] = [line[i], line[j]];
    if (a.y > y === b.y > y) continue;
    if (x < ((b.x - a.x) * (y - a.y)) / (b.y - a.y) + a.x) inside = !inside;
  }
  return inside;
}

function pickOnMap(inside) {
  const found = [];
  for (let at = 0; at < numPoints; at++) {
    if (isVisible(at) && inside(screenX(at), screenY(at))) {
      found.push(points.image[at]);
    }
  }
  pickAll(found);
  const text = `${inImages(found.length)} selected.`;
  $("map-status").textContent = text;
}

const isLassoOn = () => $("lasso").getAttribute("aria-pressed") === "true";

function setLasso(on) {
  $("lasso").setAttribute("aria-pressed", on);
  canvas.classList.toggle("lasso", on);
}

function openPoint(at) {
  const image = points.image[at];
  const c = headOf(images.cluster[image]);
  openImage(image, withPicture(members(c)), clusterTitle(c));
}

// One pointer drags or draws a lasso, two pinch; one that did not move is a
// click.
function startPointers() {
  const down = new Map();
  let moves = 0;
  const between = () => {
    const [a, b] = [...down.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (!down.size) moves = 0;
    down.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    const draws = down.size === 1 && (isLassoOn() || event.shiftKey);
    lasso = draws ? [down.get(event.pointerId)] : null;
    if (lasso) point(-1, false);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    const last = down.get(event.pointerId);
    if (!last) {
      point(pointAt(x, y, 14), false);
      return;
    }
    const before = down.size === 2 ? between() : 0;
    down.set(event.pointerId, { x, y });
    moves += Math.abs(x - last.x) + Math.abs(y - last.y);
    if (down.size === 2) zoom(between() / Math.max(1, before), x, y);
    else if (lasso) {
      lasso.push({ x, y });
      draw();
    } else if (moves > 4) pan(x - last.x, y - last.y);
  });
  const up = (event) => {
    const ended = event.type === "pointerup" && down.size === 1;
    down.delete(event.pointerId);
    const line = lasso;
    lasso = null;
    if (ended && line && moves > 4) {
      pickOnMap((x, y) => within(line, x, y));
      setLasso(false);
    } else if (ended && moves <= 4) {
      const touch = event.pointerType === "touch";
      const at = pointAt(event.offsetX, event.offsetY, touch ? 24 : 14);
      if (at >= 0) {
        point(at, true);
        openPoint(at);
      }
    }
    draw();
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => {
    if (!down.size && document.activeElement !== canvas) point(-1, false);
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
}

function startMapKeys() {
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    }[event.key];
    const mark = markNames.find((name) => marks[name] === event.key);
    const image = pointed < 0 ? -1 : points.image[pointed];
    if (arrow && event.shiftKey) pan(-60 * arrow[0], -60 * arrow[1]);
    else if (arrow) step(...arrow);
    else if (event.key === "+" || event.key === "=") zoom(1.6);
    else if (event.key === "-") zoom(1 / 1.6);
    else if (event.key === "0") fit();
    else if (image >= 0 && event.key === "Enter") openPoint(pointed);
    else if (image >= 0 && event.key === " ") pick(image, [], false);
    else if (image >= 0 && mark) markImages(targets(image), mark);
    else return;
    event.preventDefault();
  });
}

function renderMapControls() {
  const group = $("map-group");
  const chosen = group.value;
  group.replaceChildren(make("option", { value: "" }, "All groups"));
  $("map-group-control").hidden = !grouping;
  if (grouping) {
    for (const [g, { size }] of [...groupSizes].sort((a, b) => a[0] - b[0])) {
      const text = `${groupTitle(g)} (${inImages(size)})`;
      group.append(make("option", { value: g }, text));
    }
    if (groupSizes.has(Number(chosen)) && chosen !== "") group.value = chosen;
  }
  const modes = {
    cluster: "Cluster",
    ...(grouping && { group: `Group (${number(state.g)}, as set above)` }),
    ...(labelled && { label: "True label" }),
    ...(data.compared && { outlier: "Outlier score" }),
    ...(markOf.size && { mark: "Your marks" }),
  };
  if (!modes[mode]) mode = "cluster";
  $("colour").replaceChildren(
    ...Object.entries(modes).map(([value, text]) =>
      make("option", { value }, text),
    ),
  );
  $("colour").value = mode;
  filterMap();
}

function startMap() {
  $("map-text").textContent =
    "Each point is an image; near points look alike to the network. " +
    `${number(numPoints)} of ${inImages(data.num_images)} shown` +
    (numPoints < data.num_images ? ", drawn at random." : ".") +
    (illustrated ? " Nearer by, they are pictures." : "");
  $("map-pictures-control").hidden = !illustrated;
  $("colour").addEventListener("change", (event) => {
    mode = event.target.value;
    only = null;
    colourMap();
  });
  $("map-pictures").addEventListener("change", draw);
  $("map-search").addEventListener("input", later(filterMapAloud));
  $("map-group").addEventListener("change", filterMapAloud);
  $("map-controls").addEventListener("submit", (event) => {
    event.preventDefault();
    filterMapAloud();
  });
  $("zoom-in").addEventListener("click", () => zoom(1.6));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.6));
  $("zoom-reset").addEventListener("click", fit);
  $("lasso").addEventListener("click", () => setLasso(!isLassoOn()));
  $("pick-seen").addEventListener("click", () =>
    pickOnMap((x, y) => onScreen(x, y, 0)),
  );
  startMapKeys();
  startPointers();
  new ResizeObserver(() => (view.scale ? draw() : fit())).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
