"""Serves the flows of one or several projects as deployments; no project has two runs at a time.

python -m deployments.serve PROJECT ...
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import serve
from prefect.client.orchestration import get_client

from deployments.catalogue import deployments_of, follow_schedules
from deployments.recovery import start_again
from labeling.project_file import load_project


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rehearsal", action="store_true", help="only the gate; the rest runs in the rehearsal itself"
    )
    parser.add_argument("projects", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    built: list[Any] = []
    for path in options.projects:
        project, folder = load_project(path)
        ours = deployments_of(project, folder.root, only=("review",) if options.rehearsal else ())
        built += ours
        if options.rehearsal:
            continue
        for deployment in ours:
            deployment.apply()
        with get_client(sync_client=True) as client:
            follow_schedules(client, project)
            for name in start_again(client, project):
                print(f"{project.name}: run {name} goes on where it stopped.", flush=True)
    serve(*built, pause_on_shutdown=False, limit=len(options.projects))


if __name__ == "__main__":
    main()
