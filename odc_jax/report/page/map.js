// Six colours that the colour-blind tell apart (Paul Tol, "bright"), and
// five shapes: thirty looks. Beyond that they repeat, and the numbers on the
// map tell.
const palette = [
  "#4477aa",
  "#ee6677",
  "#228833",
  "#ccbb44",
  "#66ccee",
  "#aa3377",
];
const shapes = ["circle", "square", "triangle", "diamond", "cross"];
const looks = palette.length * shapes.length;
const points = data.map;
const numPoints = points.image.length;
const canvas = $("canvas");
const pen = canvas.getContext("2d");
const view = { x: 5000, y: 5000, scale: 0 };
let fitScale = 0.05;
let pointed = -1;
let visible = null; // Uint8Array, or null for all
let mode = "cluster";

function category(point) {
  const image = points.image[point];
  const c = headOf(images.cluster[image]);
  if (mode === "group") return grouping ? groupOf(c) : c;
  if (mode === "label") return images.label[image];
  return c;
}

function categoryName(value) {
  if (mode === "label") return labelName(value);
  return mode === "group" ? groupTitle(value) : clusterTitle(value);
}

function look(value) {
  if (value < 0) return { colour: "", shape: "circle" };
  return {
    colour: palette[value % palette.length],
    shape: shapes[Math.floor(value / palette.length) % shapes.length],
  };
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

const screenX = (point) =>
  (points.x[point] - view.x) * view.scale + canvas.clientWidth / 2;
// Up is more, as in any plot.
const screenY = (point) =>
  (view.y - points.y[point]) * view.scale + canvas.clientHeight / 2;

let pending = 0;
function draw() {
  if (!pending) pending = requestAnimationFrame(drawNow);
}

function ramp(score) {
  // cividis, from its blue to its yellow; readable on both papers.
  const stops = [
    [0x3b, 0x56, 0x8f],
    [0x7d, 0x7c, 0x78],
    [0xd0, 0xae, 0x2c],
  ];
  const at = Math.min(0.999, Math.max(0, score ?? 0)) * 2;
  const [low, high] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]];
  return `rgb(${low.map((value, i) => Math.round(value + (high[i] - value) * (at % 1))).join(" ")})`;
}

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
  const base = numPoints > 8000 ? 1.8 : numPoints > 2000 ? 2.5 : 3.4;
  const radius = Math.min(9, base * Math.sqrt(view.scale / fitScale));
  const faint = [];
  const byLook = new Map();
  for (let point = 0; point < numPoints; point++) {
    const [x, y] = [screenX(point), screenY(point)];
    if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
    if (visible && !visible[point]) {
      faint.push(point);
      continue;
    }
    let { colour, shape } = look(category(point));
    if (mode === "outlier") {
      const image = points.image[point];
      // Twelve steps: as many fills, not twenty thousand.
      colour = ramp(Math.round((images.outlier_score[image] ?? 0) * 12) / 12);
      shape = images.is_outlier[image] ? "diamond" : "circle";
    }
    const name = `${colour} ${shape}`;
    if (!byLook.has(name)) byLook.set(name, { colour, shape, points: [] });
    byLook.get(name).points.push(point);
  }
  const fill = (colour, shape, list, r) => {
    pen.fillStyle = colour || style.getPropertyValue("--band-line");
    pen.beginPath();
    for (const point of list) trace(shape, screenX(point), screenY(point), r);
    pen.fill();
  };
  fill(style.getPropertyValue("--faint"), "circle", faint, radius * 0.7);
  for (const { colour, shape, points: list } of byLook.values()) {
    const larger = mode === "outlier" && shape === "diamond" ? 1.5 : 1;
    fill(colour, shape, list, radius * larger);
  }
  if (mode !== "outlier") drawNumbers(style, width, height);
  if (pointed >= 0) {
    pen.strokeStyle = style.getPropertyValue("--text");
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(screenX(pointed), screenY(pointed), radius + 5, 0, 7);
    pen.stroke();
  }
}
