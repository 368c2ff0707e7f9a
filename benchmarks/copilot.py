"""How soon the co-pilot's suggestion is there and how often it is right: `python -m benchmarks.copilot FILE`.

FILE is a Parquet file with columns record_id, text and label (AG News; none is shipped). One person labels the records
in their order and is always right. No record has a suggestion in the table, so one is made as it opens, on the shipped
model in this process: with the answers given so far as the co-pilot chooses them, and in turn with none. Beside them
stands how often the most alike of those answers is right by itself, without a model. Prints one JSON object.
`keeps_ahead_at_s_per_record` is how long a person must take for a record so that the suggestion, asked for three
records ahead, is there before the record is.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.rehearsals import labelled_project
from labeling.copilot import Copilot, Recent, exemplars_for
from labeling.database.copilot import MOST_RECENT
from labeling.intervals import wilson
from labeling.project_file import load_project

TEMPLATES = ("builtin:plain", "builtin:definitions")
SHOWN, NONE = "with the last answers", "with none"


def measured(template: str, source: Path, *, records: int, folder: Path) -> dict[str, Any]:
    """One prompt: seconds to a suggestion and share right, with the answers of the last minutes and without."""
    labelled_project(
        "ag_news", source, records=records, folder=folder, sections={"prompts": {"files": [template]}}
    )
    copilot = Copilot(*load_project(folder))
    rows = pl.read_parquet(source).head(records).select("record_id", "text", "label").rows()
    copilot.suggest(1, "opens the engine", rows[0][1], [])
    recent: list[Recent] = []
    seconds: dict[str, list[float]] = {SHOWN: [], NONE: []}
    right = {SHOWN: 0, NONE: 0, "nearest": 0}
    for record_id, text, label in rows:
        for kind, answers in ((SHOWN, recent[:MOST_RECENT]), (NONE, [])):
            started = time.perf_counter()
            fresh = copilot.suggest(1, record_id, text, answers)
            seconds[kind].append(time.perf_counter() - started)
            right[kind] += fresh is not None and fresh.value == label
        nearest = exemplars_for(record_id, text, recent[:MOST_RECENT], most=1)
        right["nearest"] += bool(nearest) and nearest[0].label == label
        recent.insert(0, Recent(record_id, text, label))
    return {
        **{kind: _row(seconds[kind], right[kind]) for kind in seconds},
        "label of the most alike answer": asdict(wilson(right["nearest"], len(rows))),
    }


def _row(seconds: list[float], right: int) -> dict[str, Any]:
    cuts = statistics.quantiles(seconds, n=100)
    return {
        "p50_s": round(cuts[49], 2),
        "p95_s": round(cuts[94], 2),
        "under_1_s": round(sum(one < 1 for one in seconds) / len(seconds), 3),
        "keeps_ahead_at_s_per_record": round(statistics.mean(seconds), 2),
        "right": asdict(wilson(right, len(seconds))),
    }


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--records", type=int, default=200)
    options = parser.parse_args()
    answer: dict[str, Any] = {"benchmark": "copilot", "records": options.records}
    for template in TEMPLATES:
        with tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch:
            answer[template] = measured(template, options.file, records=options.records, folder=Path(scratch))
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
