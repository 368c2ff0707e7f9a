// One more empty row for a label; without scripts two are there after every save.
const add = document.getElementById("add-label");
const rows = document.querySelector(".label-rows");
const empty = rows?.querySelector("[data-empty]")?.cloneNode(true);
if (add && empty) {
  add.hidden = false;
  add.addEventListener("click", () => {
    const row = empty.cloneNode(true);
    rows.append(row);
    row.querySelector("input").focus();
  });
}
