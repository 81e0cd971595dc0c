// A cluster with all of its images.
const openCluster = (c) => go(`#cluster-${headOf(c)}`);

const memberOrders = {
  typical: {
    text: "Most typical first",
    compare: (a, b) => images.similarity[b] - images.similarity[a],
    note: () => "",
  },
  doubt: {
    text: "Boundary cases first",
    compare: (a, b) => marginOf(a) - marginOf(b),
    note: (image) =>
      `${isElsewhere(image) ? "nearer to" : "next:"} ${inText(images.second_cluster[image])}`,
  },
  unlike: {
    text: "Least usual first",
    compare: (a, b) => images.outlier_score[b] - images.outlier_score[a],
    note: (image) =>
      (images.is_outlier[image] ? "outlier, " : "") +
      decimal(images.outlier_score[image]),
  },
  name: {
    text: "By name",
    compare: (a, b) => (lowerKeys[a] < lowerKeys[b] ? -1 : 1),
    note: fileName,
  },
  // Of a collection that has grown.
  ...(data.growth && {
    fresh: {
      text: "New ones first",
      compare: (a, b) => isNew(b) - isNew(a),
      note: (image) =>
        images.is_novel[image] ? "novel" : isNew(image) ? "new" : "",
    },
  }),
};
let memberOrder = "typical";
let viewed = null; // the address of what the dialog holds

// What is another part of the same is no other cluster.
const marginOf = (image) =>
  headOf(images.second_cluster[image]) === headOf(images.cluster[image])
    ? 2
    : images.margin[image];

// Shows what `parts` returns, unless that is what is shown.
function openDialog(title, parts, beside = null) {
  const dialog = $("dialog");
  shut($("viewer"));
  if (viewed === location.hash && dialog.open) return;
  viewed = location.hash;
  $("dialog-title").textContent = title;
  $("dialog-beside").replaceChildren(...(beside ? [beside] : []));
  $("dialog-body").replaceChildren(...parts());
  if (!dialog.open) dialog.showModal();
  $("dialog-body").scrollTop = 0;
  $("dialog-title").focus();
}

places.cluster = (asked) => {
  if (!(asked < k)) return false;
  const c = headOf(asked);
  const name = nameField(
    () => nameOf(c),
    `Name of ${clusterNumbers(c).toLowerCase()}`,
    (text) => rename(c, text),
  );
  openDialog(
    `${clusterNumbers(c)}: ${inImages(sizeOf(c))}`,
    () => clusterParts(c),
    name,
  );
  return true;
};

// After a merge, or after one was taken apart: the clusters are others.
function redrawDialog() {
  const [, digits] = /^#cluster-(\d+)$/.exec(viewed ?? "") ?? [];
  if (digits === undefined || !$("dialog").open) return;
  const c = Number(digits);
  const title = `${clusterNumbers(c)}: ${inImages(sizeOf(c))}`;
  if (title === $("dialog-title").textContent) return;
  viewed = null;
  if (location.hash === `#cluster-${c}`) places.cluster(c);
}

function nearestOf(c) {
  const found = new Map();
  for (const own of clustersOf(c)) {
    for (const [other, cosine] of clusters.nearest[own]) {
      const head = headOf(other);
      if (head === headOf(c)) continue;
      found.set(head, Math.max(cosine ?? -1, found.get(head) ?? -1));
    }
  }
  return new Map([...found].sort((a, b) => b[1] - a[1]));
}

function clusterParts(c) {
  const size = sizeOf(c);
  if (!size) {
    return [make("p", { class: "empty" }, "No image is in this cluster.")];
  }
  const near = nearestOf(c);
  return [
    make("p", { class: "soft" }, clusterFacts(c)),
    toolbar(c),
    make("div", { id: "members" }, memberGallery(c)),
    ...(near.size
      ? section(
          "Clusters that are most like it",
          "By the cosine of their centres. Merged, they are taken for one, " +
            "here and in what is saved.",
          clusterButtons([...near.keys()], near, c),
        )
      : []),
    ...(tree && clustersOf(c).length === 1
      ? section(
          "What it is grouped with",
          "Step by step, as the groups become fewer.",
          treeNeighbours(c),
        )
      : []),
  ];
}

function clusterFacts(c) {
  const facts = [];
  const elsewhere = elsewhereOf(c);
  if (elsewhere) {
    facts.push(
      `${number(elsewhere)} of its images ${elsewhere === 1 ? "lies" : "lie"} ` +
        "nearer to the centre of another cluster.",
    );
  }
  facts.push(
    `The mean similarity with its centre is ${decimal(cohesionOf(c))}; 1 would ` +
      "be the same image again and again.",
  );
  const own = labelOf(c);
  if (own) {
    facts.push(
      `${Math.round(100 * own.purity)} % of them have the true label ${labelName(own.label)}.`,
    );
  }
  const told = clustersOf(c).length === 1 ? clusters.attributes?.[c] : null;
  if (told?.length) {
    const shares = told.map(
      ([text, here, ofAll]) =>
        `${text} (${Math.round(100 * here)} % of them, ` +
        `${Math.round(100 * ofAll)} % of all)`,
    );
    facts.push(`What tells it best: ${shares.join(", ")}.`);
  }
  if (members(c).length < sizeOf(c)) {
    facts.push(
      `This page knows ${number(members(c).length)} of them, a sample.`,
    );
  }
  return facts.join(" ");
}

function toolbar(c) {
  const select = make(
    "select",
    {
      id: "member-order",
      onchange: (event) => {
        memberOrder = event.target.value;
        $("members").replaceChildren(memberGallery(c));
      },
    },
    ...Object.entries(memberOrders).map(([value, { text }]) =>
      make("option", { value }, text),
    ),
  );
  select.value = memberOrder;
  const step = (by) => {
    const at = order.indexOf(c);
    const next = at < 0 ? undefined : order[at + by];
    return button(
      by < 0 ? "← Previous cluster" : "Next cluster →",
      () => go(`#cluster-${next}`, true),
      { disabled: next === undefined ? "" : null },
    );
  };
  const onMap = data.map.image.some((i) => headOf(images.cluster[i]) === c);
  return make(
    "div",
    { class: "tools" },
    make("label", { for: "member-order", class: "hidden" }, "Order"),
    select,
    button("Select all", () => pickAll(withPicture(members(c)))),
    onMap ? button("Show on the map", () => showOnMap(`#${c}`)) : null,
    clustersOf(c).length > 1
      ? button("Take apart again", () => takeApart(c))
      : null,
    make("span", { class: "gap" }),
    step(-1),
    step(1),
  );
}

function memberGallery(c) {
  const { compare, note } = memberOrders[memberOrder];
  const list = members(c)
    .slice()
    .sort((a, b) => compare(a, b) || a - b);
  return gallery(withPicture(list), { title: clusterTitle(c), note });
}

function showOnMap(query) {
  $("map-search").value = query;
  $("map-group").value = "";
  filterMapAloud();
  go("#map");
  $("map").scrollIntoView();
  $("canvas").focus({ preventScroll: true });
}

function section(title, text, ...parts) {
  const heading = make("h3", {}, title);
  return [heading, make("p", { class: "soft" }, text), ...parts];
}

// Clusters to go to, and to merge with cluster `own` where one is given.
function clusterButtons(found, cosines = new Map(), own = null) {
  return make(
    "div",
    { class: "links" },
    ...found.map((c) => {
      const cosine = cosines.get(c) ?? -1;
      const first = mostTypical(c)[0];
      const open = make(
        "button",
        { type: "button", onclick: () => openCluster(c) },
        first === undefined ? null : picture(first, { alt: "" }),
        make("span", {}, clusterTitle(c)),
        cosine < -0.99
          ? null
          : make("span", { class: "soft" }, decimal(cosine)),
      );
      if (own === null) return open;
      const merge = button("Merge", () => mergeClusters([own, c]), {
        class: "link",
        "aria-label": `Merge with ${inText(c)}`,
      });
      return make("div", { class: "near" }, open, merge);
    }),
  );
}

// What the cluster is merged with, step by step towards the root.
function treeNeighbours(c) {
  const list = make("ol", { class: "links" });
  let node = c;
  for (let step = 0; step < 3 && parent[node] >= 0; step++) {
    const [left, right] = tree[parent[node] - k];
    const sibling = left === node ? right : left;
    const found = [...new Set(leaves(sibling, 6).map(headOf))];
    const total = sibling < k ? 1 : tree[sibling - k][3];
    const some = total > found.length ? `, ${found.length} shown` : "";
    const what =
      total === 1 ? "a cluster" : `a group of ${number(total)} clusters${some}`;
    const text = `${["First", "Then", "Then"][step]} with ${what}`;
    list.append(
      make("li", {}, make("p", { class: "soft" }, text), clusterButtons(found)),
    );
    node = parent[node];
  }
  return list.children.length
    ? list
    : make("p", { class: "soft" }, "There is no other cluster.");
}

// Images found from an image: by its neighbours, theirs, and so on.
const mostAlike = 120;

places.like = (index) => {
  const image = placeOf.get(index);
  if (image === undefined || !images.neighbors) return false;
  const title = `Like ${fileName(image)}`;
  openDialog(title, () => [
    make(
      "p",
      { class: "soft" },
      "The image itself, its nearest, and what these are nearest to; the ",
      "shortest way first.",
    ),
    gallery(withPicture([image, ...alike(image)]), {
      title,
      note: (i) =>
        i === image ? "this image" : clusterTitle(images.cluster[i]),
    }),
  ]);
  return true;
};

// Dijkstra's shortest ways over the neighbours, of which each image has ten.
function alike(start) {
  const way = new Map([[start, 0]]);
  const left = new Set([start]);
  const found = [];
  while (left.size && found.length <= mostAlike) {
    let at = -1;
    for (const image of left) {
      if (at < 0 || way.get(image) < way.get(at)) at = image;
    }
    left.delete(at);
    found.push(at);
    images.neighbors[at].forEach((other, rank) => {
      // A step counts, or copies of copies would lead anywhere at no cost.
      const length = way.get(at) + images.distances[at][rank] + 1;
      if (way.has(other) && way.get(other) <= length) return;
      way.set(other, length);
      left.add(other);
    });
  }
  return found.slice(1);
}
