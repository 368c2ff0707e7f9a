"""A new project folder with guesses from a file; every key explained."""

import csv
import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.ingest import read_rows
from labeling.project_file import parse_project, project_json_schema
from labeling.storage import write_bytes, write_json
from schemas.errors import ManyProblems, ProjectError, SourceError
from schemas.project import Limits, Source

SAMPLE_ROWS = 2000
MOST_LABELS = 100
_TEXT_NAMES = ("text", "message", "body", "content", "document", "sentence", "input")
_ID_NAMES = ("id", "record_id", "message_id", "uid", "key")
_LABEL_NAMES = ("label", "labels", "category", "class", "intent", "topic", "target")


def initialize(folder: Path, *, task: str, source: Path | None) -> list[Path]:
    """Writes project.yaml, guideline.md and project.schema.json into a folder without a project.

    Returns:
        The files it made. A guideline or JSON Schema that was there already is kept and not among them.

    Raises:
        ProjectError: there is a project already; nothing is overwritten.
        SourceError: the file to guess from cannot be read.
    """
    target = folder / "project.yaml"
    if target.exists():
        raise ProjectError(
            str(target),
            found="a project",
            expected="a new folder",
            next_step="Edit it, or choose another folder.",
        )
    guess = _guess(source) if source is not None else {"text": "text", "id": None, "labels": []}
    text = _project_text(folder, task, source, guess)
    try:
        parse_project(text.encode(), str(target))  # what is written can be read
    except (ManyProblems, ProjectError):
        guess = {**guess, "labels": []}  # values that cannot all be labels: too long, or they read alike
        text = _project_text(folder, task, source, guess)
        parse_project(text.encode(), str(target))
    write_bytes(target, text.encode())
    created = [target]
    guideline, editors = folder / "guideline.md", folder / "project.schema.json"
    if not guideline.exists():  # often the one thing people have before they have a project
        write_bytes(guideline, _guideline(guess["labels"]).encode())
        created.append(guideline)
    if not editors.exists():
        write_json(editors, project_json_schema())
        created.append(editors)
    return created


def _columns(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Column names and the first rows, read by the same strict parser that ingest uses."""
    kind = path.suffix.lower()
    if not path.is_file() or kind not in (".csv", ".jsonl", ".ndjson", ".parquet"):
        raise SourceError(
            str(path),
            found="no such file" if not path.is_file() else f"a file that ends in {kind or 'nothing'}",
            expected="a .csv, .jsonl, .ndjson or .parquet file",
            next_step="Give another file, or none and write the columns into project.yaml yourself.",
        )
    try:
        present = _names_in(path, kind)
    except (ValueError, csv.Error, pa.ArrowException, OSError) as error:
        raise SourceError(
            str(path),
            found=str(error)[:200].encode("utf-8", "backslashreplace").decode(),
            expected="readable rows",
            next_step="Check the export that made it.",
        ) from error
    other = _other_layout(path, present) if kind == ".csv" else None
    if other is not None:
        raise SourceError(
            str(path),
            found=other,
            expected="a CSV file with commas between its columns, in UTF-8",
            next_step='Save it again as "CSV UTF-8 (comma delimited)".',
        )
    # A name that is empty (the index column of many exports), endless or there twice cannot be named in project.yaml.
    names = [
        name for name in present if 0 < len(name) <= 80 and name == name.strip() and present.count(name) == 1
    ]
    names = [name for name in names if name.isprintable()]
    if not names:
        raise SourceError(
            str(path),
            found=f"{len(present)} columns, none of which has a usable name",
            expected="a header with names",
            next_step="Name the columns in the file.",
        )
    source = Source(path=path.name, text=names[0], metadata=tuple(names[1:]))
    rows = [
        dict(row.values)
        for row in islice(read_rows(path, source, Limits()), SAMPLE_ROWS)
        if row.values is not None
    ]
    return names, rows


def _other_layout(path: Path, present: list[str]) -> str | None:
    """What spreadsheets write under the name of CSV in many countries: each row would be one text, its label in it."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "a file in UTF-16"
    if len(present) == 1:
        for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if sign in present[0]:
                return f"one column {present[0][:100]!r}: {name} between the columns"
    return None


def _names_in(path: Path, kind: str) -> list[str]:
    if kind == ".parquet":
        return list(pq.read_schema(path).names)
    if kind == ".csv":
        with path.open("r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return next(csv.reader(file), [])
    with path.open("rb") as lines:
        for line in islice(lines, SAMPLE_ROWS):
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                continue  # ingest sets such a line aside
            if isinstance(value, dict):
                return list(value)
    return []


def _guess(path: Path) -> dict[str, Any]:
    names, rows = _columns(path)
    strings = [name for name in names if rows and all(isinstance(row.get(name), str | None) for row in rows)]
    length = {name: sum(len(row.get(name) or "") for row in rows) for name in strings}
    text = next((name for name in names if name.lower() in _TEXT_NAMES and name in strings), None)
    text = text or max(strings, key=lambda name: length[name], default="text")
    unique = [
        name for name in names if name != text and len({str(row.get(name)) for row in rows}) == len(rows)
    ]
    identifier = next((name for name in unique if name.lower() in _ID_NAMES), None)
    labels: list[str] = []
    for name in sorted(strings, key=lambda name: name.lower() not in _LABEL_NAMES):
        counts = Counter(row[name] for row in rows if row.get(name))
        if name not in (text, identifier) and 2 <= len(counts) <= min(MOST_LABELS, max(2, len(rows) // 5)):
            labels = [label for label, _ in counts.most_common()]
            break
    return {"text": text, "id": identifier, "labels": labels}


def _project_text(folder: Path, task: str, source: Path | None, guess: dict[str, Any]) -> str:
    path = str(source.resolve()) if source is not None else "records.csv"
    labels = guess["labels"] or ["first label", "second label"]
    hint = '      definition: ""      # one sentence an annotator can apply'
    named = [f"    - name: {json.dumps(label, ensure_ascii=False)}\n{hint}" for label in labels]
    rows = "" if task == "pairs" else "\n".join(["  labels:", *named])
    name = re.sub("[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:60].strip("-")
    identifier = json.dumps(guess["id"], ensure_ascii=False) if guess["id"] else "null"
    return f"""# yaml-language-server: $schema=./project.schema.json
version: 1
name: "{name or "project"}"          # short name in deployments and the UI
title: ""                 # what people see
schema:
  task: {task}
  instruction: ""         # what is asked of a record, in one sentence
  guideline: guideline.md
{rows}
sources:
  - path: {json.dumps(path, ensure_ascii=False)}   # CSV, JSONL or Parquet; adding rows later is fine
    text: {json.dumps(guess["text"], ensure_ascii=False)}
    id: {identifier}              # the source's own id, if it has one
    gold: null            # column of known labels: then the setup sample is measured against it and nobody is asked
engine:
  kind: embedded          # embedded | llama-server | ollama
  model: smollm2-135m-instruct   # a small model to try with; use a 7-8B model for real work
  context: 2048           # tokens a request may use
embedding:
  kind: embedded
  model: all-minilm-l6-v2
prompts:
  files: ["builtin:plain", "builtin:definitions"]   # all are tried on the sample; add your own prompts/NAME.jinja
  over_long: head_tail    # refuse | head_tail | windows: what to do with a record that does not fit
setup:
  sample: 50              # random records labelled blind before anything else
  threshold: 0.6          # what the lower end of the accuracy interval has to pass
review:
  round_records: 100      # records a round, least sure first
  blind_slice: 60         # random records labelled blind that no loop ever sees
  overlap_share: 0.2      # share that several annotators label; 0 if one person labels alone
iteration:
  cascade: null           # e.g. 0.9: from round 2 on only records the student is less sure of go to the language model
quality:
  splits: [0.8, 0.1, 0.1] # train, validation, test
seed: 20260101
"""


def _guideline(labels: list[str]) -> str:
    parts = [
        f"## {label}\n\nWhat it is. What it is not. One example.\n" for label in labels or ["first label"]
    ]
    return "# Guideline\n\nOne label for every record. Read the whole record first.\n\n" + "\n".join(parts)
