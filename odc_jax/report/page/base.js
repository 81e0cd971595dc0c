// File names are data: they reach the page as text, never as markup.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data");
const pictures = read("pictures");
const { images, clusters, tree } = data;
const k = data.num_clusters;
const labelled = "label" in images;
const pageSize = 48;
const mostFiles = 18;
const mostNames = 3;
const tinySide = 28;

const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const count = (n, one, many) =>
  `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const inImages = (n) => count(n, "image", "images");

function decimal(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  return value
    .toFixed(digits)
    .replace(/^-(?=0\.?0*$)/, "")
    .replace("-", "−");
}

function labelName(label) {
  if (label === null || label === undefined || label < 0) return "unknown";
  return data.label_names[label] ?? `label ${label}`;
}

const withLabel = (label) =>
  label in data.label_names
    ? `label ${data.label_names[label]}`
    : labelName(label);

function picture(image) {
  const name = images.key[image];
  const at = images.picture[image];
  if (at < 0) {
    return make(
      "span",
      { class: "none", role: "img", "aria-label": name, title: name },
      "no picture",
    );
  }
  const img = make("img", {
    src: `data:image/webp;base64,${pictures[at]}`,
    alt: name,
    title: name,
    loading: "lazy",
    decoding: "async",
  });
  // Digits of 8 x 8 pixels are to look like that, not like fog.
  img.addEventListener("load", () => {
    img.classList.toggle(
      "tiny",
      Math.max(img.naturalWidth, img.naturalHeight) <= tinySide,
    );
  });
  return img;
}

function clusterLink(c, text = `Cluster ${c}`) {
  return make(
    "button",
    { type: "button", class: "link", onclick: () => openCluster(c) },
    text,
  );
}

// An image with its name and what is known of it.
function figure(image, { link = false, facts = [] } = {}) {
  const lines = facts.map((fact) => make("span", {}, fact));
  if (labelled && images.label[image] >= 0) {
    lines.push(make("span", {}, withLabel(images.label[image])));
  }
  return make(
    "li",
    {},
    picture(image),
    make(
      "span",
      { class: "file", title: images.key[image] },
      images.key[image],
    ),
    make("span", { class: "soft" }, ...lines),
    link ? clusterLink(images.cluster[image]) : null,
  );
}
