// What is new in a collection that has grown, what of it is novel, what is gone.
const isNew = (image) =>
  images.generation?.[image] === data.growth?.generation;

function startGrowth() {
  if (!data.growth) return;
  const { new: added, novel, missing } = data.growth;
  $("new-text").textContent =
    `${inImages(added)} came with the last growth of the collection, ` +
    (novel
      ? `${number(novel)} of them farther from every cluster than 99 % of those before: what they show may be new.`
      : "none of them farther from every cluster than nearly all of those before.") +
    (missing
      ? ` The files of ${inImages(missing)} are no longer there; their rows are kept.`
      : "");
  const all = [...images.key.keys()];
  const farthestFirst = (a, b) => images.similarity[a] - images.similarity[b];
  const shown = withPicture(all.filter(isNew)).sort(farthestFirst);
  const list = (title, found) =>
    found.length
      ? [
          make("h3", {}, title),
          gallery(found, {
            title,
            note: (i) => clusterTitle(images.cluster[i]),
          }),
        ]
      : [];
  const gone = all.filter((i) => images.is_missing[i]);
  $("new-list").append(
    ...list(
      "Novel",
      shown.filter((i) => images.is_novel[i]),
    ),
    ...list(
      "The others",
      shown.filter((i) => !images.is_novel[i]),
    ),
    ...(gone.length
      ? [
          make(
            "details",
            {},
            make("summary", {}, `Removed (${number(gone.length)} shown)`),
            make(
              "ul",
              {},
              ...gone.map((i) => make("li", { class: "file" }, images.key[i])),
            ),
          ),
        ]
      : []),
  );
}
