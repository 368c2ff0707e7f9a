"""Our labels against the usual script, on one Ollama and one model: `python -m benchmarks.usual_script FILE`.

The usual script asks one record after the other by chat and reads JSON. FILE is a Parquet file with columns record_id,
text and label (AG News; none is shipped). Needs `make engines`. Prints one JSON object: records/s and accuracy of the
script, of one-token scores on the same Ollama (raw and after batch calibration), on llama-server and in the process.

Scripts and servers have the shipped model twice, as Q8_0 and as BF16: labels are read and the script's JSON is written,
and a processor with AVX-512 BF16 reads BF16 faster and writes Q8_0 faster. What all are held against is the script on
the layout that it is faster with; on BF16 they are held against the script on BF16, too.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
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
from labeling.prompts import PromptTemplate, bind, label_codes
from labeling.scoring import score_batch
from schemas.project import Project

CONTEXT = 1024
SLOTS = 2  # of llama-server and of the engine in the process, which suit two cores
OLLAMA_SLOTS = 4
BF16 = ", BF16"
BLOCK = 200  # the last records of a block leave slots idle, which a run of thousands does once
# A project's own prompt, as its lead would write it after a look at the sample.
PROMPT = PromptTemplate(
    "topic",
    "Classify the news article into one of these topics: "
    "{% for label in labels %}{{ label.shown }}{% if not loop.last %}, {% endif %}{% endfor %}.\n\n"
    "Article: {{ text }}\nTopic:",
)


def a_project() -> Project:
    """AG News as the rehearsal has it."""
    return Project.model_validate(
        {"version": 1, "name": "ag-news", **PROJECTS["ag_news"], "sources": [{"path": "records.parquet"}]}
    )


class UsualScript:
    """Sequential chat, JSON by schema, one record at a time."""

    def __init__(self, ollama: LocalOllama, model: str, project: Project) -> None:
        names = list(project.label_schema.names)
        definitions = "\n".join(
            f"- {label.name}: {label.definition}" for label in project.label_schema.labels
        )
        self._system = (
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
        self._body = {
            "model": model,
            "stream": False,
            "format": schema,
            "options": {"temperature": 0, "num_ctx": CONTEXT, "num_predict": 80},
        }
        self._client = httpx.Client(base_url=ollama.url, timeout=300, trust_env=False)
        self._ask("Hello")
        self.right = self.unusable = self.tokens_written = 0
        self.seconds: list[float] = []

    def _ask(self, text: str) -> dict[str, Any]:
        messages = [{"role": "system", "content": self._system}, {"role": "user", "content": text}]
        reply: dict[str, Any] = self._client.post(
            "/api/chat", json={**self._body, "messages": messages}
        ).json()
        return reply

    def block(self, rows: Sequence[tuple[str, str]]) -> None:
        """Asks a few records."""
        started = time.perf_counter()
        for text, gold in rows:
            reply = self._ask(text)
            self.tokens_written += int(reply.get("eval_count", 0))
            try:
                self.right += json.loads(reply["message"]["content"])["label"] == gold
            except (KeyError, ValueError, TypeError):
                self.unusable += 1
        self.seconds.append(time.perf_counter() - started)

    def row(self, records: int) -> dict[str, Any]:
        """What came of all blocks."""
        self._client.close()
        return {
            "records_per_s": round(records / sum(self.seconds), 2),
            "right": round(self.right / records, 3),
            "unusable": self.unusable,
            "tokens_written_per_record": round(self.tokens_written / records, 1),
        }


class OneToken:
    """One-token scores with as many requests in flight as the engine takes."""

    def __init__(self, engine: Engine, project: Project) -> None:
        self._engine, self._names = engine, project.label_schema.names
        codes = label_codes(project.label_schema.labels, engine.first_token)
        self._prompt = bind(PROMPT, project, codes)
        engine.warm(engine.tokenize(self._prompt.prefix))
        self._scores: list[tuple[float, ...]] = []
        self._gold: list[int] = []
        self._set_aside = 0
        self.seconds: list[float] = []

    def block(self, rows: Sequence[tuple[str, str]]) -> None:
        """Scores a few records."""
        started = time.perf_counter()
        records = [(str(number), text) for number, (text, _) in enumerate(rows)]
        outcome = score_batch(self._engine, self._prompt, records)
        self.seconds.append(time.perf_counter() - started)
        self._scores += [row.log_probs for row in outcome.scored]
        self._gold += [self._names.index(rows[int(row.record_id)][1]) for row in outcome.scored]
        self._set_aside += len(outcome.set_aside)

    def row(self, records: int) -> dict[str, Any]:
        """What came of all blocks; a record without a usable reply is not right."""
        scores, gold = np.array(self._scores), np.array(self._gold)
        calibrated = fit_batch_calibration(scores, labels=self._names, default_strength=1.0).apply(scores)
        slots = self._engine.slots
        self._engine.close()
        return {
            "records_per_s": round(records / sum(self.seconds), 2),
            "right_raw": round(float((scores.argmax(axis=1) == gold).sum()) / records, 3),
            "right": round(float((calibrated.argmax(axis=1) == gold).sum()) / records, 3),
            "unusable": self._set_aside,
            "in_flight": slots,
        }


def connect(url: str) -> EngineConnection:
    """A connection that waits for a busy server."""
    return EngineConnection(url, timeout_s=300)


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--records", type=int, default=600)
    options = parser.parse_args()
    project = a_project()
    rows = pl.read_parquet(options.file).head(options.records).select("text", "label").rows()
    weights = {
        "": model_file("smollm2-135m-instruct"),
        BF16: model_file("smollm2-135m-instruct-bf16", fetch=True),
    }
    with (
        tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch,
        local_ollama(Path(scratch), slots=OLLAMA_SLOTS) as ollama,
        ExitStack() as servers,
    ):
        scripts: dict[str, UsualScript] = {}
        ours: dict[str, OneToken] = {}
        for layout, file in weights.items():
            model = "worker" + layout.replace(", ", "-").lower()
            ollama.create(model, file)
            scripts[layout] = UsualScript(ollama, model, project)
            url = servers.enter_context(local_llama_server(file, slots=SLOTS, context=CONTEXT))
            ours[f"one token on Ollama{layout}"] = OneToken(
                OllamaServer(connect(ollama.url), model=model, context=CONTEXT, slots=None), project
            )
            ours[f"one token on llama-server{layout}"] = OneToken(
                LlamaServer(connect(url), digest="unknown"), project
            )
        ours["one token in the process"] = OneToken(
            EmbeddedEngine(weights[""], context=CONTEXT, slots=SLOTS, threads=None), project
        )
        # In turn, a few records each: the speed of a shared machine swings within minutes.
        for start in range(0, len(rows), BLOCK):
            for contender in (*scripts.values(), *ours.values()):
                contender.block(rows[start : start + BLOCK])
        count = len(rows)
        answer: dict[str, Any] = {"benchmark": "usual_script", "records": count}
        answer |= {f"usual script on Ollama{layout}": it.row(count) for layout, it in scripts.items()}
        answer |= {name: contender.row(count) for name, contender in ours.items()}
        faster = min(scripts.values(), key=lambda script: sum(script.seconds))
        answer["times_the_faster_usual_script"] = {
            name: round(sum(faster.seconds) / sum(contender.seconds), 2) for name, contender in ours.items()
        }
        answer["times_it_by_block"] = {
            name: [round(theirs / own, 2) for theirs, own in zip(faster.seconds, it.seconds, strict=True)]
            for name, it in ours.items()
        }
        answer["times_the_usual_script_on_bf16"] = {
            name: round(sum(scripts[BF16].seconds) / sum(contender.seconds), 2)
            for name, contender in ours.items()
            if name.endswith(BF16)
        }
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
