"""Whose turn it is, among the threads of one process that work on one database.

SQLite lets one transaction write at a time, makes a commit wait until nobody reads, and does both by sleeping
and trying again, which under load is a lottery. Threads of one process need not play it: they queue here. On
PostgreSQL they queue for a place, since all of them end at one row, the head of the audit chain.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

MOST_TOGETHER = 64
Result = TypeVar("Result")


class ReadGate:
    """Lets a commit wait for the reads of its process that have begun, and new reads for the commit.

    Nobody waits longer than `timeout_s`: whatever still overlaps then is settled by SQLite itself.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._reads = 0
        self._committing = False
        self._own = threading.local()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A block that reads."""
        depth = getattr(self._own, "depth", 0)
        with self._changed:
            # A read inside a read must not wait for a commit that waits for the outer one.
            if not depth:
                self._changed.wait_for(lambda: not self._committing, self._timeout_s)
            self._reads += 1
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth = depth
            with self._changed:
                self._reads -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block that commits; only whoever holds the turn to write comes here."""
        with self._changed:
            self._committing = True
            self._changed.wait_for(lambda: self._reads == 0, self._timeout_s)
        try:
            yield
        finally:
            with self._changed:
                self._committing = False
                self._changed.notify_all()


class Line:
    """Threads that wait in line for a few places: who came first goes first, also past one that comes back at once.

    Args:
        places: How many are served at a time.
        timeout_s: How long one waits for a place.
        too_long: What one is told who has waited that long.
    """

    def __init__(self, places: int, timeout_s: float, too_long: Callable[[], Exception]) -> None:
        self._free = places
        self._timeout_s, self._too_long = timeout_s, too_long
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A block that holds a place."""
        with self._lock:
            served = threading.Event()
            if self._free:
                self._free -= 1
                served.set()
            else:
                self._waiting.append(served)
        try:
            if not served.wait(self._timeout_s):
                raise self._too_long()
            yield
        finally:
            self._leave(served)

    def _leave(self, served: threading.Event) -> None:
        with self._lock:
            if not served.is_set():  # gave up, or was torn away while it waited
                self._waiting.remove(served)
            elif self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class _Job:
    """One piece of writing that waits for its turn, and how it went."""

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.work = work
        self.woken = threading.Event()
        self.settled = False
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self, result: Any) -> None:
        self._result, self.settled = result, True

    def failed(self, error: BaseException) -> None:
        self._error, self.settled = error, True

    def answer(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result


class GroupCommit:
    """Threads that write at the same time share one transaction, and so one commit with its fsyncs.

    The first of them leads: it runs the others' work too, each behind a savepoint, so that one that fails takes
    back only itself. Everybody is answered after the commit. What arrives meanwhile is the next group.

    Args:
        transaction: Opens the transaction of a group, once nobody else writes.
        interrupted: What the others are told when the leader is torn away, e.g. by Ctrl-C.
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Connection]],
        interrupted: Callable[[], Exception],
    ) -> None:
        self._transaction = transaction
        self._interrupted = interrupted
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._led = False

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """Does `work` and returns its result once that is durable; raises what it raised."""
        job = _Job(work)
        with self._lock:
            self._waiting.append(job)
            leads, self._led = not self._led, True
        if not leads:
            job.woken.wait()
        if not job.settled:
            self._lead()
        result: Result = job.answer()
        return result

    def _lead(self) -> None:
        group: list[_Job] = []
        try:
            with self._transaction() as connection:
                group = self._take()
                results = [(job, _run(connection, job, alone=len(group) == 1)) for job in group]
            for job, result in results:
                if not job.settled:
                    job.done(result)
        except BaseException as error:
            self._fail(group or self._take(), error)
            raise
        finally:
            self._hand_on(group)

    def _take(self) -> list[_Job]:
        with self._lock:
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TOGETHER))]

    def _fail(self, group: Sequence[_Job], error: BaseException) -> None:
        told = error if isinstance(error, Exception) else self._interrupted()
        for job in group:
            job.failed(told)
            job.woken.set()

    def _hand_on(self, group: Sequence[_Job]) -> None:
        with self._lock:
            following = self._waiting[0] if self._waiting else None
            self._led = following is not None
        if following is not None:
            following.woken.set()
        for job in group:
            job.woken.set()


def _run(connection: Connection, job: _Job, *, alone: bool) -> Any:
    """The job's result; a failure that is the job's own is kept in it, any other one is raised."""
    if alone:
        return job.work(connection)
    connection.exec_driver_sql("SAVEPOINT one_of_a_group")
    result = None
    try:
        result = job.work(connection)
    except Exception as error:
        # A full disk or a lost file may have rolled back everybody's work already.
        if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
            raise
        connection.exec_driver_sql("ROLLBACK TO one_of_a_group")
        job.failed(error)
    connection.exec_driver_sql("RELEASE one_of_a_group")
    return result
