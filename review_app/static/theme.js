// Not a module: it runs before the first paint, so that nobody sees the wrong theme flash by.
"use strict";
(() => {
  const root = document.documentElement;
  const stored = () => {
    try {
      return localStorage.getItem("countersign:theme");
    } catch {
      return null; // storage switched off: the system's theme it is
    }
  };
  const kept = stored();
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-toggle]")) return;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("countersign:theme", root.dataset.theme);
    } catch {
      // Only this page then.
    }
  });
})();
