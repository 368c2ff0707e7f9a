// Decisions on their way to the server. Each is kept in the browser until the server has said "saved", so that neither a
// lost connection nor a closed window costs one. Sent in order, one at a time, each with the key it was made with.

import { call, Unreachable } from "./net.js";

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 15000;

export class Outbox {
  #prefix;
  #entries = [];
  #sending = null;
  #busy = false;
  #timer = 0;
  #wait = FIRST_WAIT_MS;
  #on;

  /** `on`: changed(state, waiting), saved(entry, answer), refused(entry, problem, status), loggedOut(waiting) */
  constructor(owner, on) {
    this.#prefix = `countersign:outbox:${owner}:`;
    this.#on = on;
    this.#entries = this.#kept();
    addEventListener("online", () => this.pump());
  }

  get waiting() {
    return this.#entries.length;
  }

  has(assignmentId) {
    return this.#entries.some((entry) => entry.decision.assignment_id === assignmentId);
  }

  add(decision) {
    const entry = { decision, at: Date.now() };
    this.#entries.push(entry);
    this.#keep(entry);
    this.pump();
    return entry;
  }

  /** Takes an entry back that was not sent yet; false when it is too late for that. */
  withdraw(entry) {
    const at = this.#entries.indexOf(entry);
    if (at < 0 || this.#sending === entry) return false;
    this.#entries.splice(at, 1);
    this.#forget(entry);
    this.#changed();
    return true;
  }

  /** Resolves when nothing is waiting any more, or with false when the server cannot be reached. */
  async flushed() {
    for (let tries = 0; tries < 100 && this.#entries.length; tries += 1) {
      await this.pump();
      if (this.#timer) return false;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return this.#entries.length === 0;
  }

  async pump() {
    if (this.#busy) return;
    this.#busy = true;
    clearTimeout(this.#timer);
    this.#timer = 0;
    try {
      while (this.#entries.length) {
        const entry = this.#entries[0];
        this.#sending = entry;
        this.#changed();
        let answer;
        try {
          answer = await call("POST", "/api/decisions", entry.decision);
        } catch (error) {
          if (!(error instanceof Unreachable)) throw error;
          this.#later();
          return;
        }
        // Refused for an old token: this page is of a session before the one that another window has logged in to.
        if (answer.status === 401 || (answer.status === 403 && answer.data.path === "csrf")) {
          this.#on.loggedOut(this.#entries.length);
          return;
        }
        if (answer.status === 429 || answer.status >= 500) {
          this.#later();
          return;
        }
        this.#entries.shift();
        this.#forget(entry);
        this.#wait = FIRST_WAIT_MS;
        this.#sending = null;
        if (answer.ok) this.#on.saved(entry, answer.data);
        else this.#on.refused(entry, answer.data, answer.status);
      }
    } finally {
      this.#sending = null;
      this.#busy = false;
      this.#changed();
    }
  }

  #later() {
    this.#timer = setTimeout(() => this.pump(), this.#wait);
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT_MS);
  }

  #changed() {
    const state = this.#timer ? "offline" : this.#entries.length ? "saving" : "saved";
    this.#on.changed(state, this.#entries.length);
  }

  // One storage entry a decision: two windows then never overwrite each other's.
  #kept() {
    const entries = [];
    try {
      for (let at = 0; at < localStorage.length; at += 1) {
        const name = localStorage.key(at);
        if (name.startsWith(this.#prefix)) entries.push(JSON.parse(localStorage.getItem(name)));
      }
    } catch {
      return []; // storage switched off: nothing was kept
    }
    return entries.sort((a, b) => a.at - b.at);
  }

  #keep(entry) {
    try {
      localStorage.setItem(this.#prefix + entry.decision.idempotency_key, JSON.stringify(entry));
    } catch {
      this.#on.changed("memory", this.#entries.length);
    }
  }

  #forget(entry) {
    try {
      localStorage.removeItem(this.#prefix + entry.decision.idempotency_key);
    } catch {
      // It was never there.
    }
  }
}
