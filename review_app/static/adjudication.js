// Disputes one after the other, the furthest apart first: the record once, every answer as a card without a name, what differs
// marked, one key a card; and another answer can be made here with the same editor as on the record page.

import { difference } from "./differences.js";
import { call, editorName, newKey, Unreachable } from "./net.js";
import { valueWords } from "./words.js";

const byId = (id) => document.getElementById(id);
const box = byId("dispute");
const tints = new Map(
  Array.from(byId("labels-template").content.querySelectorAll("[data-label]"), (one) => [one.dataset.label, one.className]),
);
const definitions = new Map(
  Array.from(byId("labels-template").content.querySelectorAll("[data-label]"), (one) => [one.dataset.label, one.dataset.definition]),
);
const guideline = Array.from(byId("guideline-template").content.children);
const compose = byId("compose");
const labels = Array.from(compose.querySelectorAll("[data-label]"));
const PASSAGES = 3; // of the guideline, at most
let waiting = [];
let choices = [];
let shownAt = 0;
let busy = false;
let editor = null;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function notice(words) {
  byId("notice").textContent = words;
  byId("notice").hidden = !words;
}

let toastTimer = 0;
function toast(words) {
  clearTimeout(toastTimer);
  byId("toast").textContent = words;
  byId("toast").hidden = false;
  toastTimer = setTimeout(() => (byId("toast").hidden = true), 4000);
}

async function load() {
  try {
    const answer = await call("GET", "/api/disputes");
    if (answer.status === 401) location.assign("/login");
    else if (answer.ok) {
      waiting = answer.data.disputes;
      show();
    } else notice(`${answer.data.found}. ${answer.data.next}`);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    notice("The server does not answer. Trying again.");
    setTimeout(load, 5000);
  }
}

/** Every answer once, with how many gave it; the model's suggestion is one too. */
function options(dispute) {
  const found = new Map();
  const add = (action, value, who, comment, unsure) => {
    const key = action === "reject" ? "reject" : JSON.stringify(value);
    if (!found.has(key)) found.set(key, { action, value, who: [], comments: [], unsure: 0 });
    const option = found.get(key);
    option.who.push(who);
    if (comment) option.comments.push(comment);
    option.unsure += unsure ? 1 : 0;
  };
  for (const card of dispute.cards) {
    if (card.action !== "skip") add(card.action, card.value, card.blind ? "annotator, blind" : "annotator", card.comment, card.not_sure);
  }
  if (dispute.suggestion) add("accept", dispute.suggestion.value, "suggestion", "", false);
  return Array.from(found.values()).sort((a, b) => b.who.length - a.who.length);
}

// What is the same in every answer, and what is not

const partKey = (part) => (typeof part === "string" ? part : `${part.start}-${part.end}-${part.label}`);

/** Labels or spans that not every answer has. */
function disputedParts() {
  const lists = choices.filter((one) => Array.isArray(one.value)).map((one) => one.value.map(partKey));
  const counts = new Map();
  for (const key of lists.flat()) counts.set(key, (counts.get(key) ?? 0) + 1);
  const all = choices.length;
  return new Set(Array.from(counts).filter(([, count]) => count < all).map(([key]) => key));
}

/** The text with the places marked where the spans of the answers differ. */
function drawText(node, text, disputed) {
  const points = Array.from(text);
  const places = choices
    .flatMap((one) => (Array.isArray(one.value) ? one.value : []))
    .filter((part) => typeof part === "object" && disputed.has(partKey(part)));
  if (!places.length) {
    node.textContent = text;
    return;
  }
  const cuts = new Set([0, points.length]);
  for (const span of places) cuts.add(span.start).add(span.end);
  const edges = Array.from(cuts).sort((a, b) => a - b);
  node.replaceChildren(
    ...edges.slice(0, -1).map((start, index) => {
      const piece = points.slice(start, edges[index + 1]).join("");
      const differs = places.some((span) => span.start <= start && span.end >= edges[index + 1]);
      return differs ? element("mark", "differs", piece) : document.createTextNode(piece);
    }),
  );
}

function show() {
  byId("open-count").textContent = waiting.length ? `${waiting.length} open` : "";
  compose.hidden = true;
  const dispute = waiting[0];
  if (!dispute) {
    choices = [];
    const empty = element("div", "card empty");
    empty.append(element("h2", "", "No dispute is open"), element("p", "", "What quality assurance sends back appears here."));
    box.replaceChildren(empty);
    return;
  }
  choices = options(dispute);
  const disputed = disputedParts();
  const card = element("div", "card dispute");
  card.append(element("p", "muted", dispute.reason));
  const text = element("p", "text");
  text.dir = "auto";
  drawText(text, dispute.text, disputed);
  card.append(text);
  for (const remark of dispute.remarks) card.append(element("p", "remark", `“${remark}”`));
  const cards = element("div", "cards");
  choices.forEach((choice, at) => cards.append(cardOf(choice, at, disputed)));
  const reason = element("label", "", "Why (kept with the answer; needed for “cannot be labelled”)");
  reason.htmlFor = "why";
  const why = element("textarea");
  why.id = "why";
  why.rows = 2;
  why.maxLength = 4000;
  const more = element("div", "buttons");
  const another = element("button");
  another.type = "button";
  another.id = "another";
  another.setAttribute("aria-keyshortcuts", "E");
  another.append(element("kbd", "", "E"), document.createTextNode(" Another answer"));
  another.addEventListener("click", writeAnother);
  const none = element("button");
  none.type = "button";
  none.setAttribute("aria-keyshortcuts", "X");
  none.append(element("kbd", "", "X"), document.createTextNode(" Cannot be labelled"));
  none.addEventListener("click", () => settle(null));
  more.append(another, none);
  box.replaceChildren(card, cards, ...passages(), reason, why, more);
  box.focus({ preventScroll: true });
  shownAt = performance.now();
}

function cardOf(choice, at, disputed) {
  const button = element("button", "answer");
  button.type = "button";
  const head = element("span", "answer-head");
  const key = element("kbd", "", String(at + 1));
  key.setAttribute("aria-hidden", "true");
  head.append(key);
  if (typeof choice.value === "string" || !choice.value || !choice.value.length) {
    const words = valueWords(choice.action, choice.value);
    head.append(choice.value?.output === undefined ? element("span", tints.get(words) ?? "chip", words) : element("span", "", "Pair"));
  } else if (typeof choice.value[0] === "string") {
    head.append(...choice.value.map((name) => partOf(element("span", tints.get(name) ?? "chip", name), disputed.has(name))));
  } else head.append(element("span", "", choice.value.length === 1 ? "1 span" : `${choice.value.length} spans`));
  button.append(head, ...lines(choice, disputed));
  const counts = new Map();
  for (const who of choice.who) counts.set(who, (counts.get(who) ?? 0) + 1);
  const said = Array.from(counts, ([who, count]) => (count > 1 ? `${count} × ${who}` : who)).join(", ");
  button.append(element("span", "muted", said + (choice.unsure ? ` · ${choice.unsure} not sure` : "")));
  for (const comment of choice.comments) button.append(element("span", "remark", `“${comment}”`));
  button.addEventListener("click", () => settle(choice.action === "reject" ? null : choice.value));
  return button;
}

function partOf(node, differs) {
  if (differs) {
    node.classList.add("differs");
    node.append(element("span", "sr", " (not in every answer)"));
  }
  return node;
}

/** Spans line by line, pairs field by field with the words marked that the first answer does not have. */
function lines(choice, disputed) {
  const value = choice.value;
  if (Array.isArray(value)) {
    return value
      .filter((part) => typeof part === "object")
      .map((part) => {
        const line = element("span", "part");
        line.append(element("span", tints.get(part.label) ?? "chip", part.label), document.createTextNode(" "), partOf(element("span", "quoted", part.quote), disputed.has(partKey(part))));
        return line;
      });
  }
  if (!value || typeof value !== "object") return [];
  const first = choices.find((one) => one.value?.output !== undefined).value;
  return Object.entries(value).map(([field, words]) => {
    const line = element("span", "part");
    line.append(element("span", "muted", `${field}: `));
    for (const [kind, piece] of difference(first[field] ?? "", words)) {
      if (kind === "same") line.append(document.createTextNode(piece));
      else if (kind === "added") line.append(element("mark", "differs", piece));
    }
    return line;
  });
}

// The guideline beside the question

const labelsIn = (value) =>
  typeof value === "string" ? [value] : Array.isArray(value) ? value.map((part) => (typeof part === "string" ? part : part.label)) : [];

/** Definitions of the labels in dispute, and what the guideline says about them. */
function passages() {
  const names = [...new Set(choices.flatMap((one) => labelsIn(one.value)))];
  const told = names.filter((name) => definitions.get(name));
  const quoted = guideline
    .filter((block) => /^(P|UL|OL|TABLE|BLOCKQUOTE)$/.test(block.tagName))
    .filter((block) => names.some((name) => block.textContent.toLowerCase().includes(name.toLowerCase())))
    .slice(0, PASSAGES);
  if (!told.length && !quoted.length) return [];
  const section = element("section", "card passages");
  section.append(element("h2", "", "What the guideline says"));
  for (const name of told) {
    const line = element("p");
    line.append(element("span", tints.get(name) ?? "chip", name), document.createTextNode(` ${definitions.get(name)}`));
    section.append(line);
  }
  for (const block of quoted) section.append(element("blockquote", "", block.textContent.trim()));
  return [section];
}

// Another answer

async function writeAnother() {
  const dispute = waiting[0];
  if (!dispute || busy) return;
  if (!editor) {
    const module = await import(`./editors/${editorName}.js`);
    editor = module.mount({
      labels,
      tints: new Map(labels.map((button) => [button.dataset.label, button.className.match(/tint-\d/)[0]])),
      decide: (value) => settle(value),
      container: byId("compose-editor"),
      text: byId("compose-text"),
      toast,
      rubric: [],
    });
  }
  compose.hidden = false;
  byId("compose-save").hidden = editor.enterAccepts;
  const start = choices.find((one) => one.action !== "reject");
  editor.show({ text: dispute.text, suggestion: null, previous: null }, byId("compose-text"), start ? { value: start.value } : null);
  byId("compose-text").focus();
  compose.scrollIntoView({ block: "nearest" });
}

function saveAnother() {
  const value = editor.current();
  if (value === null || value === undefined) return;
  settle(value);
}

function leaveAnother() {
  compose.hidden = true;
  editor?.hide();
  box.focus({ preventScroll: true });
}

byId("compose-save").addEventListener("click", saveAnother);
byId("compose-leave").addEventListener("click", leaveAnother);

async function settle(value) {
  const dispute = waiting[0];
  if (busy || !dispute) return;
  const comment = byId("why").value.trim();
  if (value === null && !comment) {
    byId("why").focus();
    notice("Say why this record cannot be labelled, then press X again.");
    return;
  }
  busy = true;
  notice("");
  try {
    const answer = await call("POST", "/api/adjudications", {
      round: dispute.round,
      record_id: dispute.record_id,
      value,
      comment,
      expected_version: dispute.version,
      idempotency_key: newKey(),
      seconds: Math.min(86400, Math.round(performance.now() - shownAt) / 1000),
    });
    if (answer.status === 401) return location.assign("/login");
    if (!answer.ok) {
      const theirs = answer.data.stored?.action ? ` The other answer: ${valueWords(answer.data.stored.action, answer.data.stored.value)}.` : "";
      notice(`Not saved: ${answer.data.found}. ${answer.data.next}${theirs}`);
      if (answer.status === 409) await load();
      return;
    }
    editor?.hide();
    waiting.shift();
    toast(`${value === null ? "Cannot be labelled" : valueWords("correct", value)} settled · U to undo`);
    show();
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    notice("Not saved: the server does not answer. Try again.");
  } finally {
    busy = false;
  }
}

async function undo() {
  if (busy) return;
  busy = true;
  try {
    const answer = await call("POST", "/api/undo", { stage: "adjudication", idempotency_key: newKey() });
    if (answer.ok && answer.data.undone) toast("Taken back");
    else notice(answer.ok ? "Nothing left to undo." : `${answer.data.found}. ${answer.data.next}`);
    await load();
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    notice("Undo needs the server, which does not answer.");
  } finally {
    busy = false;
  }
}

function composing(event, writing) {
  if (event.key === "Escape") {
    if (writing) byId("compose-text").focus();
    else leaveAnother();
    return true;
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    saveAnother();
    return true;
  }
  if (editor.key(event, writing)) return true;
  if (event.key === "Enter" && !writing && !event.target.matches("button, a, summary") && !editor.enterAccepts) {
    saveAnother();
    return true;
  }
  return false;
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const writing = event.target.matches("input, textarea");
  if (!compose.hidden && event.target.id !== "why") {
    if (composing(event, writing)) event.preventDefault();
    return;
  }
  if (event.key === "Escape" && writing) box.focus({ preventScroll: true });
  if (writing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
  const key = event.key.toLowerCase();
  if (digit && choices[Number(digit) - 1]) {
    const choice = choices[Number(digit) - 1];
    settle(choice.action === "reject" ? null : choice.value);
  } else if (key === "u") undo();
  else if (key === "e") writeAnother();
  else if (key === "x") settle(null);
  else if (key === "w") byId("why")?.focus();
  else return;
  event.preventDefault();
});

load();
