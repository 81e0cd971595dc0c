// Sorting, searching and grouping the clusters.

// The slider is logarithmic: of 10,000 groups the first hundred matter most.
const toGroups = (position) => Math.round(k ** (position / 1000));
const toPosition = (g) => Math.round((1000 * Math.log(g)) / Math.log(k));

// What was merged is drawn anew. A name is not: whoever types one goes on to
// the next.
const merges = () =>
  JSON.stringify(work.names.map((x) => x.clusters).filter((x) => x.length > 1));
let drawnAs = merges();
function redrawClusters() {
  const now = merges();
  if (now !== drawnAs) {
    measureGroups();
    renderSheets();
  }
  drawnAs = now;
  renderMapControls();
}

function setGroups(g, moveSlider = true) {
  state.g = Math.min(k, Math.max(1, g));
  grouping = cut(state.g);
  measureGroups();
  if (tree) {
    const slider = $("groups");
    if (moveSlider) slider.value = toPosition(state.g);
    const text = state.g === k ? "none" : number(state.g);
    slider.setAttribute("aria-valuetext", text);
    $("groups-text").value = text;
    $("groups-number").value = state.g;
  }
  renderSheets();
  renderMapControls();
}

function startControls() {
  for (const [value, [text]] of Object.entries(sorts)) {
    $("sort").append(make("option", { value }, text));
  }
  $("sort").value = state.sort;
  $("sort").addEventListener("change", (event) => {
    state.sort = event.target.value;
    renderSheets();
  });
  const query = later((text) => {
    state.query = text;
    renderSheets();
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
  places.run = () => {
    closeAll();
    $("run-details").open = true;
    return true;
  };
  onChange.push(redrawClusters);
  if (tree) startGroups();
  $("more").addEventListener("click", showMore);
  const some = images.picture.filter((at) => at >= 0).length;
  $("sample").textContent = [
    numShown < data.num_images
      ? `This page knows ${number(numShown)} of the ${inImages(data.num_images)}, ` +
        "a sample: all are in clusters.parquet."
      : "",
    illustrated && data.pictures_left_out
      ? `It has the pictures of ${number(some)}, as many as fit.`
      : "",
  ]
    .filter(Boolean)
    .join(" ");
}

function startGroups() {
  const slow = later((g) => setGroups(g, false), k > 50 ? 120 : 0);
  $("groups").addEventListener("input", (event) =>
    slow(toGroups(Number(event.target.value))),
  );
  // An arrow key moves by a group, not by a thousandth.
  $("groups").addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
    if (!(event.key in move)) return;
    event.preventDefault();
    setGroups(state.g + move[event.key]);
  });
  $("groups-number").addEventListener("change", (event) =>
    setGroups(Math.round(Number(event.target.value)) || k),
  );
  const best = data.best_num_groups;
  for (const g of new Set([best, data.num_groups, k].filter(Boolean))) {
    const why = g === best ? " (stand apart best)" : "";
    const text = g === k ? "no groups" : `${number(g)} groups${why}`;
    $("cuts").append(link(text, () => setGroups(g)));
  }
}
