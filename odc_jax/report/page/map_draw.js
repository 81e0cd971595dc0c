// How the map is drawn: points, and pictures where there is room for them.
const leastPicture = 34;
const mostPicture = 110;
const picturesFrom = 1.9; // times the size at which all of it is seen
const fewPoints = 90; // on the screen: these may be pictures at any size
const mostPictures = 400;
const mostDecoded = 1500;

let drawnPictures = []; // { point, x, y, side }
const decoded = new Map(); // image -> <img>, the last used at the end

// In an order that is no order: pictures in it spread over the map.
const spread = Uint32Array.from({ length: numPoints }, (_, i) => i).sort(
  (a, b) =>
    (Math.imul(a + 1, 2654435761) >>> 0) - (Math.imul(b + 1, 2654435761) >>> 0),
);

let pending = 0;
function draw() {
  if (!pending) pending = requestAnimationFrame(drawNow);
}

function trace(shape, x, y, r) {
  if (shape === "circle") {
    pen.moveTo(x + r, y);
    pen.arc(x, y, r, 0, 7);
  } else if (shape === "square") {
    pen.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r);
  } else if (shape === "triangle") {
    pen.moveTo(x, y - 1.2 * r);
    pen.lineTo(x + 1.1 * r, y + 0.8 * r);
    pen.lineTo(x - 1.1 * r, y + 0.8 * r);
    pen.closePath();
  } else if (shape === "diamond") {
    pen.moveTo(x, y - 1.3 * r);
    pen.lineTo(x + 1.1 * r, y);
    pen.lineTo(x, y + 1.3 * r);
    pen.lineTo(x - 1.1 * r, y);
    pen.closePath();
  } else {
    pen.rect(x - 1.2 * r, y - 0.4 * r, 2.4 * r, 0.8 * r);
    pen.rect(x - 0.4 * r, y - 1.2 * r, 0.8 * r, 2.4 * r);
  }
}

const pictureSide = () =>
  Math.min(
    mostPicture,
    Math.max(leastPicture, 30 * Math.sqrt(view.scale / fitScale)),
  );

// Where pictures fit without lying over each other.
function choosePictures() {
  if (!illustrated || $("map-pictures").value === "never") return [];
  const seen = spread.filter(
    (at) => isVisible(at) && onScreen(screenX(at), screenY(at)),
  );
  const always = $("map-pictures").value === "always";
  const near = view.scale / fitScale >= picturesFrom;
  if (!always && !near && seen.length > fewPoints) return [];
  const side = pictureSide();
  const cells = new Map();
  const found = [];
  for (const at of seen) {
    if (found.length >= mostPictures) break;
    if (images.picture[points.image[at]] < 0) continue;
    const [x, y] = [screenX(at), screenY(at)];
    const [column, row] = [Math.floor(x / side), Math.floor(y / side)];
    let free = true;
    for (let dx = -1; dx <= 1 && free; dx++) {
      for (let dy = -1; dy <= 1 && free; dy++) {
        const other = cells.get(`${column + dx} ${row + dy}`);
        free =
          !other ||
          Math.max(Math.abs(other.x - x), Math.abs(other.y - y)) >= side;
      }
    }
    if (!free) continue;
    const box = { point: at, x, y, side: side - 4 };
    cells.set(`${column} ${row}`, box);
    found.push(box);
  }
  return found;
}

// The picture of an image if it is there already; otherwise it is drawn later.
function decodedPicture(image) {
  let img = decoded.get(image);
  if (img) {
    decoded.delete(image);
  } else {
    img = new Image();
    img.src = `data:image/webp;base64,${pictures[images.picture[image]]}`;
    img.addEventListener("load", draw);
    if (decoded.size >= mostDecoded)
      decoded.delete(decoded.keys().next().value);
  }
  decoded.set(image, img);
  return img.complete && img.naturalWidth ? img : null;
}

function drawPicture({ point: at, x, y, side }, style) {
  const image = points.image[at];
  const img = decodedPicture(image);
  const [left, top] = [x - side / 2, y - side / 2];
  pen.fillStyle = style.getPropertyValue("--faint");
  pen.fillRect(left, top, side, side);
  if (img) {
    const { naturalWidth: width, naturalHeight: height } = img;
    const cut = Math.min(width, height);
    pen.imageSmoothingEnabled = cut > tinySide;
    pen.globalAlpha = isFaint(at) ? 0.3 : 1;
    pen.drawImage(
      img,
      (width - cut) / 2,
      (height - cut) / 2,
      cut,
      cut,
      left,
      top,
      side,
      side,
    );
    pen.globalAlpha = 1;
  }
  const picked = selected.has(image);
  pen.strokeStyle = picked
    ? style.getPropertyValue("--text")
    : lookOf(at).colour || style.getPropertyValue("--band-line");
  pen.lineWidth = picked ? 4 : 3;
  pen.strokeRect(left, top, side, side);
}

const isFaint = (at) => !isVisible(at) || (only !== null && kinds[at] !== only);

function drawNow() {
  pending = 0;
  const style = getComputedStyle(document.documentElement);
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const ratio = window.devicePixelRatio || 1;
  if (
    canvas.width !== Math.round(width * ratio) ||
    canvas.height !== Math.round(height * ratio)
  ) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  drawnPictures = choosePictures();
  drawPoints(style);
  for (const box of drawnPictures) drawPicture(box, style);
  if (mode !== "outlier") drawNames(style, width, height);
  drawPointed(style);
  drawLasso(style);
}

function pointRadius() {
  const base = numPoints > 8000 ? 1.8 : numPoints > 2000 ? 2.5 : 3.4;
  return Math.min(9, base * Math.sqrt(view.scale / fitScale));
}

function drawPoints(style) {
  const radius = pointRadius();
  const faint = [];
  const picked = [];
  const byLook = new Map();
  for (let at = 0; at < numPoints; at++) {
    if (!onScreen(screenX(at), screenY(at))) continue;
    if (isFaint(at)) {
      faint.push(at);
      continue;
    }
    if (selected.has(points.image[at])) picked.push(at);
    const look = lookOf(at);
    const name = `${look.colour} ${look.shape}`;
    if (!byLook.has(name)) byLook.set(name, { ...look, list: [] });
    byLook.get(name).list.push(at);
  }
  const fill = (colour, shape, list, r) => {
    pen.fillStyle = colour || style.getPropertyValue("--band-line");
    pen.beginPath();
    for (const at of list) trace(shape, screenX(at), screenY(at), r);
    pen.fill();
  };
  fill(style.getPropertyValue("--faint"), "circle", faint, radius * 0.7);
  for (const { colour, shape, list } of byLook.values()) {
    const larger = mode === "outlier" && shape === "diamond" ? 1.5 : 1;
    fill(colour, shape, list, radius * larger);
  }
  pen.strokeStyle = style.getPropertyValue("--text");
  pen.lineWidth = 1.5;
  pen.beginPath();
  for (const at of picked)
    trace("circle", screenX(at), screenY(at), radius + 2);
  pen.stroke();
}

function drawPointed(style) {
  if (pointed < 0) return;
  const box = drawnPictures.find((other) => other.point === pointed);
  const [x, y] = [screenX(pointed), screenY(pointed)];
  pen.strokeStyle = style.getPropertyValue("--text");
  pen.lineWidth = box ? 4 : 2;
  pen.beginPath();
  if (box) pen.rect(x - box.side / 2, y - box.side / 2, box.side, box.side);
  else pen.arc(x, y, pointRadius() + 5, 0, 7);
  pen.stroke();
}

// Names at the middle of each kind, the largest first, where they fit.
function drawNames(style, width, height) {
  pen.font = `600 12px ${getComputedStyle(document.body).fontFamily}`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineJoin = "round";
  pen.lineWidth = 4;
  pen.strokeStyle = style.getPropertyValue("--surface");
  pen.fillStyle = style.getPropertyValue("--text");
  const boxes = [];
  for (const middle of middles) {
    if (boxes.length >= 120) break;
    if (!middle.seen || (only !== null && middle.kind !== only)) continue;
    const x = (middle.x - view.x) * view.scale + width / 2;
    const y = (view.y - middle.y) * view.scale + height / 2;
    const half = pen.measureText(middle.text).width / 2 + 4;
    if (x < half || y < 9 || x > width - half || y > height - 9) continue;
    const free = boxes.every(
      (box) =>
        Math.abs(box.x - x) >= box.half + half || Math.abs(box.y - y) >= 18,
    );
    if (!free) continue;
    boxes.push({ x, y, half });
    pen.strokeText(middle.text, x, y);
    pen.fillText(middle.text, x, y);
  }
}
