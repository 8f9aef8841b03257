// Which colours the page has, decided before anything is drawn: the viewer's choice kept in this browser, else the
// system's.  A classic script, so that it runs before the first paint.  `window.pageTheme` is for the button.
(() => {
  "use strict";
  const KEY = "ringpoll.theme";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const listeners = [];

  function chosen() {
    try {
      const kept = localStorage.getItem(KEY);
      return kept === "dark" || kept === "light" ? kept : null;
    } catch {
      return null; // storage is forbidden in this browser: the system decides
    }
  }

  function inForce() {
    return chosen() ?? (dark.matches ? "dark" : "light");
  }

  function show() {
    document.documentElement.dataset.theme = inForce();
    for (const listener of listeners) listener(inForce());
  }

  function toggle() {
    const next = inForce() === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(KEY, next);
    } catch {
      document.documentElement.dataset.theme = next; // for as long as the page is open
      for (const listener of listeners) listener(next);
      return;
    }
    show();
  }

  dark.addEventListener("change", show);
  window.addEventListener("storage", (event) => event.key === KEY && show()); // another tab chose
  window.pageTheme = { inForce, toggle, listen: (listener) => listeners.push(listener) };
  show();
})();
