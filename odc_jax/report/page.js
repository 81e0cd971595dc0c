"use strict";
// File names are data: they reach the page as text, never as markup.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data");
  const pictures = read("pictures");
  const { images, clusters, tree } = data;
  const k = data.num_clusters;
  const labelled = "label" in images;
  const pageSize = 48;
  const mostFiles = 18;
  const mostNames = 3;
  const tinySide = 28;

  // ------------------------------------------------------------ elements ---
  const $ = (id) => document.getElementById(id);

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick") element.addEventListener("click", value);
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  const count = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
  const inImages = (n) => count(n, "image", "images");

  function decimal(value, digits = 2) {
    if (value === null || value === undefined) return "–";
    return value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
  }

  function labelName(label) {
    if (label === null || label === undefined || label < 0) return "unknown";
    return data.label_names[label] ?? `label ${label}`;
  }

  const withLabel = (label) => (label in data.label_names ? `label ${data.label_names[label]}` : labelName(label));

  function picture(image) {
    const name = images.key[image];
    const at = images.picture[image];
    if (at < 0) {
      return make("span", { class: "none", role: "img", "aria-label": name, title: name }, "no picture");
    }
    const img = make("img", {
      src: `data:image/webp;base64,${pictures[at]}`,
      alt: name,
      title: name,
      loading: "lazy",
      decoding: "async",
    });
    // Digits of 8 x 8 pixels are to look like that, not like fog.
    img.addEventListener("load", () => {
      img.classList.toggle("tiny", Math.max(img.naturalWidth, img.naturalHeight) <= tinySide);
    });
    return img;
  }

  function clusterLink(c, text = `Cluster ${c}`) {
    return make("button", { type: "button", class: "link", onclick: () => openCluster(c) }, text);
  }

  // An image with its name and what is known of it.
  function figure(image, { link = false, facts = [] } = {}) {
    const lines = facts.map((fact) => make("span", {}, fact));
    if (labelled && images.label[image] >= 0) {
      lines.push(make("span", {}, withLabel(images.label[image])));
    }
    return make(
      "li",
      {},
      picture(image),
      make("span", { class: "file", title: images.key[image] }, images.key[image]),
      make("span", { class: "soft" }, ...lines),
      link ? clusterLink(images.cluster[image]) : null,
    );
  }

  // ---------------------------------------------------------- merge tree ---
  // Node i < k is cluster i; node k + r is what row r of the tree merges.
  const parent = new Int32Array(2 * k).fill(-1);
  (tree ?? []).forEach(([left, right], row) => {
    parent[left] = parent[right] = k + row;
  });

  // Returns the group of every cluster when the tree is cut into g groups.
  function cut(g) {
    if (!tree || g >= k) return null;
    if (g === data.num_groups && clusters.group?.every((group, c) => group >= 0 || !clusters.size[c])) {
      return clusters.group;
    }
    const rows = k - g;
    const root = new Int32Array(k + rows);
    for (let node = k + rows - 1; node >= 0; node--) {
      root[node] = parent[node] >= 0 && parent[node] < k + rows ? root[parent[node]] : node;
    }
    // Numbered by size, the largest first.
    const sizes = new Map();
    for (let c = 0; c < k; c++) sizes.set(root[c], (sizes.get(root[c]) ?? 0) + clusters.size[c]);
    const order = [...sizes].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    const numbers = new Map(order.map(([node], i) => [node, i]));
    return Array.from({ length: k }, (_, c) => numbers.get(root[c]));
  }

  function leaves(node, most) {
    const found = [];
    const stack = [node];
    while (stack.length && found.length < most) {
      const at = stack.pop();
      if (at < k) found.push(at);
      else stack.push(tree[at - k][1], tree[at - k][0]);
    }
    return found;
  }

  // -------------------------------------------------------------- search ---
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

  // ------------------------------------------------------------ clusters ---
  const state = { g: tree && data.num_groups ? data.num_groups : k, sort: "number", query: "" };
  let grouping = cut(state.g);
  let queue = [];

  const descending = (values) => (a, b) => (values[b] ?? -1) - (values[a] ?? -1) || a - b;
  // What is not known comes last, whichever way the others go.
  const ascending = (values) => (a, b) => (values[a] ?? Infinity) - (values[b] ?? Infinity) || a - b;
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
      list.append(make("div", { title }, make("dt", {}, term), make("dd", {}, value)));
    add("cohesion", decimal(clusters.cohesion[c]), "Mean cosine of its images with its centroid");
    if (labelled && clusters.purity[c] !== null) {
      const name = labelName(clusters.label[c]);
      add("purity", `${decimal(clusters.purity[c])} (${name})`, "Fraction of its images with its most common true label");
    }
    if (clusters.num_outliers[c]) add("outliers", clusters.num_outliers[c].toLocaleString("en"), "Images unlike all others");
    return list;
  }

  function card(c) {
    const size = clusters.size[c];
    const shown = clusters.representatives[c];
    const seen = shown.filter((image) => images.picture[image] >= 0);
    // Without pictures, names have to do.
    const central = seen.length
      ? make("div", { class: "montage" }, ...seen.map(picture))
      : make("ul", { class: "named" }, ...shown.slice(0, mostNames).map((image) => make("li", { class: "file" }, images.key[image])));
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
            make("p", { class: "share" }, `${numShown} of ${size.toLocaleString("en")} shown`),
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
            make("h3", {}, `Group ${g} `, make("span", { class: "soft" }, `${count(members, "cluster", "clusters")}, ${inImages(size)}`)),
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
    wanted.sort((a, b) => (grouping ? groupOrder(grouping[a], grouping[b]) : 0) || rank(a) - rank(b) || order(a, b));
    queue = [...wanted];
    $("cards").replaceChildren();
    showMore();
    renderFiles(found);
    const groups = grouping ? ` in ${count(new Set(wanted.map((c) => grouping[c])).size, "group", "groups")}` : "";
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
      make("h3", {}, `Files: ${shown.length} of ${found.files.length.toLocaleString("en")} shown`),
      make("ul", { class: "figures" }, ...shown.map((image) => figure(image, { link: true }))),
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
      const text = state.g === k ? `${k.toLocaleString("en")}, each cluster by itself` : state.g.toLocaleString("en");
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
    for (const [value, [text]] of Object.entries(sorts)) $("sort").append(make("option", { value }, text));
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
    $("cluster-controls").addEventListener("submit", (event) => event.preventDefault());
    const all = images.key.length >= data.num_images;
    $("search-help").textContent = all
      ? "Search finds file names and cluster numbers. Enter opens the cluster with that number."
      : `Search finds cluster numbers and the ${images.key.length.toLocaleString("en")} file names in this page, ` +
        `a sample of ${data.num_images.toLocaleString("en")}; all of them are in clusters.parquet.`;
    if (tree) {
      const slow = later((g) => setGroups(g, false), k > 500 ? 120 : 0);
      $("groups").addEventListener("input", (event) => slow(toGroups(Number(event.target.value))));
      // An arrow key moves by a group, not by a thousandth.
      $("groups").addEventListener("keydown", (event) => {
        const move = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
        if (!move) return;
        event.preventDefault();
        setGroups(state.g + move);
      });
      $("groups-number").addEventListener("change", (event) => setGroups(Math.round(Number(event.target.value)) || k));
      const best = data.best_num_groups;
      const cuts = [...new Set([best, data.num_groups, k].filter(Boolean))];
      for (const g of cuts) {
        const silhouette = data.cuts.find((found) => found.num_groups === g)?.silhouette;
        const why = [
          g === best ? "recommended" : null,
          silhouette !== undefined ? `silhouette ${decimal(silhouette)}` : null,
          g === data.num_groups && g !== best ? "asked for" : null,
        ].filter(Boolean);
        const text = g === k ? "no groups" : `${g.toLocaleString("en")} groups${why.length ? ` (${why.join(", ")})` : ""}`;
        $("cuts").append(make("button", { type: "button", class: "link", onclick: () => setGroups(g) }, text));
      }
    }
    $("more").addEventListener("click", showMore);
    new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting) && queue.length && !$("dialog").open && !passing) showMore();
    }, { rootMargin: "600px" }).observe($("more"));
  }

  // ---------------------------------------------------------- navigation ---
  // Whether the page scrolls to a section: cards that it passes on the way
  // would grow and push the section away.
  let passing = false;

  function startNavigation() {
    for (const link of document.querySelectorAll("nav a")) {
      link.addEventListener("click", () => {
        passing = true;
        const target = $(link.hash.slice(1));
        const arrive = (tries) => {
          const before = target.getBoundingClientRect().top;
          target.scrollIntoView({ behavior: "instant" });
          const moved = Math.abs(target.getBoundingClientRect().top - before) > 1;
          if (moved && tries) requestAnimationFrame(() => arrive(tries - 1));
          else passing = false;
        };
        // Without a scroll there is no end of one.
        const wait = setTimeout(() => arrive(10), 1500);
        addEventListener("scrollend", () => { clearTimeout(wait); arrive(10); }, { once: true });
      });
    }
  }

  // -------------------------------------------------------------- dialog ---
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
          clusters.representatives[c].length ? picture(clusters.representatives[c][0]) : null,
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
      representatives: (i) => [`similarity ${decimal(images.similarity[i])}`, `confidence ${decimal(images.confidence[i])}`],
      boundary: (i) => [
        `margin ${decimal(images.margin[i], 3)} to cluster ${images.second_cluster[i]}`,
        `similarity ${decimal(images.similarity[i])}`,
        `confidence ${decimal(images.confidence[i])}`,
      ],
      outlier_images: (i) => [`outlier score ${decimal(images.outlier_score[i])}`, `similarity ${decimal(images.similarity[i])}`],
    };
    const figures = (name) =>
      make("ul", { class: "figures" }, ...clusters[name][c].map((i) => figure(i, { facts: facts[name](i) })));
    const parts = [values(c)];
    if (!size) parts.push(make("p", { class: "empty" }, "No image is in this cluster."));
    if (clusters.representatives[c].length) {
      const shown = clusters.representatives[c].length;
      parts.push(
        ...section("Representatives", `The most central images; ${shown} of ${size.toLocaleString("en")} shown.`, figures("representatives")),
      );
    }
    if (clusters.boundary[c].length) {
      parts.push(...section("Boundary cases", "The images that come closest to another cluster.", figures("boundary")));
    }
    if (clusters.outlier_images[c].length) {
      const shown = clusters.outlier_images[c].length;
      parts.push(
        ...section("Outliers", `Images unlike all others; ${shown} of ${clusters.num_outliers[c].toLocaleString("en")} shown.`, figures("outlier_images")),
      );
    }
    const nearest = clusters.nearest[c];
    if (nearest.length) {
      const cosines = new Map(nearest);
      parts.push(
        ...section(
          "Nearest other clusters",
          "By the cosine of the centroids.",
          clusterButtons(nearest.map(([other]) => other), (other) => (cosines.get(other) === null ? "" : ` (${decimal(cosines.get(other))})`)),
        ),
      );
    }
    if (tree) parts.push(make("h3", {}, "Neighbours in the tree"), treeNeighbours(c));
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
      parts.push(make("h3", {}, "Elsewhere on this page"), make("button", { type: "button", class: "link", onclick: show }, "Show its images on the map"));
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
      const what = total === 1 ? "" : `: a group of ${total.toLocaleString("en")} clusters`;
      const some = total > found.length ? `, ${found.length} shown` : "";
      list.append(
        make("li", {}, make("p", { class: "soft" }, `Merge ${step + 1}, at height ${decimal(height)}${what}${some}`), clusterButtons(found)),
      );
      node = parent[node];
    }
    return list.children.length ? list : make("p", { class: "soft" }, "There is no other cluster.");
  }

  function startDialog() {
    const dialog = $("dialog");
    $("dialog-close").addEventListener("click", () => dialog.close());
    // A click beside the dialog hits the dialog itself.
    dialog.addEventListener("click", (event) => {
      if (event.target !== dialog) return;
      const box = dialog.getBoundingClientRect();
      const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
      if (!inside) dialog.close();
    });
  }

  // ---------------------------------------- near-duplicates and outliers ---
  function startLists() {
    const groups = data.duplicates;
    $("duplicates-text").textContent = groups.length
      ? `${inImages(data.num_duplicates)} are nearly the same as another one, in ${count(data.num_duplicate_groups, "group", "groups")}; ` +
        `${groups.length} of ${data.num_duplicate_groups.toLocaleString("en")} shown, the largest first. near_duplicate_group in clusters.parquet has them all.`
      : "No two images are nearly the same.";
    $("duplicates-list").append(
      ...groups.map(({ size, images: shown }) =>
        make(
          "article",
          { class: "duplicate" },
          make("h3", {}, `${inImages(size)} `, make("span", { class: "soft" }, `${shown.length} of ${size.toLocaleString("en")} shown`)),
          make("ul", { class: "figures" }, ...shown.map((image) => figure(image, { link: true }))),
        ),
      ),
    );
    const shown = data.outliers;
    $("outliers-text").textContent = shown.length
      ? `Images unlike all others, the most unlike first: ${shown.length} of ${data.num_outliers.toLocaleString("en")} shown. is_outlier in clusters.parquet has them all.`
      : "No image is flagged as unlike all others.";
    $("outliers-list").append(
      ...shown.map((image) => figure(image, { link: true, facts: [`outlier score ${decimal(images.outlier_score[image])}`] })),
    );
  }

  // ----------------------------------------------------------------- map ---
  // Six colours that the colour-blind tell apart (Paul Tol, "bright"), and
  // five shapes: thirty looks. Beyond that they repeat, and the numbers on the
  // map tell.
  const palette = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"];
  const shapes = ["circle", "square", "triangle", "diamond", "cross"];
  const looks = palette.length * shapes.length;
  const points = data.map;
  const numPoints = points.image.length;
  const canvas = $("canvas");
  const pen = canvas.getContext("2d");
  const view = { x: 5000, y: 5000, scale: 0 };
  let fitScale = 0.05;
  let selected = -1;
  let visible = null; // Uint8Array, or null for all
  let mode = "cluster";

  function category(point) {
    const image = points.image[point];
    const c = images.cluster[image];
    if (mode === "group") return grouping ? grouping[c] : c;
    if (mode === "label") return images.label[image];
    return c;
  }

  function categoryName(value) {
    if (mode === "label") return labelName(value);
    return mode === "group" ? `group ${value}` : `cluster ${value}`;
  }

  function look(value) {
    if (value < 0) return { colour: "", shape: "circle" };
    return { colour: palette[value % palette.length], shape: shapes[Math.floor(value / palette.length) % shapes.length] };
  }

  function trace(shape, x, y, r) {
    if (shape === "circle") {
      pen.moveTo(x + r, y);
      pen.arc(x, y, r, 0, 7);
    } else if (shape === "square") {
      pen.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r);
    } else if (shape === "triangle") {
      pen.moveTo(x, y - 1.2 * r);
      pen.lineTo(x + 1.1 * r, y + 0.8 * r);
      pen.lineTo(x - 1.1 * r, y + 0.8 * r);
      pen.closePath();
    } else if (shape === "diamond") {
      pen.moveTo(x, y - 1.3 * r);
      pen.lineTo(x + 1.1 * r, y);
      pen.lineTo(x, y + 1.3 * r);
      pen.lineTo(x - 1.1 * r, y);
      pen.closePath();
    } else {
      pen.rect(x - 1.2 * r, y - 0.4 * r, 2.4 * r, 0.8 * r);
      pen.rect(x - 0.4 * r, y - 1.2 * r, 0.8 * r, 2.4 * r);
    }
  }

  const screenX = (point) => (points.x[point] - view.x) * view.scale + canvas.clientWidth / 2;
  // Up is more, as in any plot.
  const screenY = (point) => (view.y - points.y[point]) * view.scale + canvas.clientHeight / 2;

  let pending = 0;
  function draw() {
    if (!pending) pending = requestAnimationFrame(drawNow);
  }

  function ramp(score) {
    // cividis, from its blue to its yellow; readable on both papers.
    const stops = [[0x3b, 0x56, 0x8f], [0x7d, 0x7c, 0x78], [0xd0, 0xae, 0x2c]];
    const at = Math.min(0.999, Math.max(0, score ?? 0)) * 2;
    const [low, high] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]];
    return `rgb(${low.map((value, i) => Math.round(value + (high[i] - value) * (at % 1))).join(" ")})`;
  }

  function drawNow() {
    pending = 0;
    const style = getComputedStyle(document.documentElement);
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const base = numPoints > 8000 ? 1.8 : numPoints > 2000 ? 2.5 : 3.4;
    const radius = Math.min(9, base * Math.sqrt(view.scale / fitScale));
    const faint = [];
    const byLook = new Map();
    for (let point = 0; point < numPoints; point++) {
      const [x, y] = [screenX(point), screenY(point)];
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      if (visible && !visible[point]) {
        faint.push(point);
        continue;
      }
      let { colour, shape } = look(category(point));
      if (mode === "outlier") {
        const image = points.image[point];
        // Twelve steps: as many fills, not twenty thousand.
        colour = ramp(Math.round((images.outlier_score[image] ?? 0) * 12) / 12);
        shape = images.is_outlier[image] ? "diamond" : "circle";
      }
      const name = `${colour} ${shape}`;
      if (!byLook.has(name)) byLook.set(name, { colour, shape, points: [] });
      byLook.get(name).points.push(point);
    }
    const fill = (colour, shape, list, r) => {
      pen.fillStyle = colour || style.getPropertyValue("--band-line");
      pen.beginPath();
      for (const point of list) trace(shape, screenX(point), screenY(point), r);
      pen.fill();
    };
    fill(style.getPropertyValue("--faint"), "circle", faint, radius * 0.7);
    for (const { colour, shape, points: list } of byLook.values()) {
      const larger = mode === "outlier" && shape === "diamond" ? 1.5 : 1;
      fill(colour, shape, list, radius * larger);
    }
    if (mode !== "outlier") drawNumbers(style, width, height);
    if (selected >= 0) {
      pen.strokeStyle = style.getPropertyValue("--text");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(screenX(selected), screenY(selected), radius + 5, 0, 7);
      pen.stroke();
    }
  }

  // Numbers at the middle of each cluster, the largest first, where they fit.
  let middles = [];
  function findMiddles() {
    const found = new Map();
    for (let point = 0; point < numPoints; point++) {
      if (visible && !visible[point]) continue;
      const value = category(point);
      if (value < 0) continue;
      if (!found.has(value)) found.set(value, []);
      found.get(value).push(point);
    }
    const median = (list) => list.sort((a, b) => a - b)[list.length >> 1];
    middles = [...found]
      .sort((a, b) => b[1].length - a[1].length)
      .map(([value, list]) => ({
        text: mode === "label" ? labelName(value) : String(value),
        x: median(list.map((point) => points.x[point])),
        y: median(list.map((point) => points.y[point])),
      }));
  }

  function drawNumbers(style, width, height) {
    pen.font = `600 12px ${getComputedStyle(document.body).fontFamily}`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    pen.lineWidth = 4;
    pen.strokeStyle = style.getPropertyValue("--surface");
    pen.fillStyle = style.getPropertyValue("--text");
    const boxes = [];
    for (const middle of middles) {
      if (boxes.length >= 120) break;
      const x = (middle.x - view.x) * view.scale + width / 2;
      const y = (view.y - middle.y) * view.scale + height / 2;
      const half = pen.measureText(middle.text).width / 2 + 4;
      if (x < half || y < 9 || x > width - half || y > height - 9) continue;
      if (boxes.some((box) => Math.abs(box.x - x) < box.half + half && Math.abs(box.y - y) < 18)) continue;
      boxes.push({ x, y, half });
      pen.strokeText(middle.text, x, y);
      pen.fillText(middle.text, x, y);
    }
  }

  function fit() {
    // The longer side goes from 0 to 9999, the other lies in its middle.
    const span = (list) => list.reduce((most, value) => Math.max(most, Math.abs(value - 5000)), 1) * 2;
    const scales = [(canvas.clientWidth - 48) / span(points.x), (canvas.clientHeight - 48) / span(points.y)];
    fitScale = Math.max(0.001, Math.min(...scales));
    Object.assign(view, { x: 5000, y: 5000, scale: fitScale });
    draw();
  }

  function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const scale = Math.min(fitScale * 60, Math.max(fitScale * 0.8, view.scale * factor));
    // What lies under the pointer stays there.
    const [dx, dy] = [x - canvas.clientWidth / 2, y - canvas.clientHeight / 2];
    view.x += dx / view.scale - dx / scale;
    view.y -= dy / view.scale - dy / scale;
    view.scale = scale;
    placeTip();
    draw();
  }

  function pan(dx, dy) {
    view.x -= dx / view.scale;
    view.y += dy / view.scale;
    placeTip();
    draw();
  }

  function nearestPoint(x, y, most) {
    let best = -1;
    let least = most * most;
    for (let point = 0; point < numPoints; point++) {
      if (visible && !visible[point]) continue;
      const distance = (screenX(point) - x) ** 2 + (screenY(point) - y) ** 2;
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  function describe(point) {
    const image = points.image[point];
    const c = images.cluster[image];
    const parts = [`cluster ${c}`];
    if (grouping) parts.push(`group ${grouping[c]}`);
    if (labelled) parts.push(withLabel(images.label[image]));
    if (mode === "outlier" || images.is_outlier[image]) parts.push(`outlier score ${decimal(images.outlier_score[image])}`);
    return parts.join(", ");
  }

  function select(point, say) {
    if (point !== selected) {
      selected = point;
      $("tip").hidden = point < 0;
      if (point >= 0) {
        const image = points.image[point];
        $("tip").replaceChildren(
          ...(images.picture[image] >= 0 ? [picture(image)] : []),
          make("div", { class: "file" }, images.key[image]),
          make("div", { class: "soft" }, describe(point)),
        );
      }
      placeTip();
      draw();
    }
    if (say && point >= 0) $("map-status").textContent = `${images.key[points.image[point]]}: ${describe(point)}`;
  }

  function placeTip() {
    if (selected < 0) return;
    const tip = $("tip");
    const [x, y] = [screenX(selected), screenY(selected)];
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    const left = x + 16 + width < canvas.clientWidth ? x + 16 : x - 16 - width;
    tip.style.left = `${Math.max(4, Math.min(left, canvas.clientWidth - width - 4))}px`;
    tip.style.top = `${Math.max(4, Math.min(y - height / 2, canvas.clientHeight - height - 4))}px`;
  }

  // Goes to the nearest image in a direction, in a cone of 90 degrees.
  function step(dx, dy) {
    if (selected < 0) {
      select(nearestPoint(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity), true);
      return;
    }
    const [x, y] = [screenX(selected), screenY(selected)];
    let best = -1;
    let least = Infinity;
    for (let point = 0; point < numPoints; point++) {
      if (point === selected || (visible && !visible[point])) continue;
      const along = (screenX(point) - x) * dx + (screenY(point) - y) * dy;
      const across = Math.abs((screenX(point) - x) * dy) + Math.abs((screenY(point) - y) * dx);
      if (along <= 0 || across > along) continue;
      const distance = along + 2 * across;
      if (distance < least) [best, least] = [point, distance];
    }
    if (best < 0) return;
    select(best, true);
    const [px, py] = [screenX(best), screenY(best)];
    const out = px < 20 || py < 20 || px > canvas.clientWidth - 20 || py > canvas.clientHeight - 20;
    if (out) pan(canvas.clientWidth / 2 - px, canvas.clientHeight / 2 - py);
  }

  function filterMap() {
    const found = search($("map-search").value);
    const group = $("map-group").value;
    selected = -1;
    $("tip").hidden = true;
    visible = null;
    let shown = numPoints;
    if (found || group !== "") {
      const files = found && new Set(found.files);
      visible = new Uint8Array(numPoints);
      shown = 0;
      for (let point = 0; point < numPoints; point++) {
        const image = points.image[point];
        const c = images.cluster[image];
        const hit =
          (!found || (found.cluster !== null ? c === found.cluster : files.has(image))) &&
          (group === "" || grouping[c] === Number(group));
        visible[point] = hit ? 1 : 0;
        shown += visible[point];
      }
    }
    $("map-status").textContent = visible ? `${shown.toLocaleString("en")} of ${count(numPoints, "point", "points")} shown.` : "";
    findMiddles();
    draw();
  }

  function swatch({ colour, shape }) {
    const paths = {
      circle: "M7 2a5 5 0 1 0 .01 0z",
      square: "M2.5 2.5h9v9h-9z",
      triangle: "M7 1.5l5.5 10h-11z",
      diamond: "M7 1l5 6-5 6-5-6z",
      cross: "M5.2 1h3.6v4.2H13v3.6H8.8V13H5.2V8.8H1V5.2h4.2z",
    };
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", "0 0 14 14");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS(space, "path");
    path.setAttribute("d", paths[shape]);
    path.setAttribute("fill", colour || "currentColor");
    svg.append(path);
    return svg;
  }

  function renderLegend() {
    const legend = $("map-legend");
    if (mode === "outlier") {
      const bar = make("span", { class: "ramp", "aria-hidden": "true" });
      bar.style.background = `linear-gradient(to right, ${ramp(0)}, ${ramp(0.5)}, ${ramp(1)})`;
      legend.replaceChildren(
        make("li", {}, "outlier score 0", bar, "1"),
        make("li", {}, swatch({ colour: ramp(1), shape: "diamond" }), "flagged as an outlier"),
      );
      return;
    }
    const found = new Set();
    for (let point = 0; point < numPoints; point++) found.add(category(point));
    const list = [...found].sort((a, b) => a - b);
    if (list.length > looks) {
      legend.replaceChildren(
        make("li", {}, `${list.length.toLocaleString("en")} of them share ${looks} colours and shapes; the numbers on the map tell them apart, more of them as you zoom in.`),
      );
      return;
    }
    legend.replaceChildren(...list.map((value) => make("li", {}, swatch(look(value)), categoryName(value))));
  }

  function renderMapControls() {
    const group = $("map-group");
    const chosen = group.value;
    group.replaceChildren(make("option", { value: "" }, "All groups"));
    $("map-group-control").hidden = !grouping;
    if (grouping) {
      for (const [g, { size }] of [...groupSizes].sort((a, b) => a[0] - b[0])) {
        group.append(make("option", { value: g }, `Group ${g} (${inImages(size)})`));
      }
      if (groupSizes.has(Number(chosen)) && chosen !== "") group.value = chosen;
    }
    const modes = {
      cluster: "Cluster",
      ...(grouping && { group: `Group (${state.g.toLocaleString("en")}, as set above)` }),
      ...(labelled && { label: "True label" }),
      outlier: "Outlier score",
    };
    if (!modes[mode]) mode = "cluster";
    $("colour").replaceChildren(...Object.entries(modes).map(([value, text]) => make("option", { value }, text)));
    $("colour").value = mode;
    renderLegend();
    filterMap();
  }

  function startMap() {
    $("map-text").textContent =
      `Each point is an image; near points look alike to the network. ` +
      `${numPoints.toLocaleString("en")} of ${inImages(data.num_images)} shown` +
      (numPoints < data.num_images ? ", drawn at random." : ".");
    $("colour").addEventListener("change", (event) => {
      mode = event.target.value;
      renderLegend();
      findMiddles();
      draw();
    });
    $("map-search").addEventListener("input", later(filterMap));
    $("map-group").addEventListener("change", filterMap);
    $("map-controls").addEventListener("submit", (event) => {
      event.preventDefault();
      filterMap();
    });
    $("zoom-in").addEventListener("click", () => zoom(1.6));
    $("zoom-out").addEventListener("click", () => zoom(1 / 1.6));
    $("zoom-reset").addEventListener("click", fit);
    canvas.addEventListener("keydown", (event) => {
      const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (arrow && event.shiftKey) pan(-60 * arrow[0], -60 * arrow[1]);
      else if (arrow) step(...arrow);
      else if (event.key === "+" || event.key === "=") zoom(1.6);
      else if (event.key === "-") zoom(1 / 1.6);
      else if (event.key === "0") fit();
      else if (event.key === "Enter" && selected >= 0) openCluster(images.cluster[points.image[selected]]);
      else return;
      event.preventDefault();
    });
    canvas.addEventListener(
      "wheel",
      (event) => {
        // Until the map is clicked, the wheel scrolls the page.
        if (document.activeElement !== canvas && !event.ctrlKey) return;
        event.preventDefault();
        zoom(2 ** (-event.deltaY / 300), event.offsetX, event.offsetY);
      },
      { passive: false },
    );
    startPointers();
    new ResizeObserver(() => (view.scale ? draw() : fit())).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }

  // One pointer drags, two pinch; one that did not move is a click.
  function startPointers() {
    const down = new Map();
    let moved = 0;
    const spread = () => {
      const [a, b] = [...down.values()];
      return Math.hypot(a.x - b.x, a.y - b.y);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      if (!down.size) moved = 0;
      down.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = [event.offsetX, event.offsetY];
      const last = down.get(event.pointerId);
      if (!last) {
        select(nearestPoint(x, y, 14), false);
        return;
      }
      const before = down.size === 2 ? spread() : 0;
      down.set(event.pointerId, { x, y });
      moved += Math.abs(x - last.x) + Math.abs(y - last.y);
      if (down.size === 2) zoom(spread() / Math.max(1, before), x, y);
      else if (moved > 4) pan(x - last.x, y - last.y);
    });
    const up = (event) => {
      const click = event.type === "pointerup" && down.size === 1 && moved <= 4;
      down.delete(event.pointerId);
      if (!click) return;
      const point = nearestPoint(event.offsetX, event.offsetY, event.pointerType === "touch" ? 24 : 14);
      if (point < 0) return;
      select(point, true);
      openCluster(images.cluster[points.image[point]]);
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", () => {
      if (!down.size && document.activeElement !== canvas) select(-1, false);
    });
  }

  startNavigation();
  startClusters();
  startDialog();
  startLists();
  startMap();
  setGroups(state.g);
})();
