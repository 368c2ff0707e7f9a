// Many alike records at once: everything is ticked, the expert unticks what is wrong, Enter accepts the rest. Each record is
// a decision of its own with a key of its own, sent through the same outbox as on the record page.

import { annotator, call, newKey, Unreachable } from "./net.js";
import { Outbox } from "./outbox.js";
import { percent, records } from "./words.js";

const LONG = 700; // characters after which a text is folded

const byId = (id) => document.getElementById(id);
const box = byId("batch");
const tints = new Map(
  Array.from(byId("labels-template").content.querySelectorAll("[data-label]"), (one) => [one.dataset.label, one.className]),
);
let groups = [];
let least = null;
let group = null; // the group that is open
let order = "sure";
let items = [];
let ticked = new Set(); // assignment ids
let at = 0;
let openedAt = 0;
let lastBatch = { size: 0, sent: new Set(), saved: [] };
let busy = false;

// What was unticked is decided one by one: it must not come back ticked, after a reload either.
const LEFT_OUT = `countersign:left-out:${annotator}`;
const MOST_LEFT_OUT = 400;

function leftOut() {
  try {
    return JSON.parse(sessionStorage.getItem(LEFT_OUT) ?? "[]");
  } catch {
    return [];
  }
}

function leaveOut(ids) {
  try {
    sessionStorage.setItem(LEFT_OUT, JSON.stringify([...leftOut(), ...ids].slice(-MOST_LEFT_OUT)));
  } catch {
    // Storage switched off: they may come again, to be unticked again.
  }
}

const outbox = new Outbox(annotator, {
  changed(state, waiting) {
    byId("saving").dataset.state = state;
    byId("saving-words").textContent = {
      saved: "Saved",
      saving: "Saving",
      offline: `Offline: ${waiting} waiting`,
      memory: "Do not close this window: the browser keeps nothing",
    }[state];
  },
  saved(entry, answer) {
    if (!lastBatch.sent.has(entry)) return;
    lastBatch.saved.push(answer.annotation_id);
    if (lastBatch.saved.length === lastBatch.size) toast(`${records(lastBatch.size)} saved`, true);
  },
  refused(entry, problem) {
    lastBatch.size -= lastBatch.sent.delete(entry) ? 1 : 0;
    notice(`One was not saved: ${problem.found}. ${problem.next}`);
  },
  loggedOut: () => location.assign("/login"),
});

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
function toast(words, undoable) {
  clearTimeout(toastTimer);
  byId("toast").replaceChildren(document.createTextNode(words));
  if (undoable) byId("toast").append(document.createTextNode(" · "), element("kbd", "", "U"), document.createTextNode(" to undo"));
  byId("toast").hidden = false;
  toastTimer = setTimeout(() => (byId("toast").hidden = true), 4000);
}

async function ask(path) {
  try {
    const answer = await call("GET", path);
    if (answer.status === 401) location.assign("/login");
    else if (answer.ok) return answer.data;
    else notice(`${answer.data.found}. ${answer.data.next}`);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    notice("The server does not answer. Try again in a moment.");
  }
  return null;
}

function withoutLeftOut() {
  return new URLSearchParams(leftOut().map((id) => ["without", String(id)]));
}

const chip = (name) => element("span", tints.get(name) ?? "chip", name);
const chips = (labels) => (labels.length ? labels.map(chip) : [element("span", "chip", "nothing")]);

// Groups

async function showGroups() {
  await outbox.flushed();
  const answer = await ask(`/api/batches?${withoutLeftOut()}`);
  if (!answer) return;
  ({ groups, least } = answer);
  group = null;
  items = [];
  if (!groups.length) {
    const empty = element("div", "card empty");
    empty.append(element("h2", "", "Nothing to accept together"));
    const why =
      least === null
        ? "This project has every record decided one by one."
        : `Records come here when their suggestion is at least ${percent(least)} likely right, which is known after the first reviewed records.`;
    empty.append(element("p", "", why));
    const go = element("a", "button primary", "To my records");
    go.href = "/review";
    const line = element("p");
    line.append(go);
    empty.append(line);
    box.replaceChildren(empty);
  } else {
    const list = element("ol", "groups");
    groups.forEach((one, index) => list.append(groupRow(one, index)));
    box.replaceChildren(
      element("p", "muted", `Suggestions that are at least ${percent(least)} likely right, by label. You look through them together; each is saved as a decision of yours.`),
      list,
    );
  }
  box.dataset.state = "groups";
  byId("title").textContent = "Alike records";
  byId("title").focus({ preventScroll: true });
}

function groupRow(one, index) {
  const row = element("li");
  const button = element("button", "group");
  button.type = "button";
  if (index < 9) {
    const key = element("kbd", "", String(index + 1));
    key.setAttribute("aria-hidden", "true");
    button.append(key);
  }
  const name = element("span", "group-labels");
  name.append(...chips(one.labels));
  const range = one.lowest === one.highest ? percent(one.lowest) : `${percent(one.lowest)} to ${percent(one.highest)}`;
  button.append(name, element("span", "number", records(one.records)), element("span", "muted number", `${range} likely right`));
  button.addEventListener("click", () => open(one));
  row.append(button);
  return row;
}

// One group

async function open(one) {
  const query = withoutLeftOut();
  query.set("order", order);
  for (const name of one.labels) query.append("labels", name);
  const answer = await ask(`/api/batch?${query}`);
  if (!answer) return;
  if (!answer.items.length) {
    showGroups();
    return;
  }
  group = one;
  items = answer.items;
  ticked = new Set(items.map((item) => item.assignment_id));
  at = 0;
  openedAt = performance.now();
  notice("");
  draw();
}

function draw() {
  const head = element("div", "batch-head");
  const name = element("p", "suggested");
  name.append(element("span", "suggested-word", "All suggested as"), ...chips(group.labels));
  const sort = element("button");
  const key = element("kbd", "", "A");
  key.setAttribute("aria-hidden", "true");
  sort.append(key, document.createTextNode(order === "sure" ? "Put alike ones together" : "Put the surest first"));
  sort.type = "button";
  sort.setAttribute("aria-keyshortcuts", "A");
  sort.addEventListener("click", turn);
  head.append(name, sort);
  const list = element("ol", "batch-list");
  items.forEach((item, index) => list.append(itemRow(item, index)));
  const bar = element("div", "batch-bar");
  const accept = element("button", "primary");
  accept.type = "button";
  accept.id = "accept";
  accept.append(element("kbd", "", "↵"), element("span", ""));
  accept.addEventListener("click", acceptAll);
  const back = element("button", "", "Back to the groups");
  back.type = "button";
  back.addEventListener("click", showGroups);
  bar.append(accept, back);
  box.replaceChildren(head, list, bar);
  box.dataset.state = "batch";
  byId("title").textContent = `${records(items.length)} alike`;
  count();
  focus(0);
}

function itemRow(item, index) {
  const row = element("li", "card");
  const label = element("label", "tick");
  const tick = element("input");
  tick.type = "checkbox";
  tick.checked = ticked.has(item.assignment_id);
  tick.dataset.index = String(index);
  tick.addEventListener("change", () => {
    if (tick.checked) ticked.add(item.assignment_id);
    else ticked.delete(item.assignment_id);
    row.classList.toggle("unticked", !tick.checked);
    count();
  });
  tick.addEventListener("focus", () => (at = index));
  const text = element("span", "excerpt", item.text.length > LONG ? `${item.text.slice(0, LONG)} …` : item.text);
  text.dir = "auto";
  label.append(tick, text);
  row.append(label);
  if (item.text.length > LONG) {
    const more = element("button", "quiet", "Show all of it");
    more.type = "button";
    more.addEventListener("click", () => {
      text.textContent = item.text;
      more.remove();
    });
    row.append(more);
  }
  for (const line of spans(item.suggestion.value)) row.append(line);
  row.append(element("p", "muted number", `${percent(item.suggestion.confidence)} likely right`));
  return row;
}

/** What a batch of spans shows: each with its label, for the records of a group differ in where they are. */
function spans(value) {
  if (!Array.isArray(value) || !value.length || typeof value[0] !== "object") return [];
  return value.map((span) => {
    const line = element("p", "span-line");
    line.append(chip(span.label), element("span", "quoted", span.quote));
    return line;
  });
}

function count() {
  const out = items.length - ticked.size;
  const accept = byId("accept");
  accept.disabled = !ticked.size;
  accept.lastChild.textContent = out ? `Accept ${ticked.size}, leave ${out} for later` : `Accept all ${ticked.size}`;
}

function focus(index) {
  at = Math.min(Math.max(index, 0), items.length - 1);
  box.querySelector(`[data-index="${at}"]`)?.focus();
}

function acceptAll() {
  if (!group || !ticked.size) return;
  const chosen = items.filter((item) => ticked.has(item.assignment_id));
  const left = items.length - chosen.length;
  leaveOut(items.filter((item) => !ticked.has(item.assignment_id)).map((item) => item.assignment_id));
  const share = Math.min(86400, Math.round((performance.now() - openedAt) / chosen.length) / 1000);
  const id = newKey();
  lastBatch = { size: chosen.length, sent: new Set(), saved: [] };
  for (const item of chosen) {
    const entry = outbox.add({
      assignment_id: item.assignment_id,
      idempotency_key: newKey(),
      expected_version: item.version,
      action: "accept",
      value: item.suggestion.value,
      seconds: share,
      batch: { id, size: chosen.length },
    });
    lastBatch.sent.add(entry);
  }
  if (left) notice(`${records(left)} left out: ${left === 1 ? "it comes" : "they come"} to you one by one among your records.`);
  const before = group;
  outbox.flushed().then(() => (group === before ? open(before) : null));
}

async function undo() {
  if (busy || !lastBatch.saved.length) return;
  busy = true;
  try {
    await outbox.flushed();
    const taken = lastBatch.saved.length;
    for (const annotation_id of [...lastBatch.saved]) {
      const answer = await call("POST", "/api/undo", { annotation_id, idempotency_key: newKey() });
      if (!answer.ok) {
        notice(`Not taken back: ${answer.data.found}. ${answer.data.next}`);
        return;
      }
      lastBatch.saved.shift();
    }
    toast(`${records(taken)} taken back; ${taken === 1 ? "it is" : "they are"} among your records`);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    notice("Undo needs the server, which does not answer at the moment. Press U again in a moment.");
  } finally {
    busy = false;
  }
}

function turn() {
  order = order === "sure" ? "alike" : "sure";
  // What is on the screen is reserved already: it is only laid out anew.
  items = order === "sure" ? [...items].sort((a, b) => b.suggestion.confidence - a.suggestion.confidence) : alike(items);
  draw();
}

/** Each record followed by the one that shares most words with it. */
function alike(all) {
  const words = new Map(all.map((item) => [item, new Set(item.text.toLowerCase().match(/\p{L}+/gu) ?? [])]));
  const shared = (a, b) => {
    const common = [...words.get(a)].filter((word) => words.get(b).has(word)).length;
    return common / (words.get(a).size + words.get(b).size - common || 1);
  };
  const left = all.slice(1);
  const found = [all[0]];
  while (left.length) {
    const last = found.at(-1);
    const next = left.reduce((best, one) => (shared(last, one) > shared(last, best) ? one : best));
    left.splice(left.indexOf(next), 1);
    found.push(next);
  }
  return found;
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!group && digit && groups[Number(digit) - 1]) open(groups[Number(digit) - 1]);
  else if (key === "u") undo();
  else if (group && key === "Enter" && !event.target.matches("button, a, summary")) acceptAll();
  else if (group && key === "ArrowDown") focus(at + 1);
  else if (group && key === "ArrowUp") focus(at - 1);
  else if (group && key === "a") turn();
  else if (group && key === "Escape") showGroups();
  else return;
  event.preventDefault();
});

showGroups();
