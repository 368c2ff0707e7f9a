"""Progress of long work: a line with pace and ETA in the log, and a progress artifact in the Prefect UI."""

import threading
import time
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

LOG_EVERY_S = 5.0
ARTIFACT_EVERY_S = 10.0


class Progress:
    """Counts finished records out of `total` (None: not known beforehand); called from any thread."""

    def __init__(self, what: str, total: int | None, *, done: int = 0, key: str) -> None:
        self._what, self._total, self._done, self._start_done = what, total, done, done
        self._started = self._logged = self._shown = time.monotonic()
        self._lock = threading.Lock()
        self._logger = get_run_logger()
        self._artifact: UUID | None = None
        created: Any = create_progress_artifact(progress=self._percent(), key=key, description=what)
        self._artifact = created

    def _percent(self) -> float:
        if self._total is None:
            return 0.0
        return 100.0 * self._done / self._total if self._total else 100.0

    def advance(self, count: int = 1) -> None:
        """Counts; logs at most every 5 s and updates the artifact at most every 10 s."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            log, show = now - self._logged >= LOG_EVERY_S, now - self._shown >= ARTIFACT_EVERY_S
            if log:
                self._logged = now
            if show:
                self._shown = now
        if log:
            self._logger.info(self.sentence())
        if show and self._artifact is not None:
            update_progress_artifact(self._artifact, progress=self._percent())

    def at(self, done: int) -> None:
        """Sets the count, for work that reports totals."""
        self.advance(done - (self._done - self._start_done))

    def sentence(self) -> str:
        """`pre-annotation: 420 of 2,000 · 5.1/s · about 5 min left`."""
        spent = time.monotonic() - self._started
        pace = (self._done - self._start_done) / spent if spent > 0 else 0.0
        told = f"{self._what}: {self._done:,}" + ("" if self._total is None else f" of {self._total:,}")
        if pace > 0:
            told += f" · {pace:.1f}/s"
            left = 0 if self._total is None else self._total - self._done
            told += f" · about {_duration(left / pace)} left" if left > 0 else ""
        return told

    def finish(self) -> None:
        """The last line and a full artifact."""
        self._logger.info(self.sentence())
        if self._artifact is not None:
            update_progress_artifact(
                self._artifact, progress=100.0 if self._total is None else self._percent()
            )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
