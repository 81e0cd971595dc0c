// The clusters, each as a contact sheet of its most typical images.
const sheetsAtOnce = 60;
const onSheet = 18;
const mostFiles = 36;
const mostNames = 6;

const state = {
  g: tree && data.num_groups ? data.num_groups : k,
  sort: "largest",
  query: "",
};
let grouping = cut(state.g);
let groupSizes = new Map();
let queue = []; // clusters whose sheets are still to be drawn
let order = []; // all that are shown, in their order

const descending = (value) => (a, b) =>
  (value(b) ?? -1) - (value(a) ?? -1) || a - b;
// What is not known comes last, whichever way the others go.
const ascending = (value) => (a, b) =>
  (value(a) ?? Infinity) - (value(b) ?? Infinity) || a - b;

// Those that have a name first.
function namedFirst(a, b) {
  const [one, other] = [nameOf(a), nameOf(b)];
  if (!one || !other) return (one ? 0 : 1) - (other ? 0 : 1) || a - b;
  return one.localeCompare(other) || a - b;
}

const purityOf = (c) => labelOf(c)?.purity ?? null;
const doubt = (c) => elsewhereOf(c) / Math.max(1, sizeOf(c));
const sorts = {
  largest: ["Largest first", descending(sizeOf)],
  smallest: ["Smallest first", ascending(sizeOf)],
  number: ["By number", (a, b) => a - b],
  name: ["By name", namedFirst],
  tight: ["Most alike first", descending(cohesionOf)],
  loose: ["Most mixed first", ascending(cohesionOf)],
  elsewhere: ["Most in doubt first", descending(doubt)],
  ...(labelled && {
    pure: ["Purest by label first", descending(purityOf)],
    impure: ["Most mixed by label first", ascending(purityOf)],
  }),
  outliers: ["Most outliers first", descending(outliersOf)],
};

// What stands for a cluster: no two that are nearly the same.
function mostTypical(c) {
  const seen = new Set();
  const central = clustersOf(c).flatMap((x) => clusters.representatives[x]);
  const all = [...new Set([...central.sort(byTypical), ...members(c)])];
  return withPicture(all)
    .filter((image) => {
      const duplicate = images.near_duplicate_group[image];
      if (duplicate < 0) return true;
      const first = !seen.has(duplicate);
      seen.add(duplicate);
      return first;
    })
    .slice(0, onSheet);
}

function sheet(c) {
  const size = sizeOf(c);
  const shown = mostTypical(c);
  const few = illustrated ? shown : shown.slice(0, mostNames);
  const open = () => openCluster(c);
  const own = labelOf(c);
  const facts = [
    few.length < size ? `${few.length} of ${inImages(size)}` : inImages(size),
    elsewhereOf(c)
      ? `${number(elsewhereOf(c))} nearer to another cluster`
      : null,
    outliersOf(c) ? count(outliersOf(c), "outlier", "outliers") : null,
    own ? `${Math.round(100 * own.purity)} % ${labelName(own.label)}` : null,
  ].filter(Boolean);
  return make(
    "li",
    { class: "sheet", "data-cluster": c },
    make(
      "div",
      { class: "sheet-head" },
      make(
        grouping ? "h4" : "h3",
        {},
        button(clusterNumbers(c), open, { class: "open" }),
      ),
      nameField(
        () => nameOf(c),
        `Name of ${clusterNumbers(c).toLowerCase()}`,
        (name) => rename(c, name),
      ),
    ),
    size
      ? gallery(few.concat(members(c).filter((i) => !few.includes(i))), {
          title: clusterTitle(c),
          first: few.length,
        })
      : make("p", { class: "empty soft" }, "No image is in this cluster."),
    size
      ? make(
          "p",
          { class: "sheet-foot soft" },
          make("span", {}, facts.join(" · ")),
          few.length < size
            ? button(`See all ${number(size)}`, open, {
                class: "link",
                "aria-label": `See all ${number(size)} of ${clusterTitle(c)}`,
              })
            : null,
        )
      : null,
  );
}

function showMore() {
  const sheets = $("sheets");
  const hadFocus = document.activeElement === $("more");
  let first = null;
  for (const c of queue.splice(0, sheetsAtOnce)) {
    const g = groupOf(c);
    let list = sheets.lastElementChild;
    if (!list || Number(list.dataset.group) !== g) {
      list = make("div", { class: "group", "data-group": g });
      if (g >= 0) list.append(groupHead(g));
      list.append(make("ul", { class: "sheets" }));
      sheets.append(list);
    }
    const added = sheet(c);
    first ??= added;
    list.lastElementChild.append(added);
  }
  $("more").hidden = !queue.length;
  $("more").textContent =
    `Show more (${count(queue.length, "cluster", "clusters")} left)`;
  if (hadFocus) first?.querySelector("button").focus();
}

// Of clusters that are taken for one, the group of the largest.
function groupOf(c) {
  if (!grouping) return -1;
  const largest = clustersOf(c).reduce((a, b) =>
    clusters.size[b] > clusters.size[a] ? b : a,
  );
  return grouping[largest];
}

function groupHead(g) {
  const { list, heads, size } = groupSizes.get(g);
  const text = `${count(heads.length, "cluster", "clusters")}, ${inImages(size)}`;
  return make(
    "div",
    { class: "group-head" },
    make("h3", {}, `Group ${g} `, make("span", { class: "soft" }, text)),
    nameField(
      () => groupName(list),
      `Name of group ${g}`,
      (name) => renameGroup(list, name),
    ),
    heads.length > 1
      ? link("Merge into one cluster", () => mergeClusters(heads))
      : null,
  );
}

const groupTitle = (g) => groupName(groupSizes.get(g).list) || `Group ${g}`;

function measureGroups() {
  groupSizes = new Map();
  if (!grouping) return;
  for (let c = 0; c < k; c++) {
    const g = groupOf(headOf(c));
    const group = groupSizes.get(g) ?? { list: [], heads: [], size: 0 };
    group.list.push(c);
    if (headOf(c) === c) group.heads.push(c);
    group.size += clusters.size[c];
    groupSizes.set(g, group);
  }
}

function renderSheets() {
  const found = search(state.query);
  order = Array.from({ length: k }, (_, c) => c).filter((c) => headOf(c) === c);
  if (found) {
    const hits = new Set(found.byName);
    for (const image of found.files) hits.add(headOf(images.cluster[image]));
    order = order.filter((c) => hits.has(c));
  }
  const compare = sorts[state.sort][1];
  const groupOrder = (a, b) =>
    groupSizes.get(b).size - groupSizes.get(a).size || a - b;
  // The cluster that was asked for by its number comes first.
  const rank = (c) => (found?.cluster === c ? 0 : 1);
  order.sort(
    (a, b) =>
      (grouping ? groupOrder(groupOf(a), groupOf(b)) : 0) ||
      rank(a) - rank(b) ||
      compare(a, b),
  );
  queue = [...order];
  $("sheets").replaceChildren();
  showMore();
  renderFiles(found);
  const groups = grouping
    ? ` in ${count(new Set(order.map(groupOf)).size, "group", "groups")}`
    : "";
  const all = count(order.length, "cluster", "clusters") + groups;
  $("clusters-status").textContent = found
    ? `${all} and ${count(found.files.length, "file", "files")} found.`
    : `${all}.`;
}

function renderFiles(found) {
  $("files").replaceChildren();
  if (!found?.files.length) return;
  const shown = found.files.slice(0, mostFiles).length;
  $("files").append(
    make("h3", {}, `Files: ${shown} of ${number(found.files.length)} shown`),
    gallery(found.files, {
      title: `“${state.query.trim()}”`,
      first: mostFiles,
      note: fileName,
    }),
  );
}
