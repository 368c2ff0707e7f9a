"""A private PostgreSQL from Debian's package, on a socket in a folder of its own and, if asked, on a loopback port."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from small_projects import need


@contextmanager
def private_postgresql(port: int | None = None) -> Iterator[Path]:
    """Runs a cluster whose superuser is `countersign`; yields the folder of its socket."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    need(binaries, "PostgreSQL's server is not installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="countersign-pg-"))
    # The server refuses to run as root.
    user: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, "nobody")
    bin_folder, data = binaries[-1].parent, folder / "data"
    initdb = [bin_folder / "initdb", "-D", data, "-U", "countersign", "-A", "trust", "-N", "-E", "UTF8"]
    subprocess.run([*initdb, "--locale=C"], check=True, capture_output=True, cwd=folder, **user)
    listen = ["-h", ""] if port is None else ["-h", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        [
            *[bin_folder / "postgres", "-D", data, "-k", folder, *listen],
            *["-c", "fsync=off", "-c", "max_connections=200", "-c", "logging_collector=off"],
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **user,
    )
    try:
        at = [] if port is None else ["-p", str(port)]
        ready = [bin_folder / "pg_isready", "-h", str(folder), *at, "-U", "countersign", "-t", "30"]
        while subprocess.run(ready, capture_output=True).returncode != 0:
            assert server.poll() is None, "PostgreSQL did not start"
        yield folder
    finally:
        server.send_signal(signal.SIGQUIT)  # at once, without a checkpoint that nobody needs
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
