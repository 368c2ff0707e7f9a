"""What a cascade saves and costs: `python -m benchmarks.cascade FILE [--records 800] [--threshold 0.9]`.

FILE is a Parquet file with columns record_id, text and label (AG News; none is shipped). The same three rounds are
rehearsed twice with the embedded models, with the same seed, without and with a cascade. They start with a prompt that
asks for something else; after round 1 a better one is put in its place, as a project does that learned how to ask.
Prints one JSON object. At least 200 records are asked at random whatever the student knows: few records show little.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rehearsals import labelled_project
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from labeling.record_store import records_table
from labeling.setup import load_plan
from labeling.suggesting import load_suggestions

ROUNDS = 3
PROMPT = "prompts/topic.jinja"
# So much worse that the other always proves itself; with a first name it did so in three runs of four.
FIRST_PROMPT = "{{ text }}\n\nMy favourite colour is"
SECOND_PROMPT = "{{ text }}\nFiled under:"
REVIEW = {"round_records": 80, "blind_slice": 100, "overlap_share": 0.1}


def rehearse_with_a_new_prompt(folder: Path, error: float) -> dict[str, Any]:
    """`countersign rehearse`; the prompt file is replaced once setup has chosen: it is read again by `iterate` only."""
    command = [
        sys.executable,
        "-m",
        "countersign.main",
        "rehearse",
        str(folder),
        "--truth",
        "label",
        "--json",
    ]
    options = ["--rounds", str(ROUNDS), "--annotator-error", str(error)]
    with (folder / "answer.json").open("wb") as file:
        process = subprocess.Popen([*command, *options], stdout=file)
        replaced = False
        while process.poll() is None:
            for root in (folder / "rehearsals").glob("*"):
                if not replaced and ProjectFolder(root).round(1).plan.is_file():
                    (root / PROMPT).write_text(SECOND_PROMPT, "utf-8")
                    replaced = True
            time.sleep(0.2)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_bytes())
    return answer


def three_rounds(
    source: Path, folder: Path, *, records: int, error: float, threshold: float | None
) -> dict[str, Any]:
    """A whole project; its pace counts everything from the first phase to the last release."""
    sections = {
        "prompts": {"files": [PROMPT], "exemplars": 0},
        "review": REVIEW,
        "iteration": {"cascade": threshold},
    }
    labelled_project("ag_news", source, records=records, folder=folder, sections=sections)
    (folder / PROMPT).parent.mkdir()
    (folder / PROMPT).write_text(FIRST_PROMPT, "utf-8")
    answer = rehearse_with_a_new_prompt(folder, error)
    rehearsed = Path(answer["project"])
    plans = [load_plan(ProjectFolder(rehearsed), number) for number in range(1, ROUNDS + 1)]
    return {
        "threshold": threshold,
        "prompt_replaced_for_round": next(
            (plan.round for plan in plans if plan.prompt_id != plans[0].prompt_id), None
        ),
        "wall_s": answer["wall_s"],
        "records_per_hour": round(answer["records"] / answer["wall_s"] * 3600),
        "llm_calls": sum(entry["llm_calls"] for entry in answer["rounds"]),
        "rounds": [
            {key: entry[key] for key in ("round", "accuracy", "llm_calls", "student_alone", "human_labels")}
            for entry in answer["rounds"]
        ],
        "final_error": answer["final_error"],
        "last_drafts_wrong": drafts_wrong(rehearsed),
    }


def drafts_wrong(root: Path) -> float:
    """Share of the last round's suggestions that differ from the truth column, over all records that have one."""
    project, folder = load_project(root)
    told = records_table(project, folder).read(["record_id", "metadata"])
    truth = {record_id: metadata["label"] for record_id, metadata in told.iter_rows()}
    drafts = load_suggestions(project, folder, ROUNDS, ["record_id", "value"])
    wrong = sum(truth[record_id] != value for record_id, value in drafts.iter_rows())
    return round(wrong / drafts.height, 4)


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--records", type=int, default=800)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--annotator-error", type=float, default=0.0)
    options = parser.parse_args()
    answer: dict[str, Any] = {"benchmark": "cascade", "records": options.records}
    with tempfile.TemporaryDirectory(prefix="countersign-benchmark-") as scratch:
        for name, threshold in (("without", None), ("with", options.threshold)):
            answer[name] = three_rounds(
                options.file,
                Path(scratch) / name,
                records=options.records,
                error=options.annotator_error,
                threshold=threshold,
            )
    without, cascade = answer["without"], answer["with"]
    # Where one run only took the better prompt, which must prove itself on reviewed records, they are two projects.
    alike = without["prompt_replaced_for_round"] == cascade["prompt_replaced_for_round"] is not None
    answer["calls_saved_share"] = round(1 - cascade["llm_calls"] / without["llm_calls"], 3) if alike else None
    answer["times_as_fast"] = (
        round(cascade["records_per_hour"] / without["records_per_hour"], 2) if alike else None
    )
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
