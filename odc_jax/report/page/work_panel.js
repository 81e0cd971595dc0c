// What was named and marked, and how it is kept.
function renderWork() {
  const merged = work.names.filter((x) => x.clusters.length > 1).length;
  const names = work.names.filter((x) => x.name).length;
  const parts = [
    names ? `${count(names, "cluster", "clusters")} named` : null,
    work.groups.length
      ? `${count(work.groups.length, "group", "groups")} named`
      : null,
    merged ? `${count(merged, "merge", "merges")} of clusters` : null,
    work.images.length ? `${inImages(work.images.length)} marked` : null,
  ].filter(Boolean);
  const unsaved = parts.length && work.edited > savedAt;
  $("work-link").textContent = unsaved
    ? "Your sorting (not saved)"
    : "Your sorting";
  $("work-text").textContent = parts.length
    ? `${parts.join(", ")}. ${
        !unsaved
          ? "All of it is in a file."
          : keeps
            ? "This browser keeps it, on this machine. Save it as a file to be sure."
            : "This browser keeps nothing: save it before you close the page."
      }`
    : "Name a cluster beside its number, mark images with the keys k, e and w, " +
      "merge clusters in the large view of one. It is kept in this browser and " +
      "can be saved as a file.";
  $("undo").disabled = !undone.length;
  for (const id of ["save-work", "marked-csv", "marked-json"]) {
    $(id).disabled = !(id === "save-work" ? parts : work.images).length;
  }
  $("work-how").hidden = !parts.length;
  const shown = $("marked-list").open;
  $("marked-list").hidden = !work.images.length;
  $("marked-galleries").replaceChildren(...(shown ? markedGalleries() : []));
}

const marked = (mark) =>
  images.key.flatMap((key, image) => (markOf.get(key) === mark ? [image] : []));

function markedGalleries() {
  return Object.keys(marks).flatMap((mark) => {
    const list = marked(mark);
    if (!list.length) return [];
    return [
      make(
        "h3",
        {},
        `${mark[0].toUpperCase()}${mark.slice(1)}: ${number(list.length)}`,
      ),
      gallery(list, { title: `marked ${mark}`, note: fileName }),
    ];
  });
}

// A name that can be typed over; `current` says what it is.
const nameFields = new WeakMap();

function nameField(current, label, onName) {
  const field = make("input", {
    class: "name",
    type: "text",
    placeholder: "Name …",
    "aria-label": label,
    autocomplete: "off",
    spellcheck: "false",
    onchange: () => onName(field.value),
    onkeydown: (event) => {
      event.stopPropagation();
      if (event.key === "Escape") {
        event.preventDefault();
        field.value = current();
      }
      if (event.key === "Escape" || event.key === "Enter") field.blur();
    },
  });
  field.value = current();
  nameFields.set(field, current);
  return field;
}

// A cluster's name stands on its sheet and in its large view.
function renderNames() {
  for (const field of document.querySelectorAll("input.name")) {
    field.value = nameFields.get(field)();
  }
}

function startWorkPanel() {
  const all = () => Object.keys(marks).flatMap(marked);
  $("save-work").addEventListener("click", saveWork);
  $("undo").addEventListener("click", undo);
  $("load-work").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) loadWork(await file.text());
    event.target.value = "";
  });
  for (const kind of ["csv", "json"]) {
    $(`marked-${kind}`).addEventListener("click", () =>
      exportImages(all(), kind, "marked"),
    );
  }
  $("marked-list").addEventListener("toggle", renderWork);
  addEventListener("keydown", (event) => {
    if (event.key !== "z" || !(event.ctrlKey || event.metaKey)) return;
    if (event.target.closest("input, textarea")) return;
    event.preventDefault();
    undo();
  });
  addEventListener("beforeunload", (event) => {
    if (!keeps && work.edited > savedAt) event.preventDefault();
  });
  onChange.push(renderWork, renderNames);
  renderWork();
}
