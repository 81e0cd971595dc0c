// A list of pictures to walk through, with the mouse and with the keyboard.
const chunk = 90;
// What a click on a picture shows the next and the last of.
let context = { list: [], title: "" };

function openImage(image, list, title) {
  context = { list, title };
  go(`#image-${images.index[image]}`);
}

function tile(image, note) {
  const element = make(
    "li",
    {
      class: "tile",
      role: "option",
      tabindex: "-1",
      "data-image": image,
      "aria-label": [images.key[image], note].filter(Boolean).join(", "),
      title: images.key[image],
    },
    picture(image, { alt: "" }),
    make("span", { class: "check", title: "Select", "aria-hidden": "true" }),
    make("span", { class: "badge" }),
    note ? make("span", { class: "note-line" }, note) : null,
  );
  paint(element);
  return element;
}

// Returns an element with the pictures of `list`, drawn as they come into view.
//   title  what the list is, in words
//   first  how many there are at most, or all
//   note   image -> a line below its picture
function gallery(list, { title, first = list.length, note = () => "" }) {
  const shown = list.slice(0, first);
  const box = make("ul", {
    class: "gallery",
    role: "listbox",
    "aria-label": title,
    "aria-multiselectable": "true",
  });
  let drawn = 0;
  const draw = (most) => {
    const more = shown.slice(drawn, drawn + most);
    box.append(...more.map((image) => tile(image, note(image))));
    drawn += more.length;
    if (drawn >= shown.length) seenEnough(end);
    end.hidden = drawn >= shown.length;
  };
  const end = make("p", { class: "soft" }, "More are drawn as you scroll.");
  draw(chunk);
  box.firstElementChild?.setAttribute("tabindex", "0");
  box.addEventListener("click", (event) => {
    const at = event.target.closest(".tile");
    if (!at) return;
    stand(box, at);
    const image = Number(at.dataset.image);
    const many = event.ctrlKey || event.metaKey || event.shiftKey;
    if (many || event.target.closest(".check")) {
      pick(image, shown, event.shiftKey);
    } else {
      openImage(image, list, title);
    }
  });
  box.addEventListener("keydown", (event) => {
    const at = event.target.closest(".tile");
    if (!at || event.altKey) return;
    if (pressed(event, box, at, shown, draw)) event.preventDefault();
    else if (event.key === "Enter") {
      event.preventDefault();
      openImage(Number(at.dataset.image), list, title);
    }
  });
  if (drawn < shown.length) whenSeen(end, () => draw(chunk));
  return make("div", {}, box, end);
}

// Returns whether a key was for the list: walking, picking, marking.
function pressed(event, box, at, shown, draw) {
  const image = Number(at.dataset.image);
  if (event.ctrlKey || event.metaKey) {
    if (event.key !== "a") return false;
    pickAll(shown);
    return true;
  }
  const mark = Object.keys(marks).find((name) => marks[name] === event.key);
  if (mark) markImages(targets(image), mark);
  else if (event.key === " ") pick(image, shown, event.shiftKey);
  else if (event.key === "Escape" && selected.size) pickNone();
  else {
    const next = walk(box, at, event.key, draw);
    if (!next) return false;
    if (event.shiftKey) {
      if (!selected.size) pick(image, shown, false);
      pick(Number(next.dataset.image), shown, true);
    }
  }
  return true;
}

// Only the picture that one stands on is a stop of the Tab key.
function stand(box, at) {
  box.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
  at.setAttribute("tabindex", "0");
  at.focus();
}

// Goes where an arrow key points to, and returns that tile.
function walk(box, at, key, draw) {
  const tiles = [...box.children];
  const columns = tiles.filter(
    (x) => x.offsetTop === tiles[0].offsetTop,
  ).length;
  const place = tiles.indexOf(at);
  const moves = {
    ArrowLeft: place - 1,
    ArrowRight: place + 1,
    ArrowUp: place - columns,
    ArrowDown: place + columns,
    Home: 0,
    End: Infinity,
  };
  if (!(key in moves)) return null;
  if (moves[key] >= tiles.length) draw(key === "End" ? Infinity : chunk);
  const last = box.children.length - 1;
  const target = box.children[Math.min(last, Math.max(0, moves[key]))];
  stand(box, target);
  return target;
}
