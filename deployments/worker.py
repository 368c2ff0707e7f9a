"""Runs the flows of projects by a work pool instead of `deployments.serve`: deploys them, then starts a worker.

    python -m deployments.worker PROJECT ... [--docker] [--beside-others]

Every project has a queue of its own with one place, so that it never has two runs at a time.
"""

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound

from deployments.catalogue import follow_schedules
from deployments.prefect_file import DOCKER_POOL, POOL
from deployments.recovery import start_again
from deployments.services import ServiceError
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from schemas.project import Project

ROOT = Path(__file__).resolve().parent.parent
POLL_S = "2"


def main(arguments: Sequence[str] | None = None) -> None:
    """Deploys, then becomes the worker."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("projects", nargs="+", type=Path)
    parser.add_argument("--docker", action="store_true", help="every run in a container of its own")
    parser.add_argument(
        "--beside-others", action="store_true", help="another worker of these projects may be at work"
    )
    options = parser.parse_args(arguments)
    loaded = [load_project(path) for path in options.projects]
    pool, kind = (DOCKER_POOL, "docker") if options.docker else (POOL, "process")
    asyncio.run(make_pool(pool, kind, [project for project, _ in loaded]))
    with get_client(sync_client=True) as client:
        for project, folder in loaded:
            deploy(project, folder, docker=options.docker)
            follow_schedules(client, project)
            if not options.beside_others:
                for name in start_again(client, project):
                    print(f"{project.name}: run {name} goes on where it stopped.", flush=True)
    queues = [part for project, _ in loaded for part in ("--work-queue", project.name)]
    command = ["-m", "prefect", "worker", "start", "--pool", pool, "--type", kind, *queues]
    os.environ["PREFECT_WORKER_QUERY_SECONDS"] = POLL_S
    os.execv(sys.executable, [sys.executable, *command])


async def make_pool(name: str, kind: str, projects: Sequence[Project]) -> None:
    """The work pool with a queue of one place a project, unless they are there.

    The pool's template comes from the list that Prefect brings along, so that nobody is asked for it.
    """
    async with get_client() as client:
        try:
            await client.read_work_pool(name)
        except ObjectNotFound:
            template = template_of(await client.read_worker_metadata(), kind)
            description = "Countersign's flows, a queue a project."
            await client.create_work_pool(
                WorkPoolCreate(name=name, type=kind, description=description, base_job_template=template)
            )
        for project in projects:
            try:
                queue = await client.read_work_queue_by_name(project.name, work_pool_name=name)
            except ObjectNotFound:
                queue = await client.create_work_queue(name=project.name, work_pool_name=name)
            await client.update_work_queue(queue.id, concurrency_limit=1)


def template_of(collections: dict[str, Any], kind: str) -> dict[str, Any]:
    """The job template of a kind of work pool."""
    for collection in collections.values():
        if kind in collection:
            template: dict[str, Any] = collection[kind]["default_base_job_configuration"]
            return template
    raise ServiceError(
        f"work pool of type {kind}",
        found="no such type in this Prefect",
        expected="process or docker",
        next_step="Install the Prefect version of requirements/run.txt.",
    )


def deploy(project: Project, folder: ProjectFolder, *, docker: bool) -> None:
    """`prefect deploy` of the file that ships.

    Raises:
        ServiceError: It did not go through; says what Prefect said.
    """
    name = "prefect.docker.yaml" if docker else "prefect.yaml"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "prefect",
            "--no-prompt",
            "deploy",
            "--all",
            "--prefect-file",
            f"deployments/{name}",
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "COUNTERSIGN_NAME": project.name,
            "COUNTERSIGN_PROJECT": str(folder.root),
            "COUNTERSIGN_ROOT": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceError(
            f"prefect deploy of {project.name}",
            found=(done.stdout + done.stderr).strip()[-600:],
            expected="all deployments registered",
            next_step="Check that the Prefect server answers at PREFECT_API_URL, then start again.",
        )


if __name__ == "__main__":
    main()
