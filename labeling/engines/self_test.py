"""What is checked of an engine and a model before its answers count. A dozen short calls; kept with the round."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from labeling.engines.protocol import Engine, LabelScores, Tokens
from labeling.multinomial import log_softmax
from labeling.prompts import Prompt
from schemas.errors import EngineError, NoLabelTold, PromptTooLong

MOST_DIFFERENCE = 0.1  # nats: what batching may change of a label's renormalised log-probability
OVERLAP = 0.6
TRIES = 3
REFUSALS = ("HTTP 400", "HTTP 413", "HTTP 422")  # of a prompt's length; 401 or 404 are about something else
MOST_TOLD = 20
LEAST_SHARED = 4  # tokens: a shorter start of all prompts is not worth keeping
SENTENCES = (
    "The delivery of the boxes was late again, and nobody answered the telephone this week.",
    "Please move my appointment on the tenth to another day, the mornings suit me best.",
    "I was charged twice for the same order and would like one of them back.",
)


@dataclass(frozen=True)
class Point:
    """One thing that was checked. `passed` is None where this engine cannot be asked."""

    name: str
    passed: bool | None
    critical: bool
    sentence: str
    next_step: str = ""


def self_test(engine: Engine, prompt: Prompt, *, digest: str | None = None) -> tuple[Point, ...]:
    """Checks an engine with a prompt of the project and sentences of its own: no record is asked for it.

    Args:
        digest: What the project expects (`engine.digest`).

    Raises:
        EngineUnavailable: the engine does not answer at all.
    """
    prompts = [engine.tokenize(prompt.around(text)) for text in SENTENCES]
    points = [_codes(engine, prompt)]
    try:
        alone = [engine.score(tokens, prompt.codes, slot=0) for tokens in prompts]
        points.append(Point("probabilities", True, True, "The engine tells real log-probabilities."))
        points.append(_together(engine, prompt, prompts, alone))
        points.append(_prefix_kept(engine, prompt))
        points.append(_at_once(engine, prompt))
    except PromptTooLong as error:
        points.append(Point("prompt fits", False, True, f"{error.found}.", error.next_step))
    except NoLabelTold as error:
        # The engine is sound; whether the prompt is, the records say, not these sentences.
        sentence = f"A test sentence makes the model think of no label: {error.found}."
        points.append(Point("labels come first", False, False, sentence, error.next_step))
    except EngineError as error:
        if error.retryable:
            raise
        sentence = f"The engine's answer cannot be used: {error.found}."
        points.append(Point("probabilities", False, True, sentence, error.next_step))
    points.append(_refuses_too_long(engine, prompt))
    points.append(_digest(engine, digest))
    return tuple(points)


def as_json(points: Sequence[Point], engine: Engine) -> dict[str, Any]:
    """Plain data for `self_test.json`."""
    return {"engine": engine.identity().as_dict(), "points": [asdict(point) for point in points]}


def require(points: Sequence[Point]) -> None:
    """Raises EngineError with every critical point that failed."""
    failed = [point for point in points if point.critical and point.passed is False]
    if failed:
        raise EngineError(
            "engine self-test",
            found="; ".join(point.sentence for point in failed),
            expected="an engine whose answers can be trusted",
            next_step=" ".join(dict.fromkeys(point.next_step for point in failed)),
        )


def warnings_of(told: Mapping[str, Any]) -> list[str]:
    """Sentences of a kept self-test that a person should read."""
    return [
        f"{point['sentence']} {point['next_step']}".strip()
        for point in told["points"]
        if point["passed"] is False
    ]


def _codes(engine: Engine, prompt: Prompt) -> Point:
    count = len(prompt.codes)
    if not engine.counts and count > MOST_TOLD:
        return Point(
            "label codes",
            False,
            False,
            f"{count} labels, but this engine tells {MOST_TOLD} tokens: labels beyond them are never suggested.",
            "Use llama-server or the embedded engine, which tell every label.",
        )
    whole = sum(engine.first_token(code.text).whole for code in prompt.codes)
    sentence = (
        f"The {count} labels start with {count} different tokens; {whole} of them are one token as a whole."
    )
    return Point("label codes", True, True, sentence)


def _together(
    engine: Engine, prompt: Prompt, prompts: Sequence[Tokens], alone: Sequence[LabelScores]
) -> Point:
    """The same requests at once: does batching change them?"""
    lanes = range(len(prompts))
    with ThreadPoolExecutor(len(prompts)) as pool:
        replies = list(
            pool.map(lambda turn: engine.score(prompts[turn], prompt.codes, slot=turn % engine.slots), lanes)
        )
    first = log_softmax(np.array([reply.log_probs for reply in alone]))
    second = log_softmax(np.array([reply.log_probs for reply in replies]))
    worst = float(np.abs(first - second).max())
    return Point(
        "batching",
        worst < MOST_DIFFERENCE,
        False,
        f"Asked alone and together, label log-probabilities differ by at most {worst:.3f}.",
        "" if worst < MOST_DIFFERENCE else "Scores near a tie depend on what else is asked at the time.",
    )


def _prefix_kept(engine: Engine, prompt: Prompt) -> Point:
    """Does every slot still hold the shared start of all prompts when its turn comes?"""
    name = "prefix cache"
    prefix = engine.tokenize(prompt.prefix)
    shared = 0
    if prompt.prefix:
        shared = len(prefix.ids) if engine.counts else engine.prefill(prefix, slot=0)[0]
    if shared < LEAST_SHARED:
        sentence = (
            f"The prompt has {shared} tokens before the record's text: nothing worth keeping in a cache."
        )
        return Point(name, None, False, sentence)
    engine.warm(prefix)
    if not engine.counts and not engine.prefill(prefix, slot=0)[1]:
        return Point(name, None, False, "This engine does not tell how many tokens its cache served.")
    # An engine that is sent texts chooses the slot itself.
    asked, places = (engine.slots, "slots") if engine.counts else (TRIES, "requests")
    lost = 0
    for slot in range(asked):
        tokens = engine.tokenize(prompt.around(SENTENCES[slot % len(SENTENCES)]))
        lost += engine.score(tokens, prompt.codes, slot=slot).tokens_cached < shared / 2
    if not lost:
        kept = "Every slot keeps" if engine.counts else "The cache keeps"
        return Point(name, True, False, f"{kept} the {shared} tokens that all prompts start with.")
    return Point(
        name,
        False,
        False,
        f"The {shared} tokens that all prompts start with are read anew on {lost} of {asked} {places}.",
        "llama-server: start it with --parallel (without it, slots at rest lose their cache); others: turn the prompt "
        "cache on.",
    )


def labels_first(first: int, asked: int) -> Point:
    """Whether the model thinks of the labels at all: on `first` of `asked` records the likeliest token is a label's."""
    if not asked:
        return Point("labels come first", None, False, "The records this is looked at on were asked before.")
    sentence = f"A label is the likeliest token on {first} of {asked} records."
    if 2 * first >= asked:
        return Point("labels come first", True, False, sentence)
    remedy = "The prompt hardly makes the model think of the labels: try others (`countersign compare`)."
    return Point("labels come first", False, False, sentence, remedy)


def labels_told(never: Sequence[str], asked: int) -> Point:
    """Whether an engine that tells few tokens tells every label: `never` are those it told on none of `asked` records.

    A label whose first token is not known may begin with one that is shared or too short to be seen as its own.
    """
    name = "labels are told"
    if not asked:
        return Point(name, None, False, "No record has scores that this could be looked at on.")
    if not never:
        return Point(name, True, False, f"Every label was told on some of {asked} records.")
    told = ", ".join(f'"{label}"' for label in never[:3]) + (" and others" if len(never) > 3 else "")
    return Point(
        name,
        False,
        False,
        f"{'Label' if len(never) == 1 else 'Labels'} {told} {'was' if len(never) == 1 else 'were'} told on none of "
        f"{asked} records: this engine may never suggest {'it' if len(never) == 1 else 'them'}.",
        "Give the label another `word` (a common one that begins like no other), set prompts.codes: letters, or use "
        "llama-server or the embedded engine, which tell every label.",
    )


def _at_once(engine: Engine, prompt: Prompt) -> Point:
    """Two fresh requests of one length at once: where they wait in line, the second takes twice as long."""

    def ratio(turn: int) -> float:
        """Shorter wait over the longer one of two fresh requests of one length."""
        prompts = [
            engine.tokenize(prompt.around(f"{turn} {sign} " + " ".join(SENTENCES))) for sign in ("A", "B")
        ]

        def ask(index: int) -> float:
            started = time.perf_counter()
            engine.score(prompts[index], prompt.codes, slot=index % engine.slots)
            return time.perf_counter() - started

        with ThreadPoolExecutor(2) as pool:
            seconds = sorted(pool.map(ask, range(2)))
        return seconds[0] / seconds[1]

    try:
        # A request that comes a moment too late for a batch waits for the whole of it: one try proves little.
        overlap = any(ratio(turn) > OVERLAP for turn in range(TRIES))
    except PromptTooLong:
        return Point("requests at once", None, False, "The context is too small to tell.")
    return Point(
        "requests at once",
        overlap,
        False,
        "Requests are computed at once." if overlap else "Requests wait in line: one is computed at a time.",
        ""
        if overlap
        else "Ollama: set OLLAMA_NUM_PARALLEL=4 (up to 16) and restart it; others: raise slots.",
    )


def _refuses_too_long(engine: Engine, prompt: Prompt) -> Point:
    words = "word " * (engine.context + 64)
    try:
        engine.score(engine.tokenize(prompt.around(words)), prompt.codes, slot=0)
    except PromptTooLong:
        return Point("over-long prompts", True, True, "A prompt that does not fit is refused.")
    except EngineError as error:
        if error.retryable:  # away or busy: nothing is known yet
            raise
        # Only a refusal counts. An answer that cannot be used is an answer to what was left of the prompt.
        if error.found.startswith(REFUSALS):
            return Point(
                "over-long prompts", True, True, f"A prompt that does not fit is refused: {error.found[:200]}"
            )
        found = error.found
    else:
        found = "a label"
    return Point(
        "over-long prompts",
        False,
        True,
        f"A prompt that does not fit was answered, not refused ({found[:100]}): the engine cuts prompts in silence.",
        "Use an engine that can be told not to (Ollama 0.12.11 or later, llama-server), or set engine.context to what "
        "it has.",
    )


def _digest(engine: Engine, expected: str | None) -> Point:
    found = engine.identity().digest
    if expected is None:
        return Point("weights", None, False, f"engine.digest is not set; the weights are {found[:16]}.")
    if found == expected and not engine.measures_weights:
        return Point(
            "weights",
            None,
            False,
            f"engine.digest is taken on trust ({found[:16]}): this server tells no hash of its weights.",
        )
    return Point(
        "weights",
        found == expected,
        True,
        f"The weights are {found[:16]}, " + ("as set." if found == expected else f"not {expected[:16]}."),
        "" if found == expected else "Install the model the project names, or change engine.digest.",
    )
