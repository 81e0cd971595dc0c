function section(title, text, list) {
  return [make("h3", {}, title), make("p", { class: "soft" }, text), list];
}

function clusterButtons(found, note = () => "") {
  return make(
    "div",
    { class: "links" },
    ...found.map((c) =>
      make(
        "button",
        { type: "button", onclick: () => openCluster(c) },
        clusters.representatives[c].length
          ? picture(clusters.representatives[c][0])
          : null,
        make("span", {}, `Cluster ${c}${note(c)}`),
      ),
    ),
  );
}

function openCluster(c) {
  const size = clusters.size[c];
  $("dialog-title").textContent = `Cluster ${c}: ${inImages(size)}`;
  const body = $("dialog-body");
  const facts = {
    representatives: (i) => [
      `similarity ${decimal(images.similarity[i])}`,
      `confidence ${decimal(images.confidence[i])}`,
    ],
    boundary: (i) => [
      `margin ${decimal(images.margin[i], 3)} to cluster ${images.second_cluster[i]}`,
      `similarity ${decimal(images.similarity[i])}`,
      `confidence ${decimal(images.confidence[i])}`,
    ],
    outlier_images: (i) => [
      `outlier score ${decimal(images.outlier_score[i])}`,
      `similarity ${decimal(images.similarity[i])}`,
    ],
  };
  const figures = (name) =>
    make(
      "ul",
      { class: "figures" },
      ...clusters[name][c].map((i) => figure(i, { facts: facts[name](i) })),
    );
  const parts = [values(c)];
  if (!size)
    parts.push(make("p", { class: "empty" }, "No image is in this cluster."));
  if (clusters.representatives[c].length) {
    const shown = clusters.representatives[c].length;
    parts.push(
      ...section(
        "Representatives",
        `The most central images; ${shown} of ${size.toLocaleString("en")} shown.`,
        figures("representatives"),
      ),
    );
  }
  if (clusters.boundary[c].length) {
    parts.push(
      ...section(
        "Boundary cases",
        "The images that come closest to another cluster.",
        figures("boundary"),
      ),
    );
  }
  if (clusters.outlier_images[c].length) {
    const shown = clusters.outlier_images[c].length;
    parts.push(
      ...section(
        "Outliers",
        `Images unlike all others; ${shown} of ${clusters.num_outliers[c].toLocaleString("en")} shown.`,
        figures("outlier_images"),
      ),
    );
  }
  const nearest = clusters.nearest[c];
  if (nearest.length) {
    const cosines = new Map(nearest);
    parts.push(
      ...section(
        "Nearest other clusters",
        "By the cosine of the centroids.",
        clusterButtons(
          nearest.map(([other]) => other),
          (other) =>
            cosines.get(other) === null
              ? ""
              : ` (${decimal(cosines.get(other))})`,
        ),
      ),
    );
  }
  if (tree)
    parts.push(make("h3", {}, "Neighbours in the tree"), treeNeighbours(c));
  const at = data.map.image.some((image) => images.cluster[image] === c);
  if (at) {
    const show = () => {
      $("dialog").close();
      $("map-search").value = `#${c}`;
      $("map-group").value = "";
      filterMap();
      $("map").scrollIntoView();
      $("canvas").focus({ preventScroll: true });
    };
    parts.push(
      make("h3", {}, "Elsewhere on this page"),
      make(
        "button",
        { type: "button", class: "link", onclick: show },
        "Show its images on the map",
      ),
    );
  }
  body.replaceChildren(...parts);
  const dialog = $("dialog");
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  $("dialog-title").focus();
}

// What the cluster is merged with, step by step towards the root.
function treeNeighbours(c) {
  const list = make("ol", { class: "links" });
  let node = c;
  for (let step = 0; step < 3 && parent[node] >= 0; step++) {
    const [left, right, height] = tree[parent[node] - k];
    const sibling = left === node ? right : left;
    const found = leaves(sibling, 6);
    const total = sibling < k ? 1 : tree[sibling - k][3];
    const what =
      total === 1 ? "" : `: a group of ${total.toLocaleString("en")} clusters`;
    const some = total > found.length ? `, ${found.length} shown` : "";
    list.append(
      make(
        "li",
        {},
        make(
          "p",
          { class: "soft" },
          `Merge ${step + 1}, at height ${decimal(height)}${what}${some}`,
        ),
        clusterButtons(found),
      ),
    );
    node = parent[node];
  }
  return list.children.length
    ? list
    : make("p", { class: "soft" }, "There is no other cluster.");
}

function startDialog() {
  const dialog = $("dialog");
  $("dialog-close").addEventListener("click", () => dialog.close());
  // A click beside the dialog hits the dialog itself.
  dialog.addEventListener("click", (event) => {
    if (event.target !== dialog) return;
    const box = dialog.getBoundingClientRect();
    const inside =
      event.clientX >= box.left &&
      event.clientX <= box.right &&
      event.clientY >= box.top &&
      event.clientY <= box.bottom;
    if (!inside) dialog.close();
  });
}
