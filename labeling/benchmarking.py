"""Throughput of the hardware at hand: one-token labels of 200-token records, beside what the engine could do."""

import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeling.engines.protocol import Engine, LabelCode
from labeling.engines.self_test import SENTENCES
from labeling.prompts import Prompt, PromptTemplate
from labeling.scoring import score_batch
from schemas.errors import ProjectError

# Flag of the kernel -> name; the best first.
VECTORS = {"avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
RECORD_TOKENS = 200
PREFIX_TOKENS = 150
RECORDS = 32
ROOM = 32  # for a prompt of longer words than the one that is counted, and the answer
TURNS = 2
LABELS = ("Question", "Complaint", "Request", "Other")
WORDS = tuple(word for line in SENTENCES for word in line.split())


@dataclass
class Pace:
    """Uncached prompt tokens and the seconds they took, of several blocks."""

    tokens: int = 0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """One block more."""
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds

    @property
    def per_s(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Workload:
    """Labels of fresh records of about 200 tokens behind a shared prefix, and bare prefill of the same behind the same.

    Attributes:
        prefix_tokens: Tokens of the shared prefix.
        labelled: Pace of the labels.
        bare: Pace of the bare prefill.
        scored: Records labelled.
        set_aside: Records without a label.

    Raises:
        EngineUnavailable: the engine stopped answering.
        ProjectError: the engine's context is too small for such records.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._dice, self._asked = engine, random.Random(1), 0
        names = ", ".join(LABELS)
        prefix = f"{_words(self._dice, PREFIX_TOKENS)}\nLabels: {names}.\n\nText: "
        self._prompt = Prompt(
            PromptTemplate("bench", ""), _codes(engine), (), prefix, f"\nThe label is one of {names}.\nLabel:"
        )
        # An engine that does not count tells no tokens: then it refuses what does not fit.
        needed = len(engine.tokenize(self.fresh_prompt()).ids) + ROOM
        if needed > engine.context:
            raise ProjectError(
                "engine.context",
                found=f"{engine.context} tokens",
                expected=f"{needed} for the prompts that are measured",
                next_step="Raise engine.context (a llama-server: its own context, -c, or fewer --parallel).",
            )
        self.prefix_tokens, _ = engine.prefill(engine.tokenize(prefix), slot=0)
        engine.warm(engine.tokenize(prefix))
        self._tells_cached = engine.counts or engine.prefill(engine.tokenize(prefix), slot=0)[1] > 0
        self.labelled, self.bare = Pace(), Pace()
        self.scored = self.set_aside = 0

    def labels(self, count: int, on_record: Callable[[], None] | None = None) -> None:
        """Labels so many records."""
        texts = [(f"r{self._asked + turn}", _words(self._dice, RECORD_TOKENS)) for turn in range(count)]
        self._asked += count
        started = time.perf_counter()
        outcome = score_batch(self._engine, self._prompt, texts, on_record=on_record)
        seconds = time.perf_counter() - started
        fresh = sum(self._fresh(row.tokens_sent, row.tokens_cached) for row in outcome.scored)
        self.labelled.add(fresh, seconds)
        self.scored += len(outcome.scored)
        self.set_aside += len(outcome.set_aside)

    def prefill(self, count: int) -> None:
        """Reads so many such prompts with nothing else done: fresh words behind the shared prefix."""
        prompts = [self._engine.tokenize(self.fresh_prompt()) for _ in range(count)]

        def ask(turn: int) -> int:
            return self._fresh(*self._engine.prefill(prompts[turn], slot=turn % self._engine.slots))

        started = time.perf_counter()
        with ThreadPoolExecutor(self._engine.slots) as pool:
            tokens = sum(pool.map(ask, range(count)))
        self.bare.add(tokens, time.perf_counter() - started)

    def fresh_prompt(self) -> str:
        """The prompt of a record that was never asked."""
        return f"{self._prompt.prefix}{_words(self._dice, RECORD_TOKENS)}{self._prompt.cue}"

    def _fresh(self, sent: int, cached: int) -> int:
        """Tokens computed; an engine that does not tell what it had cached had the prefix."""
        return sent - (cached if self._tells_cached else self.prefix_tokens)


def bench(
    engine: Engine, *, records: int = RECORDS, on_record: Callable[[], None] | None = None
) -> dict[str, Any]:
    """A row of the hardware table.

    Labels and bare prefill are measured in turn on the same engine in one run, since the speed of a shared machine
    swings within minutes. `engine_limit_share` is uncached tokens a second of the first over the second.

    Args:
        records: How many records of about 200 tokens.

    Raises:
        EngineUnavailable: the engine stopped answering.
    """
    work = Workload(engine)
    turns = [records // TURNS + (turn < records % TURNS) for turn in range(min(TURNS, records))]
    for count in turns:
        work.prefill(count)
        work.labels(count, on_record)
    identity = engine.identity()
    return {
        "hardware": hardware(),
        "engine": f"{identity.engine} {identity.engine_version}",
        "model": identity.model,
        "quantization": identity.quantization,
        "in_flight": engine.slots,
        "records": work.scored,
        "set_aside": work.set_aside,
        "tokens_per_record": round(work.labelled.tokens / max(1, work.scored)),
        "records_per_hour": round(3600 * work.scored / work.labelled.seconds),
        "tokens_per_s": round(work.labelled.per_s, 1),
        "engine_limit_tokens_per_s": round(work.bare.per_s, 1),
        "engine_limit_share": round(work.labelled.per_s / work.bare.per_s, 3),
    }


def _codes(engine: Engine) -> tuple[LabelCode, ...]:
    first = [engine.first_token(f" {label}") for label in LABELS]
    return tuple(
        LabelCode(label, f" {label}", token.id, token.text)
        for label, token in zip(LABELS, first, strict=True)
    )


def _words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choices(WORDS, k=count))


def hardware() -> str:
    """Processor and its widest vectors, cores this process may use, memory."""
    told: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            told.setdefault(key.strip(), value.strip())
    except OSError:
        pass  # not Linux
    model = told.get("model name") or platform.processor() or platform.machine()
    flags = told.get("flags", "").split()
    # A virtual machine's processor often has no more of a name than its maker's.
    vectors = next((f" with {name}" for flag, name in VECTORS.items() if flag in flags), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}{vectors}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def bench_row(answer: Mapping[str, Any]) -> str:
    """The row in the layout of the hardware table (Markdown)."""
    return (
        "| Hardware | Model | Quantization | Records/h (200 tokens) | Share of the engine's limit |\n"
        "|---|---|---|---|---|\n"
        f"| {answer['hardware']} | {answer['model']} | {answer['quantization']} | "
        f"{answer['records_per_hour']:,} | {answer['engine_limit_share']:.2f} |"
    )
