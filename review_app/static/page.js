// Keys that plain pages share: the map on ?, the search field on /, walking a list by arrows. Pages with keys of their own
// (records, disputes, batches) have their own module and only take the map from here.

const dialog = document.getElementById("keys-dialog");
const list = document.querySelector("[data-walk]");
const search = document.querySelector("[data-search]");
const main = document.querySelector("[data-key=enter]");

export function showKeys() {
  if (dialog && !dialog.open) dialog.showModal();
}

function walk(step) {
  const links = Array.from(list.querySelectorAll("a.open"));
  const at = links.indexOf(document.activeElement);
  links[at < 0 ? (step > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + step, 0), links.length - 1)]?.focus();
}

const keys = {
  "?": showKeys,
  ...(search && { "/": () => search.focus() }),
  ...(list && { ArrowDown: () => walk(1), ArrowUp: () => walk(-1) }),
  ...(main && { Enter: () => main.click() }),
};

if (!document.body.classList.contains("review")) {
  document.getElementById("keys-button")?.addEventListener("click", showKeys);
  for (const button of document.querySelectorAll("dialog [data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, textarea, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "Enter" && event.target.matches("button, a, summary")) return;
    const handler = keys[event.key];
    if (!handler) return;
    event.preventDefault();
    handler();
  });
}
