"""Writes `prefect.yaml` and `prefect.docker.yaml`, for those who deploy to a work pool, from the catalogue.

    python -m deployments.prefect_file

One file serves every project: which one is meant stands in the environment when it is deployed. `deployments.worker`
does that, and sets the schedules of the project's own file.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from deployments.catalogue import CATALOGUE, TAG
from deployments.services import QUIET_ENVIRONMENT

POOL = "countersign"
DOCKER_POOL = "countersign-docker"
IMAGE_ROOT = "/opt/countersign"
FOLDER = Path(__file__).resolve().parent
HEAD = """# Written by `python -m deployments.prefect_file`; a test keeps it so. Deploy a project with
#   COUNTERSIGN_NAME=inbox COUNTERSIGN_PROJECT=/srv/countersign/inbox COUNTERSIGN_ROOT=/opt/countersign \\
#   prefect deploy --all --prefect-file {path}
# COUNTERSIGN_NAME is the `name` in its project.yaml; {root} is where Countersign is installed.
# `python -m deployments.worker PROJECT` does this, makes the pool and a queue with one place, and sets the schedules.
"""
NAME, PROJECT, ROOT = "{{ $COUNTERSIGN_NAME }}", "{{ $COUNTERSIGN_PROJECT }}", "{{ $COUNTERSIGN_ROOT }}"


def prefect_file(*, docker: bool) -> dict[str, Any]:
    """What `prefect deploy` reads: every deployment of the catalogue, in the project's own queue of a pool."""
    queue: dict[str, Any] = {"name": DOCKER_POOL if docker else POOL, "work_queue_name": NAME}
    if docker:
        queue["job_variables"] = {
            "image": "countersign",
            "image_pull_policy": "Never",
            "network_mode": "host",
            "volumes": [f"{PROJECT}:{PROJECT}", "countersign-home:/var/lib/countersign"],
            "env": {**QUIET_ENVIRONMENT, "COUNTERSIGN_HOME": "/var/lib/countersign"},
        }
    return {
        "name": "countersign",
        "prefect-version": version("prefect"),
        "pull": [
            {"prefect.deployments.steps.set_working_directory": {"directory": IMAGE_ROOT if docker else ROOT}}
        ],
        "deployments": [
            {
                "name": NAME,
                "entrypoint": f"flows/{entry.name}.py:{entry.name}",
                "description": entry.description,
                "tags": [TAG, NAME],
                "parameters": {"run": {"project": PROJECT}},
                "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
                "work_pool": queue,
            }
            for entry in CATALOGUE
        ],
    }


def texts() -> dict[Path, str]:
    """The files that ship, by path."""
    return {
        FOLDER / name: HEAD.format(
            path=f"deployments/{name}", root=IMAGE_ROOT + " in the image" if docker else "COUNTERSIGN_ROOT"
        )
        + yaml.dump(prefect_file(docker=docker), Dumper=_Plain, sort_keys=False, width=110)
        for name, docker in (("prefect.yaml", False), ("prefect.docker.yaml", True))
    }


class _Plain(yaml.SafeDumper):
    """Without anchors: the file is for people to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text, "utf-8")
