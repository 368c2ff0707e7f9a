"""One-token label scores of records: fitting the prompt, asking, retrying, setting aside.

This is the one place where an engine is asked again (at most 3 tries a record).
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from labeling.engines.protocol import LEAST_REPORTED, UNREPORTED, Engine, LabelScores, Tokens
from labeling.prompts import Prompt
from schemas.errors import ControlMark, EngineError, LabelingError, NoLabelTold, PromptTooLong

MAX_TRIES = 3
FIRST_PAUSE_S = 0.2
_GAP = " […] "
MOST_CHARS_A_TOKEN = 8
LEAST_PIECE = 32
# Begins the reason where the engine was away: nothing is known against the record itself.
NO_ANSWER = "no answer"
# Begins it where the engine is sound and the model had no label in mind.
NO_LABEL = "no label told"
# Begins it where the record does not fit the context as `prompts.over_long` would have it fitted.
TOO_LONG = "prompt too long"
# Begins it where the text holds what the engine would read as a command.
CONTROL_TEXT = "control text"


@dataclass(frozen=True)
class Scored:
    """A record with its label scores. `log_probs` in the order of the prompt's codes."""

    record_id: str
    log_probs: tuple[float, ...]
    label_mass: float
    tokens_sent: int
    tokens_cached: int
    fit: str
    attempts: int
    duration_s: float
    label_first: bool = True


@dataclass(frozen=True)
class SetAside:
    """A record whose replies could not be used. A failure is not a label."""

    record_id: str
    reason: str
    raw_reply: str
    attempts: int

    def __post_init__(self) -> None:
        # A reply may hold half a surrogate pair, which no file can.
        for name in ("reason", "raw_reply"):
            storable = getattr(self, name).encode("utf-8", "backslashreplace").decode()
            object.__setattr__(self, name, storable)


@dataclass(frozen=True)
class BatchOutcome:
    """What came of a batch; bad records are values here, broken code is an exception."""

    scored: tuple[Scored, ...]
    set_aside: tuple[SetAside, ...]


def score_batch(
    engine: Engine,
    prompt: Prompt,
    records: Sequence[tuple[str, str]],
    *,
    over_long: str = "head_tail",
    in_flight: int | None = None,
    on_record: Callable[[], None] | None = None,
    pause_s: float = FIRST_PAUSE_S,
    prompt_for: Callable[[str], Prompt] | None = None,
    most_set_aside: int | None = None,
) -> BatchOutcome:
    """Scores (record_id, text) pairs with as many requests in flight as the engine has slots.

    Results come in the order of `records`, whatever the order of the replies.

    Args:
        prompt_for: The prompt of a record by its id, where it lists the labels in another order or only some of them;
            records of one prompt are asked one after the other. A label it does not list is `UNREPORTED`.
        most_set_aside: Once more records than this are set aside no other is asked, and the outcome lacks the rest: an
            engine that hangs would take hours to say the same of all.
    """
    outcomes: list[Scored | SetAside | None] = [None] * len(records)
    own = (
        [prompt] * len(records) if prompt_for is None else [prompt_for(record_id) for record_id, _ in records]
    )
    order = range(len(records))
    turns = iter(order if prompt_for is None else sorted(order, key=lambda turn: own[turn].prefix))
    stop = threading.Event()
    lost = count(1)

    def work(lane: int) -> None:
        slot = lane % engine.slots
        # Taking the next turn is atomic: no lock, and no future a record.
        while not stop.is_set() and (turn := next(turns, None)) is not None:
            try:
                outcome = _score_one(
                    engine, own[turn], records[turn], over_long=over_long, slot=slot, pause_s=pause_s
                )
                outcomes[turn] = _spread(outcome, own[turn], prompt)
            except BaseException:
                stop.set()  # broken code: the other lanes need not go on
                raise
            if on_record is not None:
                on_record()
            if isinstance(outcome, SetAside) and most_set_aside is not None and next(lost) > most_set_aside:
                stop.set()

    width = min(in_flight or engine.slots, len(records))
    if width <= 1:
        work(0)
    else:
        with ThreadPoolExecutor(width) as pool:
            try:
                list(pool.map(work, range(width)))
            except BaseException:  # Ctrl-C while waiting
                stop.set()
                raise
    return BatchOutcome(
        tuple(outcome for outcome in outcomes if isinstance(outcome, Scored)),
        tuple(outcome for outcome in outcomes if isinstance(outcome, SetAside)),
    )


def _spread(outcome: Scored | SetAside, asked: Prompt, prompt: Prompt) -> Scored | SetAside:
    """The scores of the labels a record was asked about in the places of all labels."""
    if asked is prompt or isinstance(outcome, SetAside):
        return outcome
    told = dict(zip((code.label for code in asked.codes), outcome.log_probs, strict=True))
    return replace(outcome, log_probs=tuple(told.get(code.label, UNREPORTED) for code in prompt.codes))


def _score_one(
    engine: Engine, prompt: Prompt, record: tuple[str, str], *, over_long: str, slot: int, pause_s: float
) -> Scored | SetAside:
    record_id, text = record
    attempts = 0
    while True:
        attempts += 1
        try:
            replies, weights, fit = _asked(engine, prompt, text, over_long=over_long, slot=slot)
            return _merged(record_id, replies, weights, fit, attempts)
        except PromptTooLong as error:
            return SetAside(record_id, f"{TOO_LONG}: {error.found}", str(error), attempts)
        except ControlMark as error:
            return SetAside(record_id, f"{CONTROL_TEXT}: {error.found}", str(error), attempts)
        except EngineError as error:
            if attempts >= _tries(error):
                kind = NO_ANSWER if error.retryable else "unusable reply"
                kind = NO_LABEL if isinstance(error, NoLabelTold) else kind
                return SetAside(record_id, f"{kind}: {error.found}"[:300], str(error)[:4000], attempts)
            time.sleep(pause_s * 2 ** (attempts - 1))


def _asked(
    engine: Engine, prompt: Prompt, text: str, *, over_long: str, slot: int
) -> tuple[list[LabelScores], list[int], str]:
    """The replies to a record, the weight of each (windows vote by their length), and how it was fitted.

    Raises:
        ControlMark: the text holds what this engine would read as a command.
        PromptTooLong: see `fit_record`.
    """
    mark = next((mark for mark in engine.control_marks if mark in text), None)
    if mark is not None:
        raise ControlMark(
            "record",
            found=f"{mark!r} in the text, which this engine reads as a command",
            expected="text that is only text to the engine",
            next_step="Label it by hand, or use the embedded engine or llama-server, which tokenize it as text.",
        )
    if engine.counts:
        pieces, fit = fit_record(engine, prompt, text, over_long=over_long)
        replies = [engine.score(piece, prompt.codes, slot=slot) for piece in pieces]
        frame = len(prompt.prefix) + len(prompt.cue)
        return replies, [max(1, len(piece.text) - frame) for piece in pieces], fit
    return _asked_until_it_fits(engine, prompt, text, over_long=over_long, slot=slot)


def _asked_until_it_fits(
    engine: Engine, prompt: Prompt, text: str, *, over_long: str, slot: int
) -> tuple[list[LabelScores], list[int], str]:
    """For engines that do not tell tokens: they refuse what is too long before they compute anything, so trying
    shorter and shorter pieces costs next to nothing."""

    def ask(piece: str) -> LabelScores:
        return engine.score(engine.tokenize(prompt.around(piece)), prompt.codes, slot=slot)

    try:
        return [ask(text)], [1], "whole"
    except PromptTooLong:
        if over_long == "refuse":
            raise
    size = min(len(text) - 1, MOST_CHARS_A_TOKEN * engine.context)
    while size >= LEAST_PIECE:
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        if over_long == "head_tail":
            pieces = [text[: size // 2] + _GAP + text[-(size // 2) :]]
        try:
            return [ask(piece) for piece in pieces], [len(piece) for piece in pieces], over_long
        except PromptTooLong:
            size = size * 7 // 8
    raise PromptTooLong(
        "record",
        found="no room for it beside the prompt",
        expected="some",
        next_step="Shorten the prompt or raise engine.context.",
    )


def _tries(error: LabelingError) -> int:
    """How often a record is asked in all. A malformed reply may be a cut connection's; a model that does not think of
    the labels hardly thinks of them the next time; a changed identity must never be tried over."""
    if isinstance(error, NoLabelTold):
        return 2
    return MAX_TRIES if type(error) is EngineError or error.retryable else 1


def _merged(
    record_id: str, replies: Sequence[LabelScores], weights: Sequence[int], fit: str, attempts: int
) -> Scored:
    """Windows vote with the mean of their log-probabilities, a longer one more: a last line is no half of a story.

    A label that one window does not tell counts there as the least likely label that it does tell, which bounds it from
    above; one that no window tells stays `UNREPORTED`.
    """
    if len(replies) == 1:
        log_probs, mass = replies[0].log_probs, replies[0].label_mass
    else:
        rows = np.array([reply.log_probs for reply in replies])
        told = rows > LEAST_REPORTED
        least = np.where(told, rows, np.inf).min(axis=1, keepdims=True)
        means = np.average(np.where(told, rows, least), axis=0, weights=weights)
        log_probs = tuple(float(value) for value in np.where(told.any(axis=0), means, UNREPORTED))
        mass = float(np.average([reply.label_mass for reply in replies], weights=weights))
    sent = sum(reply.tokens_sent for reply in replies)
    return Scored(
        record_id,
        log_probs,
        mass,
        sent,
        min(max(0, sum(reply.tokens_cached for reply in replies)), sent),
        fit,
        attempts,
        sum(reply.duration_s for reply in replies),
        all(reply.label_first for reply in replies),
    )


def fit_record(engine: Engine, prompt: Prompt, text: str, *, over_long: str) -> tuple[list[Tokens], str]:
    """The prompt (or window prompts) of a record, counted in the engine's own tokens, and how it was fitted.

    Raises:
        PromptTooLong: it does not fit and the strategy is `refuse`, or not even the prompt without it fits.
    """
    # One token for the answer, and one because llama.cpp calls a prompt cut as soon as both fill the context.
    room = engine.context - 2
    whole = engine.tokenize(prompt.around(text))
    if len(whole.ids) <= room:
        return [whole], "whole"
    frame = len(engine.tokenize(prompt.around("")).ids)
    budget = room - frame
    if over_long == "refuse" or budget < 16:
        raise PromptTooLong(
            "record",
            found=f"{len(whole.ids)} tokens",
            expected=f"at most {room} ({frame} of them the prompt's own)",
            next_step="Choose prompts.over_long: head_tail or windows, a shorter prompt or a larger engine.context.",
        )
    if over_long == "windows":
        return [engine.tokenize(prompt.around(piece)) for piece in _windows(engine, text, budget)], "windows"
    return [_head_and_tail(engine, prompt, text, room)], "head_tail"


def _head_and_tail(engine: Engine, prompt: Prompt, text: str, room: int) -> Tokens:
    """Keeps as many characters of both ends as fit; the gap is marked."""
    low, high, best = 1, len(text) // 2, None
    while low <= high:
        half = (low + high) // 2
        tokens = engine.tokenize(prompt.around(text[:half] + _GAP + text[-half:]))
        if len(tokens.ids) <= room:
            best, low = tokens, half + 1
        else:
            high = half - 1
    if best is None:
        raise PromptTooLong(
            "record", found="no room for it", expected="some", next_step="Raise engine.context."
        )
    return best


def _windows(engine: Engine, text: str, budget: int) -> Iterable[str]:
    start = 0
    while start < len(text):
        low, high, end = start + 1, len(text), start + 1
        while low <= high:
            middle = (low + high) // 2
            if len(engine.tokenize(text[start:middle]).ids) <= budget - 2:
                end, low = middle, middle + 1
            else:
                high = middle - 1
        yield text[start:end]
        start = end
