"""What a Chromium asked the network for, by its own log: requests, name look-ups and connections, blocked or not."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# Chromium asks these by itself, whatever its switches say; no file of Prefect's UI or of ours names them.
BROWSERS_OWN = frozenset(
    {
        "accounts.google.com",
        "content-autofill.googleapis.com",
        "redirector.gvt1.com",
        "update.googleapis.com",
    }
)


def outside(log: Path) -> list[str]:
    """Everything in a finished `--log-net-log` that is not for this machine, as "EVENT host"."""
    content = json.loads(log.read_text("utf-8"))
    kinds = {number: name for name, number in content["constants"]["logEventTypes"].items()}
    found = []
    for entry in content["events"]:
        host = _host(kinds[entry["type"]], entry.get("params", {}))
        if host is not None and host not in LOOPBACK | BROWSERS_OWN:
            found.append(f"{kinds[entry['type']]} {host}")
    return sorted(set(found))


def _host(kind: str, params: dict[str, Any]) -> str | None:
    if kind in ("URL_REQUEST_START_JOB", "CORS_REQUEST") and "url" in params:
        url = urlsplit(params["url"])
        return url.hostname if url.scheme in ("http", "https", "ws", "wss") else None
    if kind in ("HOST_RESOLVER_MANAGER_REQUEST", "HOST_RESOLVER_MANAGER_JOB") and "host" in params:
        return urlsplit(params["host"] if "//" in params["host"] else f"//{params['host']}").hostname
    # Not UDP: the browser's resolver probes its routes; which names it looks up stands above.
    if kind == "TCP_CONNECT_ATTEMPT" and "address" in params:
        return urlsplit(f"//{params['address']}").hostname
    return None
