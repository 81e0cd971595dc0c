// File names are data: they reach the page as text, never as markup.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data");
const pictures = read("pictures");
// An image is known by its place in these columns.
const { images, clusters, tree } = data;
const k = data.num_clusters;
const numShown = images.key.length;
const labelled = "label" in images;
// Without any picture names have to do; otherwise what has none is left out.
const illustrated = pictures.length > 0;
const tinySide = 28;

const $ = (id) => document.getElementById(id);

// Makes an element; attributes that are null are left out, and so are children.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function button(text, onclick, attributes = {}) {
  return make("button", { type: "button", onclick, ...attributes }, text);
}

const link = (text, onclick) => button(text, onclick, { class: "link" });

const number = (n) => n.toLocaleString("en");
const count = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;
const inImages = (n) => count(n, "image", "images");

function decimal(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  return value
    .toFixed(digits)
    .replace(/^-(?=0\.?0*$)/, "")
    .replace("-", "−");
}

function later(work, milliseconds = 120) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), milliseconds);
  };
}

// Tells what has happened: to those who see, and to those who listen.
function say(text) {
  $("toast").textContent = text;
  $("toast").classList.add("there");
  sayNoMore();
}
const sayNoMore = later(() => $("toast").classList.remove("there"), 2500);

function picture(image, attributes = {}) {
  const name = images.key[image];
  const at = images.picture[image];
  if (at < 0) {
    return make(
      "span",
      { class: "none", role: "img", "aria-label": name, title: name },
      fileName(image),
    );
  }
  const img = make("img", {
    src: `data:image/webp;base64,${pictures[at]}`,
    alt: name,
    decoding: "async",
    draggable: "false",
    ...attributes,
  });
  // Digits of 8 x 8 pixels are to look like that, not like fog.
  img.addEventListener("load", () => {
    const side = Math.max(img.naturalWidth, img.naturalHeight);
    img.classList.toggle("tiny", side <= tinySide);
  });
  return img;
}

// Draws what a list has next when its end comes near the screen.
const atEnd = new Map();
const endSeen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      atEnd.get(target)();
      // Whether the end is still near is asked anew.
      endSeen.unobserve(target);
      if (atEnd.has(target)) endSeen.observe(target);
    }
  },
  { rootMargin: "800px", scrollMargin: "800px" },
);

function whenSeen(element, draw) {
  atEnd.set(element, draw);
  endSeen.observe(element);
}

function seenEnough(element) {
  atEnd.delete(element);
  endSeen.unobserve(element);
}
