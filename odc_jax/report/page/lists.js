// Near-duplicates and outliers.
function startLists() {
  const groups = data.duplicates;
  $("duplicates-text").textContent = groups.length
    ? `${inImages(data.num_duplicates)} ${data.num_duplicates === 1 ? "is" : "are"} nearly the same as another one, in ` +
      `${count(data.num_duplicate_groups, "group", "groups")}; ${groups.length} of ${number(data.num_duplicate_groups)} shown, ` +
      "the largest first. near_duplicate_group in clusters.parquet has them all."
    : "No two images are nearly the same.";
  $("duplicates-list").append(
    ...groups.map(({ size, images: shown }, i) =>
      make(
        "article",
        { class: "duplicate" },
        make(
          "h3",
          {},
          `${inImages(size)} `,
          shown.length < size
            ? make("span", { class: "soft" }, `${shown.length} shown`)
            : null,
        ),
        gallery(shown, {
          title: `Near-duplicates, group ${i + 1}`,
          note: fileName,
        }),
      ),
    ),
  );
  const shown = data.outliers;
  const flagged = data.num_outliers;
  $("outliers-text").textContent = flagged
    ? `Images unlike all others, the most unlike first: ${shown.length} of ${number(flagged)} shown. is_outlier in clusters.parquet has them all.`
    : shown.length
      ? `No image is so unlike the others that it is flagged. These ${shown.length} are the least usual.`
      : "The images were not compared with each other.";
  $("outliers-list").append(
    gallery(shown, {
      title: "Outliers",
      note: (i) => clusterTitle(images.cluster[i]),
    }),
  );
}
