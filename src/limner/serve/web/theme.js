// Runs before the first paint, so that the page never flashes in the wrong colours.
(() => {
  try {
    const said = localStorage.getItem("limner.theme");
    if (said === "light" || said === "dark") document.documentElement.dataset.theme = said;
  } catch {
    // a browser that keeps nothing: the system's colours
  }
})();
