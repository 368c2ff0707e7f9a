"""The same records through all engines: `python -m benchmarks.engines_agree [--records 200]`.

The shipped demo messages and the shipped model in the process, on llama-server, on its OpenAI routes and on Ollama
(needs `make engines`). Prints one JSON object: per engine the largest difference of a label's renormalised
log-probability from the engine in the process, the same engine's own difference between two runs, and where the labels
agree.
"""

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.engine_servers import local_llama_server, local_ollama
from labeling.calibration import is_reported
from labeling.engines.embedded import EmbeddedEngine
from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer
from labeling.engines.model_files import model_file
from labeling.engines.ollama_server import OllamaServer
from labeling.engines.openai_server import OpenAIServer
from labeling.engines.protocol import Engine
from labeling.multinomial import log_softmax
from labeling.paths import configs
from labeling.project_file import load_project
from labeling.prompts import bind, label_codes, load_template
from labeling.scoring import score_batch

CONTEXT = 1024
SLOTS = 4
Floats = npt.NDArray[np.float64]


def scores(engine: Engine, texts: list[str]) -> Floats:
    """(n, K) renormalised log-probabilities; rows of NaN for records set aside."""
    project, _ = load_project(configs() / "demo")
    codes = label_codes(project.label_schema.labels, engine.first_token)
    prompt = bind(load_template("builtin:plain", configs()), project, codes)
    engine.warm(engine.tokenize(prompt.prefix))
    outcome = score_batch(engine, prompt, [(str(number), text) for number, text in enumerate(texts)])
    rows = np.full((len(texts), len(codes)), np.nan)
    for row in outcome.scored:
        rows[int(row.record_id)] = log_softmax(np.array([row.log_probs]))[0]
    return rows


def against(here: Floats, there: Floats, own: float) -> dict[str, Any]:
    """How two engines differ on the same records."""
    both = np.isfinite(here).all(axis=1) & np.isfinite(there).all(axis=1)
    here, there = here[both], there[both]
    whole = is_reported(there).all(
        axis=1
    )  # where a label was not told, the rest share its part of the probability
    per_record = np.abs(here - there).max(axis=1)[whole]
    ordered = np.sort(here, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    agree = here.argmax(axis=1) == there.argmax(axis=1)
    largest = float(per_record.max()) if whole.any() else float("nan")
    clear = margin > 2 * largest
    beyond = margin > own
    return {
        "scored_by_both": int(both.sum()),
        "every_label_told": int(whole.sum()),
        "largest_difference": round(largest, 4) if whole.any() else "undefined",
        "median_difference": round(float(np.median(per_record)), 4) if whole.any() else "undefined",
        "labels_agree": round(float(agree.mean()), 4),
        "margin_beyond_twice_the_largest_difference": {
            "n": int(clear.sum()),
            "agree": int(agree[clear].sum()),
        },
        "margin_beyond_the_run_to_run_difference": {
            "n": int(beyond.sum()),
            "agree": int(agree[beyond].sum()),
        },
    }


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200)
    count = parser.parse_args().records
    with (configs() / "demo" / "clinic_messages.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:count]
    weights = model_file("smollm2-135m-instruct")
    engine: Engine = EmbeddedEngine(weights, context=CONTEXT, slots=SLOTS, threads=None)
    here, again = scores(engine, texts), scores(engine, texts[::-1])[::-1]
    engine.close()
    own = float(np.abs(here - again).max())
    answer: dict[str, Any] = {
        "benchmark": "engines_agree",
        "records": len(texts),
        "run_to_run_difference_in_the_process": round(own, 4),
    }
    with local_llama_server(weights, slots=SLOTS, context=CONTEXT) as url:
        connection = EngineConnection(url, timeout_s=300)
        answer["llama-server"] = against(here, scores(LlamaServer(connection, digest="unknown"), texts), own)
        name = connection.call("GET", "/v1/models")["data"][0]["id"]
        by_openai = OpenAIServer(connection, model=name, context=CONTEXT, slots=SLOTS)
        answer["openai routes of llama-server"] = against(here, scores(by_openai, texts), own)
    with (
        tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch,
        local_ollama(Path(scratch), slots=SLOTS) as ollama,
    ):
        ollama.create("worker", weights)
        connection = EngineConnection(ollama.url, timeout_s=300)
        by_ollama = OllamaServer(connection, model="worker", context=CONTEXT, slots=None)
        answer["ollama"] = against(here, scores(by_ollama, texts), own)
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
