// Words people can use instead of numbers they cannot.

export function percent(probability) {
  return `${Math.min(99, Math.max(1, Math.round(probability * 100)))} %`;
}

export function likely(confidence) {
  return confidence === null || confidence === undefined
    ? "how likely right: not yet known"
    : `${percent(confidence)} likely right`;
}

export function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (seconds < 45) return "less than a minute";
  if (minutes < 60) return `${Math.max(minutes, 1)} min`;
  return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
}

export function records(count) {
  return count === 1 ? "1 record" : `${count} records`;
}

const cut = (text) => (text.length > 60 ? `${text.slice(0, 57)}…` : text);

/** A value in a few words, for toasts and cards. */
export function valueWords(action, value) {
  if (action === "reject") return "Cannot be labelled";
  if (action === "skip") return "Skipped";
  if (typeof value === "string") return value;
  if (Array.isArray(value)) {
    if (!value.length) return "Nothing";
    if (typeof value[0] === "string") return value.join(", ");
    return value.length === 1 ? `${value[0].label}: ${cut(value[0].quote)}` : `${value.length} spans`;
  }
  return value && value.output !== undefined ? cut(value.instruction) : "No answer";
}
