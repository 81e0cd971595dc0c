// An image, as large as it is known, with what is known of it.
let lookedAt = -1;

places.image = (index) => {
  const image = placeOf.get(index);
  if (image === undefined) return false;
  if (!context.list.includes(image)) {
    const c = headOf(images.cluster[image]);
    context = { list: withPicture(members(c)), title: clusterTitle(c) };
    if (!context.list.includes(image)) context.list.unshift(image);
  }
  lookedAt = image;
  renderViewer(image);
  const dialog = $("viewer");
  if (!dialog.open) {
    dialog.showModal();
    $("viewer-title").focus();
  }
  return true;
};

function renderViewer(image) {
  const at = context.list.indexOf(image);
  $("viewer-title").textContent = fileName(image);
  $("viewer-place").textContent =
    `${number(at + 1)} of ${number(context.list.length)}: ${context.title}`;
  $("viewer-last").disabled = at === 0;
  $("viewer-next").disabled = at === context.list.length - 1;
  $("viewer-picture").replaceChildren(picture(image, { alt: fileName(image) }));
  $("viewer-facts").replaceChildren(...viewerFacts(image));
  paintMarks();
  showFile(image);
}

// Not larger than it can bear.
function bearable(img, times) {
  img.style.maxWidth = `${times * img.naturalWidth}px`;
  img.style.maxHeight = `${times * img.naturalHeight}px`;
}

// The file itself, where it still is, in place of the small picture.
function showFile(image) {
  const small = $("viewer-picture").querySelector("img");
  small?.addEventListener("load", () =>
    bearable(small, small.classList.contains("tiny") ? 12 : 2.5),
  );
  const url = fileUrl(image);
  if (url?.protocol !== "file:") return;
  const file = new Image();
  file.alt = fileName(image);
  file.addEventListener("load", () => {
    if (lookedAt !== image || !$("viewer").open) return;
    const { naturalWidth: width, naturalHeight: height } = file;
    const tiny = Math.max(width, height) <= tinySide;
    file.classList.toggle("tiny", tiny);
    bearable(file, tiny ? 12 : 2);
    $("viewer-picture").replaceChildren(file);
    $("file-state").replaceChildren(
      make(
        "a",
        { href: url.href, target: "_blank", rel: "noopener" },
        "Open the file",
      ),
      ` (${width} × ${height})`,
    );
  });
  file.addEventListener("error", () => {
    if (lookedAt !== image) return;
    $("file-state").textContent =
      "The file is not there any more, or of a kind that no browser shows: " +
      "this is the small picture that the page keeps.";
  });
  file.src = url.href;
}

function viewerFacts(image) {
  const list = make("dl", { class: "facts-of-image" });
  const fact = (term, value, title) =>
    list.append(
      make("div", { title }, make("dt", {}, term), make("dd", {}, value)),
    );
  const c = images.cluster[image];
  fact(
    "Cluster",
    link(clusterTitle(c), () => openCluster(c)),
    "Click to see it",
  );
  fact(
    "Similarity",
    decimal(images.similarity[image]),
    "With the centre of its cluster: 1 is the same",
  );
  const second = images.second_cluster[image];
  fact(
    isElsewhere(image) ? "Nearer to" : "Next nearest",
    make(
      "span",
      {},
      link(clusterTitle(second), () => openCluster(second)),
      ` (${decimal(similarityTo(image))})`,
    ),
    "Its similarity with the centre of that cluster in brackets",
  );
  fact(
    "Confidence",
    decimal(images.confidence[image]),
    "The network's own probability of the cluster",
  );
  fact(
    "Outlier score",
    decimal(images.outlier_score[image]) +
      (images.is_outlier[image] ? ", flagged" : ""),
    "How unlike its ten nearest images it is: 0 the same, 1 the opposite",
  );
  if (data.growth && isNew(image)) {
    fact(
      "New",
      images.is_novel[image] ? "yes, and novel" : "yes",
      "It came with the last growth; novel: far from every cluster",
    );
  }
  if (labelled) {
    fact("True label", labelName(images.label[image]), "Ground truth");
  }
  return [
    pathLine(image),
    viewerMarks(image),
    list,
    ...nearest(image),
    ...(images.neighbors
      ? [button("More like this", () => go(`#like-${images.index[image]}`))]
      : []),
  ];
}

function viewerMarks(image) {
  const picking = button("", () => pick(image, context.list, false), {
    id: "viewer-pick",
    title: "Key: space",
  });
  const own = markButtons(() => [image]);
  return make("div", { class: "marks", id: "viewer-marks" }, ...own, picking);
}

// The mark that the image has is pressed.
function paintMarks() {
  if (!$("viewer-marks")) return;
  for (const element of $("viewer-marks").querySelectorAll("[data-mark]")) {
    const has = markOf.get(images.key[lookedAt]) === element.dataset.mark;
    element.setAttribute("aria-pressed", has);
  }
  $("viewer-pick").textContent = selected.has(lookedAt) ? "Selected" : "Select";
  $("viewer-pick").setAttribute("aria-pressed", selected.has(lookedAt));
}

const similarityTo = (image) =>
  images.similarity[image] === null || images.margin[image] === null
    ? null
    : images.similarity[image] - images.margin[image];

function pathLine(image) {
  const path = filePath(image);
  const copying = button(path, () => copy(path), {
    id: "copy-path",
    class: "file",
    title: "Click to copy the path",
    "aria-label": `Copy the path ${path}`,
  });
  return make(
    "div",
    { class: "path" },
    copying,
    make("p", { class: "soft", id: "file-state" }),
  );
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Not every browser lets a page from disk write there.
    const area = make("textarea", { class: "hidden" });
    area.value = text;
    $("viewer").append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("Copied");
}

function nearest(image) {
  const near = withPicture(images.neighbors?.[image] ?? []);
  if (!near.length) return [];
  const title = `nearest to ${fileName(image)}`;
  return [
    make("h3", {}, "Its nearest"),
    gallery(near, {
      title,
      note: (i) =>
        images.cluster[i] === images.cluster[image]
          ? ""
          : clusterTitle(images.cluster[i]),
    }),
  ];
}

// To the next or the last of what it was opened from.
function turn(by) {
  const next = context.list[context.list.indexOf(lookedAt) + by];
  if (next !== undefined) go(`#image-${images.index[next]}`, true);
}

function startViewer() {
  $("viewer-last").addEventListener("click", () => turn(-1));
  $("viewer-next").addEventListener("click", () => turn(1));
  $("viewer").addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const inGallery = event.target.closest(".gallery");
    if (inGallery) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const mark = Object.keys(marks).find((name) => marks[name] === event.key);
    const onButton = event.target.closest("button, a");
    if (by) turn(by);
    else if (mark) markImages([lookedAt], mark);
    else if (event.key === " " && !onButton) {
      pick(lookedAt, context.list, false);
    } else if (event.key === "c") copy(filePath(lookedAt));
    else return;
    event.preventDefault();
  });
}
