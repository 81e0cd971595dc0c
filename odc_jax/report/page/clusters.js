const state = {
  g: tree && data.num_groups ? data.num_groups : k,
  sort: "number",
  query: "",
};
let grouping = cut(state.g);
let queue = [];

const descending = (values) => (a, b) =>
  (values[b] ?? -1) - (values[a] ?? -1) || a - b;
// What is not known comes last, whichever way the others go.
const ascending = (values) => (a, b) =>
  (values[a] ?? Infinity) - (values[b] ?? Infinity) || a - b;
const sorts = {
  number: ["Number", (a, b) => a - b],
  largest: ["Size, largest first", descending(clusters.size)],
  smallest: ["Size, smallest first", ascending(clusters.size)],
  tight: ["Cohesion, tightest first", descending(clusters.cohesion)],
  loose: ["Cohesion, loosest first", ascending(clusters.cohesion)],
  ...(labelled && {
    pure: ["Purity, purest first", descending(clusters.purity)],
    mixed: ["Purity, most mixed first", ascending(clusters.purity)],
  }),
  outliers: ["Most outliers first", descending(clusters.num_outliers)],
};

function values(c) {
  const list = make("dl", { class: "values" });
  const add = (term, value, title) =>
    list.append(
      make("div", { title }, make("dt", {}, term), make("dd", {}, value)),
    );
  add(
    "cohesion",
    decimal(clusters.cohesion[c]),
    "Mean cosine of its images with its centroid",
  );
  if (labelled && clusters.purity[c] !== null) {
    const name = labelName(clusters.label[c]);
    add(
      "purity",
      `${decimal(clusters.purity[c])} (${name})`,
      "Fraction of its images with its most common true label",
    );
  }
  if (clusters.num_outliers[c])
    add(
      "outliers",
      clusters.num_outliers[c].toLocaleString("en"),
      "Images unlike all others",
    );
  return list;
}

function card(c) {
  const size = clusters.size[c];
  const shown = clusters.representatives[c];
  const seen = shown.filter((image) => images.picture[image] >= 0);
  // Without pictures, names have to do.
  const central = seen.length
    ? make("div", { class: "montage" }, ...seen.map(picture))
    : make(
        "ul",
        { class: "named" },
        ...shown
          .slice(0, mostNames)
          .map((image) => make("li", { class: "file" }, images.key[image])),
      );
  const numShown = seen.length || Math.min(shown.length, mostNames);
  return make(
    "li",
    // The whole card is to be clicked; the button is for the keyboard, and
    // its clicks come here too.
    { class: "card", onclick: () => openCluster(c) },
    make(
      "div",
      { class: "card-head" },
      make("button", { type: "button", class: "open" }, `Cluster ${c}`),
      make("span", { class: "soft" }, inImages(size)),
    ),
    ...(size
      ? [
          central,
          make(
            "p",
            { class: "share" },
            `${numShown} of ${size.toLocaleString("en")} shown`,
          ),
          values(c),
        ]
      : [make("p", { class: "empty soft" }, "No image is in this cluster.")]),
  );
}

function showMore() {
  const cards = $("cards");
  const hadFocus = document.activeElement === $("more");
  let first = null;
  for (const item of queue.splice(0, pageSize)) {
    const g = grouping ? grouping[item] : -1;
    let list = cards.lastElementChild;
    if (!list || Number(list.dataset.group) !== g) {
      list = make("div", { class: "group", "data-group": g });
      if (g >= 0) {
        const { members, size } = groupSizes.get(g);
        list.append(
          make(
            "h3",
            {},
            `Group ${g} `,
            make(
              "span",
              { class: "soft" },
              `${count(members, "cluster", "clusters")}, ${inImages(size)}`,
            ),
          ),
        );
      }
      list.append(make("ul", { class: "cards" }));
      cards.append(list);
    }
    const added = card(item);
    first ??= added;
    list.lastElementChild.append(added);
  }
  const more = $("more");
  more.hidden = !queue.length;
  more.textContent = `Show ${Math.min(pageSize, queue.length)} more (${count(queue.length, "cluster", "clusters")} left)`;
  if (hadFocus) first?.querySelector("button").focus();
}

let groupSizes = new Map();

function measureGroups() {
  groupSizes = new Map();
  if (!grouping) return;
  for (let c = 0; c < k; c++) {
    const g = grouping[c];
    const sizes = groupSizes.get(g) ?? { members: 0, size: 0 };
    sizes.members += 1;
    sizes.size += clusters.size[c];
    groupSizes.set(g, sizes);
  }
}

function renderClusters() {
  const found = search(state.query);
  let wanted = Array.from({ length: k }, (_, c) => c);
  if (found) {
    const hits = new Set(found.files.map((image) => images.cluster[image]));
    if (found.cluster !== null) hits.add(found.cluster);
    wanted = wanted.filter((c) => hits.has(c));
  }
  const order = sorts[state.sort][1];
  // The cluster that was asked for by its number comes first.
  const rank = (c) => (found?.cluster === c ? 0 : 1);
  wanted.sort(
    (a, b) =>
      (grouping ? groupOrder(grouping[a], grouping[b]) : 0) ||
      rank(a) - rank(b) ||
      order(a, b),
  );
  queue = [...wanted];
  $("cards").replaceChildren();
  showMore();
  renderFiles(found);
  const groups = grouping
    ? ` in ${count(new Set(wanted.map((c) => grouping[c])).size, "group", "groups")}`
    : "";
  $("clusters-status").textContent = found
    ? `${count(wanted.length, "cluster", "clusters")}${groups} and ${count(found.files.length, "file", "files")} found.`
    : `${count(wanted.length, "cluster", "clusters")}${groups}.`;
}

function groupOrder(a, b) {
  return groupSizes.get(b).size - groupSizes.get(a).size || a - b;
}

function renderFiles(found) {
  if (!found?.files.length) {
    $("files").replaceChildren();
    return;
  }
  const shown = found.files.slice(0, mostFiles);
  $("files").replaceChildren(
    make(
      "h3",
      {},
      `Files: ${shown.length} of ${found.files.length.toLocaleString("en")} shown`,
    ),
    make(
      "ul",
      { class: "figures" },
      ...shown.map((image) => figure(image, { link: true })),
    ),
  );
}

// The slider is logarithmic: of 10,000 groups the first hundred matter most.
const toGroups = (position) => Math.round(k ** (position / 1000));
const toPosition = (g) => Math.round((1000 * Math.log(g)) / Math.log(k));

function setGroups(g, moveSlider = true) {
  state.g = Math.min(k, Math.max(1, g));
  grouping = cut(state.g);
  measureGroups();
  if (tree) {
    const slider = $("groups");
    if (moveSlider) slider.value = toPosition(state.g);
    const text =
      state.g === k
        ? `${k.toLocaleString("en")}, each cluster by itself`
        : state.g.toLocaleString("en");
    slider.setAttribute("aria-valuetext", text);
    $("groups-text").value = text;
    $("groups-number").value = state.g;
  }
  renderClusters();
  renderMapControls();
}

function later(work, milliseconds = 120) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), milliseconds);
  };
}

function startClusters() {
  for (const [value, [text]] of Object.entries(sorts))
    $("sort").append(make("option", { value }, text));
  $("sort").addEventListener("change", (event) => {
    state.sort = event.target.value;
    renderClusters();
  });
  const query = later((text) => {
    state.query = text;
    renderClusters();
  });
  $("search").addEventListener("input", (event) => query(event.target.value));
  // Not on submit: a form with two fields and no button does not.
  $("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const cluster = search(event.target.value)?.cluster ?? null;
    if (cluster !== null) openCluster(cluster);
  });
  $("cluster-controls").addEventListener("submit", (event) =>
    event.preventDefault(),
  );
  const all = images.key.length >= data.num_images;
  $("search-help").textContent = all
    ? "Search finds file names and cluster numbers. Enter opens the cluster with that number."
    : `Search finds cluster numbers and the ${images.key.length.toLocaleString("en")} file names in this page, ` +
      `a sample of ${data.num_images.toLocaleString("en")}; all of them are in clusters.parquet.`;
  if (tree) {
    const slow = later((g) => setGroups(g, false), k > 500 ? 120 : 0);
    $("groups").addEventListener("input", (event) =>
      slow(toGroups(Number(event.target.value))),
    );
    // An arrow key moves by a group, not by a thousandth.
    $("groups").addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[
        event.key
      ];
      if (!move) return;
      event.preventDefault();
      setGroups(state.g + move);
    });
    $("groups-number").addEventListener("change", (event) =>
      setGroups(Math.round(Number(event.target.value)) || k),
    );
    const best = data.best_num_groups;
    const cuts = [...new Set([best, data.num_groups, k].filter(Boolean))];
    for (const g of cuts) {
      const silhouette = data.cuts.find(
        (found) => found.num_groups === g,
      )?.silhouette;
      const why = [
        g === best ? "recommended" : null,
        silhouette !== undefined ? `silhouette ${decimal(silhouette)}` : null,
        g === data.num_groups && g !== best ? "asked for" : null,
      ].filter(Boolean);
      const text =
        g === k
          ? "no groups"
          : `${g.toLocaleString("en")} groups${why.length ? ` (${why.join(", ")})` : ""}`;
      $("cuts").append(
        make(
          "button",
          { type: "button", class: "link", onclick: () => setGroups(g) },
          text,
        ),
      );
    }
  }
  $("more").addEventListener("click", showMore);
  new IntersectionObserver(
    (entries) => {
      if (
        entries.some((entry) => entry.isIntersecting) &&
        queue.length &&
        !$("dialog").open &&
        !passing
      )
        showMore();
    },
    { rootMargin: "600px" },
  ).observe($("more"));
}
