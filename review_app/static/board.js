// The board stays up to date: every quarter of a minute its figures are fetched anew, while somebody looks.

const EVERY_MS = 15_000;

async function refresh() {
  if (document.hidden) return;
  let text;
  try {
    const answer = await fetch("/board", { headers: { accept: "text/html" }, redirect: "error" });
    if (!answer.ok) return;
    text = await answer.text();
  } catch {
    return; // offline, or logged out: the figures stay as they were
  }
  const fresh = new DOMParser().parseFromString(text, "text/html");
  for (const now of document.querySelectorAll("section.round")) {
    const heading = now.getAttribute("aria-labelledby");
    const next = fresh.querySelector(`section.round[aria-labelledby="${heading}"]`);
    if (!next || next.innerHTML === now.innerHTML || now.contains(document.activeElement)) continue;
    const open = [...now.querySelectorAll("details")].map((part) => [part.querySelector("summary").textContent, part.open]);
    for (const part of next.querySelectorAll("details")) {
      const before = open.find(([name]) => name === part.querySelector("summary").textContent);
      if (before) part.open = before[1];
    }
    now.replaceChildren(...next.childNodes);
  }
}

setInterval(refresh, EVERY_MS);
