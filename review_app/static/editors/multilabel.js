// Any number of labels: numbers switch them on and off, Enter saves.

export function mount({ labels, decide }) {
  let enabled = false;
  let chosen = new Set();
  let touched = false;

  const draw = (suggested) => {
    for (const button of labels) {
      button.setAttribute("aria-pressed", String(chosen.has(button.dataset.label)));
      if (suggested) button.classList.toggle("suggested", suggested.includes(button.dataset.label));
    }
  };
  const toggle = (name) => {
    if (!enabled) return;
    touched = true;
    if (!chosen.delete(name)) chosen.add(name);
    draw();
  };
  for (const button of labels) button.addEventListener("click", () => toggle(button.dataset.label));

  return {
    enterAccepts: false,
    saveWord: "Save",
    show(item, text, said) {
      text.textContent = item.text;
      const start = said?.value ?? item.previous?.value ?? item.suggestion?.value ?? [];
      chosen = new Set(start);
      touched = Boolean(said || item.previous || item.suggestion);
      enabled = true;
      draw(item.suggestion?.value ?? []);
    },
    hide() {
      enabled = false;
      chosen = new Set();
      draw([]);
    },
    // Nothing pressed on a record without a suggestion is no answer yet; 0 says "none of them".
    current: () => (touched ? Array.from(chosen).sort() : undefined),
    key(event, writing) {
      if (writing || event.ctrlKey || event.metaKey || event.altKey) return false;
      const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code)?.[1];
      if (!digit) return false;
      if (digit === "0") {
        touched = true;
        chosen = new Set();
        draw();
        decide([]);
      } else if (labels[Number(digit) - 1]) toggle(labels[Number(digit) - 1].dataset.label);
      return true;
    },
  };
}
