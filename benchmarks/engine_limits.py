"""Labels against what each real engine can do at most: `python -m benchmarks.engine_limits [--records 16] [--turns 4]`.

Needs `make engines`. On the shipped model, one engine after the other: the labels of `countersign bench` (200-token
records behind a shared prefix) in turn with that engine's limit. llama-server and the engine in the process are held
against llama.cpp's own `llama-bench`, which reads as many tokens as a record has behind as many as the prefix has, and
does nothing else; Ollama against its own word, the prompt rate it reports for a prompt of that length with nothing else
to do. Prints one JSON object; the shares are uncached prompt tokens a second over the limit's.
"""

import argparse
import json
import random
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from deployments.engine_servers import built, local_llama_server, local_ollama
from labeling.benchmarking import PREFIX_TOKENS, RECORD_TOKENS, WORDS, Pace, Workload
from labeling.engines.embedded import EmbeddedEngine, all_cores
from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer
from labeling.engines.model_files import model_file
from labeling.engines.ollama_server import OllamaServer
from labeling.engines.protocol import Engine

CONTEXT = 1024
SLOTS = 4
TIMEOUT_S = 300.0


def llama_bench(weights: Path) -> Callable[[Pace], None]:
    """Prefill by llama.cpp's own tool: as many tokens as a record has behind as many as the prefix has."""
    tool = built("llama-bench")
    assert tool is not None, "run `make engines` first"
    command = [tool, "-m", weights, "-p", "230", "-d", str(PREFIX_TOKENS), "-n", "0", "-r", "3"]
    command += ["-t", str(all_cores()), "-o", "json"]

    def measure(pace: Pace) -> None:
        done = subprocess.run(command, capture_output=True, check=True)
        (row,) = json.loads(done.stdout)
        for sample_ns in row["samples_ns"]:
            pace.add(int(row["n_prompt"]), sample_ns / 1e9)

    return measure


def ollamas_word(url: str) -> Callable[[Pace], None]:
    """Prompt tokens and seconds as Ollama itself counts and times them, of three fresh prompts one by one."""
    dice = random.Random(2)

    def measure(pace: Pace) -> None:
        for _ in range(3):
            body = {
                "model": "worker",
                "prompt": " ".join(dice.choices(WORDS, k=RECORD_TOKENS)),
                "raw": True,
                "stream": False,
                "options": {"num_ctx": CONTEXT, "num_predict": 1},
            }
            reply = httpx.post(f"{url}/api/generate", json=body, timeout=TIMEOUT_S, trust_env=False).json()
            pace.add(reply["prompt_eval_count"], reply["prompt_eval_duration"] / 1e9)

    return measure


def measured(engine: Engine, limit: Callable[[Pace], None], records: int, turns: int) -> dict[str, Any]:
    """Labels and the engine's limit in turn."""
    try:
        work, most = Workload(engine), Pace()
        for _ in range(turns):
            limit(most)
            work.labels(records)
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
    }


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=16, help="a turn")
    parser.add_argument("--turns", type=int, default=4)
    options = parser.parse_args()
    records, turns = options.records, options.turns
    weights = model_file("smollm2-135m-instruct")
    answer: dict[str, Any] = {"benchmark": "engine_limits"}
    with local_llama_server(weights, slots=SLOTS, context=CONTEXT) as url:
        engine = LlamaServer(EngineConnection(url, timeout_s=TIMEOUT_S), digest="unknown")
        answer["llama-server against llama-bench"] = measured(engine, llama_bench(weights), records, turns)
    embedded = EmbeddedEngine(weights, context=CONTEXT, slots=SLOTS, threads=None)
    answer["in the process against llama-bench"] = measured(embedded, llama_bench(weights), records, turns)
    with (
        tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch,
        local_ollama(Path(scratch), slots=SLOTS) as running,
    ):
        running.create("worker", weights)
        connection = EngineConnection(running.url, timeout_s=TIMEOUT_S)
        ollama = OllamaServer(connection, model="worker", context=CONTEXT, slots=None)
        answer["Ollama against its own word"] = measured(ollama, ollamas_word(running.url), records, turns)
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
