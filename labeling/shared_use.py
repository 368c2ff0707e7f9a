"""A process that several others use at once and that ends with the last of them.

Each user holds a shared lock on one file, which the kernel takes back even from a user that was killed. Whoever gets
the lock for itself alone knows that nobody uses the process any more.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Use:
    """The shared lock of one user; held until `end`, or the end of the process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Waits while the process is on its way out: that holds the lock alone until it is gone.
        fcntl.flock(self._handle, fcntl.LOCK_SH)

    @contextmanager
    def end(self) -> Iterator[bool]:
        """Stops using. In the block, whether nobody else does: if so, nobody can begin to before its end."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            last = True
        except BlockingIOError:
            last = False
        try:
            yield last
        finally:
            os.close(self._handle)


def unused(path: Path) -> bool:
    """Whether nobody uses it; if so, nobody can begin to until this process has ended."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    return True
