// Instruction, input and output, written beside the source, with the change against the draft on D and a rubric by number.

import { difference, supported } from "../differences.js";

const FIELDS = ["instruction", "input", "output"];

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const BEST = 5;
const MEANINGS = {
  faithfulness: "says nothing that the source does not say",
  usefulness: "an answer one would want to be given",
};

export function mount({ container, text, toast, rubric = [] }) {
  let source = "";
  let scores = {};
  let scored = 0; // the row of the rubric that a number goes to
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
    area.rows = field === "output" ? 3 : 1;
    area.dir = "auto";
    area.addEventListener("input", grow);
    areas[field] = area;
    container.append(label, area);
  }
  container.append(changes);
  const rows = rubric.map(rubricRow);
  if (rows.length) {
    const box = element("div", "rubric");
    box.append(...rows.map((row) => row.line));
    container.append(box);
  }

  function rubricRow(name, index) {
    const line = element("div", "rubric-row");
    line.setAttribute("role", "group");
    line.setAttribute("aria-label", name);
    const told = element("p", "rubric-name", name[0].toUpperCase() + name.slice(1));
    if (MEANINGS[name]) told.append(element("span", "muted", ` ${MEANINGS[name]}`));
    const buttons = Array.from({ length: BEST }, (_, at) => {
      const button = element("button", "", String(at + 1));
      button.type = "button";
      button.setAttribute("aria-label", `${name} ${at + 1} of ${BEST}`);
      button.addEventListener("click", () => score(index, at + 1));
      return button;
    });
    const keys = element("div", "rubric-keys");
    keys.append(...buttons);
    line.append(told, keys);
    return { line, buttons };
  }

  /** Gives a score, or takes the same one back, and goes on to the next row. */
  function score(index, points) {
    const name = rubric[index];
    if (scores[name] === points) delete scores[name];
    else scores[name] = points;
    scored = Math.min(index + 1, rubric.length - 1);
    drawRubric();
  }

  function drawRubric() {
    rows.forEach(({ line, buttons }, index) => {
      line.classList.toggle("next", index === scored);
      buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(scores[rubric[index]] === at + 1)));
    });
  }

  /** The source with the sentences lit that the output takes up. */
  function drawSource() {
    text.replaceChildren(
      ...supported(source, areas.output.value).map(([sentence, lit]) =>
        lit ? element("mark", "support", sentence) : document.createTextNode(sentence),
      ),
    );
  }

  function grow() {
    for (const area of Object.values(areas)) {
      area.style.height = "auto";
      area.style.height = `${area.scrollHeight + 2}px`;
    }
    if (showing) drawChanges();
    drawSource();
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
      source = item.text;
      scores = { ...(said?.scores ?? item.previous?.scores ?? {}) };
      scored = 0;
      draft = item.suggestion?.value ?? null;
      const start = said?.value ?? item.previous?.value ?? draft ?? { instruction: "", input: "", output: "" };
      for (const field of FIELDS) {
        areas[field].value = start[field];
        areas[field].disabled = false;
      }
      showing = false;
      changes.hidden = true;
      grow();
      drawRubric();
    },
    /** The rubric as far as it is filled in. */
    scores: () => ({ ...scores }),
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
      const points = /^(?:Digit|Numpad)([1-5])$/.exec(event.code)?.[1];
      if (points && rubric.length) {
        score(scored, Number(points));
        return true;
      }
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        if (!rubric.length) return false;
        scored = Math.min(Math.max(scored + (event.key === "ArrowDown" ? 1 : -1), 0), rubric.length - 1);
        drawRubric();
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
