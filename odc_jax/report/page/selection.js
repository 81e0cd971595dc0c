// Images that are picked out, and what can be done with them.
const selected = new Set();
let lastPicked = -1;

// Picks an image, or lets it go; with `range` all from the last one on.
function pick(image, list, range) {
  const [from, to] = [list.indexOf(lastPicked), list.indexOf(image)];
  if (range && from >= 0 && to >= 0) {
    const some = list.slice(Math.min(from, to), Math.max(from, to) + 1);
    for (const other of some) selected.add(other);
  } else if (!selected.delete(image)) {
    selected.add(image);
  }
  lastPicked = image;
  repaint();
}

function pickAll(list) {
  for (const image of list) selected.add(image);
  repaint();
}

function pickNone() {
  selected.clear();
  lastPicked = -1;
  repaint();
}

// What a key or a button marks: the selection if this one is in it.
const targets = (image) => (selected.has(image) ? [...selected] : [image]);

function paint(tileElement) {
  const image = Number(tileElement.dataset.image);
  tileElement.setAttribute("aria-selected", selected.has(image));
  const mark = markOf.get(images.key[image]) ?? "";
  if (mark === (tileElement.dataset.mark ?? "")) return;
  tileElement.dataset.mark = mark;
  tileElement.querySelector(".badge").textContent = mark;
}

function repaint() {
  for (const tileElement of document.querySelectorAll(".tile")) {
    paint(tileElement);
  }
  paintMarks();
  draw();
  $("bar").hidden = !selected.size;
  $("bar-count").textContent = `${number(selected.size)} selected`;
}

// Lies in whatever is on top: below an open dialog nothing can be clicked.
function raiseBars() {
  const open = [...document.querySelectorAll("dialog[open]")];
  const top = open.includes($("viewer"))
    ? $("viewer")
    : (open[0] ?? document.body);
  if ($("bar").parentElement !== top) top.append($("bar"), $("toast"));
}

const fieldsOf = (image) => ({
  path: filePath(image),
  key: images.key[image],
  index: images.index[image],
  cluster: images.cluster[image],
  cluster_name: nameOf(images.cluster[image]),
  mark: markOf.get(images.key[image]) ?? "",
});

function exportImages(list, kind, name) {
  const rows = list.map(fieldsOf);
  if (kind === "json") {
    saveFile(`${name}.json`, JSON.stringify(rows, null, 1), "application/json");
    return;
  }
  const cell = (value) =>
    /[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value;
  const lines = [
    ["path", "key", "index", "cluster", "cluster_name", "mark"],
    ...rows.map((row) => Object.values(row)),
  ].map((row) => row.map(cell).join(","));
  saveFile(`${name}.csv`, `${lines.join("\r\n")}\r\n`, "text/csv");
}

// Buttons for marks; `list` is asked when one is clicked.
function markButtons(list) {
  return Object.entries(marks).map(([mark, key]) =>
    button(
      mark[0].toUpperCase() + mark.slice(1),
      () => markImages(list(), mark),
      {
        class: "mark",
        "data-mark": mark,
        title: `Key: ${key}`,
      },
    ),
  );
}

function startSelection() {
  const all = () => [...selected];
  $("bar-tools").append(
    ...markButtons(all),
    button("Copy paths", () => copy(all().map(filePath).join("\n"))),
    button("Save as CSV", () => exportImages(all(), "csv", "selection")),
    button("Save as JSON", () => exportImages(all(), "json", "selection")),
    button("Show", () => go("#selected")),
    button("Clear", pickNone),
  );
  places.selected = () => {
    viewed = null; // the selection may be another one than before
    openDialog(`Selected: ${inImages(selected.size)}`, () => [
      gallery(all(), { title: "selected images", note: fileName }),
    ]);
    return true;
  };
  onChange.push(repaint);
}
