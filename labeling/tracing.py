"""The whole life of one label, and whether everything stored is whole."""

from pathlib import Path
from typing import Any

import polars as pl

from labeling.database import chain, rounds
from labeling.database.connection import Database
from labeling.database.queue import decisions_of_round
from labeling.flagged import load_findings
from labeling.paths import ProjectFolder
from labeling.record_store import records_table
from labeling.storage import Table, read_json, sha256_of
from labeling.task_types import task_type
from schemas import tables
from schemas.errors import StorageError
from schemas.project import Project
from schemas.review import RoundState


def _round_numbers(folder: ProjectFolder) -> list[int]:
    return sorted(int(path.name) for path in folder.rounds.iterdir()) if folder.rounds.is_dir() else []


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
    for release in sorted(folder.releases.glob("v*")) if folder.releases.is_dir() else []:
        frame = pl.read_parquet(release / "provenance.parquet").filter(pl.col("record_id") == record_id)
        for row in frame.iter_rows(named=True):
            manifest = read_json(release / "manifest.json")
            steps.append(
                {
                    "step": "release",
                    "release": release.name,
                    "split": row["split"],
                    "final": row["final"],
                    "audit_head": manifest["audit_head"]["hash"],
                }
            )
    return steps


def _record(project: Project, folder: ProjectFolder, wanted: str) -> dict[str, Any]:
    for _, frame in records_table(project, folder).stream():
        found = frame.filter((pl.col("record_id") == wanted) | (pl.col("source_id") == wanted))
        if found.height:
            return found.row(0, named=True)
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
        exported = {
            entry["object"]: entry["payload"]["manifest_sha256"]
            for entry in chain.entries(db)
            if entry["action"] == "release.exported"
        }
    except (ValueError, KeyError, TypeError):  # a payload that was changed into something unreadable
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
    return [*problems, *_verify_gold(project, folder), *_verify_decisions(project, folder, db)]


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
    """Tables rewritten together with their manifests: the decisions in the database say what people answered."""
    task = project.label_schema.task
    problems = []
    for number in _round_numbers(folder):
        annotations = Table(folder.round(number).annotations, tables.annotations(task))
        if not annotations.exists or annotations.verify():
            continue
        decided = {row["annotation_id"]: row["value"] for row in decisions_of_round(db, number)}
        for annotation_id, value in annotations.read(["annotation_id", "value"]).iter_rows():
            if annotation_id not in decided or decided[annotation_id] != value:
                problems.append(f"round {number}, annotation {annotation_id}: not what the database has")
        gold = Table(folder.round(number).gold, tables.gold(task))
        if not gold.exists or gold.verify():
            continue
        for record_id, value, sources in gold.read(["record_id", "value", "annotation_ids"]).iter_rows():
            if sources and value not in [decided.get(annotation_id) for annotation_id in sources]:
                problems.append(f"round {number}, record {record_id}: gold {value!r} is what nobody answered")
    return problems
