"""A release: settled records only, checked, with the provenance of every row. Nothing is written when a check fails."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from labeling.database import chain
from labeling.database.connection import Database
from labeling.database.queue import decisions_of_round
from labeling.expectations import SPLITS, Check, check, suite, suite_hash
from labeling.flagged import load_findings
from labeling.near_duplicates import Split, leakage_safe_split, near_duplicate_groups
from labeling.paths import ProjectFolder
from labeling.record_store import record_ids, rows_of
from labeling.storage import (
    Table,
    read_json,
    refused,
    sha256_of,
    sync_folder,
    sync_tree,
    write_bytes,
    write_json,
)
from labeling.suggesting import load_suggestions
from labeling.task_types import task_type
from schemas import tables
from schemas.errors import ReleaseBlocked, StorageError
from schemas.project import Project
from schemas.review import Seen
from schemas.values import VALUE_TYPES, canonical_json, content_hash

PROVENANCE = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("source_id", pa.string()),
        pa.field("text_sha256", pa.string(), nullable=False),
        pa.field("schema_hash", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string()),
        pa.field("identity_id", pa.string()),
        pa.field("model_digest", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("draft", pa.string()),
        pa.field("draft_probability", pa.float64()),
        pa.field("confidence", pa.float64()),
        pa.field("final", pa.string(), nullable=False),
        pa.field("how", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("annotators", pa.list_(pa.string()), nullable=False),
        pa.field("agreement", pa.float64()),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
        pa.field("decided_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("audit_seq", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("rehearsal", pa.bool_(), nullable=False),
    ]
)


def settled(project: Project, folder: ProjectFolder, rounds_closed: int) -> pl.DataFrame:
    """Gold of all closed rounds; a record is settled once."""
    task = project.label_schema.task
    frames = [
        Table(folder.round(number).gold, tables.gold(task)).read() for number in range(1, rounds_closed + 1)
    ]
    return pl.concat(frames).unique("record_id", keep="last", maintain_order=True).sort("record_id")


def export_release(
    project: Project, folder: ProjectFolder, db: Database, number: int
) -> tuple[Path, dict[str, Any]]:
    """Builds, checks and writes the release after round `number` (release v<number>).

    Returns:
        The release folder and its manifest. An existing release is not made again.

    Raises:
        ReleaseBlocked: a critical expectation failed or errored: which, how many records, which ones. The outcome of
            all checks is in the round's folder as blocked.json.
    """
    target = folder.release(number)
    if (target / "manifest.json").is_file():
        return target, read_json(target / "manifest.json")
    gold = settled(project, folder, number)
    labelled = gold.filter(pl.col("value").is_not_null())
    table, provenance = _tables(project, folder, db, number, labelled)
    summary = _summary(project, labelled)
    rules = suite(project, labelled.height)
    checks = check({"records": table, "provenance": provenance, "summary": summary}, rules)
    broken = [outcome for outcome in checks if outcome.critical and outcome.state != "passed"]
    if broken:
        write_json(
            folder.round(number).root / "blocked.json", {"checks": [outcome.as_dict() for outcome in checks]}
        )
        raise _blocked(number, broken)
    everything = len(record_ids(project, folder))
    counts = {
        "records": everything,
        "settled": labelled.height,
        "not_labellable": gold.height - labelled.height,
        "unsettled": everything - gold.height,
        "auto_accepted": int((labelled["how"] == "automatic").sum()),
        "by_how": dict(sorted(labelled["how"].value_counts().iter_rows())),
        "by_split": {split: int((table["split"] == split).sum()) for split in SPLITS},
    }
    seq, digest = chain.head(db)
    facts = {
        "name": project.name,
        "version": number,
        "parent_round": number,
        "task": project.label_schema.task.value,
        "schema_hash": content_hash(project.label_schema.model_dump(mode="json")),
        "rehearsal": db.rehearsal,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "counts": counts,
        "suite_hash": suite_hash(rules),
        "audit_head": {"seq": seq, "hash": digest},
    }
    try:
        manifest = _publish(
            project, folder, db, number, table=table, provenance=provenance, checks=checks, facts=facts
        )
    except OSError as error:
        raise refused(target, error) from error
    return target, manifest


def _publish(
    project: Project,
    folder: ProjectFolder,
    db: Database,
    number: int,
    *,
    table: pl.DataFrame,
    provenance: pl.DataFrame,
    checks: list[Check],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Writes everything beside, commits to it in the audit chain, then renames: a release is whole or not there."""
    target = folder.release(number)
    target.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in target.parent.glob(".tmp-*"):  # of an export that was killed
        shutil.rmtree(abandoned)
    scratch = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    try:
        manifest = _write(
            project, folder, number, scratch, table=table, provenance=provenance, checks=checks, facts=facts
        )
        sync_tree(scratch)
        # Told before it can be seen: killed in between, the next export makes it again and tells it again.
        with db.write() as connection:
            chain.append(
                connection,
                actor="flow",
                action="release.exported",
                object=f"release:v{number}",
                payload={"manifest_sha256": sha256_of(scratch / "manifest.json"), "counts": facts["counts"]},
                utc=db.now(),
            )
        scratch.chmod(0o755)
        scratch.rename(target)
        sync_folder(target.parent)
        return manifest
    finally:
        if scratch.exists():
            shutil.rmtree(scratch)


def _tables(
    project: Project, folder: ProjectFolder, db: Database, number: int, labelled: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    kind = task_type(project)
    columns = ["source", "source_row", "source_id", "text", "text_sha256", "char_count", "group"]
    rows = labelled.join(
        rows_of(project, folder, labelled["record_id"].to_list(), columns), on="record_id"
    ).sort("record_id")
    ids, texts = rows["record_id"].to_list(), rows["text"].to_list()
    groups = near_duplicate_groups(texts, ids, threshold=project.quality.near_duplicate)
    groups = _with_source_groups(groups, dict(rows.select("record_id", "group").iter_rows()))
    annotations = _annotations(project, folder, number)
    blind = set(annotations.filter(pl.col("seen") == Seen.BLIND.value)["record_id"].to_list())
    firsts = [next(iter(kind.parts(value)), "") for value in rows["value"].to_list()]
    splits = leakage_safe_split(
        ids,
        groups,
        firsts,
        shares=project.quality.splits,
        seed=project.seed,
        prefer_test=blind & set(ids),
        earlier=_splits_before(folder, number),
    )
    split = pl.Series("split", [splits[record_id] for record_id in ids], dtype=pl.String)
    group = pl.Series("near_group", [groups[record_id] for record_id in ids], dtype=pl.String)
    known = set(kind.labels)
    illegal = [
        sum(part not in known for part in kind.parts(value)) if kind.labels else 0
        for value in rows["value"].to_list()
    ]
    table = rows.with_columns(
        split, group, pl.Series("illegal_labels", illegal, dtype=pl.Int64)
    ).with_columns(
        pl.col("split").n_unique().over("near_group").alias("splits_of_group"),
        pl.col("text").str.len_chars().alias("text_length"),
        pl.col("value").map_elements(canonical_json, return_dtype=pl.String).alias("value_json")
        if rows.height and not isinstance(rows["value"].dtype, pl.String)
        else pl.col("value").alias("value_json"),
    )
    provenance = _provenance(project, folder, db, number, table)
    checked = table.select(
        "record_id",
        "how",
        pl.col("value_json").alias("value"),
        "illegal_labels",
        "text_length",
        "text_sha256",
        "split",
        "splits_of_group",
        "near_group",
        "text",
        pl.col("value").alias("raw_value"),
    )
    return checked, provenance


def _splits_before(folder: ProjectFolder, number: int) -> dict[str, Split]:
    """Split of every record in the last release before this one; empty for the first."""
    for before in range(number - 1, 0, -1):
        path = folder.release(before) / "provenance.parquet"
        if path.is_file():
            return dict(pl.read_parquet(path, columns=["record_id", "split"]).iter_rows())
    return {}


def _with_source_groups(groups: Mapping[str, str], sources: Mapping[str, str | None]) -> dict[str, str]:
    """Records of one source document stay together too: union of both groupings."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for record_id, group in groups.items():
        source = sources.get(record_id)
        if source is not None:
            first, second = sorted((root(f"g|{group}"), root(f"s|{source}")))
            parent[second] = first
    return {record_id: root(f"g|{group}") for record_id, group in groups.items()}


def _annotations(project: Project, folder: ProjectFolder, number: int) -> pl.DataFrame:
    layout = tables.annotations(project.label_schema.task)
    frames = [Table(folder.round(done).annotations, layout).read() for done in range(1, number + 1)]
    return pl.concat(frames)


def _provenance(
    project: Project, folder: ProjectFolder, db: Database, number: int, table: pl.DataFrame
) -> pl.DataFrame:
    # From the database: a round's table of annotations was written when it was signed, before anybody adjudicated.
    decided = {
        row["annotation_id"]: row for done in range(1, number + 1) for row in decisions_of_round(db, done)
    }
    drafts: dict[str, dict[str, Any]] = {}
    flags: dict[str, list[str]] = {}
    for done in range(1, number + 1):
        frame = load_suggestions(
            project, folder, done, ["record_id", "value", "confidence", "scores", "identity_id", "prompt_id"]
        )
        settled_here = table.filter(pl.col("record_id").is_in(frame["record_id"].implode()))["record_id"]
        for row in frame.filter(pl.col("record_id").is_in(settled_here.implode())).iter_rows(named=True):
            drafts.setdefault(row["record_id"], row)
        findings = load_findings(project, folder, done)
        for record_id, kind in findings.select("record_id", "kind").iter_rows():
            if record_id is not None:
                flags.setdefault(record_id, []).append(kind)
    digests: dict[str, str] = {}
    rows = []
    schema_hash = content_hash(project.label_schema.model_dump(mode="json"))
    for row in table.iter_rows(named=True):
        record_id = row["record_id"]
        draft, decisions = drafts.get(record_id), _decisions_of(row, decided)
        last = max(decisions, key=lambda decision: decision["audit_seq"])  # the adjudicator, if there is one
        identity = None if draft is None else draft["identity_id"]
        if identity is not None and identity not in digests:
            digests[identity] = read_json(folder.identities / f"{identity}.json")["digest"]
        rows.append(
            {
                **{key: row[key] for key in ("record_id", "source", "source_row", "source_id")},
                "text_sha256": row["text_sha256"],
                "schema_hash": schema_hash,
                "prompt_id": None if draft is None else draft["prompt_id"],
                "identity_id": identity,
                "model_digest": None if identity is None else digests[identity],
                "seed": project.seed,
                "draft": None if draft is None else canonical_json(draft["value"]),
                "draft_probability": None
                if draft is None
                else max((score["probability"] for score in draft["scores"]), default=None),
                "confidence": None if draft is None else draft["confidence"],
                "final": canonical_json(row["value"]),
                "how": row["how"],
                "round": row["round"],
                "annotators": sorted({decision["annotator_id"] for decision in decisions}),
                "agreement": row["agreement"],
                "flags": sorted(set(flags.get(record_id, []))),
                "decided_at": last["decided_at"],
                "audit_seq": last["audit_seq"],
                "split": row["split"],
                "rehearsal": row["rehearsal"],
            }
        )
    made = pl.from_arrow(pa.Table.from_pylist(rows, PROVENANCE))
    assert isinstance(made, pl.DataFrame)
    return made


def _decisions_of(
    row: Mapping[str, Any], decided: Mapping[str, Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The decisions that made one settled label."""
    unknown = [name for name in row["annotation_ids"] if name not in decided]
    if unknown or not row["annotation_ids"]:
        raise StorageError(
            f"round {row['round']}, gold of record {row['record_id']}",
            found=f"decision {unknown[0]}, which the database does not have" if unknown else "no decision",
            expected="the decisions that settled it",
            next_step="Run `countersign verify`, and restore the folder and the database from one backup.",
        )
    return [decided[name] for name in row["annotation_ids"]]


def _summary(project: Project, labelled: pl.DataFrame) -> pl.DataFrame:
    kind = task_type(project)
    total = max(labelled.height, 1)
    parts = [part for value in labelled["value"].to_list() for part in set(kind.parts(value))]
    shares = {f"share of {label}": parts.count(label) / total for label in project.label_schema.names}
    automatic = int((labelled["how"] == "automatic").sum()) / total
    return pl.DataFrame(
        {"auto_accepted_share": [automatic], **{name: [share] for name, share in shares.items()}}
    )


def _blocked(number: int, broken: list[Check]) -> ReleaseBlocked:
    told = "; ".join(
        f"{outcome.meaning}: {outcome.state}"
        + (
            f", {outcome.found} records, for example {', '.join(outcome.record_ids[:5])}"
            if outcome.found
            else ""
        )
        + (f" ({outcome.detail})" if outcome.detail else "")
        for outcome in broken
    )
    return ReleaseBlocked(
        f"release v{number}",
        found=told,
        expected="every critical expectation to pass",
        next_step="Nothing was released. Correct the records (or the bounds in project.yaml) and run again; all "
        "outcomes are in the round's blocked.json.",
    )


def _write(
    project: Project,
    folder: ProjectFolder,
    number: int,
    scratch: Path,
    *,
    table: pl.DataFrame,
    provenance: pl.DataFrame,
    checks: list[Check],
    facts: dict[str, Any],
) -> dict[str, Any]:
    kind = task_type(project)
    for split in SPLITS:
        rows = table.filter(pl.col("split") == split).sort("record_id")
        _write_data(project, scratch / "data" / f"{split}.parquet", rows, kind)
    (scratch / "data").mkdir(exist_ok=True)
    pq.write_table(provenance.to_arrow().cast(PROVENANCE), scratch / "provenance.parquet", compression="zstd")
    write_json(
        scratch / "validation.json",
        {"success": True, "checks": [outcome.as_dict() for outcome in checks]},
    )
    write_bytes(scratch / "report.html", folder.round(number).report.read_bytes())
    files = sorted(path for path in scratch.rglob("*") if path.is_file())
    write_json(
        scratch / "croissant.json", croissant(project, facts, {p: sha256_of(p) for p in files}, scratch)
    )
    write_bytes(scratch / "README.md", dataset_card(project, facts).encode())
    files = sorted(path for path in scratch.rglob("*") if path.is_file())
    manifest = {
        **facts,
        "files": [
            {
                "path": str(path.relative_to(scratch)),
                "rows": pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None,
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path),
            }
            for path in files
        ],
    }
    write_json(scratch / "manifest.json", manifest)
    return manifest


def _write_data(project: Project, path: Path, rows: pl.DataFrame, kind: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {"record_id": rows["record_id"].to_list(), "text": rows["text"].to_list()}
    exported = [kind.export_columns(value) for value in rows["raw_value"].to_list()]
    names = kind.export_names
    fields = [pa.field("record_id", pa.string()), pa.field("text", pa.string())]
    for name in names:
        columns[name] = [row[name] for row in exported]
        value_type = VALUE_TYPES[project.label_schema.task]
        fields.append(pa.field(name, pa.string() if pa.types.is_struct(value_type) else value_type))
    pq.write_table(pa.table(columns, schema=pa.schema(fields)), path, compression="zstd")


def dataset_card(project: Project, facts: Mapping[str, Any]) -> str:
    """README.md of a release, in the layout that dataset hubs read."""
    counts = facts["counts"]
    stamp = (
        "\n> **Rehearsal.** The labels were set by simulated annotators. Do not train on this.\n"
        if facts["rehearsal"]
        else ""
    )
    labels = "\n".join(f"- **{label.name}**: {label.definition}" for label in project.label_schema.labels)
    hows = ", ".join(f"{count} {how}" for how, count in counts["by_how"].items())
    splits = "".join(f"  - split: {split}\n    path: data/{split}.parquet\n" for split in SPLITS)
    return f"""---
configs:
- config_name: default
  data_files:
{splits}---

# {project.title or project.name}, release v{facts["version"]}
{stamp}
{project.label_schema.instruction}

{counts["settled"]} settled records of {counts["records"]} ({counts["unsettled"]} are not settled and not in here,
{counts["not_labellable"]} were found not labellable, {counts["auto_accepted"]} were accepted without a person).
How they were settled: {hows}. Splits: {", ".join(f"{split} {n}" for split, n in counts["by_split"].items())};
near-duplicates and records of one source document share a split.

## Labels

{labels}

## Files

`data/*.parquet` to train on, `provenance.parquet` with one row a record (model, prompt, people, audit),
`validation.json` (checks), `manifest.json` (SHA-256 of every file), `report.html`.
Audit head: `{facts["audit_head"]["hash"][:16]}…`.
"""


def croissant(
    project: Project, facts: Mapping[str, Any], digests: Mapping[Path, str], root: Path
) -> dict[str, Any]:
    """Croissant JSON-LD (mlcommons.org/croissant/1.0) of a release."""
    objects = [
        {
            "@type": "cr:FileObject",
            "@id": str(path.relative_to(root)),
            "name": path.name,
            "contentUrl": str(path.relative_to(root)),
            "encodingFormat": "application/x-parquet",
            "sha256": digest,
        }
        for path, digest in digests.items()
        if path.suffix == ".parquet"
    ]
    names = ("record_id", "text", *task_type(project).export_names)
    records = [
        {
            "@type": "cr:RecordSet",
            "@id": split,
            "name": split,
            "field": [
                {
                    "@type": "cr:Field",
                    "@id": f"{split}/{name}",
                    "name": name,
                    "dataType": "sc:Text",
                    "source": {"fileObject": {"@id": f"data/{split}.parquet"}, "extract": {"column": name}},
                }
                for name in names
            ],
        }
        for split in SPLITS
    ]
    return {
        "@context": {
            "@language": "en",
            "@vocab": "https://schema.org/",
            "cr": "http://mlcommons.org/croissant/",
            "sc": "https://schema.org/",
            "conformsTo": {"@id": "http://purl.org/dc/terms/conformsTo", "@type": "@id"},
            "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
            "extract": "cr:extract",
            "field": "cr:field",
            "fileObject": "cr:fileObject",
            "recordSet": "cr:recordSet",
            "source": "cr:source",
            "column": "cr:column",
        },
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": project.name,
        "description": project.label_schema.instruction or project.title or project.name,
        "version": f"{facts['version']}.0.0",
        "datePublished": facts["made_at"],
        "distribution": objects,
        "recordSet": records,
    }


def load_manifest(release: Path) -> dict[str, Any]:
    """The manifest of a release folder."""
    manifest: dict[str, Any] = json.loads((release / "manifest.json").read_bytes())
    return manifest
