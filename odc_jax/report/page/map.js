// The map: its points, where they are on the screen, and which are shown.
const points = data.map;
const numPoints = points.image.length;
const canvas = $("canvas");
const pen = canvas.getContext("2d");
const view = { x: 5000, y: 5000, scale: 0 };
let fitScale = 0.05;
let pointed = -1; // the point that is looked at, or -1
let visible = null; // Uint8Array, or null for all
let numVisible = numPoints;
let mode = "cluster"; // what the colours mean
let kinds = new Int32Array(numPoints); // of each point, by that; -1 for none

const markNames = Object.keys(marks);

function kindOf(image) {
  const c = headOf(images.cluster[image]);
  if (mode === "group") return grouping ? groupOf(c) : c;
  if (mode === "label") return images.label[image];
  if (mode === "mark") return markNames.indexOf(markOf.get(images.key[image]));
  return c;
}

function kindName(kind) {
  if (mode === "mark") return markNames[kind] ?? "no mark";
  if (mode === "label") return labelName(kind);
  return mode === "group" ? groupTitle(kind) : clusterTitle(kind);
}

// On the map there is room for a name, or for a number.
function shortName(kind) {
  if (mode === "mark") return "";
  if (mode === "label") return labelName(kind);
  const name =
    mode === "group" ? groupName(groupSizes.get(kind).list) : nameOf(kind);
  return name || String(kind);
}

const screenX = (point) =>
  (points.x[point] - view.x) * view.scale + canvas.clientWidth / 2;
// Up is more, as in any plot.
const screenY = (point) =>
  (view.y - points.y[point]) * view.scale + canvas.clientHeight / 2;
const onScreen = (x, y, margin = 9) =>
  x > -margin &&
  y > -margin &&
  x < canvas.clientWidth + margin &&
  y < canvas.clientHeight + margin;
const isVisible = (point) => !visible || visible[point] === 1;

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
  moved();
}

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const most = fitScale * 60;
  const scale = Math.min(most, Math.max(fitScale * 0.8, view.scale * factor));
  // What lies under the pointer stays there.
  const [dx, dy] = [x - canvas.clientWidth / 2, y - canvas.clientHeight / 2];
  view.x += dx / view.scale - dx / scale;
  view.y -= dy / view.scale - dy / scale;
  view.scale = scale;
  moved();
}

function pan(dx, dy) {
  view.x -= dx / view.scale;
  view.y += dy / view.scale;
  moved();
}

function moved() {
  placeTip();
  draw();
}

// The picture under the pointer, or the point that is nearest to it.
function pointAt(x, y, most) {
  const under = drawnPictures.findLast(
    (box) => Math.max(Math.abs(box.x - x), Math.abs(box.y - y)) <= box.side / 2,
  );
  return under ? under.point : nearestPoint(x, y, most);
}

function nearestPoint(x, y, most) {
  let best = -1;
  let least = most * most;
  for (let point = 0; point < numPoints; point++) {
    if (!isVisible(point)) continue;
    const distance = (screenX(point) - x) ** 2 + (screenY(point) - y) ** 2;
    if (distance < least) [best, least] = [point, distance];
  }
  return best;
}

function describe(point) {
  const image = points.image[point];
  const c = headOf(images.cluster[image]);
  const parts = [inText(c)];
  if (grouping) parts.push(groupTitle(groupOf(c)));
  if (labelled) parts.push(withLabel(images.label[image]));
  if (mode === "outlier" || images.is_outlier[image]) {
    parts.push(`outlier score ${decimal(images.outlier_score[image])}`);
  }
  if (markOf.has(images.key[image])) parts.push(markOf.get(images.key[image]));
  return parts.join(", ");
}

function point(at, aloud) {
  if (at !== pointed) {
    pointed = at;
    $("tip").hidden = at < 0;
    if (at >= 0) {
      const image = points.image[at];
      $("tip").replaceChildren(
        ...(images.picture[image] >= 0 ? [picture(image)] : []),
        make("div", { class: "file" }, images.key[image]),
        make("div", { class: "soft" }, describe(at)),
      );
    }
    moved();
  }
  if (aloud && at >= 0) {
    $("map-status").textContent =
      `${images.key[points.image[at]]}: ${describe(at)}`;
  }
}

function placeTip() {
  if (pointed < 0) return;
  const tip = $("tip");
  const [x, y] = [screenX(pointed), screenY(pointed)];
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const away = 16 + (drawnPictures.length ? pictureSide() / 2 : 0);
  const right = x + away + width < canvas.clientWidth;
  const left = right ? x + away : x - away - width;
  const within = (value, size, all) =>
    Math.max(4, Math.min(value, all - size - 4));
  tip.style.left = `${within(left, width, canvas.clientWidth)}px`;
  tip.style.top = `${within(y - height / 2, height, canvas.clientHeight)}px`;
}

// Goes to the nearest image in a direction, in a cone of 90 degrees.
function step(dx, dy) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (pointed < 0) {
    point(nearestPoint(width / 2, height / 2, Infinity), true);
    return;
  }
  const [x, y] = [screenX(pointed), screenY(pointed)];
  let best = -1;
  let least = Infinity;
  for (let other = 0; other < numPoints; other++) {
    if (other === pointed || !isVisible(other)) continue;
    const [ox, oy] = [screenX(other) - x, screenY(other) - y];
    const along = ox * dx + oy * dy;
    const across = Math.abs(ox * dy) + Math.abs(oy * dx);
    if (along <= 0 || across > along) continue;
    const distance = along + 2 * across;
    if (distance < least) [best, least] = [other, distance];
  }
  if (best < 0) return;
  point(best, true);
  const [px, py] = [screenX(best), screenY(best)];
  if (!onScreen(px, py, -20)) pan(width / 2 - px, height / 2 - py);
}

function filterMap() {
  const found = search($("map-search").value);
  const group = $("map-group").value;
  visible = null;
  numVisible = numPoints;
  if (found || group !== "") {
    const hits = found && hitBy(found);
    visible = new Uint8Array(numPoints);
    numVisible = 0;
    for (let at = 0; at < numPoints; at++) {
      const image = points.image[at];
      const c = headOf(images.cluster[image]);
      const hit =
        (!found || hits(image)) &&
        (group === "" || groupOf(c) === Number(group));
      visible[at] = hit ? 1 : 0;
      numVisible += visible[at];
    }
  }
  if (pointed >= 0 && !isVisible(pointed)) point(-1, false);
  colourMap();
}

// As somebody has asked for it.
function filterMapAloud() {
  filterMap();
  $("map-status").textContent = visible
    ? `${number(numVisible)} of ${count(numPoints, "point", "points")} shown.`
    : "";
}
