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

const clusterTitle = (c) => `Cluster ${c}`;

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
const membersOf = Array.from({ length: k }, () => []);
images.cluster.forEach((c, image) => membersOf[c].push(image));
for (const list of membersOf) {
  list.sort((a, b) => images.similarity[b] - images.similarity[a] || a - b);
}

const members = (c) => membersOf[c];
const sizeOf = (c) => clusters.size[c];
const withPicture = (list) =>
  illustrated ? list.filter((image) => images.picture[image] >= 0) : list;

const placeOf = new Map(images.index.map((index, image) => [index, image]));
const lowerKeys = images.key.map((key) => key.toLowerCase());

// "#12" and "12" mean a cluster; anything else, and "12" too, a file name or a
// label.
function search(text) {
  const query = text.trim().toLowerCase();
  if (!query) return null;
  const exact = /^#?(\d+)$/.exec(query);
  const cluster = exact && Number(exact[1]) < k ? Number(exact[1]) : null;
  const files = [];
  if (!query.startsWith("#") || cluster === null) {
    const named = labelled
      ? new Set(
          Object.entries(data.label_names)
            .filter(([, name]) => name.toLowerCase() === query)
            .map(([label]) => Number(label)),
        )
      : new Set();
    lowerKeys.forEach((key, image) => {
      const hit = key.includes(query) || named.has(images.label?.[image]);
      if (hit) files.push(image);
    });
  }
  files.sort((a, b) => (lowerKeys[a] < lowerKeys[b] ? -1 : 1));
  return { cluster, files };
}
