// Instruction, input and output, written beside the source, with the change against the draft on D.

const FIELDS = ["instruction", "input", "output"];

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Words that were taken out and put in, by the longest common subsequence of words and spaces. */
export function difference(before, after) {
  const a = before.match(/\s+|[^\s]+/g) ?? [];
  const b = after.match(/\s+|[^\s]+/g) ?? [];
  if (a.length * b.length > 4_000_000) return [["removed", before], ["added", after]];
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const parts = [];
  const add = (kind, text) => {
    if (parts.at(-1)?.[0] === kind) parts.at(-1)[1] += text;
    else parts.push([kind, text]);
  };
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      add("same", a[i]);
      i += 1;
      j += 1;
    } else if (i < a.length && (j === b.length || lengths[i + 1][j] >= lengths[i][j + 1])) {
      add("removed", a[i]);
      i += 1;
    } else {
      add("added", b[j]);
      j += 1;
    }
  }
  return parts;
}

export function mount({ container, text, toast }) {
  let draft = null;
  let showing = false;
  const areas = {};
  const changes = element("div", "changes");
  changes.hidden = true;
  for (const field of FIELDS) {
    const label = element("label", "", field[0].toUpperCase() + field.slice(1));
    label.htmlFor = `pair-${field}`;
    const area = element("textarea", "pair");
    area.id = `pair-${field}`;
    area.rows = field === "output" ? 4 : 2;
    area.dir = "auto";
    area.addEventListener("input", grow);
    areas[field] = area;
    container.append(label, area);
  }
  container.append(changes);

  function grow() {
    for (const area of Object.values(areas)) {
      area.style.height = "auto";
      area.style.height = `${area.scrollHeight + 2}px`;
    }
    if (showing) drawChanges();
  }

  function drawChanges() {
    changes.replaceChildren(element("h2", "", "Changes against the draft"));
    for (const field of FIELDS) {
      const line = element("p", "change");
      line.append(element("span", "muted", `${field}: `));
      for (const [kind, words] of difference(draft?.[field] ?? "", areas[field].value)) {
        line.append(kind === "same" ? document.createTextNode(words) : element(kind === "added" ? "ins" : "del", "", words));
      }
      changes.append(line);
    }
  }

  const value = () => Object.fromEntries(FIELDS.map((field) => [field, areas[field].value]));

  return {
    enterAccepts: false,
    saveWord: "Save",
    show(item, _text, said) {
      text.textContent = item.text;
      draft = item.suggestion?.value ?? null;
      const start = said?.value ?? item.previous?.value ?? draft ?? { instruction: "", input: "", output: "" };
      for (const field of FIELDS) {
        areas[field].value = start[field];
        areas[field].disabled = false;
      }
      showing = false;
      changes.hidden = true;
      grow();
    },
    hide() {
      for (const area of Object.values(areas)) area.disabled = true;
    },
    current() {
      const made = value();
      if (!made.instruction.trim() || !made.output.trim()) {
        toast("An instruction and an output are needed");
        return null;
      }
      return made;
    },
    key(event, writing) {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        document.getElementById("accept").click();
        return true;
      }
      if (writing || event.ctrlKey || event.metaKey || event.altKey) return false;
      if (event.key === "e" || event.key === "E") {
        areas.instruction.focus();
        return true;
      }
      if (event.key === "d" || event.key === "D") {
        showing = !showing;
        changes.hidden = !showing;
        if (showing) drawChanges();
        return true;
      }
      return false;
    },
  };
}
