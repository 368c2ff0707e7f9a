"""What every command prints and how it ends: 0 done, 1 refused or failed, 2 wrong usage, 3 waiting for people."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from schemas.errors import LabelingError, ManyProblems

DONE, FAILED, WAITING = 0, 1, 3


def emit(answer: dict[str, Any], *, as_json: bool, text: str) -> None:
    """One JSON object on stdout, or the text for people."""
    print(json.dumps(answer, ensure_ascii=False, default=str) if as_json else text)


@contextmanager
def told(as_json: bool) -> Iterator[None]:
    """Turns our errors into exit code 1 with a message that says what to do next; bugs keep their traceback."""
    try:
        yield
    except LabelingError as error:
        problems = error.problems if isinstance(error, ManyProblems) else [error]
        if as_json:
            print(
                json.dumps(
                    {"ok": False, "problems": [problem.as_problem() for problem in problems]},
                    ensure_ascii=False,
                )
            )
        for problem in problems:
            print(f"error: {problem.path}", file=sys.stderr)
            print(f"  found:    {problem.found}", file=sys.stderr)
            print(f"  expected: {problem.expected}", file=sys.stderr)
            print(f"  next:     {problem.next_step}", file=sys.stderr)
        raise typer.Exit(FAILED) from error


def say(text: str) -> None:
    """A line of progress; goes to stderr so that stdout stays machine-readable."""
    print(text, file=sys.stderr, flush=True)
