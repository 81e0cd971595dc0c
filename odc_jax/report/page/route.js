// What is open stands in the address: #cluster-12, #image-345, #like-345. So
// Back closes it, and a link to it can be kept.
const places = {}; // name -> (number) => opens it, or false
let depth = history.state?.depth ?? 0;
let opened = null; // the address that is shown

let going = false;

function go(hash, replace = false) {
  if (hash !== location.hash) {
    going = true;
    depth += replace ? 0 : 1;
    if (replace) location.replace(hash);
    else location.hash = hash;
    history.replaceState({ depth }, "");
    going = false;
  }
  route();
}

// One step back, or to the clusters where the page was opened at this place.
function back() {
  if (depth > 0) history.back();
  else go("#clusters", true);
}

function route() {
  if (location.hash === opened) return;
  opened = location.hash;
  const [, name, id] = /^#([a-z]+)(?:-(\d+))?$/.exec(location.hash) ?? [];
  if (!places[name]?.(id === undefined ? null : Number(id))) closeAll();
  raiseBars();
}

function closeAll() {
  for (const dialog of document.querySelectorAll("dialog")) shut(dialog);
}

function shut(dialog) {
  if (!dialog.open) return;
  dialog.dataset.leaving = "";
  dialog.close();
}

function startRoute() {
  addEventListener("popstate", () => {
    if (going) return;
    depth = history.state?.depth ?? 0;
    route();
  });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      back();
    });
    // A browser may close it unasked: at a second Escape.
    dialog.addEventListener("close", () => {
      if (!("leaving" in dialog.dataset)) back();
      delete dialog.dataset.leaving;
    });
    dialog.querySelector(".close").addEventListener("click", back);
  }
  route();
  // The page was empty when the browser looked for the section.
  $(location.hash.slice(1))?.scrollIntoView({ behavior: "instant" });
}
