// Spans by mouse and by keyboard. Positions are code points throughout; the DOM's UTF-16 offsets are converted once, where
// a mouse selection comes in. Overlapping spans are drawn as stacked underlines with their label at the end.

import { codePointOffset } from "../code_points.js";
import { overlapping } from "../net.js";

const LEVELS = 4; // stacked underlines that have a style; deeper ones share the last

const byPlace = (a, b) => a.start - b.start || a.end - b.end || (a.label < b.label ? -1 : a.label > b.label ? 1 : 0);

/** Words, numbers and single marks of a text as [start, end) in code points; emoji and combining marks stay whole. */
export function tokens(points) {
  const found = [];
  const text = points.join("");
  const segments = new Intl.Segmenter(undefined, { granularity: "word" }).segment(text);
  let at = 0;
  for (const { segment } of segments) {
    const length = Array.from(segment).length;
    if (segment.trim()) found.push([at, at + length]);
    at += length;
  }
  return found;
}

/** Edges of what a person sees as one character, in code points. */
export function edges(points) {
  const found = [0];
  for (const { segment } of new Intl.Segmenter(undefined, { granularity: "grapheme" }).segment(points.join(""))) {
    found.push(found.at(-1) + Array.from(segment).length);
  }
  return found;
}

export function mount({ labels, tints, text, toast }) {
  let points = [];
  let words = [];
  let marks = [];
  let spans = [];
  let suggested = [];
  let focus = 0; // token under the cursor
  let anchor = 0; // where the selection began
  let adjust = 0; // characters by which the end was moved
  let active = -1; // span that Backspace removes
  let enabled = false;
  let touched = false;
  let pointed = null; // selection by mouse, in code points

  function selection() {
    if (pointed) return pointed;
    if (!words.length) return null;
    const [from, to] = anchor <= focus ? [anchor, focus] : [focus, anchor];
    const end = marks.indexOf(words[to][1]) + adjust;
    return { start: words[from][0], end: marks[Math.min(Math.max(end, 1), marks.length - 1)] };
  }

  function draw() {
    const chosen = enabled ? selection() : null;
    const cuts = new Set([0, points.length]);
    for (const span of spans) cuts.add(span.start).add(span.end);
    if (chosen) cuts.add(chosen.start).add(chosen.end);
    const places = Array.from(cuts).sort((a, b) => a - b);
    const levels = stack(spans);
    const pieces = [];
    places.slice(0, -1).forEach((start, index) => {
      const end = places[index + 1];
      let node = document.createTextNode(points.slice(start, end).join(""));
      spans.forEach((span, which) => {
        if (span.start > start || span.end < end) return;
        const mark = document.createElement("span");
        mark.className = `span level-${Math.min(levels[which], LEVELS - 1)} ${tints.get(span.label) ?? ""}`;
        mark.classList.toggle("drafted", isDraft(span) && !touched);
        mark.classList.toggle("active", which === active);
        if (span.end === end) mark.dataset.name = span.label;
        mark.append(node);
        node = mark;
      });
      if (chosen && chosen.start <= start && end <= chosen.end) {
        const mark = document.createElement("span");
        mark.className = "chosen";
        mark.append(node);
        node = mark;
      }
      pieces.push(node);
    });
    text.replaceChildren(...pieces);
    text.querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
  }

  /** The underline each span gets, so that spans that share characters never share a line. */
  function stack(all) {
    const levels = [];
    all.forEach((span, which) => {
      const used = new Set();
      for (let other = 0; other < which; other += 1) {
        if (all[other].start < span.end && span.start < all[other].end) used.add(levels[other]);
      }
      let level = 0;
      while (used.has(level)) level += 1;
      levels.push(level);
    });
    return levels;
  }

  const isDraft = (span) =>
    suggested.some((one) => one.start === span.start && one.end === span.end && one.label === span.label);

  function add(label) {
    const chosen = selection();
    if (!enabled || !chosen) return;
    let { start, end } = chosen;
    while (start < end && !points[start].trim()) start += 1;
    while (start < end && !points[end - 1].trim()) end -= 1;
    if (start === end) return;
    const same = spans.findIndex((span) => span.start === start && span.end === end);
    if (same >= 0 && spans[same].label === label) return remove(same);
    const clash = spans.filter((span, which) => which !== same && span.start < end && start < span.end);
    if (clash.length && !overlapping) {
      toast("Spans may not overlap here: remove the other one first");
      return;
    }
    if (same >= 0 && !overlapping) spans.splice(same, 1);
    const made = { start, end, label, quote: points.slice(start, end).join("") };
    spans = [...spans, made].sort(byPlace);
    active = spans.indexOf(made);
    touched = true;
    pointed = null;
    say(`${label}: ${made.quote}`);
    draw();
  }

  function remove(which) {
    if (which < 0 || which >= spans.length) return;
    say(`Removed ${spans[which].label}: ${spans[which].quote}`);
    spans.splice(which, 1);
    active = -1;
    touched = true;
    draw();
  }

  function underCursor() {
    const chosen = selection();
    return chosen ? spans.findIndex((span) => span.start < chosen.end && chosen.start < span.end) : -1;
  }

  function say(what) {
    spoken.textContent = what;
  }
  const spoken = document.createElement("p");
  spoken.className = "sr";
  spoken.setAttribute("role", "status");
  text.after(spoken);

  function move(to, extend) {
    pointed = null;
    adjust = 0;
    focus = Math.min(Math.max(to, 0), words.length - 1);
    if (!extend) anchor = focus;
    active = underCursor();
    draw();
    const chosen = selection();
    if (chosen) say(points.slice(chosen.start, chosen.end).join(""));
  }

  /** The token on the next or previous drawn line that is nearest to where the cursor is. */
  function line(down) {
    const here = rectangle(focus);
    if (!here) return focus;
    let best = focus;
    let distance = Infinity;
    for (let other = focus + down; other >= 0 && other < words.length; other += down) {
      const there = rectangle(other);
      const gap = (there.top - here.top) * down;
      if (gap < here.height / 2) continue;
      if (gap > here.height * 4) break;
      const off = Math.abs(there.left - here.left) + gap * 1000;
      if (off < distance) [best, distance] = [other, off];
    }
    return best;
  }

  function rectangle(token) {
    const range = document.createRange();
    const [from, to] = words[token];
    const place = (offset) => {
      let left = offset;
      for (const node of textNodes()) {
        const length = Array.from(node.data).length;
        if (left <= length) return [node, Array.from(node.data).slice(0, left).join("").length];
        left -= length;
      }
      return null;
    };
    const begin = place(from);
    const end = place(to);
    if (!begin || !end) return null;
    range.setStart(...begin);
    range.setEnd(...end);
    return range.getClientRects()[0] ?? null;
  }

  function textNodes() {
    const found = [];
    const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) found.push(walker.currentNode);
    return found;
  }

  /** A DOM position as a code point of the text. */
  function place(node, offset) {
    const range = document.createRange();
    range.selectNodeContents(text);
    range.setEnd(node, offset);
    const before = range.toString();
    return codePointOffset(before, before.length);
  }

  document.addEventListener("mouseup", () => {
    const picked = document.getSelection();
    if (!enabled || !picked.rangeCount || picked.isCollapsed) return;
    const range = picked.getRangeAt(0);
    if (!text.contains(range.startContainer) || !text.contains(range.endContainer)) return;
    const start = place(range.startContainer, range.startOffset);
    const end = place(range.endContainer, range.endOffset);
    picked.removeAllRanges();
    if (start >= end) return;
    // To the edges of visible characters: nobody means half an emoji.
    pointed = {
      start: marks.findLast((edge) => edge <= start) ?? 0,
      end: marks.find((edge) => edge >= end) ?? points.length,
    };
    active = underCursor();
    draw();
  });
  text.addEventListener("click", (event) => {
    if (!enabled || pointed || !event.target.closest(".span")) return;
    const picked = document.caretPositionFromPoint?.(event.clientX, event.clientY);
    const range = picked ? null : document.caretRangeFromPoint?.(event.clientX, event.clientY);
    const node = picked?.offsetNode ?? range?.startContainer;
    if (!node) return;
    const at = place(node, picked?.offset ?? range.startOffset);
    const token = words.findIndex(([start, end]) => start <= at && at <= end);
    if (token >= 0) move(token, false);
  });
  for (const button of labels) button.addEventListener("click", () => add(button.dataset.label));

  const keys = {
    ArrowRight: (event) => move(focus + forward(), event.shiftKey),
    ArrowLeft: (event) => move(focus - forward(), event.shiftKey),
    ArrowDown: (event) => move(line(1), event.shiftKey),
    ArrowUp: (event) => move(line(-1), event.shiftKey),
    Home: (event) => move(0, event.shiftKey),
    End: (event) => move(words.length - 1, event.shiftKey),
    Backspace: () => remove(active >= 0 ? active : underCursor()),
    Delete: () => remove(active >= 0 ? active : underCursor()),
    ".": () => cycle(1),
    ",": () => cycle(-1),
  };
  /** In right-to-left text the left arrow goes on. */
  const forward = () => (getComputedStyle(text).direction === "rtl" ? -1 : 1);

  function cycle(step) {
    if (!spans.length) return;
    active = active < 0 ? (step > 0 ? 0 : spans.length - 1) : (active + step + spans.length) % spans.length;
    pointed = { start: spans[active].start, end: spans[active].end };
    const token = words.findIndex(([start, end]) => end > spans[active].start && start < spans[active].end);
    if (token >= 0) focus = anchor = token;
    say(`${spans[active].label}: ${spans[active].quote}`);
    draw();
  }

  return {
    enterAccepts: false,
    saveWord: "Save",
    show(item, _text, said) {
      points = Array.from(item.text);
      words = tokens(points);
      marks = edges(points);
      suggested = item.suggestion?.value ?? [];
      const start = said?.value ?? item.previous?.value ?? suggested;
      spans = start.map((span) => ({ ...span })).sort(byPlace);
      touched = Boolean(said || item.previous);
      focus = anchor = adjust = 0;
      active = -1;
      pointed = null;
      enabled = true;
      draw();
    },
    hide() {
      enabled = false;
    },
    /** The spans as they are; none is an answer ("there is nothing"). */
    current: () => spans.map(({ start, end, label, quote }) => ({ start, end, label, quote })),
    key(event, writing) {
      if (writing || !enabled || event.ctrlKey || event.metaKey) return false;
      if (event.altKey && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
        if (pointed) {
          const at = marks.indexOf(pointed.end) + (event.key === "ArrowRight" ? 1 : -1);
          if (marks[at] > pointed.start) pointed.end = marks[at];
        } else adjust += event.key === "ArrowRight" ? 1 : -1;
        draw();
        return true;
      }
      const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
      if (digit && !event.altKey) {
        if (labels[Number(digit) - 1]) add(labels[Number(digit) - 1].dataset.label);
        return true;
      }
      const handler = event.altKey ? null : keys[event.key];
      if (!handler) return false;
      handler(event);
      return true;
    },
  };
}
