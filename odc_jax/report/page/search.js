const names = images.key.map((key) => key.toLowerCase());

// "#12" and "12" mean a cluster; anything else, and "12" too, a file name.
function search(text) {
  const query = text.trim().toLowerCase();
  if (!query) return null;
  const exact = /^#?(\d+)$/.exec(query);
  const cluster = exact && Number(exact[1]) < k ? Number(exact[1]) : null;
  const files = [];
  if (!query.startsWith("#") || cluster === null) {
    names.forEach((name, image) => {
      if (name.includes(query)) files.push(image);
    });
  }
  files.sort((a, b) => (names[a] < names[b] ? -1 : 1));
  return { cluster, files };
}
