"""The one tree of errors a person may read.

Every error names the thing, what was found, what was expected and what to do next, so that the command line, the
flows and the review app can print it as it is. `retryable` is what the one retry place (`tasks/`) looks at.
"""

from typing import ClassVar


class LabelingError(Exception):
    """Something that was asked for cannot be done; nothing already stored was harmed.

    Attributes:
        path: The thing, as a user would point at it: a key path, a file, a table.
        found: What was there.
        expected: What should have been there.
        next_step: What the reader can do about it.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, path: str, *, found: str, expected: str, next_step: str) -> None:
        self.path = path
        self.found = found
        self.expected = expected
        self.next_step = next_step
        super().__init__(f"{path}: found {found}; expected {expected}. {next_step}")

    def as_problem(self) -> dict[str, str]:
        """The shape that `countersign check --json` prints."""
        return {"path": self.path, "found": self.found, "expected": self.expected, "next": self.next_step}

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling that multiprocessing uses.
        return _rebuild, (type(self), self.path, self.found, self.expected, self.next_step)


def _rebuild(cls: type[LabelingError], path: str, found: str, expected: str, next_step: str) -> LabelingError:
    return cls(path, found=found, expected=expected, next_step=next_step)


class ProjectError(LabelingError):
    """The project file says something that cannot be used."""


class ManyProblems(LabelingError):
    """Several problems found in one reading, so that a user mends them all at once."""

    def __init__(self, problems: list[LabelingError]) -> None:
        self.problems = problems
        first = problems[0]
        super().__init__(first.path, found=first.found, expected=first.expected, next_step=first.next_step)
        self.args = ("\n".join(str(problem) for problem in problems),)

    def __reduce__(self) -> tuple[object, ...]:
        return ManyProblems, (self.problems,)


class SourceError(LabelingError):
    """A source file cannot be read at all (a bad row is quarantined instead)."""


class StorageError(LabelingError):
    """A stored table is missing, damaged, or cannot be written."""


class BusyError(LabelingError):
    """Another process holds the project."""


class ModelFileError(LabelingError):
    """A model file is missing or is not the one the project names."""


class EngineError(LabelingError):
    """The inference engine did not answer as asked."""


class EngineUnavailable(EngineError):
    """The engine refused, timed out or broke off; asking again may help."""

    retryable: ClassVar[bool] = True


class IdentityChanged(EngineError):
    """The model behind the engine is not the one the run started with."""


class PromptTooLong(EngineError):
    """The prompt would not fit into the context, or the engine cut it."""


class NoLabelTold(EngineError):
    """An engine that tells few tokens told no label among them."""


class ControlMark(EngineError):
    """A record's text holds what the engine would read as a command."""


class PromptFileError(LabelingError):
    """A prompt template cannot be used."""


class QueueError(LabelingError):
    """The review queue refused a change: wrong state, wrong person, or someone was faster."""


class VersionConflict(QueueError):
    """Someone else changed this since it was shown."""


class Forbidden(QueueError):
    """This person may not do this."""


class GateRefused(QueueError):
    """The round cannot be signed yet."""


class ReleaseBlocked(LabelingError):
    """A critical expectation failed; no release was written."""


class TooManyRejected(LabelingError):
    """More replies were unusable than the project allows."""


class LabelsNotTold(TooManyRejected):
    """The engine answers, but with this prompt the model thinks of no label on too many records."""
