"""Our labels against the usual script, on one Ollama and one model: `python -m benchmarks.usual_script FILE`.

The usual script asks one record after the other by chat and reads JSON. FILE is a Parquet file with columns record_id,
text and label (AG News; none is shipped). Needs `make engines`. Prints one JSON object: records/s and accuracy of the
script, of one-token scores on the same Ollama (raw and after batch calibration), on llama-server and in the process.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl

from benchmarks.rehearsals import PROJECTS
from deployments.engine_servers import LocalOllama, local_llama_server, local_ollama
from labeling.calibration import fit_batch_calibration
from labeling.engines.embedded import EmbeddedEngine
from labeling.engines.http import EngineConnection
from labeling.engines.llama_server import LlamaServer
from labeling.engines.model_files import model_file
from labeling.engines.ollama_server import OllamaServer
from labeling.engines.protocol import Engine
from labeling.paths import configs
from labeling.prompts import bind, label_codes, load_template
from labeling.scoring import score_batch
from schemas.project import Project

CONTEXT = 1024
SLOTS = 4


def a_project() -> Project:
    """AG News as the rehearsal has it."""
    return Project.model_validate(
        {"version": 1, "name": "ag-news", **PROJECTS["ag_news"], "sources": [{"path": "records.parquet"}]}
    )


def by_chat(ollama: LocalOllama, project: Project, rows: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Sequential chat, JSON by schema, one record at a time."""
    names = list(project.label_schema.names)
    definitions = "\n".join(f"- {label.name}: {label.definition}" for label in project.label_schema.labels)
    system = (
        f"{project.label_schema.instruction}\nLabels:\n{definitions}\n"
        'Answer with JSON: {"label": "...", "confidence": 0.0, "reason": "..."}.'
    )
    schema = {
        "type": "object",
        "properties": {
            "label": {"type": "string", "enum": names},
            "confidence": {"type": "number"},
            "reason": {"type": "string"},
        },
        "required": ["label", "confidence", "reason"],
    }
    right = unusable = 0
    with httpx.Client(base_url=ollama.url, timeout=300, trust_env=False) as client:
        body = {
            "model": "worker",
            "stream": False,
            "format": schema,
            "options": {"temperature": 0, "num_ctx": CONTEXT, "num_predict": 80},
        }
        client.post("/api/chat", json={**body, "messages": [{"role": "user", "content": "Hello"}]})
        started = time.perf_counter()
        for text, gold in rows:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            reply = client.post("/api/chat", json={**body, "messages": messages}).json()
            try:
                right += json.loads(reply["message"]["content"])["label"] == gold
            except (KeyError, ValueError, TypeError):
                unusable += 1
        seconds = time.perf_counter() - started
    return {
        "records_per_s": round(len(rows) / seconds, 2),
        "right": round(right / len(rows), 3),
        "unusable": unusable,
    }


def by_score(
    open_engine: Callable[[], Engine], project: Project, rows: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """One-token scores with as many requests in flight as the engine takes."""
    engine = open_engine()
    try:
        codes = label_codes(project.label_schema.labels, engine.first_token)
        prompt = bind(load_template("builtin:plain", configs()), project, codes)
        engine.warm(engine.tokenize(prompt.prefix))
        started = time.perf_counter()
        outcome = score_batch(engine, prompt, [(str(number), text) for number, (text, _) in enumerate(rows)])
        seconds = time.perf_counter() - started
        names = project.label_schema.names
        scores = np.array([row.log_probs for row in outcome.scored])
        gold = np.array([names.index(rows[int(row.record_id)][1]) for row in outcome.scored])
        calibrated = fit_batch_calibration(scores, labels=names, default_strength=1.0).apply(scores)
        return {
            "records_per_s": round(len(rows) / seconds, 2),
            "right_raw": round(float((scores.argmax(axis=1) == gold).sum()) / len(rows), 3),
            "right": round(float((calibrated.argmax(axis=1) == gold).sum()) / len(rows), 3),
            "unusable": len(outcome.set_aside),
            "in_flight": engine.slots,
        }
    finally:
        engine.close()


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--records", type=int, default=100)
    options = parser.parse_args()
    project = a_project()
    rows = pl.read_parquet(options.file).head(options.records).select("text", "label").rows()
    weights = model_file("smollm2-135m-instruct")
    answer: dict[str, Any] = {"benchmark": "usual_script", "records": len(rows)}
    with (
        tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch,
        local_ollama(Path(scratch), slots=SLOTS) as ollama,
    ):
        ollama.create("worker", weights)
        answer["usual script on Ollama"] = by_chat(ollama, project, rows)
        answer["one token on Ollama"] = by_score(
            lambda: OllamaServer(
                EngineConnection(ollama.url, timeout_s=300), model="worker", context=CONTEXT, slots=None
            ),
            project,
            rows,
        )
    with local_llama_server(weights, slots=SLOTS, context=CONTEXT) as url:
        answer["one token on llama-server"] = by_score(
            lambda: LlamaServer(EngineConnection(url, timeout_s=300), digest="unknown"), project, rows
        )
    answer["one token in the process"] = by_score(
        lambda: EmbeddedEngine(weights, context=CONTEXT, slots=SLOTS, threads=None), project, rows
    )
    usual = answer["usual script on Ollama"]["records_per_s"]
    answer["times_the_usual_script"] = {
        name: round(entry["records_per_s"] / usual, 2)
        for name, entry in answer.items()
        if name.startswith("one token")
    }
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
