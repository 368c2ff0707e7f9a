"""The same records through all engines: `python -m benchmarks.engines_agree [AG_NEWS_FILE] [--records 200]`.

The shipped demo messages, and articles of AG News where a file of them is given, with the shipped model in the process,
on llama-server, on its OpenAI routes and on Ollama (needs `make engines`). Prints one JSON object: per sample the
engine's own difference between three runs, each in another order, and per engine its difference from the engine in the
process and where the labels agree. A difference is of renormalised log-probabilities: of one label, or of the margin
between a record's first two labels, which change places only where their margin is smaller than what it moved.
"""

import argparse
import csv
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks.usual_script import PROMPT, a_project
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
from labeling.prompts import PromptTemplate, bind, label_codes, load_template
from labeling.scoring import score_batch
from schemas.project import Project

CONTEXT = 1024
SLOTS = 4
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Records of one project, with the prompt that they are asked with."""

    project: Project
    template: PromptTemplate
    texts: list[str]

    def scores(self, engine: Engine, order: Sequence[int] | None = None) -> Floats:
        """(n, K) renormalised log-probabilities; rows of NaN for records set aside.

        Args:
            order: In which order the records are asked: it decides which ones the engine computes together.
        """
        codes = label_codes(self.project.label_schema.labels, engine.first_token)
        prompt = bind(self.template, self.project, codes)
        engine.warm(engine.tokenize(prompt.prefix))
        records = [(str(number), self.texts[number]) for number in order or range(len(self.texts))]
        rows = np.full((len(self.texts), len(codes)), np.nan)
        for row in score_batch(engine, prompt, records).scored:
            rows[int(row.record_id)] = log_softmax(np.array([row.log_probs]))[0]
        return rows


def demo(count: int) -> Sample:
    """The shipped messages, six labels."""
    with (configs() / "demo" / "clinic_messages.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:count]
    return Sample(load_project(configs() / "demo")[0], load_template("builtin:plain", configs()), texts)


def ag_news(file: Path, count: int) -> Sample:
    """News articles of a file, four labels, as `benchmarks.usual_script` asks them."""
    return Sample(a_project(), PROMPT, pl.read_parquet(file)["text"].to_list()[:count])


def top_two(scores: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """(n, 2) columns of the likeliest label and the runner-up, and (n,) the margin between them."""
    likeliest = np.argsort(-scores, axis=1)[:, :2].astype(np.int64)
    pair = np.take_along_axis(scores, likeliest, axis=1)
    return likeliest, np.asarray(pair[:, 0] - pair[:, 1], dtype=np.float64)


def moved(here: Floats, there: Floats) -> Floats:
    """(n,) how far the margin between a record's first two labels moved from one run to the other."""
    labels, margin = top_two(here)
    pair = np.take_along_axis(there, labels, axis=1)
    return np.asarray(np.abs(pair[:, 0] - pair[:, 1] - margin), dtype=np.float64)


def run_to_run(runs: Sequence[Floats]) -> tuple[float, float]:
    """Largest difference of a label's score and of a margin between any two runs of one engine."""
    pairs = list(combinations(runs, 2))
    of_a_label = max(float(np.nanmax(np.abs(one - other))) for one, other in pairs)
    return of_a_label, max(float(np.nanmax(moved(one, other))) for one, other in pairs)


def against(here: Floats, there: Floats, own: float) -> dict[str, Any]:
    """How two engines differ on the same records; `own` is the run-to-run difference of a margin."""
    both = np.isfinite(here).all(axis=1) & np.isfinite(there).all(axis=1)
    here, there = here[both], there[both]
    # Where a label was not told, the rest share its part of the probability.
    whole = is_reported(there).all(axis=1)
    per_record = np.abs(here - there).max(axis=1)[whole]
    beyond = top_two(here)[1] > own
    agree = here.argmax(axis=1) == there.argmax(axis=1)
    return {
        "scored_by_both": int(both.sum()),
        "every_label_told": int(whole.sum()),
        "largest_difference": _told(per_record, np.max),
        "median_difference": _told(per_record, np.median),
        "largest_difference_of_a_margin": _told(moved(here, there)[whole], np.max),
        "labels_agree": round(float(agree.mean()), 4),
        "margin_beyond_the_run_to_run_difference": {
            "n": int(beyond.sum()),
            "agree": int(agree[beyond].sum()),
        },
    }


def _told(differences: Floats, of: Callable[[Floats], Any]) -> float | str:
    return round(float(of(differences)), 4) if len(differences) else "undefined"


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="AG News, Parquet with a column text")
    parser.add_argument("--records", type=int, default=200, help="a sample")
    options = parser.parse_args()
    samples = {"demo messages": demo(options.records)}
    if options.file is not None:
        samples["AG News"] = ag_news(options.file, options.records)
    weights = model_file("smollm2-135m-instruct")
    answer: dict[str, Any] = {"benchmark": "engines_agree"}
    here: dict[str, Floats] = {}
    margins: dict[str, float] = {}
    with closing(EmbeddedEngine(weights, context=CONTEXT, slots=SLOTS, threads=None)) as engine:
        for name, sample in samples.items():
            dice, numbers = random.Random(1), list(range(len(sample.texts)))
            runs = [sample.scores(engine), sample.scores(engine, numbers[::-1])]
            runs.append(sample.scores(engine, dice.sample(numbers, len(numbers))))
            here[name], (of_a_label, margins[name]) = runs[0], run_to_run(runs)
            answer[name] = {
                "records": len(sample.texts),
                "run_to_run_difference_in_the_process": round(of_a_label, 4),
                "run_to_run_difference_of_a_margin": round(margins[name], 4),
            }

    def compare(called: str, engine: Engine) -> None:
        for name, sample in samples.items():
            answer[name][called] = against(here[name], sample.scores(engine), margins[name])

    with local_llama_server(weights, slots=SLOTS, context=CONTEXT) as url:
        connection = EngineConnection(url, timeout_s=300)
        compare("llama-server", LlamaServer(connection, digest="unknown"))
        alias = connection.call("GET", "/v1/models")["data"][0]["id"]
        compare(
            "OpenAI routes of llama-server",
            OpenAIServer(connection, model=alias, context=CONTEXT, slots=SLOTS),
        )
    with (
        tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch,
        local_ollama(Path(scratch), slots=SLOTS) as ollama,
    ):
        ollama.create("worker", weights)
        connection = EngineConnection(ollama.url, timeout_s=300)
        compare("Ollama", OllamaServer(connection, model="worker", context=CONTEXT, slots=None))
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
