"""Labels against what each real engine can do at most: `python -m benchmarks.engine_limits [--records 32]`.

Needs `make engines`. One after the other, on the shipped model: `countersign bench`'s measurement (200-token records
behind a shared prefix) through llama-server, through Ollama and in the process, beside llama.cpp's own `llama-bench`
(prefill of 512 tokens, the engine alone) before and after. Ollama is held against its own word as well: the prompt
rate it reports for one prompt of 400 words with nothing else to do. Prints one JSON object; the shares are uncached
prompt tokens a second over the limit's.
"""

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import httpx

from deployments.engine_servers import built, local_llama_server, local_ollama
from labeling.benchmarking import WORDS, bench
from labeling.engines.embedded import EmbeddedEngine, all_cores
from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer
from labeling.engines.model_files import model_file
from labeling.engines.ollama_server import OllamaServer
from labeling.engines.protocol import Engine

CONTEXT = 1024
SLOTS = 4
TIMEOUT_S = 300.0


def llama_bench(weights: Path) -> float:
    """Prompt tokens a second by llama.cpp's own tool."""
    tool = built("llama-bench")
    assert tool is not None, "run `make engines` first"
    command = [tool, "-m", weights, "-p", "512", "-n", "0", "-r", "3", "-t", str(all_cores()), "-o", "json"]
    done = subprocess.run(command, capture_output=True, check=True)
    (row,) = json.loads(done.stdout)
    return float(row["avg_ts"])


def ollama_says(url: str) -> float:
    """Prompt tokens a second as Ollama itself counts and times them, the better of three fresh prompts."""
    dice = random.Random(2)
    rates = []
    for _ in range(3):
        body = {
            "model": "worker",
            "prompt": " ".join(dice.choices(WORDS, k=400)),
            "raw": True,
            "stream": False,
            "options": {"num_ctx": CONTEXT, "num_predict": 1},
        }
        reply = httpx.post(f"{url}/api/generate", json=body, timeout=TIMEOUT_S, trust_env=False).json()
        rates.append(reply["prompt_eval_count"] / reply["prompt_eval_duration"] * 1e9)
    return max(rates)


def measured(engine: Engine, records: int) -> dict[str, Any]:
    """The row of `bench`, without the hardware."""
    try:
        row = bench(engine, records=records)
    finally:
        engine.close()
    return {key: value for key, value in row.items() if key not in ("hardware", "model", "quantization")}


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=32)
    records = parser.parse_args().records
    weights = model_file("smollm2-135m-instruct")
    first = llama_bench(weights)
    with local_llama_server(weights, slots=SLOTS, context=CONTEXT) as url:
        connection = EngineConnection(url, timeout_s=TIMEOUT_S)
        server = measured(LlamaServer(connection, digest="unknown"), records)
    with (
        tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch,
        local_ollama(Path(scratch), slots=SLOTS) as running,
    ):
        running.create("worker", weights)
        said = ollama_says(running.url)
        connection = EngineConnection(running.url, timeout_s=TIMEOUT_S)
        ollama = measured(OllamaServer(connection, model="worker", context=CONTEXT, slots=None), records)
    embedded = measured(EmbeddedEngine(weights, context=CONTEXT, slots=SLOTS, threads=None), records)
    limit = max(first, llama_bench(weights))
    for row in (server, embedded):
        row["share_of_llama_bench"] = round(row["tokens_per_s"] / limit, 3)
    ollama["prompt_tokens_per_s_as_ollama_says"] = round(said, 1)
    ollama["share_of_what_ollama_says"] = round(ollama["tokens_per_s"] / said, 3)
    answer = {"llama_bench_tokens_per_s": round(limit, 1), "llama-server": server, "Ollama": ollama}
    print(json.dumps({**answer, "in the process": embedded}, indent=2))


if __name__ == "__main__":
    main()
