"""What every command prints and how it ends: 0 done, 1 refused or failed, 2 wrong usage, 3 waiting, 130 Ctrl-C."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from schemas.errors import LabelingError, ManyProblems

DONE, FAILED, WAITING = 0, 1, 3
INTERRUPTED = 130  # what shells call a program that Ctrl-C ended


def emit(answer: dict[str, Any], *, as_json: bool, text: str) -> None:
    """One JSON object on stdout, or the text for people."""
    print(json.dumps(answer, ensure_ascii=False, default=str) if as_json else text)


@contextmanager
def told(as_json: bool) -> Iterator[None]:
    """Turns our errors into an exit code and a message that says what to do next; bugs keep their traceback."""
    try:
        yield
    except LabelingError as error:
        _tell(error.problems if isinstance(error, ManyProblems) else [error], as_json)
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        stopped = LabelingError(
            "countersign",
            found="Ctrl-C",
            expected="to be left to finish",
            next_step="Nothing stored is lost; the same command goes on where this one stopped.",
        )
        _tell([stopped], as_json)
        raise typer.Exit(INTERRUPTED) from None


def _tell(problems: Sequence[LabelingError], as_json: bool) -> None:
    if as_json:
        answer = {"ok": False, "problems": [problem.as_problem() for problem in problems]}
        print(json.dumps(answer, ensure_ascii=False))
    for problem in problems:
        print(f"error: {problem.path}", file=sys.stderr)
        print(f"  found:    {problem.found}", file=sys.stderr)
        print(f"  expected: {problem.expected}", file=sys.stderr)
        print(f"  next:     {problem.next_step}", file=sys.stderr)


def say(text: str) -> None:
    """A line of progress; goes to stderr so that stdout stays machine-readable."""
    print(text, file=sys.stderr, flush=True)
