"""`python -m review_app --project PATH [--host 127.0.0.1] [--port 8321] [--local-user] [--setup-link]`"""

import argparse
import socket
import sys
from contextlib import suppress

import uvicorn

from labeling.database import accounts
from labeling.database.opening import database_url, project_database
from labeling.listening import take_port
from labeling.planned import load_planned
from review_app.main import AppSettings, create_app
from schemas.errors import LabelingError


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped; 1 when the project cannot be served."""
    parser = argparse.ArgumentParser(prog="review_app", description="Serves the review app of one project.")
    parser.add_argument("--project", required=True, help="project folder or project.yaml")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument(
        "--local-user", action="store_true", help="one user without a password; loopback only"
    )
    parser.add_argument("--https", action="store_true", help="served behind TLS")
    parser.add_argument("--allowed-host", action="append", default=[], help="another host name browsers use")
    parser.add_argument(
        "--setup-link",
        action="store_true",
        help="print where the first admin makes an account, if nobody has one",
    )
    chosen = parser.parse_args(arguments)
    try:
        with take_port(chosen.host, chosen.port) as taken:
            return _serve(chosen, taken)
    except LabelingError as error:
        print(error, file=sys.stderr)
        return 1


def _serve(chosen: argparse.Namespace, taken: socket.socket) -> int:
    project, folder = load_planned(chosen.project)
    app = create_app(
        AppSettings(
            project=project,
            folder=folder,
            database_url=database_url(project),
            local_user=chosen.local_user,
            host=chosen.host,
            port=chosen.port,
            https=chosen.https,
            allowed_hosts=tuple(chosen.allowed_host),
        )
    )
    if chosen.setup_link:
        host = chosen.allowed_host[0] if chosen.allowed_host else f"{chosen.host}:{chosen.port}"
        with project_database(project, folder) as db:
            link = accounts.setup_link(db, f"{'https' if chosen.https else 'http'}://{host}")
        if link is not None:
            print(f"The first admin makes an account here, once, within a week: {link}", flush=True)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            # Behind a proxy its address is the client; a header must not be able to claim another.
            proxy_headers=False,
        )
    )
    with suppress(KeyboardInterrupt):  # uvicorn passes the signal on once it has ended
        server.run(sockets=[taken])
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
