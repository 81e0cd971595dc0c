// What somebody finds out while looking: names of clusters and groups, clusters
// that are taken for one, marks of images. Kept in the browser, and saved as
// annotations.json (results/annotations.py says what is in it).
const marks = { keep: "k", exclude: "e", "wrong cluster": "w" };
const storeName = `odc_jax ${data.run}`;
const mostCentral = 24;
const mostUndone = 50;

const nothing = () => ({
  format: "odc_jax annotations",
  version: 1,
  run: data.run,
  edited: "",
  names: [],
  groups: [],
  images: [],
  central: {},
});
let work = nothing();
let savedAt = ""; // when what is in a file was edited
let keeps = true; // whether the browser keeps anything
const undone = []; // what was there before each change, as text
let named = new Map(); // cluster -> its entry in work.names
let markOf = new Map(); // key -> mark
const onChange = []; // what is drawn anew

function indexWork() {
  named = new Map();
  for (const entry of work.names) {
    for (const c of entry.clusters) named.set(c, entry);
  }
  markOf = new Map(work.images.map(({ key, mark }) => [key, mark]));
}

// Every change goes through here: one step back, kept, and drawn.
function change(alter) {
  undone.push(JSON.stringify(work));
  undone.splice(0, undone.length - mostUndone);
  alter();
  work.names = work.names.filter((x) => x.name || x.clusters.length > 1);
  work.groups = work.groups.filter((x) => x.name);
  work.edited = new Date().toISOString();
  changed();
}

function changed() {
  indexWork();
  try {
    localStorage.setItem(storeName, JSON.stringify({ work, savedAt }));
  } catch {
    keeps = false;
  }
  for (const draw of onChange) draw();
}

function undo() {
  if (!undone.length) return;
  work = JSON.parse(undone.pop());
  work.edited = new Date().toISOString();
  changed();
  say("Undone");
}

// Clusters that are taken for one are known by the first of them.
const headOf = (c) => named.get(c)?.clusters[0] ?? c;
const clustersOf = (c) => named.get(c)?.clusters ?? [c];
const nameOf = (c) => named.get(c)?.name ?? "";

function rename(c, name) {
  const text = name.trim();
  if (text === nameOf(c)) return;
  change(() => {
    if (named.has(c)) named.get(c).name = text;
    else work.names.push({ clusters: [c], name: text });
  });
}

// All that is in any of these clusters becomes one, with the first name.
function mergeClusters(list) {
  const all = [...new Set(list.flatMap(clustersOf))].sort((a, b) => a - b);
  const name = list.map(nameOf).find(Boolean) ?? "";
  change(() => {
    work.names = work.names.filter((x) => !all.includes(x.clusters[0]));
    work.names.push({ clusters: all, name });
  });
}

function takeApart(c) {
  const { clusters: parts, name } = named.get(c);
  change(() => {
    work.names = work.names.filter((x) => x !== named.get(c));
    // The name stays with the largest.
    const largest = parts.reduce((a, b) =>
      clusters.size[b] > clusters.size[a] ? b : a,
    );
    work.names.push({ clusters: [largest], name });
  });
}

const sameClusters = (a, b) =>
  a.length === b.length && a.every((c, i) => c === b[i]);

const groupName = (list) =>
  work.groups.find((x) => sameClusters(x.clusters, list))?.name ?? "";

function renameGroup(list, name) {
  if (name.trim() === groupName(list)) return;
  change(() => {
    work.groups = work.groups.filter((x) => !sameClusters(x.clusters, list));
    work.groups.push({ clusters: list, name: name.trim() });
  });
}

// The same mark twice is none.
function markImages(list, mark) {
  const keys = new Set(list.map((image) => images.key[image]));
  const all = [...keys].every((key) => markOf.get(key) === mark);
  change(() => {
    work.images = work.images.filter(({ key }) => !keys.has(key));
    if (mark && !all)
      work.images.push(...[...keys].map((key) => ({ key, mark })));
  });
  say(
    mark && !all
      ? `${inImages(keys.size)}: ${mark}`
      : `${inImages(keys.size)}: no mark`,
  );
}

// What a file holds. The central images tell another run which cluster is meant.
function fileOfWork() {
  const central = {};
  for (const { clusters: list } of [...work.names, ...work.groups]) {
    for (const c of list) {
      central[c] = ownMembers(c)
        .slice(0, mostCentral)
        .map((i) => images.key[i]);
    }
  }
  return JSON.stringify({ ...work, central }, null, 1);
}

function saveWork() {
  saveFile("annotations.json", fileOfWork(), "application/json");
  savedAt = work.edited;
  changed();
}

// Takes in a file. Of another run only the marks: its clusters are others.
function loadWork(text) {
  let found;
  try {
    found = JSON.parse(text);
    if (found.format !== work.format) throw new Error();
    const known = found.images.every(({ key, mark }) => key && mark in marks);
    if (found.version !== 1 || !known) throw new Error();
  } catch {
    say("This file holds no annotations");
    return;
  }
  const same = found.run === data.run;
  change(() => {
    work = same
      ? { ...nothing(), ...found }
      : { ...work, images: found.images };
  });
  if (same) {
    savedAt = work.edited;
    changed();
  }
  say(
    same
      ? "Loaded"
      : "Marks loaded. Names are of another run: --annotations finds its clusters again.",
  );
}

function saveFile(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// What the page was made with, or what the browser has if that is newer.
function startWork() {
  const given = read("annotations");
  if (given) {
    work = { ...nothing(), ...given };
    savedAt = work.edited;
  }
  try {
    const kept = JSON.parse(localStorage.getItem(storeName));
    if (kept && kept.work.edited > work.edited) ({ work, savedAt } = kept);
  } catch {
    keeps = false;
  }
  indexWork();
}
startWork();
