// Which colour and shape stands for what: what lies side by side on the map
// gets colours that are far apart, however many there are.
// Paul Tol's "bright", which the colour-blind tell apart, and six more.
const palette = [
  "#4477aa",
  "#ee6677",
  "#228833",
  "#ccbb44",
  "#66ccee",
  "#aa3377",
  "#e07b20",
  "#86582c",
  "#b58ae0",
  "#3fb08f",
  "#c8102e",
  "#4b4fc4",
];
const shapes = ["circle", "square", "triangle", "diamond", "cross"];
const fewColours = 6;
const nearKinds = 8;
const mostInLegend = palette.length * shapes.length;

let looks = new Map(); // kind -> { colour, shape }
let middles = []; // of every kind, the largest first
let only = null; // the kind that alone is in colour, or null

// Ottosson's OKLab (2020), in which distances are about what one sees.
function oklab(hex) {
  const [r, g, b] = [1, 3, 5].map((at) => {
    const value = parseInt(hex.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

const inOklab = palette.map(oklab);
const apart = inOklab.map((one) =>
  inOklab.map((other) => Math.hypot(...one.map((x, i) => x - other[i]))),
);

function findMiddles() {
  const found = new Map();
  for (let at = 0; at < numPoints; at++) {
    if (kinds[at] < 0) continue;
    if (!found.has(kinds[at])) found.set(kinds[at], []);
    found.get(kinds[at]).push(at);
  }
  const median = (list) => list.sort((a, b) => a - b)[list.length >> 1];
  return [...found]
    .sort((a, b) => b[1].length - a[1].length || a[0] - b[0])
    .map(([kind, list]) => ({
      kind,
      text: shortName(kind),
      seen: list.some(isVisible),
      x: median(list.map((at) => points.x[at])),
      y: median(list.map((at) => points.y[at])),
    }));
}

// One after the other, the largest first: the colour that is least like those
// of its neighbours, and of such the one that is used least.
function findLooks() {
  const colours = middles.length <= fewColours ? fewColours : palette.length;
  const used = new Array(colours).fill(0);
  const done = [];
  const found = new Map();
  for (const middle of middles) {
    const near = done
      .map((other) => ({
        colour: other.colour,
        distance: Math.hypot(other.x - middle.x, other.y - middle.y) + 100,
      }))
      .sort((a, b) => a.distance - b.distance)
      .slice(0, nearKinds);
    const alike = (colour) =>
      near.reduce(
        (sum, other) =>
          sum + 1 / ((apart[colour][other.colour] + 0.05) * other.distance),
        0,
      );
    const best = [...used.keys()].sort(
      (a, b) => used[a] - used[b] || alike(a) - alike(b) || a - b,
    );
    // Of those that are used as little as any, and of the next: neighbours
    // matter more than an even use.
    const least = used[best[0]];
    const candidates = best.filter((colour) => used[colour] <= least + 1);
    candidates.sort((a, b) => alike(a) - alike(b));
    const colour = candidates[0];
    found.set(middle.kind, {
      colour: palette[colour],
      shape: shapes[used[colour] % shapes.length],
    });
    used[colour] += 1;
    done.push({ ...middle, colour });
  }
  return found;
}

const noLook = { colour: "", shape: "circle" };
const markLooks = [
  { colour: "#228833", shape: "circle" },
  { colour: "#c8102e", shape: "cross" },
  { colour: "#e07b20", shape: "triangle" },
];

function lookOf(at) {
  const image = points.image[at];
  if (mode === "outlier") {
    // Twelve steps: as many fills, not twenty thousand.
    const score = Math.round((images.outlier_score[image] ?? 0) * 12) / 12;
    const shape = images.is_outlier[image] ? "diamond" : "circle";
    return { colour: ramp(score), shape };
  }
  return looks.get(kinds[at]) ?? noLook;
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
  const mixed = low.map((x, i) => Math.round(x + (high[i] - x) * (at % 1)));
  return `rgb(${mixed.join(" ")})`;
}

// After anything that the colours depend on.
function colourMap() {
  kinds = Int32Array.from(points.image, (image) => kindOf(image));
  middles = findMiddles();
  looks =
    mode === "mark"
      ? new Map(markLooks.map((look, kind) => [kind, look]))
      : findLooks();
  if (!looks.has(only)) only = null;
  renderLegend();
  draw();
}

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
  const list = [...looks.keys()].sort((a, b) => a - b);
  if (list.length > mostInLegend) {
    legend.replaceChildren(
      make(
        "li",
        {},
        `${number(list.length)} of them share ${palette.length} colours and ` +
          `${shapes.length} shapes; none has the colour of its neighbours, and ` +
          "the numbers on the map tell, more of them as you zoom in.",
      ),
    );
    return;
  }
  const item = (kind) => {
    const element = button("", () => {
      only = only === kind ? null : kind;
      for (const [i, other] of [...legend.children].entries()) {
        other.firstChild.setAttribute("aria-pressed", list[i] === only);
      }
      draw();
    });
    element.append(swatch(looks.get(kind)), kindName(kind));
    element.setAttribute("aria-pressed", kind === only);
    return make("li", {}, element);
  };
  legend.replaceChildren(...list.map(item));
}
