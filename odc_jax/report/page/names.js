// What things are called, and how they are found by that.
const slash = (image) => images.key[image].lastIndexOf("/") + 1;
const fileName = (image) => images.key[image].slice(slash(image));

function labelName(label) {
  if (label === null || label === undefined || label < 0) return "unknown";
  return data.label_names[label] ?? `label ${label}`;
}

const withLabel = (label) =>
  label in data.label_names
    ? `label ${data.label_names[label]}`
    : labelName(label);

// "Cluster 5", or "Clusters 5 + 12" where they are taken for one.
function clusterNumbers(c) {
  const list = clustersOf(c);
  return `Cluster${list.length > 1 ? "s" : ""} ${list.join(" + ")}`;
}

const clusterTitle = (c) => nameOf(c) || clusterNumbers(c);
const inText = (c) => nameOf(c) || clusterNumbers(c).toLowerCase();

// Where the file of an image is, if it is one and its name says so.
function fileUrl(image) {
  const key = images.key[image];
  if (data.folder === null || key.includes("\\")) return null;
  const path = key.split("/").map(encodeURIComponent).join("/");
  return new URL(data.folder + path, document.baseURI);
}

// What a person finds the file by: with its folders where they are known.
function filePath(image) {
  const url = fileUrl(image);
  if (!url || url.protocol !== "file:") return images.key[image];
  const path = decodeURIComponent(url.pathname);
  // file:///C:/Photos/1.jpg
  return /^\/[A-Za-z]:\//.test(path) ? path.slice(1) : path;
}

// The images of every cluster that are on the page, most typical first.
const byTypical = (a, b) =>
  images.similarity[b] - images.similarity[a] || a - b;
const membersOf = Array.from({ length: k }, () => []);
images.cluster.forEach((c, image) => membersOf[c].push(image));
for (const list of membersOf) list.sort(byTypical);

const ownMembers = (c) => membersOf[c];
function members(c) {
  const list = clustersOf(c);
  if (list.length === 1) return membersOf[c];
  return list.flatMap(ownMembers).sort(byTypical);
}

const sum = (values, c) => clustersOf(c).reduce((n, x) => n + values[x], 0);
const sizeOf = (c) => sum(clusters.size, c);
const outliersOf = (c) => sum(clusters.num_outliers, c);
const isElsewhere = (image) =>
  images.margin[image] < 0 &&
  headOf(images.second_cluster[image]) !== headOf(images.cluster[image]);

// Of clusters that are taken for one only the images on the page can tell.
const elsewhereOf = (c) =>
  clustersOf(c).length > 1
    ? members(c).filter(isElsewhere).length
    : clusters.num_elsewhere[c];

function cohesionOf(c) {
  const full = clustersOf(c).filter((x) => clusters.size[x]);
  if (!full.length) return null;
  return (
    sum(
      clusters.size.map((n, x) => n * (clusters.cohesion[x] ?? 0)),
      c,
    ) / sizeOf(c)
  );
}

// The most common true label and its share of the images, or null.
function labelOf(c) {
  if (!labelled) return null;
  if (clustersOf(c).length === 1) {
    const purity = clusters.purity[c];
    return purity === null ? null : { label: clusters.label[c], purity };
  }
  const counts = new Map();
  for (const image of members(c)) {
    const label = images.label[image];
    if (label >= 0) counts.set(label, (counts.get(label) ?? 0) + 1);
  }
  const all = [...counts.values()].reduce((a, b) => a + b, 0);
  const [best] = [...counts].sort((a, b) => b[1] - a[1]);
  return best ? { label: best[0], purity: best[1] / all } : null;
}

const withPicture = (list) =>
  illustrated ? list.filter((image) => images.picture[image] >= 0) : list;

const placeOf = new Map(images.index.map((index, image) => [index, image]));
const lowerKeys = images.key.map((key) => key.toLowerCase());

// "#12" and "12" mean a cluster; anything else, and "12" too, the name of a
// cluster, of a label or of a file.
function search(text) {
  const query = text.trim().toLowerCase();
  if (!query) return null;
  const exact = /^#?(\d+)$/.exec(query);
  const cluster =
    exact && Number(exact[1]) < k ? headOf(Number(exact[1])) : null;
  const byName = new Set(cluster === null ? [] : [cluster]);
  const files = [];
  if (!query.startsWith("#") || cluster === null) {
    for (const { name, clusters: list } of [...work.names, ...work.groups]) {
      if (!name.toLowerCase().includes(query)) continue;
      for (const c of list) byName.add(headOf(c));
    }
    const labels = new Set(
      Object.entries(data.label_names)
        .filter(([, name]) => name.toLowerCase() === query)
        .map(([label]) => Number(label)),
    );
    lowerKeys.forEach((key, image) => {
      const hit = key.includes(query) || labels.has(images.label?.[image]);
      if (hit) files.push(image);
    });
  }
  files.sort((a, b) => (lowerKeys[a] < lowerKeys[b] ? -1 : 1));
  return { cluster, byName, files };
}

// Whether an image is among what was found.
function hitBy(found) {
  const files = new Set(found.files);
  return (image) =>
    found.cluster !== null
      ? headOf(images.cluster[image]) === found.cluster
      : files.has(image) || found.byName.has(headOf(images.cluster[image]));
}
