// Numbers at the middle of each cluster, the largest first, where they fit.
let middles = [];
function findMiddles() {
  const found = new Map();
  for (let point = 0; point < numPoints; point++) {
    if (visible && !visible[point]) continue;
    const value = category(point);
    if (value < 0) continue;
    if (!found.has(value)) found.set(value, []);
    found.get(value).push(point);
  }
  const median = (list) => list.sort((a, b) => a - b)[list.length >> 1];
  middles = [...found]
    .sort((a, b) => b[1].length - a[1].length)
    .map(([value, list]) => ({
      text: shortName(value),
      x: median(list.map((point) => points.x[point])),
      y: median(list.map((point) => points.y[point])),
    }));
}

const shortName = (value) =>
  (mode === "label"
    ? labelName(value)
    : mode === "group"
      ? groupName(groupSizes.get(value)?.list ?? [])
      : nameOf(value)) || String(value);

function drawNumbers(style, width, height) {
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
    const x = (middle.x - view.x) * view.scale + width / 2;
    const y = (view.y - middle.y) * view.scale + height / 2;
    const half = pen.measureText(middle.text).width / 2 + 4;
    if (x < half || y < 9 || x > width - half || y > height - 9) continue;
    if (
      boxes.some(
        (box) =>
          Math.abs(box.x - x) < box.half + half && Math.abs(box.y - y) < 18,
      )
    )
      continue;
    boxes.push({ x, y, half });
    pen.strokeText(middle.text, x, y);
    pen.fillText(middle.text, x, y);
  }
}
