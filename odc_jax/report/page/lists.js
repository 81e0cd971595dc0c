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
        make(
          "h3",
          {},
          `${inImages(size)} `,
          make(
            "span",
            { class: "soft" },
            `${shown.length} of ${size.toLocaleString("en")} shown`,
          ),
        ),
        make(
          "ul",
          { class: "figures" },
          ...shown.map((image) => figure(image, { link: true })),
        ),
      ),
    ),
  );
  const shown = data.outliers;
  $("outliers-text").textContent = shown.length
    ? `Images unlike all others, the most unlike first: ${shown.length} of ${data.num_outliers.toLocaleString("en")} shown. is_outlier in clusters.parquet has them all.`
    : "No image is flagged as unlike all others.";
  $("outliers-list").append(
    ...shown.map((image) =>
      figure(image, {
        link: true,
        facts: [`outlier score ${decimal(images.outlier_score[image])}`],
      }),
    ),
  );
}
