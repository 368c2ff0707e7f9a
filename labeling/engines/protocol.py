"""What every engine can do, in words that none of them owns.

Log-probabilities are natural logs of the model's own, unmasked distribution at the position after the prompt.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

UNREPORTED = -1000.0  # log-probability of a label that an engine with a short list of tokens did not tell
LEAST_REPORTED = UNREPORTED / 2  # whatever is not above this counts as not told


@dataclass(frozen=True)
class Identity:
    """Everything about the engine that changes a label: equal identity means equal behaviour."""

    engine: str
    engine_version: str
    model: str
    digest: str
    quantization: str
    context: int
    sampling: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the content-addressed file in `identities/`."""
        return asdict(self)


@dataclass(frozen=True)
class LabelCode:
    """How a label is spelled in one token: the label, the text after the cue, and that text's first token.

    `token_id` is -1 for engines that report tokens by their text; `token` is then that text ("" where not known).
    """

    label: str
    text: str
    token_id: int
    token: str = ""


@dataclass(frozen=True)
class FirstToken:
    """The token a text starts with: its id (-1 where the engine tells none), its text ("" where not known), and
    whether it is the whole text."""

    id: int
    text: str
    whole: bool


@dataclass(frozen=True)
class Tokens:
    """A prompt as the engine's own tokens, so that what is counted is what is sent.

    `ids` is empty for an engine that does not tell its tokens (`Engine.counts`); then the text is sent.
    """

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class LabelScores:
    """Raw log-probabilities of the label codes, in their order, and their total raw probability.

    A label that the engine did not tell is `UNREPORTED`: it was less likely than all it told, and is never suggested.
    `label_first`: the likeliest of all tokens is a label's.
    """

    log_probs: tuple[float, ...]
    label_mass: float
    tokens_sent: int
    tokens_cached: int
    duration_s: float
    label_first: bool = True


class Engine(Protocol):
    """A local model that can score, count and describe itself."""

    slots: int
    context: int  # tokens one request may use, prompt and answer together
    counts: bool  # tells the tokens of a text before it is sent
    tells: int | None  # how many tokens of the distribution it tells; None = any that is asked for
    measures_weights: bool  # `identity().digest` is of the very file, not of what is said about it
    control_marks: Collection[str]  # texts that the engine would read as commands wherever they stand

    def identity(self) -> Identity:
        """Asks the engine anew who it is."""

    def tokenize(self, text: str) -> Tokens:
        """The tokens of a whole prompt, with the special ones the model starts with."""

    def first_token(self, text: str) -> FirstToken:
        """How a piece of text starts, without special tokens."""

    def score(self, prompt: Tokens, codes: Sequence[LabelCode], *, slot: int) -> LabelScores:
        """One new token: the distribution over the label codes after the prompt.

        Raises:
            EngineUnavailable: refused, timed out, broke off (asking again may help).
            EngineError: the reply cannot be used; the message says why.
            PromptTooLong: the engine cut the prompt or refused its length.
        """

    def generate(self, prompt: Tokens, schema: Mapping[str, Any], *, most_tokens: int, slot: int) -> Any:
        """A whole answer under a JSON Schema, the likeliest one. The engine keeps the schema but does not show it to
        the model: the prompt has to describe it.

        Raises:
            As `score`; EngineError also for an answer over `most_tokens` or not of the schema.
        """

    def prefill(self, prompt: Tokens, *, slot: int) -> tuple[int, int]:
        """Reads a prompt and answers nothing of use; returns the tokens sent and those served by the cache."""

    def warm(self, prefix: Tokens) -> None:
        """Puts a shared prefix into every slot's cache."""

    def memory_mb(self) -> int | None:
        """What the model takes, in MB of memory of the machine and its cards; None where the engine does not tell."""

    def close(self) -> None:
        """Frees the engine; a server of somebody else stays up."""


class Embedder(Protocol):
    """Turns texts into vectors."""

    model_id: str
    width: int

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One L2-normalised row a text. Over-long texts are embedded by their beginning."""

    def close(self) -> None:
        """Frees the engine."""
