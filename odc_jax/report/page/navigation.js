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
      addEventListener(
        "scrollend",
        () => {
          clearTimeout(wait);
          arrive(10);
        },
        { once: true },
      );
    });
  }
}
