// One label a record: a number decides and goes on.

export function mount({ labels, decide }) {
  let enabled = false;
  for (const button of labels) {
    button.addEventListener("click", (event) => {
      if (enabled) decide(button.dataset.label, { advance: !event.shiftKey });
    });
  }
  const mark = (name, pressed) => {
    for (const button of labels) {
      button.classList.toggle("suggested", button.dataset.label === name);
      button.setAttribute("aria-pressed", String(button.dataset.label === pressed));
    }
  };
  return {
    enterAccepts: true,
    show(item, text, said) {
      text.textContent = item.text;
      enabled = true;
      mark(item.suggestion?.value ?? null, said?.value ?? item.previous?.value ?? null);
    },
    hide() {
      enabled = false;
      mark(null, null);
    },
    /** The answer that Enter would save; undefined when there is none yet. */
    current: () => undefined,
    key(event, writing) {
      if (writing) return false;
      const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
      if (!digit || event.ctrlKey || event.metaKey || event.altKey) return false;
      const button = labels[Number(digit) - 1];
      if (button && enabled) decide(button.dataset.label, { advance: !event.shiftKey });
      return true;
    },
  };
}
