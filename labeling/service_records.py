"""Where the services of this machine listen, as small JSON files: written by who starts them, read by who links."""

import os
from typing import Any

from labeling import paths
from labeling.storage import read_json, write_json


def record_service(name: str, facts: dict[str, Any]) -> None:
    """Notes a running service: url, pid, and what else its readers need."""
    write_json(paths.services() / f"{name}.json", facts)


def service(name: str) -> dict[str, Any] | None:
    """What was noted of a service; None when it was never started."""
    path = paths.services() / f"{name}.json"
    return dict(read_json(path)) if path.is_file() else None


def forget_service(name: str) -> None:
    """Removes the note of a service that was stopped."""
    (paths.services() / f"{name}.json").unlink(missing_ok=True)


def review_url(project_name: str) -> str | None:
    """Address of the review app of a project: as it was started here, or as the environment names it."""
    noted = service(f"review-{project_name}")
    return os.environ.get("COUNTERSIGN_REVIEW_URL") if noted is None else str(noted["url"])
