// What differs between texts and between answers, for people to see at a glance.

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

const MEANT = /[\p{L}\p{N}]{4,}/gu; // words of four letters and more carry the meaning

/** The sentences of a text, each with whether at least half of its longer words are said in `answer` too. */
export function supported(text, answer) {
  const said = new Set(answer.toLowerCase().match(MEANT) ?? []);
  return Array.from(new Intl.Segmenter(undefined, { granularity: "sentence" }).segment(text), ({ segment }) => {
    const words = segment.toLowerCase().match(MEANT) ?? [];
    const found = words.filter((word) => said.has(word)).length;
    return [segment, found > 0 && found * 2 >= words.length];
  });
}
