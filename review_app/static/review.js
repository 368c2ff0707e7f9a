// The record page: shows one record, takes one decision, has the next one ready.

import { annotator, call, copilotOn, editorName, newKey, rubric, Unreachable } from "./net.js";
import { Outbox } from "./outbox.js";
import { duration, likely, percent, records, valueWords } from "./words.js";

const AHEAD = 8; // records kept ready; the next fetch starts when half are left
const TOAST_MS = 4000;
const LOOK_AGAIN_MS = 15000;

const byId = (id) => document.getElementById(id);
const parts = Object.fromEntries(
  [
    ...["stage", "text", "editor", "suggestion", "said-before", "notice", "rest", "count", "meter", "where", "saving"],
    ...["saving-words", "toast", "accept", "reject", "skip", "not-sure", "flag", "comment", "undo", "previous", "next"],
    ...["today", "similar", "similar-title", "similar-list", "comments", "comment-list", "comment-count"],
  ].map((id) => [id, byId(id)]),
);
const labels = Array.from(document.querySelectorAll("#labels [data-label]"));
const tints = new Map(labels.map((button) => [button.dataset.label, button.className.match(/tint-\d/)[0]]));

const ready = []; // records waiting to be shown
const trail = []; // what was decided in this window: { item, decision, answer, sent }
const decided = new Map(); // assignment -> version it had when it was decided
let current = null; // the record to decide now
let looking = -1; // index into the trail while looking back, else -1
let editor = null;
let progress = null;
let decidedSinceProgress = 0;
let fetching = null;
let notSure = false;
let shownAt = 0;
let hiddenMs = 0;
let hiddenSince = 0;
let toastTimer = 0;
let lookTimer = 0;
let goalSeen = null; // null until the first look, so that a reload does not congratulate again
let wanted = /^\d+$/.exec(new URLSearchParams(location.search).get("first") ?? "")?.[0]; // opened from the list of records

const outbox = new Outbox(annotator, {
  changed(state, waiting) {
    parts.saving.dataset.state = state;
    parts["saving-words"].textContent = {
      saved: "Saved",
      saving: "Saving",
      offline: `Offline: ${waiting} waiting`,
      memory: "Do not close this window: the browser keeps nothing",
    }[state];
  },
  saved(entry, answer) {
    const step = trail.find((one) => one.sent === entry);
    if (step) step.answer = answer;
    toast(`${valueWords(answer.action, answer.value)} saved`, true);
    if (decidedSinceProgress >= 10) loadProgress();
  },
  refused(entry, problem, status) {
    const at = trail.findIndex((one) => one.sent === entry);
    const step = at < 0 ? null : trail.splice(at, 1)[0];
    looking = -1;
    if (status === 409) showConflict(problem);
    else notice(`Not saved: ${problem.found}. ${problem.next}`);
    // The server knows best whose the record is now: it is fetched again if it is still ours.
    if (step) decided.delete(step.item.assignment_id);
    refill().then(() => (current ? show() : advance()));
  },
  loggedOut(waiting) {
    byId("login-why").textContent = waiting
      ? `Your session has ended. ${waiting === 1 ? "One answer is" : `${waiting} answers are`} kept in this browser and will be saved after you log in.`
      : "Your session has ended.";
    open("login-dialog");
  },
});

// Showing

function show() {
  const step = looking >= 0 ? trail[looking] : null;
  const item = step ? step.item : current;
  if (!item) return;
  parts.rest.hidden = true;
  parts.stage.dataset.state = step ? "said" : "open";
  parts.stage.hidden = false;
  document.body.dataset.state = step ? "said" : "open";
  editor.show(item, parts.text, step?.decision ?? null);
  parts.text.lang = "";
  showSuggestion(item);
  showSaidBefore(item, step);
  parts.flag.setAttribute("aria-pressed", String(item.flagged));
  setNotSure(step ? step.decision.not_sure : (item.previous?.not_sure ?? false));
  for (const id of ["accept", "reject", "skip", "flag", "comment", "not-sure"]) parts[id].disabled = false;
  parts.accept.disabled = !acceptable(item) && editor.enterAccepts;
  parts.previous.disabled = looking === 0 || (looking < 0 && !trail.length);
  parts.next.disabled = looking < 0;
  showComments([]);
  if (step || item.previous || item.flagged) loadComments(item);
  parts.text.parentElement.parentElement.scrollTop = 0;
  parts.text.focus({ preventScroll: true });
  shownAt = performance.now();
  hiddenMs = 0;
}

function acceptable(item) {
  return !item.blind && item.suggestion !== null;
}

function showSuggestion(item) {
  const box = parts.suggestion;
  box.replaceChildren();
  parts.similar.hidden = true;
  if (item.blind || !item.suggestion) {
    box.dataset.kind = "none";
    box.append(element("p", "muted", item.blind ? "Labelled without a suggestion" : "No suggestion for this record"));
    return;
  }
  box.dataset.kind = "suggested";
  const fresh = item.suggestion.by === "copilot";
  const line = element("p", "suggested");
  line.append(element("span", "suggested-word", fresh ? "Suggested just now" : "Suggested"), ...chips(item.suggestion.value));
  line.append(element("span", "likely", likely(item.suggestion.confidence)));
  box.append(line);
  if (fresh) box.append(element("p", "fresh", freshWords(item.suggestion.recent)));
  const others = item.suggestion.runner_up ?? [];
  if (others.length && item.suggestion.confidence !== null) {
    const words = others.map((other) => `${other.label} ${percent(other.probability)}`).join(" · ");
    box.append(element("p", "runner-up", `next: ${words}`));
  }
  showSimilar(item.suggestion.evidence ?? [], fresh);
}

function freshWords(recent) {
  if (!recent) return "made just now, from the guideline's labels alone";
  return `made just now, from ${recent === 1 ? "1 recent answer" : `${recent} recent answers`}`;
}

function chips(value) {
  if (typeof value === "string") return [chip(value)];
  if (!Array.isArray(value)) return [];
  if (!value.length) return [element("span", "chip", "nothing")];
  if (typeof value[0] === "string") return value.map(chip);
  return [element("span", "chip", value.length === 1 ? "1 span" : `${value.length} spans`)];
}

function chip(name) {
  return element("span", `chip ${tints.get(name) ?? ""}`, name);
}

function showSimilar(evidence, fresh = false) {
  parts["similar-title"].textContent = fresh ? "Similar, answered by you just now" : "Similar, already settled";
  parts["similar-list"].replaceChildren(
    ...evidence.map((one) => {
      const row = element("li", "similar");
      row.append(element("span", "example", `“${one.text}”`), ...chips(one.label));
      return row;
    }),
  );
  parts.similar.hidden = !evidence.length;
}

function showSaidBefore(item, step) {
  const before = step ? step.decision : item.previous;
  parts["said-before"].hidden = !before;
  if (!before) return;
  const words = valueWords(before.action, before.value);
  parts["said-before"].textContent = step
    ? `You decided: ${words}. Choose again to change it, ] to go on.`
    : `You had decided: ${words}. Decide again.`;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function notice(words) {
  parts.notice.textContent = words;
  parts.notice.hidden = !words;
}

function toast(words, undoable) {
  clearTimeout(toastTimer);
  parts.toast.replaceChildren(document.createTextNode(words));
  if (undoable) parts.toast.append(document.createTextNode(" · "), element("kbd", "", "U"), document.createTextNode(" to undo"));
  parts.toast.hidden = false;
  toastTimer = setTimeout(() => (parts.toast.hidden = true), TOAST_MS);
}

// The co-pilot: asked ahead for what has no suggestion, so that the record opens with one. Whatever it does not answer is
// labelled without; nothing ever waits for it.

const HELPED_AHEAD = 3;
const SETTLE_MS = 400; // Enter just after a late suggestion was meant for what was there before
const helping = new Map(); // assignment -> promise
let lateAt = -Infinity;

function needsHelp(item) {
  return copilotOn && !item.blind && item.suggestion === null && !helping.has(item.assignment_id);
}

function helpAhead() {
  for (const item of [current, ...ready.slice(0, HELPED_AHEAD)]) {
    if (item && needsHelp(item)) helping.set(item.assignment_id, help(item));
  }
}

/** A record that comes back has the suggestion that the co-pilot had made for it. */
function keepHelp(before, item) {
  if (before.suggestion?.by === "copilot") item.suggestion ??= before.suggestion;
  else helping.delete(item.assignment_id);
}

async function help(item) {
  let answer;
  try {
    answer = await call("POST", "/api/copilot", { assignment_id: item.assignment_id });
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    return; // the record stays as it is
  }
  if (!answer.ok || !answer.data.suggestion || decided.has(item.assignment_id)) return;
  item.suggestion = answer.data.suggestion;
  if (item === current && looking < 0) {
    editor.show(item, parts.text, null);
    showSuggestion(item);
    parts.accept.disabled = false;
    lateAt = performance.now();
  }
}

// Going on

async function advance() {
  looking = -1;
  current = ready.shift() ?? null;
  if (current) {
    show();
    helpAhead();
    if (ready.length < AHEAD / 2) refill();
    return;
  }
  parts.stage.dataset.state = "loading";
  document.body.dataset.state = "loading";
  editor.hide();
  if (!(await refill())) return;
  if (!ready.length && !current) {
    // That answer may be older than the last decisions, or full of records that are still on their way to the server.
    if (!(await outbox.flushed()) || !(await refill())) {
      if (!current) rest();
      return;
    }
  }
  if (current) return; // an undo was faster
  current = ready.shift() ?? null;
  if (current) {
    show();
    helpAhead();
  } else rest();
}

function refill() {
  fetching ??= fetchReady().finally(() => (fetching = null));
  return fetching;
}

async function fetchReady() {
  let answer;
  try {
    answer = await call("GET", `/api/next?count=${AHEAD}${wanted ? `&first=${wanted}` : ""}`);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    if (!current) unreachable("The server does not answer.");
    return false;
  }
  if (answer.status === 401) {
    open("login-dialog");
    return false;
  }
  if (!answer.ok) {
    if (!current) unreachable(`${answer.data.found}. ${answer.data.next}`);
    return false;
  }
  wanted = undefined;
  for (const item of answer.data.items) {
    const known =
      item.assignment_id === current?.assignment_id ||
      ready.some((one) => one.assignment_id === item.assignment_id) ||
      outbox.has(item.assignment_id) ||
      (decided.has(item.assignment_id) && item.version <= decided.get(item.assignment_id));
    if (!known) ready.push(item);
  }
  helpAhead();
  return true;
}

function unreachable(words) {
  empty("Waiting for the server", [`${words} This page tries again by itself; nothing is lost.`], [
    ["Try now", () => advance()],
  ]);
  clearTimeout(lookTimer);
  lookTimer = setTimeout(() => !current && advance(), 5000);
}

async function rest() {
  const saved = await outbox.flushed();
  await loadProgress();
  if (current) return;
  const name = document.querySelector(".menu summary")?.textContent.trim() ?? "";
  const undoLast = ["Look at the last one again", () => undo()];
  if (!progress || progress.round === null) {
    empty("Nothing to label yet", ["As soon as the lead opens a round, its records appear here by themselves."], []);
  } else if (!progress.own) {
    empty("Nothing for you right now", [roundWords()], []);
  } else {
    const spent = progress.seconds_total ? ` in ${duration(progress.seconds_total)}` : "";
    empty(
      `Thank you, ${name}`,
      [
        `You have decided ${records(progress.own)}${spent}.`,
        saved ? "Everything is saved." : `${outbox.waiting} answers wait in this browser until the server is back.`,
        roundWords(),
      ],
      progress.state === "open" || progress.state === "sampling" ? [undoLast] : [],
    );
  }
  clearTimeout(lookTimer);
  lookTimer = setTimeout(() => !current && advance(), LOOK_AGAIN_MS);
}

function roundWords() {
  const open = progress.items - progress.done;
  if (progress.state === "open" && !open) {
    return "Every record of this round is done. Next, the lead looks at the figures and signs it; what needs a second look comes back to a reviewer.";
  }
  if (progress.state === "sampling" && !open) {
    return "The setup sample is done. Next, the suggestions are measured against it; new records appear here by themselves.";
  }
  if (open && (progress.state === "open" || progress.state === "sampling")) {
    return `${records(open)} of this round ${open === 1 ? "is" : "are"} with your colleagues. If one comes to you, it appears here by itself.`;
  }
  return "The round is signed. New records appear here by themselves.";
}

function empty(title, sentences, buttons) {
  parts.stage.hidden = true;
  document.body.dataset.state = "rest";
  editor.hide();
  showSimilar([]);
  for (const id of ["accept", "reject", "skip", "flag", "comment", "not-sure", "next"]) parts[id].disabled = true;
  parts.previous.disabled = !trail.length;
  parts.rest.replaceChildren(element("h1", "", title), ...sentences.map((words) => element("p", "", words)));
  for (const [words, act] of buttons) {
    const button = element("button", "", words);
    button.type = "button";
    button.addEventListener("click", act);
    parts.rest.append(button);
  }
  parts.rest.hidden = false;
  parts.rest.focus({ preventScroll: true });
}

// Deciding

function seconds() {
  const away = hiddenMs + (hiddenSince ? performance.now() - hiddenSince : 0);
  return Math.min(86400, Math.max(0, Math.round(performance.now() - shownAt - away) / 1000));
}

/** `value` of the schema; accept or correct follows from what was suggested. */
function decideValue(value, { advance: goOn = true } = {}) {
  const item = looking >= 0 ? trail[looking].item : current;
  if (!item) return;
  const same = acceptable(item) && JSON.stringify(value) === JSON.stringify(item.suggestion.value);
  act(same ? "accept" : "correct", value, "", goOn);
}

function accept() {
  const item = looking >= 0 ? trail[looking].item : current;
  if (!item) return;
  const made = editor.current(); // null: there is one, but it cannot be saved as it is
  if (made === null) return;
  if (looking < 0 && performance.now() - lateAt < SETTLE_MS) return;
  if (made !== undefined) decideValue(made);
  else if (acceptable(item)) act("accept", item.suggestion.value, "", true);
  else toast(item.blind ? "No suggestion here: choose a label" : "Choose a label");
}

function act(action, value, comment, goOn) {
  notice("");
  if (looking >= 0) {
    change(trail[looking], action, value, comment, goOn);
    return;
  }
  if (!current) return;
  const item = current;
  send(item, action, value, comment, trail.length);
  decidedSinceProgress += 1;
  if (progress) {
    progress.own += 1;
    if (action !== "skip") progress.today += 1;
    progress.left = Math.max(0, progress.left - 1);
    showProgress();
  }
  if (goOn) advance();
  else {
    current = null;
    looking = trail.length - 1;
    show();
  }
}

function send(item, action, value, comment, place) {
  const decision = {
    assignment_id: item.assignment_id,
    idempotency_key: newKey(),
    expected_version: item.version,
    action,
    value: action === "reject" || action === "skip" ? null : value,
    seconds: seconds(),
    comment,
    not_sure: notSure,
    copilot: item.suggestion?.by === "copilot",
    scores: action === "accept" || action === "correct" ? (editor.scores?.() ?? {}) : {},
  };
  decided.set(item.assignment_id, item.version);
  const step = { item, decision, answer: null, sent: null };
  trail.splice(place, trail[place]?.item === item ? 1 : 0, step);
  step.sent = outbox.add(decision);
  return step;
}

/** Another answer to a record already decided: the first is taken back, then the new one is saved. */
async function change(step, action, value, comment, goOn) {
  const place = trail.indexOf(step);
  const item = await takeBack(step);
  if (!item) return;
  keepHelp(step.item, item);
  step.item = item;
  send(item, action, value, comment, place);
  if (goOn) forward();
  else show();
}

/** The record of a step, undecided again; null (with a notice) when that is not possible. */
async function takeBack(step) {
  if (!step.answer && outbox.withdraw(step.sent)) {
    decided.delete(step.item.assignment_id);
    return step.item;
  }
  if (!(await outbox.flushed())) {
    notice("Undo needs the server, which does not answer at the moment. Your answers are kept.");
    return null;
  }
  return step.answer ? undoOnServer({ annotation_id: step.answer.annotation_id }) : null;
}

async function undoOnServer(body) {
  let answer;
  try {
    answer = await call("POST", "/api/undo", { ...body, idempotency_key: newKey() });
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    notice("Undo needs the server, which does not answer at the moment. Your answers are kept.");
    return null;
  }
  if (answer.status === 401) {
    open("login-dialog");
    return null;
  }
  if (!answer.ok) {
    notice(`${answer.data.found}. ${answer.data.next}`);
    return null;
  }
  if (answer.data.undone === null) {
    toast("Nothing left to undo");
    return null;
  }
  if (answer.data.item === null) {
    toast("Taken back; somebody else has decided the record meanwhile");
    return null;
  }
  decided.delete(answer.data.item.assignment_id);
  return answer.data.item;
}

let undoing = false;

async function undo() {
  if (undoing) return;
  undoing = true;
  try {
    const step = looking >= 0 ? trail[looking] : trail.at(-1);
    const item = step ? await takeBack(step) : (await outbox.flushed()) && (await undoOnServer({ stage: "review" }));
    if (!item) return;
    if (step) {
      trail.splice(trail.indexOf(step), 1);
      keepHelp(step.item, item);
    }
    if (current && current.assignment_id !== item.assignment_id) ready.unshift(current);
    const twice = ready.findIndex((one) => one.assignment_id === item.assignment_id);
    if (twice >= 0) ready.splice(twice, 1);
    current = item;
    looking = -1;
    if (progress) {
      progress.own = Math.max(0, progress.own - 1);
      progress.today = Math.max(0, progress.today - 1);
      progress.left += 1;
      showProgress();
    }
    toast("Taken back");
    show();
    helpAhead();
  } finally {
    undoing = false;
  }
}

function back() {
  if (!trail.length || looking === 0) return;
  looking = looking < 0 ? trail.length - 1 : looking - 1;
  show();
}

function forward() {
  if (looking < 0) return;
  looking = looking + 1 < trail.length ? looking + 1 : -1;
  if (looking >= 0 || current) show();
  else advance();
}

// Asking

const dialogs = { reason: null };

function open(id) {
  const dialog = byId(id);
  if (!dialog.open) dialog.showModal();
}

const REASONS = {
  reject: {
    title: "Reject this record",
    help: "It cannot be labelled with these labels. It will not be used.",
    send: "Reject",
    choices: ["None of the labels fits", "More than one thing in one text", "The text is broken or empty"],
  },
  skip: {
    title: "Skip this record",
    help: "Somebody else should decide it.",
    send: "Skip",
    choices: ["Not my field", "I would need to know more", "I know the people in it"],
  },
};

function ask(action) {
  if (!current && looking < 0) return;
  const words = REASONS[action];
  dialogs.reason = action;
  byId("reason-title").textContent = words.title;
  byId("reason-help").textContent = words.help;
  byId("reason-send").textContent = words.send;
  byId("reason").value = "";
  byId("reason-choices").replaceChildren(
    ...words.choices.map((choice, at) => {
      const button = element("button", "choice");
      button.type = "button";
      const key = element("kbd", "", String(at + 1));
      key.setAttribute("aria-hidden", "true");
      button.append(key, document.createTextNode(` ${choice}`));
      button.addEventListener("click", () => reasonGiven(choice));
      return button;
    }),
  );
  open("reason-dialog");
  byId("reason").focus();
}

function reasonGiven(reason) {
  byId("reason-dialog").close();
  act(dialogs.reason, null, reason, true);
}

byId("reason-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const reason = byId("reason").value.trim();
  if (reason) reasonGiven(reason);
});
byId("reason-dialog").addEventListener("keydown", (event) => {
  const typing = byId("reason").value !== "";
  if (event.key === "Enter" && !event.shiftKey && event.target.id === "reason") {
    event.preventDefault();
    if (byId("reason").value.trim()) reasonGiven(byId("reason").value.trim());
  } else if (!typing && /^[1-3]$/.test(event.key)) {
    event.preventDefault();
    reasonGiven(REASONS[dialogs.reason].choices[Number(event.key) - 1]);
  }
});

async function saveComment() {
  const text = byId("comment-text").value.trim();
  const item = looking >= 0 ? trail[looking].item : current;
  if (!text || !item) return;
  try {
    const answer = await call("POST", "/api/comments", { assignment_id: item.assignment_id, text });
    if (!answer.ok) throw new Unreachable(answer.data.found);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    byId("comment-title").textContent = "Not saved: the server does not answer. Try again.";
    return;
  }
  byId("comment-dialog").close();
  toast("Comment saved");
  loadComments(item);
}

byId("comment-form").addEventListener("submit", (event) => {
  event.preventDefault();
  saveComment();
});
byId("comment-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    saveComment();
  }
});

function writeComment() {
  if (!current && looking < 0) return;
  byId("comment-title").textContent = "Comment";
  byId("comment-text").value = "";
  open("comment-dialog");
  byId("comment-text").focus();
}

async function loadComments(item) {
  try {
    const answer = await call("GET", `/api/comments?assignment_id=${item.assignment_id}`);
    const shown = looking >= 0 ? trail[looking]?.item : current;
    if (answer.ok && shown?.assignment_id === item.assignment_id) showComments(answer.data.comments);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error; // comments are not worth a notice
  }
}

function showComments(comments) {
  parts["comment-list"].replaceChildren(...comments.map((one) => element("li", "", one.text)));
  parts["comment-count"].textContent = comments.length ? `(${comments.length})` : "";
  parts.comments.hidden = !comments.length;
}

async function toggleFlag() {
  const item = looking >= 0 ? trail[looking].item : current;
  if (!item) return;
  const raised = !item.flagged;
  parts.flag.setAttribute("aria-pressed", String(raised));
  try {
    const answer = await call("POST", "/api/flags", { assignment_id: item.assignment_id, raised });
    if (!answer.ok) throw new Unreachable(answer.data.found);
    item.flagged = raised;
    toast(raised ? "Flagged" : "Flag taken down");
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    parts.flag.setAttribute("aria-pressed", String(item.flagged));
    notice("The flag was not saved: the server does not answer.");
  }
}

function setNotSure(on) {
  notSure = on;
  parts["not-sure"].setAttribute("aria-pressed", String(on));
}

function showConflict(problem) {
  byId("conflict-why").textContent = problem.next;
  byId("conflict-sent").textContent = valueWords(problem.sent?.action, problem.sent?.value);
  const known = problem.stored && "action" in problem.stored;
  byId("conflict-stored").textContent = known
    ? valueWords(problem.stored.action, problem.stored.value)
    : "Another annotator's answer, which you do not see so that it cannot sway you.";
  byId("conflict-by").textContent = known ? `Saved by ${problem.stored.by}` : "Saved by someone else";
  open("conflict-dialog");
}

for (const button of document.querySelectorAll("dialog [data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => (parts.rest.hidden ? parts.text : parts.rest).focus({ preventScroll: true }));
}
byId("login-dialog").addEventListener("cancel", (event) => event.preventDefault());

// Progress

async function loadProgress() {
  try {
    const midnight = new Date();
    midnight.setHours(0, 0, 0, 0);
    const answer = await call("GET", `/api/progress?since=${encodeURIComponent(midnight.toISOString())}`);
    if (!answer.ok) return;
    progress = answer.data;
    decidedSinceProgress = 0;
    showProgress();
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error; // the dot says offline already
  }
}

function showProgress() {
  if (progress.round === null) return;
  const mine = progress.own + Math.max(0, progress.left);
  parts.where.textContent = progress.state === "sampling" ? " · setup sample" : ` · round ${progress.round}`;
  parts.meter.max = Math.max(mine, 1);
  parts.meter.value = progress.own;
  const eta = progress.seconds && progress.left ? progress.seconds * Math.ceil(progress.left / progress.at_work) : 0;
  parts.count.textContent = `${progress.own} of ${mine}` + (eta ? ` · ${eta < 45 ? "" : "about "}${duration(eta)} left` : "");
  showToday();
}

/** The goal of the day, and the pace while there is no goal to reach. */
function showToday() {
  const pace = progress.seconds ? ` · ${progress.seconds < 9.5 ? progress.seconds.toFixed(1) : Math.round(progress.seconds)} s each` : "";
  if (progress.goal && progress.today >= progress.goal) {
    parts.today.textContent = `Today ${progress.today} of ${progress.goal}: goal reached`;
    parts.today.dataset.state = "reached";
    if (goalSeen === false) toast(`Goal of the day reached: ${records(progress.goal)}. Thank you.`);
    goalSeen = true;
    return;
  }
  goalSeen = false;
  parts.today.dataset.state = "";
  parts.today.textContent = progress.goal ? `Today ${progress.today} of ${progress.goal}${pace}` : `Today ${progress.today}${pace}`;
}

// Keys and buttons

const keys = {
  Enter: accept,
  x: () => ask("reject"),
  s: () => ask("skip"),
  n: () => setNotSure(!notSure),
  f: toggleFlag,
  c: writeComment,
  u: undo,
  "[": back,
  "]": forward,
  "?": () => open("keys-dialog"),
  g: () => {
    const guideline = document.querySelector(".guideline");
    if (!guideline) return;
    guideline.open = !guideline.open;
    if (guideline.open) byId("guideline-search").focus();
  },
  "/": () => byId("label-search")?.focus(),
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const target = event.target;
  const writing = target.matches("input, textarea, select, [contenteditable]");
  if (editor?.key(event, writing)) {
    event.preventDefault();
    return;
  }
  if (writing) {
    if (event.key === "Escape") parts.text.focus({ preventScroll: true });
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" && target.matches("button, a, summary")) return; // it presses what has the focus
  const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const handler = keys[name];
  if (!handler || (event.repeat && name !== "[" && name !== "]")) return;
  event.preventDefault();
  handler();
});

const buttons = {
  accept,
  reject: () => ask("reject"),
  skip: () => ask("skip"),
  "not-sure": keys.n,
  flag: toggleFlag,
  comment: writeComment,
  undo,
  previous: back,
  next: forward,
  "keys-button": keys["?"],
};
for (const [id, handler] of Object.entries(buttons)) byId(id).addEventListener("click", handler);

document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenSince = performance.now();
  else if (hiddenSince) {
    hiddenMs += performance.now() - hiddenSince;
    hiddenSince = 0;
  }
});
addEventListener("beforeunload", (event) => {
  if (parts.saving.dataset.state === "memory" && outbox.waiting) event.preventDefault();
});

// Searching

byId("label-search")?.addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const button of labels) button.hidden = !button.dataset.label.toLowerCase().includes(wanted);
});
byId("label-search")?.addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  event.stopPropagation();
  const first = labels.find((button) => !button.hidden);
  event.target.value = "";
  for (const button of labels) button.hidden = false;
  if (first) first.click();
  if (document.activeElement === event.target) parts.text.focus({ preventScroll: true });
});
byId("guideline-search")?.addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const block of byId("guideline").children) {
    block.hidden = wanted !== "" && !block.textContent.toLowerCase().includes(wanted);
  }
});

async function start() {
  const module = await import(`./editors/${editorName}.js`);
  editor = module.mount({ labels, tints, decide: decideValue, container: parts.editor, text: parts.text, toast, rubric });
  if (editor.saveWord) parts.accept.querySelector("span").textContent = editor.saveWord;
  outbox.pump();
  loadProgress();
  await advance();
}

start();
