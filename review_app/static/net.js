// Requests to our own server, and nothing else.

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";

export const annotator = meta("annotator");
export const editorName = meta("editor");
export const rubric = meta("rubric").split(",").filter(Boolean);
export const copilotOn = meta("copilot") === "true";
export const overlapping = meta("overlapping") === "true";

/** The server could not be reached at all (as opposed to: it answered and refused). */
export class Unreachable extends Error {}

export async function call(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json", "X-CSRF-Token": meta("csrf") },
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      redirect: "error",
      signal: AbortSignal.timeout(20000),
    });
  } catch (error) {
    throw new Unreachable(String(error));
  }
  let data;
  try {
    data = await response.json();
  } catch {
    data = { found: `answer ${response.status}`, next: "Try again." };
  }
  return { ok: response.ok, status: response.status, data };
}

/** A key for one decision. randomUUID would need HTTPS, which a machine in the next room may not have. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
