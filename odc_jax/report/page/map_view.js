function fit() {
  // The longer side goes from 0 to 9999, the other lies in its middle.
  const span = (list) =>
    list.reduce((most, value) => Math.max(most, Math.abs(value - 5000)), 1) * 2;
  const scales = [
    (canvas.clientWidth - 48) / span(points.x),
    (canvas.clientHeight - 48) / span(points.y),
  ];
  fitScale = Math.max(0.001, Math.min(...scales));
  Object.assign(view, { x: 5000, y: 5000, scale: fitScale });
  draw();
}

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const scale = Math.min(
    fitScale * 60,
    Math.max(fitScale * 0.8, view.scale * factor),
  );
  // What lies under the pointer stays there.
  const [dx, dy] = [x - canvas.clientWidth / 2, y - canvas.clientHeight / 2];
  view.x += dx / view.scale - dx / scale;
  view.y -= dy / view.scale - dy / scale;
  view.scale = scale;
  placeTip();
  draw();
}

function pan(dx, dy) {
  view.x -= dx / view.scale;
  view.y += dy / view.scale;
  placeTip();
  draw();
}

function nearestPoint(x, y, most) {
  let best = -1;
  let least = most * most;
  for (let point = 0; point < numPoints; point++) {
    if (visible && !visible[point]) continue;
    const distance = (screenX(point) - x) ** 2 + (screenY(point) - y) ** 2;
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
}

function describe(point) {
  const image = points.image[point];
  const c = images.cluster[image];
  const parts = [inText(c)];
  if (grouping) parts.push(groupTitle(groupOf(headOf(c))));
  if (labelled) parts.push(withLabel(images.label[image]));
  if (mode === "outlier" || images.is_outlier[image])
    parts.push(`outlier score ${decimal(images.outlier_score[image])}`);
  return parts.join(", ");
}

function select(point, say) {
  if (point !== pointed) {
    pointed = point;
    $("tip").hidden = point < 0;
    if (point >= 0) {
      const image = points.image[point];
      $("tip").replaceChildren(
        ...(images.picture[image] >= 0 ? [picture(image)] : []),
        make("div", { class: "file" }, images.key[image]),
        make("div", { class: "soft" }, describe(point)),
      );
    }
    placeTip();
    draw();
  }
  if (say && point >= 0)
    $("map-status").textContent =
      `${images.key[points.image[point]]}: ${describe(point)}`;
}

function placeTip() {
  if (pointed < 0) return;
  const tip = $("tip");
  const [x, y] = [screenX(pointed), screenY(pointed)];
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const left = x + 16 + width < canvas.clientWidth ? x + 16 : x - 16 - width;
  tip.style.left = `${Math.max(4, Math.min(left, canvas.clientWidth - width - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(y - height / 2, canvas.clientHeight - height - 4))}px`;
}

// Goes to the nearest image in a direction, in a cone of 90 degrees.
function step(dx, dy) {
  if (pointed < 0) {
    select(
      nearestPoint(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity),
      true,
    );
    return;
  }
  const [x, y] = [screenX(pointed), screenY(pointed)];
  let best = -1;
  let least = Infinity;
  for (let point = 0; point < numPoints; point++) {
    if (point === pointed || (visible && !visible[point])) continue;
    const along = (screenX(point) - x) * dx + (screenY(point) - y) * dy;
    const across =
      Math.abs((screenX(point) - x) * dy) + Math.abs((screenY(point) - y) * dx);
    if (along <= 0 || across > along) continue;
    const distance = along + 2 * across;
    if (distance < least) [best, least] = [point, distance];
  }
  if (best < 0) return;
  select(best, true);
  const [px, py] = [screenX(best), screenY(best)];
  const out =
    px < 20 ||
    py < 20 ||
    px > canvas.clientWidth - 20 ||
    py > canvas.clientHeight - 20;
  if (out) pan(canvas.clientWidth / 2 - px, canvas.clientHeight / 2 - py);
}

function filterMap() {
  const found = search($("map-search").value);
  const group = $("map-group").value;
  pointed = -1;
  $("tip").hidden = true;
  visible = null;
  let shown = numPoints;
  if (found || group !== "") {
    const hits = found && hitBy(found);
    visible = new Uint8Array(numPoints);
    shown = 0;
    for (let point = 0; point < numPoints; point++) {
      const image = points.image[point];
      const c = headOf(images.cluster[image]);
      const hit =
        (!found || hits(image)) &&
        (group === "" || groupOf(c) === Number(group));
      visible[point] = hit ? 1 : 0;
      shown += visible[point];
    }
  }
  $("map-status").textContent = visible
    ? `${number(shown)} of ${count(numPoints, "point", "points")} shown.`
    : "";
  findMiddles();
  draw();
}
