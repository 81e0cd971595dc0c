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

const descending = (values) => (a, b) =>
  (values[b] ?? -1) - (values[a] ?? -1) || a - b;
// What is not known comes last, whichever way the others go.
const ascending = (values) => (a, b) =>
  (values[a] ?? Infinity) - (values[b] ?? Infinity) || a - b;
const share = (values) => values.map((n, c) => n / Math.max(1, sizeOf(c)));
const sorts = {
  largest: ["Largest first", descending(clusters.size)],
  smallest: ["Smallest first", ascending(clusters.size)],
  number: ["By number", (a, b) => a - b],
  tight: ["Most alike first", descending(clusters.cohesion)],
  loose: ["Most mixed first", ascending(clusters.cohesion)],
  elsewhere: ["Most in doubt first", descending(share(clusters.num_elsewhere))],
  ...(labelled && {
    pure: ["Purest by label first", descending(clusters.purity)],
    impure: ["Most mixed by label first", ascending(clusters.purity)],
  }),
  outliers: ["Most outliers first", descending(clusters.num_outliers)],
};

// What stands for a cluster: no two that are nearly the same.
function mostTypical(c) {
  const seen = new Set();
  const all = [...new Set([...clusters.representatives[c], ...members(c)])];
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
  const facts = [
    few.length < size ? `${few.length} of ${inImages(size)}` : inImages(size),
    clusters.num_elsewhere[c]
      ? `${number(clusters.num_elsewhere[c])} nearer to another cluster`
      : null,
    clusters.num_outliers[c]
      ? count(clusters.num_outliers[c], "outlier", "outliers")
      : null,
    labelled && clusters.purity[c] !== null
      ? `${Math.round(100 * clusters.purity[c])} % ${labelName(clusters.label[c])}`
      : null,
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
        button(clusterTitle(c), open, { class: "open" }),
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
    const g = grouping ? grouping[c] : -1;
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

function groupHead(g) {
  const { members: num, size } = groupSizes.get(g);
  const text = `${count(num, "cluster", "clusters")}, ${inImages(size)}`;
  return make(
    "div",
    { class: "group-head" },
    make("h3", {}, `Group ${g} `, make("span", { class: "soft" }, text)),
  );
}

function measureGroups() {
  groupSizes = new Map();
  if (!grouping) return;
  for (let c = 0; c < k; c++) {
    const sizes = groupSizes.get(grouping[c]) ?? { members: 0, size: 0 };
    sizes.members += 1;
    sizes.size += clusters.size[c];
    groupSizes.set(grouping[c], sizes);
  }
}

function renderSheets() {
  const found = search(state.query);
  order = Array.from({ length: k }, (_, c) => c);
  if (found) {
    const hits = new Set(found.files.map((image) => images.cluster[image]));
    if (found.cluster !== null) hits.add(found.cluster);
    order = order.filter((c) => hits.has(c));
  }
  const compare = sorts[state.sort][1];
  const groupOrder = (a, b) =>
    groupSizes.get(b).size - groupSizes.get(a).size || a - b;
  // The cluster that was asked for by its number comes first.
  const rank = (c) => (found?.cluster === c ? 0 : 1);
  order.sort(
    (a, b) =>
      (grouping ? groupOrder(grouping[a], grouping[b]) : 0) ||
      rank(a) - rank(b) ||
      compare(a, b),
  );
  queue = [...order];
  $("sheets").replaceChildren();
  showMore();
  renderFiles(found);
  const groups = grouping
    ? ` in ${count(new Set(order.map((c) => grouping[c])).size, "group", "groups")}`
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
