// Disputes one after the other: the record once, every answer as a card without a name, one key a card.

import { call, newKey, Unreachable } from "./net.js";
import { valueWords } from "./words.js";

const byId = (id) => document.getElementById(id);
const box = byId("dispute");
const tints = new Map(
  Array.from(byId("labels-template").content.querySelectorAll("[data-label]"), (one) => [one.dataset.label, one.className]),
);
let waiting = [];
let choices = [];
let shownAt = 0;
let busy = false;

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

function toast(words) {
  byId("toast").textContent = words;
  byId("toast").hidden = false;
  setTimeout(() => (byId("toast").hidden = true), 4000);
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

function show() {
  byId("open-count").textContent = waiting.length ? `${waiting.length} open` : "";
  const dispute = waiting[0];
  if (!dispute) {
    const empty = element("div", "card empty");
    empty.append(element("h2", "", "No dispute is open"), element("p", "", "What quality assurance sends back appears here."));
    box.replaceChildren(empty);
    return;
  }
  choices = options(dispute);
  // What an annotator could have chosen and nobody did is still a possible answer.
  const others = Array.from(tints.keys()).filter((name) => !choices.some((one) => one.value === name));
  const card = element("div", "card dispute");
  card.append(element("p", "muted", dispute.reason));
  const text = element("p", "text", dispute.text);
  text.dir = "auto";
  card.append(text);
  for (const remark of dispute.remarks) card.append(element("p", "remark", `“${remark}”`));
  const cards = element("div", "cards");
  choices.forEach((choice, at) => cards.append(cardOf(choice, at)));
  const more = element("details", "more");
  more.append(element("summary", "", "Another answer"));
  const rest = element("div", "choices");
  if (typeof choices[0]?.value === "string") {
    for (const name of others) {
      const button = element("button", "choice");
      button.type = "button";
      button.append(element("span", tints.get(name), name));
      button.addEventListener("click", () => settle(name));
      rest.append(button);
    }
  }
  const reason = element("label", "", "Why (kept with the answer; needed for “cannot be labelled”)");
  reason.htmlFor = "why";
  const why = element("textarea");
  why.id = "why";
  why.rows = 2;
  why.maxLength = 4000;
  const none = element("button", "", "Cannot be labelled");
  none.type = "button";
  none.addEventListener("click", () => settle(null));
  rest.append(none);
  more.append(rest);
  box.replaceChildren(card, cards, reason, why, more);
  box.focus({ preventScroll: true });
  shownAt = performance.now();
}

function cardOf(choice, at) {
  const button = element("button", "answer");
  button.type = "button";
  const head = element("span", "answer-head");
  const key = element("kbd", "", String(at + 1));
  key.setAttribute("aria-hidden", "true");
  const words = valueWords(choice.action, choice.value);
  head.append(key, element("span", tints.get(words) ?? "chip", words));
  button.append(head);
  for (const line of parts(choice.value)) button.append(element("span", "part", line));
  const counts = new Map();
  for (const who of choice.who) counts.set(who, (counts.get(who) ?? 0) + 1);
  const said = Array.from(counts, ([who, count]) => (count > 1 ? `${count} × ${who}` : who)).join(", ");
  button.append(element("span", "muted", said + (choice.unsure ? ` · ${choice.unsure} not sure` : "")));
  for (const comment of choice.comments) button.append(element("span", "remark", `“${comment}”`));
  button.addEventListener("click", () => settle(choice.action === "reject" ? null : choice.value));
  return button;
}

/** Spans and pairs line by line. */
function parts(value) {
  if (Array.isArray(value)) return value.filter((one) => one.label).map((one) => `${one.label}: ${one.quote}`);
  if (value && typeof value === "object") return Object.entries(value).map(([field, words]) => `${field}: ${words}`);
  return [];
}

async function settle(value) {
  const dispute = waiting[0];
  if (busy || !dispute) return;
  const comment = byId("why").value.trim();
  if (value === null && !comment) {
    byId("why").focus();
    notice("Say why this record cannot be labelled.");
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
    const answer = await call("POST", "/api/undo", { idempotency_key: newKey() });
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

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea") || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
  if (digit && choices[Number(digit) - 1]) {
    const choice = choices[Number(digit) - 1];
    event.preventDefault();
    settle(choice.action === "reject" ? null : choice.value);
  } else if (event.key.toLowerCase() === "u") undo();
});

load();
