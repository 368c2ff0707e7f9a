"""What the loop does on labelled data: `python -m benchmarks.rehearsals ag_news FILE [--records 2000]`.

FILE is a Parquet file with columns record_id, text and label (a data set of your own; none is shipped). The first
`--records` rows are rehearsed with the embedded models through the real queue, gates and flows. Prints one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from labeling.storage import write_bytes

FOLDERS = ("release", "report", "project")
PROJECTS: dict[str, dict[str, Any]] = {
    "ag_news": {
        "schema": {
            "task": "classification",
            "instruction": "Which topic is this news article about?",
            "labels": [
                {
                    "name": "World",
                    "definition": "politics, conflicts and events between and within countries",
                },
                {"name": "Sports", "definition": "games, teams, players and results"},
                {"name": "Business", "definition": "companies, markets and the economy"},
                {"name": "Sci/Tech", "word": "Technology", "definition": "science, computers and technology"},
            ],
        },
        "prompts": {"files": ["builtin:plain"]},
        "review": {"round_records": 200, "blind_slice": 150, "overlap_share": 0.1},
    },
    "sms_spam": {
        "schema": {
            "task": "classification",
            "instruction": "Is this text message spam or a normal message?",
            "labels": [
                {"name": "ham", "word": "normal", "definition": "a message from a person or a wanted notice"},
                {"name": "spam", "definition": "unwanted advertising, prizes, premium-rate numbers"},
            ],
        },
        "prompts": {"files": ["builtin:plain", "builtin:definitions"]},
        "review": {"round_records": 200, "blind_slice": 150, "overlap_share": 0.1},
    },
}


def labelled_project(
    name: str, source: Path, *, records: int, folder: Path, sections: dict[str, Any] | None = None
) -> None:
    """Writes a project over the first records of a data set; `sections` replace those of `PROJECTS`."""
    frame = pl.read_parquet(source).head(records).select("record_id", "text", "label")
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(folder / "records.parquet")
    settings = {
        "version": 1,
        "name": name.replace("_", "-"),
        **PROJECTS[name],
        "sources": [{"path": "records.parquet", "text": "text", "id": "record_id"}],
        "engine": {"kind": "embedded", "model": "smollm2-135m-instruct", "context": 1024},
        **(sections or {}),
    }
    write_bytes(folder / "project.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
    write_bytes(folder / "guideline.md", b"# Guideline\n\nOne label for every record.\n")


def rehearse(name: str, source: Path, *, records: int, error: float, folder: Path) -> dict[str, Any]:
    """Rehearses the first records of a data set; returns what `countersign rehearse --json` prints."""
    labelled_project(name, source, records=records, folder=folder)
    command = [sys.executable, "-m", "countersign.main", "rehearse", str(folder), "--truth", "label"]
    done = subprocess.run(
        [*command, "--annotator-error", str(error), "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(PROJECTS))
    parser.add_argument("file", type=Path)
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--annotator-error", type=float, default=0.05)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch:
        answer = rehearse(
            options.name,
            options.file,
            records=options.records,
            error=options.annotator_error,
            folder=Path(scratch) / options.name,
        )
    # Where it was written says nothing: the folder is gone when this ends.
    print(json.dumps({key: value for key, value in answer.items() if key not in FOLDERS}, indent=2))


if __name__ == "__main__":
    main()
