"""Labels against what each real engine can do at most: `python -m benchmarks.engine_limits [--records 72] [--turns 3]
[--slots 2] [--model NAME]`.

Needs `make engines`. On the shipped model, one engine after the other: the labels of `countersign bench` (200-token
records behind a shared prefix) in turn with two limits. *Its limit*: llama-server and the engine in the process are
held against llama.cpp's own `llama-bench`, which reads as many tokens as a record has behind as many as the prefix
has, and does nothing else; for the engine in the process it runs on the code in the xllamacpp wheel, which another
compiler built than the servers'. Ollama is held against its own word: the same prompts one after the other with
nothing else to do, the tokens that its cache did not serve over the time it reports for them. *Bare prefill*: the same
prompts through the same engine and route, no label asked. Beside Ollama stands what it spends on a request before it
computes anything, and Ollama is measured once more as it starts by itself, with llama.cpp's prompt cache in main
memory, which deployments/ turns off. Prints one JSON object; the shares are uncached prompt tokens a second over the
limit's, of all turns and of each: those say how much the machine itself swings.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.llama_bench_in_wheel import library
from deployments.engine_servers import built, local_llama_server, local_ollama
from labeling.benchmarking import Pace, Workload
from labeling.engines.embedded import EmbeddedEngine, all_cores
from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer
from labeling.engines.model_files import model_file
from labeling.engines.ollama_server import OllamaServer
from labeling.engines.protocol import Engine

CONTEXT = 1024
OLLAMA_SLOTS = 4
RECORDS_A_SAMPLE = 4  # of the limit: read off a second or two it swings more than the labels do
TIMEOUT_S = 300.0
Limit = Callable[[Pace, Workload, int], None]  # adds so many samples of what the engine can do at most


def llama_bench(weights: Path, tool: Sequence[str | Path]) -> Limit:
    """Prefill by llama.cpp's own tool: as many tokens as a record has behind as many as the prefix has."""

    def measure(pace: Pace, work: Workload, samples: int) -> None:
        fresh = round(work.labelled.tokens / work.scored)
        sizes = ["-p", str(fresh), "-d", str(work.prefix_tokens), "-n", "0", "-r", str(samples)]
        command = [*tool, "-m", weights, *sizes, "-t", str(all_cores()), "-o", "json"]
        done = subprocess.run(command, capture_output=True, check=True)
        (row,) = json.loads(done.stdout)
        for sample_ns in row["samples_ns"]:
            pace.add(int(row["n_prompt"]), sample_ns / 1e9)

    return measure


def ollamas_word(url: str, before: list[float]) -> Limit:
    """Tokens of a record behind a prefix in the cache and their seconds, as Ollama itself counts and times them."""

    def measure(pace: Pace, work: Workload, samples: int) -> None:
        for _ in range(samples):
            body = {
                "model": "worker",
                "prompt": work.fresh_prompt(),
                "raw": True,
                "stream": False,
                "options": {"num_ctx": CONTEXT, "num_predict": 1},
            }
            reply = httpx.post(f"{url}/api/generate", json=body, timeout=TIMEOUT_S, trust_env=False).json()
            if "prompt_eval_cached_count" not in reply:
                sys.exit(
                    "This Ollama does not tell what its cache served: take 0.34 or later (`make engines`)."
                )
            fresh = reply["prompt_eval_count"] - reply["prompt_eval_cached_count"]
            pace.add(fresh, reply["prompt_eval_duration"] / 1e9)
            before.append(reply["load_duration"] / 1e9)

    return measure


def measured(engine: Engine, limit: Limit, records: int, turns: int) -> dict[str, Any]:
    """Labels, the engine's limit and its bare prefill in turn."""
    try:
        work, most = Workload(engine), Pace()
        by_turn: list[float] = []
        for _ in range(turns):
            before, once = replace(work.labelled), Pace()
            work.labels(records)
            limit(once, work, max(1, records // RECORDS_A_SAMPLE))
            work.prefill(records)
            most.add(once.tokens, once.seconds)
            labelled = Pace(work.labelled.tokens - before.tokens, work.labelled.seconds - before.seconds)
            by_turn.append(round(labelled.per_s / once.per_s, 3))
        identity = engine.identity()
    finally:
        engine.close()
    return {
        "engine": f"{identity.engine} {identity.engine_version}",
        "in_flight": engine.slots,
        "records": work.scored,
        "set_aside": work.set_aside,
        "tokens_per_record": round(work.labelled.tokens / max(1, work.scored)),
        "records_per_hour": round(3600 * work.scored / work.labelled.seconds),
        "tokens_per_s": round(work.labelled.per_s, 1),
        "limit_tokens_per_s": round(most.per_s, 1),
        "share_of_limit": round(work.labelled.per_s / most.per_s, 3),
        "share_of_limit_by_turn": by_turn,
        "bare_prefill_tokens_per_s": round(work.bare.per_s, 1),
        "share_of_bare_prefill": round(work.labelled.per_s / work.bare.per_s, 3),
    }


def ollama(weights: Path, records: int, turns: int, *, prompt_cache: bool) -> dict[str, Any]:
    """A fresh Ollama with this model."""
    with (
        tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch,
        local_ollama(Path(scratch), slots=OLLAMA_SLOTS, prompt_cache=prompt_cache) as running,
    ):
        running.create("worker", weights)
        connection = EngineConnection(running.url, timeout_s=TIMEOUT_S)
        engine = OllamaServer(connection, model="worker", context=CONTEXT, slots=None)
        before: list[float] = []
        row = measured(engine, ollamas_word(running.url, before), records, turns)
        return {**row, "s_before_it_computes": round(statistics.median(before), 3)}


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=72, help="a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--slots", type=int, default=2, help="of llama-server and of the engine in the process"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct", help="of the shipped ones")
    options = parser.parse_args()
    records, turns, slots = options.records, options.turns, options.slots
    weights, own_tool = model_file(options.model, fetch=True), built("llama-bench")
    if own_tool is None or library() is None:
        sys.exit("The real engines are not built: run `make engines`.")
    answer: dict[str, Any] = {"benchmark": "engine_limits"}
    with local_llama_server(weights, slots=slots, context=CONTEXT) as url:
        engine = LlamaServer(EngineConnection(url, timeout_s=TIMEOUT_S), digest="unknown")
        answer["llama-server against llama-bench"] = measured(
            engine, llama_bench(weights, [own_tool]), records, turns
        )
    embedded = EmbeddedEngine(weights, context=CONTEXT, slots=slots, threads=None)
    in_wheel = [sys.executable, "-m", "benchmarks.llama_bench_in_wheel"]
    answer["in the process against llama-bench in the wheel"] = measured(
        embedded, llama_bench(weights, in_wheel), records, turns
    )
    answer["Ollama against its own word"] = ollama(weights, records, turns, prompt_cache=False)
    answer["Ollama with its prompt cache against its own word"] = ollama(
        weights, records, turns, prompt_cache=True
    )
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
