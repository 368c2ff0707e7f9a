"""The whole life of one label, and whether everything stored is whole."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from labeling.closing import changed_since
from labeling.database import chain, rounds
from labeling.database.connection import Database
from labeling.database.queue import decisions_of_round, texts_shown
from labeling.flagged import load_findings
from labeling.paths import ProjectFolder
from labeling.quality import gold_rows
from labeling.record_store import records_table
from labeling.storage import Table, content_id, read_json, sha256_of
from labeling.task_types import task_type
from schemas import tables
from schemas.errors import StorageError
from schemas.project import Project
from schemas.review import Purpose, RoundState, Verdict


def _round_numbers(folder: ProjectFolder) -> list[int]:
    """Rounds that have a folder; notes or copies that somebody laid beside them are none."""
    return sorted(
        int(path.name) for path in folder.rounds.glob("*") if path.name.isdecimal() and path.is_dir()
    )


def _releases(folder: ProjectFolder) -> list[Path]:
    return sorted(path for path in folder.releases.glob("v*") if path.is_dir())


def trace(project: Project, folder: ProjectFolder, db: Database, wanted: str) -> list[dict[str, Any]]:
    """Every step of a record in time order: source, suggestions, decisions, findings, gold, releases.

    Args:
        wanted: A record id, or the source's own id.

    Raises:
        StorageError: there is no such record.
    """
    record = _record(project, folder, wanted)
    record_id = record["record_id"]
    steps: list[dict[str, Any]] = [
        {
            "step": "record",
            **{
                key: record[key]
                for key in ("record_id", "source", "source_row", "source_id", "text_sha256", "duplicate_of")
            },
            "text": record["text"],
        }
    ]
    task = project.label_schema.task
    for number in _round_numbers(folder):
        here = folder.round(number)
        for row in _rows(Table(here.suggestions, tables.suggestions(task)), record_id):
            identity = read_json(folder.identities / f"{row['identity_id']}.json")
            steps.append(
                {
                    "step": "suggestion",
                    "round": number,
                    **{
                        key: row[key]
                        for key in ("value", "confidence", "calibrated_by", "label_mass", "by", "prompt_id")
                    },
                    "model": identity["model"],
                    "digest": identity["digest"],
                    "engine": f"{identity['engine']} {identity['engine_version']}",
                }
            )
        for row in _rows(Table(here.rejected, tables.rejected(task)), record_id):
            steps.append({"step": "no usable suggestion", "round": number, "reason": row["reason"]})
    for entry in chain.entries(db):
        payload = entry["payload"]
        if isinstance(payload, dict) and payload.get("record_id") == record_id:
            steps.append(
                {
                    "step": entry["action"],
                    "seq": entry["seq"],
                    "utc": entry["utc"],
                    "actor": entry["actor"],
                    **{
                        key: payload.get(key)
                        for key in (
                            "round",
                            "action",
                            "value_json",
                            "seen",
                            "purpose",
                            "seconds",
                            "comment",
                            "supersedes",
                            "details_json",
                        )
                        if payload.get(key) is not None
                    },
                }
            )
    for number in _round_numbers(folder):
        here = folder.round(number)
        flagged = load_findings(project, folder, number).filter(pl.col("record_id") == record_id)
        for row in flagged.iter_rows(named=True):
            steps.append(
                {
                    "step": "finding",
                    "round": number,
                    **{key: row[key] for key in ("kind", "sentence", "state")},
                }
            )
        for row in _rows(Table(here.gold, tables.gold(task)), record_id):
            steps.append(
                {
                    "step": "gold",
                    **{key: row[key] for key in ("round", "value", "how", "agreement", "annotation_ids")},
                }
            )
    for release in _releases(folder):
        steps += _released(release, record_id)
    return steps


def _released(release: Path, record_id: str) -> list[dict[str, Any]]:
    """What a release says of a record; of one that is damaged only that, so that the rest can be told."""
    step = {"step": "release", "release": release.name}
    try:
        frame = pl.read_parquet(release / "provenance.parquet").filter(pl.col("record_id") == record_id)
        head = read_json(release / "manifest.json")["audit_head"]["hash"]
        return [
            {**step, "split": row["split"], "final": row["final"], "audit_head": head}
            for row in frame.iter_rows(named=True)
        ]
    except (OSError, pl.exceptions.PolarsError, StorageError, KeyError, TypeError):
        return [{**step, "problem": "it cannot be read; `countersign verify` says what is damaged"}]


def _record(project: Project, folder: ProjectFolder, wanted: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for _, frame in records_table(project, folder).stream():
        fitting = frame.filter((pl.col("record_id") == wanted) | (pl.col("source_id") == wanted))
        found += fitting.iter_rows(named=True)
    named = [row for row in found if row["record_id"] == wanted] or found
    if len(named) == 1:
        return named[0]
    if named:
        told = ", ".join(
            f"{row['record_id']} ({row['source']}, row {row['source_row']})" for row in named[:5]
        )
        raise StorageError(
            f"record {wanted!r}",
            found=f"{len(named)} records of that id in their sources: {told}",
            expected="one",
            next_step="Give the record id of the one you mean.",
        )
    raise StorageError(
        f"record {wanted!r}",
        found="no such record",
        expected="a record id or the source's own id",
        next_step="Record ids are in every table and in the release's provenance.parquet.",
    )


def _rows(table: Table, record_id: str) -> list[dict[str, Any]]:
    if not table.exists:
        return []
    return list(table.read().filter(pl.col("record_id") == record_id).iter_rows(named=True))


def verify(project: Project, folder: ProjectFolder, db: Database, *, release: str | None = None) -> list[str]:
    """Everything that is not as it was written, one sentence each; empty when whole. Works offline.

    Re-hashes every table and release, recomputes the audit chain, and holds it against the heads in the releases, so
    that a cut tail is found too.
    """
    problems = []
    for manifest in sorted(folder.root.rglob("manifest.jsonl")):
        if folder.rehearsals not in manifest.parents:
            problems += Table(manifest.parent, tables.quarantine(project.label_schema.task)).verify()
    releases = _releases(folder)
    release = None if release is None else release.rstrip("/")  # as the shell completes a folder
    heads: list[tuple[int, str]] = []
    try:
        told = chain.entries(db)
        exported = {
            entry["object"]: entry["payload"]["manifest_sha256"]
            for entry in told
            if entry["action"] == "release.exported"
        }
        problems += _verify_committed(folder, told)
    # A payload that was changed into something unreadable: the audit chain says where.
    except (ValueError, KeyError, TypeError, AttributeError):
        exported = {}
    for folder_of_release in releases:
        if release is not None and folder_of_release.name != release:
            continue
        try:
            manifest = read_json(folder_of_release / "manifest.json")
            problems += _verify_release(folder_of_release, manifest, exported)
            heads.append((manifest["audit_head"]["seq"], manifest["audit_head"]["hash"]))
        except StorageError as error:
            problems.append(str(error))
        except (KeyError, TypeError):
            problems.append(f"{folder_of_release / 'manifest.json'}: not the manifest of a release")
    known = {path.name for path in releases} | {key.removeprefix("release:") for key in exported}
    if release is not None and release not in known:
        problems.append(f"release {release or repr(release)}: there is none")
    problems += [
        f"{folder.releases / name}: gone; the audit chain says that it was made"
        for name in (key.removeprefix("release:") for key in exported)
        if release in (None, name) and not (folder.releases / name).is_dir()
    ]
    problems += _missing_tables(project, folder, db)
    problems += chain.verify_chain(db, expected_heads=heads)
    problems += _verify_addressed(folder)
    problems += _verify_shown(project, folder, db)
    return [*problems, *_verify_gold(project, folder), *_verify_decisions(project, folder, db)]


def _verify_committed(folder: ProjectFolder, told: Sequence[Mapping[str, Any]]) -> list[str]:
    """The files of signed and closed rounds against what the audit chain kept of them; of older rounds it kept none."""
    problems = []
    for entry in told:
        kind, _, number = entry["object"].rpartition(":")
        if (entry["action"], kind) == ("gate.approved", "gate:review"):
            files = json.loads(entry["payload"]["figures_json"]).get("files", {})
            problems += changed_since(folder, int(number), files, "signed")
        elif entry["action"] == "round.closed":
            problems += changed_since(folder, int(number), entry["payload"].get("files", {}), "closed")
    return problems


def _missing_tables(project: Project, folder: ProjectFolder, db: Database) -> list[str]:
    """Whole tables that are gone although the database has rounds made of them."""
    task = project.label_schema.task
    numbers = rounds.round_numbers(db)
    wanted = [records_table(project, folder)] if numbers else []
    for number in numbers:
        if rounds.state_of(db, number) is not RoundState.CLOSED:
            continue
        here = folder.round(number)
        wanted += [
            Table(here.suggestions, tables.suggestions(task)),
            Table(here.rejected, tables.rejected(task)),
            Table(here.annotations, tables.annotations(task)),
            Table(here.findings, tables.findings(task)),
            Table(here.gold, tables.gold(task)),
        ]
    return [
        f"{table.folder}: gone; the database has a round made of it" for table in wanted if not table.exists
    ]


def _verify_release(release: Path, manifest: dict[str, Any], exported: dict[str, str]) -> list[str]:
    problems = []
    listed = {entry["path"]: entry for entry in manifest["files"]}
    for path, entry in listed.items():
        file = release / path
        if not file.is_file():
            problems.append(f"{file}: missing; the release's manifest lists it")
        elif sha256_of(file) != entry["sha256"]:
            problems.append(f"{file}: changed since the release was made (SHA-256 differs)")
    for file in sorted(release.rglob("*")):
        name = str(file.relative_to(release))
        if file.is_file() and name != "manifest.json" and name not in listed:
            problems.append(f"{file}: not part of the release as it was made")
    if exported.get(f"release:{release.name}") != sha256_of(release / "manifest.json"):
        problems.append(f"{release / 'manifest.json'}: not the manifest that the audit chain committed to")
    return problems


def _verify_shown(project: Project, folder: ProjectFolder, db: Database) -> list[str]:
    """The texts in the review queue against the records: what people read is what is exported."""
    records = records_table(project, folder)
    if not records.exists or records.verify():
        return []
    shown = {number: texts_shown(db, number) for number in rounds.round_numbers(db)}
    problems = []
    for _, frame in records.stream(["record_id", "text_sha256"]):
        for record_id, sha in frame.iter_rows():
            for number, texts in shown.items():
                if texts.pop(record_id, {sha}) != {sha}:
                    problems.append(
                        f"round {number}, record {record_id}: people are shown another text than its own"
                    )
    return problems + [
        f"round {number}, record {record_id}: in the queue, but no record of the project"
        for number, texts in shown.items()
        for record_id in sorted(texts)
    ]


def _verify_gold(project: Project, folder: ProjectFolder) -> list[str]:
    """Labels outside the schema, which only a later change could have brought in."""
    kind = task_type(project)
    problems = []
    for number in _round_numbers(folder):
        table = Table(folder.round(number).gold, tables.gold(project.label_schema.task))
        if not table.exists or table.verify():
            continue
        for record_id, value in table.read(["record_id", "value"]).iter_rows():
            unknown = (
                [part for part in kind.parts(value) if part not in kind.labels] if value is not None else []
            )
            if unknown and kind.labels:
                problems.append(
                    f"round {number}, record {record_id}: label {unknown[0]!r} is not in the schema"
                )
    return problems


def _verify_decisions(project: Project, folder: ProjectFolder, db: Database) -> list[str]:
    """Tables rewritten together with their manifests: the decisions in the database say what people answered, and what
    gold that comes to."""
    task = project.label_schema.task
    layout = tables.annotations(task)
    problems = []
    for number in _round_numbers(folder):
        annotations = Table(folder.round(number).annotations, layout)
        if not annotations.exists or annotations.verify() or _to_be_made_anew(db, number):
            continue
        decisions = decisions_of_round(db, number)
        judged = {row["record_id"]: row for row in decisions if row["purpose"] == Purpose.RECHECK.value}
        answers = [row for row in decisions if row["purpose"] != Purpose.RECHECK.value]
        decided = {row["annotation_id"]: row for row in answers}
        stored = {row["annotation_id"]: row for row in annotations.read().iter_rows(named=True)}
        problems += [
            f"round {number}, annotation {annotation_id}: not what the database has"
            for annotation_id in sorted(decided.keys() | stored.keys())
            if decided.get(annotation_id) != stored.get(annotation_id)
        ]
        gold = Table(folder.round(number).gold, tables.gold(task))
        if not gold.exists or gold.verify():
            continue
        frame = pl.from_arrow(pa.Table.from_pylist(answers, layout))
        assert isinstance(frame, pl.DataFrame)
        settled, _ = gold_rows(frame, judged, number=number, confidence={})
        problems += _verify_settled(number, gold, {row["record_id"]: row for row in settled})
    return problems


def _to_be_made_anew(db: Database, number: int) -> bool:
    """Whether a round's signature was taken back: its annotations stay as they were signed until quality assurance
    writes them anew.
    """
    state = rounds.state_of(db, number)
    taken_back = {"reopened", Verdict.REJECT.value}
    return state is RoundState.OPEN or (
        state is RoundState.SIGNED
        and any(event["event"] in taken_back for event in rounds.gate_events(db, "review", number))
    )


def _verify_settled(number: int, gold: Table, settled: dict[str, dict[str, Any]]) -> list[str]:
    """Gold against the labels that people's decisions come to; an adjudicator's word is one of them."""
    problems = []
    by_people = ("value", "how", "annotation_ids", "round", "agreement", "rehearsal")
    for row in gold.read(["record_id", *by_people]).iter_rows(named=True):
        wanted = settled.pop(row["record_id"], None)  # a second row of a record finds nothing any more
        if wanted is None or any(row[key] != wanted[key] for key in by_people):
            problems.append(
                f"round {number}, record {row['record_id']}: gold {row['value']!r} ({row['how']}) is not what "
                "people's decisions come to"
            )
    lacking = "no gold, though people's decisions settle it"
    return problems + [f"round {number}, record {record_id}: {lacking}" for record_id in settled]


def _verify_addressed(folder: ProjectFolder) -> list[str]:
    """Engines and prompts are kept under the hash of what they are; scores say which of them there must be."""
    problems = []
    known = [*folder.identities.glob("*.json"), *folder.prompts_used.glob("*.json")]
    for file in sorted(known):
        try:
            same = content_id(read_json(file)) == file.stem
        except StorageError as error:
            problems.append(str(error))
            continue
        except ValueError:  # JSON that we never write: NaN, half a surrogate pair
            same = False
        if not same:
            problems.append(f"{file}: changed since it was written (its name is the hash of its content)")
    for identity_id, prompt_id in folder.scored_with():
        needed = (folder.identities / f"{identity_id}.json", folder.prompts_used / f"{prompt_id}.json")
        problems += [f"{file}: gone; there are scores made with it" for file in needed if not file.is_file()]
    return problems
