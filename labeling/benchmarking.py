"""Throughput of the hardware at hand: one-token labels of 200-token records, beside what the engine could do."""

import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from labeling.engines.protocol import Engine, LabelCode
from labeling.engines.self_test import SENTENCES
from labeling.prompts import Prompt, PromptTemplate
from labeling.scoring import score_batch

RECORD_TOKENS = 200
PREFIX_TOKENS = 150
RECORDS = 32
LABELS = ("Question", "Complaint", "Request", "Other")
WORDS = tuple(word for line in SENTENCES for word in line.split())


def bench(
    engine: Engine, *, records: int = RECORDS, on_record: Callable[[], None] | None = None
) -> dict[str, Any]:
    """A row of the hardware table.

    Two measurements on the same engine in one run: labels of fresh records behind a shared prefix, and bare prefill of
    fresh prompts of about the same length, as many in flight. `engine_limit_share` is uncached tokens a second of
    the first over the second.

    Args:
        records: How many records of about 200 tokens.

    Raises:
        EngineUnavailable: the engine stopped answering.
    """
    dice = random.Random(1)
    codes = _codes(engine)
    prompt = Prompt(
        PromptTemplate("bench", ""), codes, (), _words(dice, PREFIX_TOKENS) + "\n\nText: ", "\nLabel:"
    )
    prefix, _ = engine.prefill(engine.tokenize(prompt.prefix), slot=0)
    engine.warm(engine.tokenize(prompt.prefix))
    first = _prefill(engine, dice, records)
    texts = [(f"r{number}", _words(dice, RECORD_TOKENS)) for number in range(records)]
    started = time.perf_counter()
    outcome = score_batch(engine, prompt, texts, on_record=on_record)
    seconds = time.perf_counter() - started
    second = _prefill(engine, dice, records)
    sent = sum(row.tokens_sent for row in outcome.scored)
    cached = (
        sum(row.tokens_cached for row in outcome.scored) if engine.counts else prefix * len(outcome.scored)
    )
    limit = max(first, second)
    identity = engine.identity()
    return {
        "hardware": hardware(),
        "engine": f"{identity.engine} {identity.engine_version}",
        "model": identity.model,
        "quantization": identity.quantization,
        "in_flight": engine.slots,
        "records": len(outcome.scored),
        "set_aside": len(outcome.set_aside),
        "tokens_per_record": round((sent - cached) / max(1, len(outcome.scored))),
        "records_per_hour": round(3600 * len(outcome.scored) / seconds),
        "tokens_per_s": round((sent - cached) / seconds, 1),
        "engine_limit_tokens_per_s": round(limit, 1),
        "engine_limit_share": round((sent - cached) / seconds / limit, 3),
    }


def _codes(engine: Engine) -> tuple[LabelCode, ...]:
    first = [engine.first_token(f" {label}") for label in LABELS]
    return tuple(
        LabelCode(label, f" {label}", token.id, token.text)
        for label, token in zip(LABELS, first, strict=True)
    )


def _words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choices(WORDS, k=count))


def _prefill(engine: Engine, dice: random.Random, count: int) -> float:
    """Uncached prompt tokens a second with nothing else done: no two prompts share a beginning."""
    texts = [f"{number} {_words(dice, RECORD_TOKENS)}\nLabel:" for number in range(count)]
    prompts = [engine.tokenize(text) for text in texts]

    def ask(turn: int) -> int:
        sent, cached = engine.prefill(prompts[turn], slot=turn % engine.slots)
        return sent - cached

    started = time.perf_counter()
    with ThreadPoolExecutor(engine.slots) as pool:
        tokens = sum(pool.map(ask, range(count)))
    return tokens / (time.perf_counter() - started)


def hardware() -> str:
    """Processor, cores this process may use, memory."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    except OSError:
        pass  # not Linux
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def bench_row(answer: Mapping[str, Any]) -> str:
    """The row in the layout of the hardware table (Markdown)."""
    return (
        "| Hardware | Model | Quantization | Records/h (200 tokens) | Share of the engine's limit |\n"
        "|---|---|---|---|---|\n"
        f"| {answer['hardware']} | {answer['model']} | {answer['quantization']} | "
        f"{answer['records_per_hour']:,} | {answer['engine_limit_share']:.2f} |"
    )
