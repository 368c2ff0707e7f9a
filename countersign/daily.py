"""`countersign up`: everything for a day's work, started together."""

from pathlib import Path
from typing import Any

from deployments.services import Service, start_prefect_server, start_review_app, start_runner
from labeling.project_file import load_project


def bring_up(projects: list[Path], *, port: int, local_user: bool) -> tuple[list[Service], dict[str, Any]]:
    """Starts the Prefect server, the review apps and the runner; stops what it started when one of them fails."""
    loaded = [load_project(path) for path in projects]
    services: list[Service] = []
    try:
        services.append(start_prefect_server())
        for offset, (project, folder) in enumerate(loaded):
            services.append(
                start_review_app(folder.root, project.name, local_user=local_user, port=port + offset)
            )
        services.append(start_runner(services[0].url, [folder.root for _, folder in loaded]))
    except BaseException:
        for service in reversed(services):
            service.stop()
        raise
    urls = [service.url for service in services[1:-1]]
    return services, {"prefect_url": services[0].url, "review_url": urls[0], "review_urls": urls}
