"""A release is whole, checked and hashed, or it is not there."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from rounds_of_work import Loop
from small_projects import RELEASE_FILES, SmallDisk

from labeling import release as release_module
from labeling.database import chain
from labeling.database.tables import utc_text
from labeling.expectations import Check
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from labeling.record_store import record_ids
from labeling.release import export_release, load_manifest
from labeling.reviewing import settled_values
from labeling.storage import Table, read_json, sha256_of
from schemas import tables
from schemas.errors import ReleaseBlocked, StorageError


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def rows_in(release: Path) -> pl.DataFrame:
    frames = [
        pl.read_parquet(release / "data" / f"{split}.parquet").with_columns(pl.lit(split).alias("split"))
        for split in ("train", "validation", "test")
    ]
    return pl.concat(frames)


@pytest.fixture
def before_export(copy_of_worked: Loop) -> Loop:
    """The worked project with its releases taken away."""
    shutil.rmtree(copy_of_worked.folder.releases)
    return copy_of_worked


@pytest.fixture
def no_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Great Expectations takes seconds; tests about files can do without."""
    monkeypatch.setattr(release_module, "check", lambda frames, rules: [])


# -- what is in it ---------------------------------------------------------------------------------------------------


def test_the_folder_holds_exactly_the_files_of_the_contract(worked: Loop) -> None:
    assert files_in(worked.folder.release(1)) == RELEASE_FILES
    assert [path.name for path in worked.folder.releases.iterdir() if path.name.startswith(".")] == []


def test_the_manifest_lists_every_other_file_with_its_hash_size_and_rows(worked: Loop) -> None:
    release = worked.folder.release(2)
    manifest = load_manifest(release)

    assert {entry["path"] for entry in manifest["files"]} == RELEASE_FILES - {"manifest.json"}
    for entry in manifest["files"]:
        file = release / entry["path"]
        assert (entry["sha256"], entry["bytes"]) == (sha256_of(file), file.stat().st_size)
        if file.suffix == ".parquet":
            assert entry["rows"] == pl.read_parquet(file).height
    assert manifest["parent_round"] == manifest["version"] == 2
    assert manifest["rehearsal"] is True
    assert len(manifest["suite_hash"]) == len(manifest["audit_head"]["hash"]) == 64


@pytest.mark.parametrize("number", [1, 2])
def test_a_release_holds_the_settled_records_and_says_how_many_are_not(worked: Loop, number: int) -> None:
    release = worked.folder.release(number)
    gold = settled_values(worked.project, worked.folder, number + 1)
    counts = load_manifest(release)["counts"]
    rows = rows_in(release)

    assert dict(rows.select("record_id", "label").iter_rows()) == gold
    assert counts["settled"] == rows.height == len(gold)
    assert counts["records"] == len(record_ids(worked.project, worked.folder)) == 130
    assert counts["unsettled"] == 130 - len(gold) and counts["auto_accepted"] == 0
    assert sum(counts["by_how"].values()) == sum(counts["by_split"].values()) == len(gold)
    assert set(counts["by_how"]) <= {"person", "consensus", "adjudicated"}


def test_every_released_label_has_its_provenance(worked: Loop) -> None:
    release = worked.folder.release(2)
    rows = rows_in(release).sort("record_id")
    provenance = pl.read_parquet(release / "provenance.parquet").sort("record_id")
    digests = {chain_entry["seq"] for chain_entry in chain.entries(worked.db)}

    assert provenance["record_id"].to_list() == rows["record_id"].to_list()
    assert [json.loads(value) for value in provenance["final"]] == rows["label"].to_list()
    assert provenance["split"].to_list() == rows["split"].to_list()
    assert provenance["prompt_id"].null_count() == provenance["model_digest"].null_count() == 0
    assert all(people for people in provenance["annotators"].to_list())
    assert set(provenance["audit_seq"].to_list()) <= digests
    assert set(provenance["round"].to_list()) == {1, 2}
    assert provenance["rehearsal"].all()


def test_provenance_names_who_settled_a_label_when_and_where_the_audit_trail_tells_it(worked: Loop) -> None:
    provenance = pl.read_parquet(worked.folder.release(2) / "provenance.parquet")
    told = {entry["seq"]: entry for entry in chain.entries(worked.db)}

    assert "adjudicated" in provenance["how"].to_list()
    for row in provenance.iter_rows(named=True):
        entry = told[row["audit_seq"]]
        assert entry["action"] == "decision.made" and entry["object"] == f"record:{row['record_id']}"
        assert entry["payload"]["value_json"] == row["final"] or row["how"] == "consensus"
        assert entry["payload"]["decided_at"] == utc_text(row["decided_at"])
        assert entry["actor"] in row["annotators"]
        judged = row["how"] == "adjudicated"
        assert (worked.people["rex"].id in row["annotators"]) is judged
        assert (entry["payload"]["purpose"] == "recheck") is judged
        assert len(row["annotators"]) >= {"person": 1, "consensus": 2, "adjudicated": 2}[row["how"]]


def test_a_settled_label_without_its_decisions_is_not_released(before_export: Loop, no_checks: None) -> None:
    loop = before_export
    gold = loop.folder.round(1).gold
    frame = Table(gold, tables.gold(loop.project.label_schema.task)).read()
    shutil.rmtree(gold)
    Table(gold, tables.gold(loop.project.label_schema.task)).append(
        frame.with_columns(pl.lit(["d-none"]).alias("annotation_ids")).to_arrow()
    )

    with pytest.raises(StorageError) as caught:
        loop.export(1)

    assert caught.value.found == "decision d-none, which the database does not have"
    assert not loop.folder.release(1).exists()


def test_no_text_is_in_two_splits(worked: Loop) -> None:
    rows = rows_in(worked.folder.release(2))

    assert rows["text"].n_unique() == rows.height
    assert rows["record_id"].n_unique() == rows.height


def test_a_record_stays_in_its_split_from_release_to_release(worked: Loop) -> None:
    first, second = (
        dict(
            pl.read_parquet(worked.folder.release(number) / "provenance.parquet")[
                "record_id", "split"
            ].iter_rows()
        )
        for number in (1, 2)
    )

    assert len(second) > len(first)
    assert {record_id: second[record_id] for record_id in first} == first


def test_the_test_split_prefers_records_labelled_blind(worked: Loop) -> None:
    release = worked.folder.release(1)
    blind = set(read_json(worked.folder.round(1).slice)["slice"]) | set(
        read_json(worked.folder.sample)["sample"]
    )

    assert set(pl.read_parquet(release / "data" / "test.parquet")["record_id"]) <= blind


def test_the_card_stamps_a_rehearsal_and_names_counts_and_labels(worked: Loop) -> None:
    card = (worked.folder.release(1) / "README.md").read_text("utf-8")

    assert "**Rehearsal.** The labels were set by simulated annotators." in card
    assert "- **alpha**" in card and "- **beta**" in card
    assert "of 130" in card
    head = yaml.safe_load(card.split("---")[1])
    assert [entry["split"] for entry in head["configs"][0]["data_files"]] == ["train", "validation", "test"]


def test_the_croissant_file_names_every_table_with_its_hash(worked: Loop) -> None:
    release = worked.folder.release(1)
    described = read_json(release / "croissant.json")

    assert described["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert {entry["contentUrl"]: entry["sha256"] for entry in described["distribution"]} == {
        name: sha256_of(release / name) for name in RELEASE_FILES if name.endswith(".parquet")
    }
    assert [entry["name"] for entry in described["recordSet"]] == ["train", "validation", "test"]


def test_the_outcome_of_every_check_is_in_the_release(worked: Loop) -> None:
    validation = read_json(worked.folder.release(1) / "validation.json")

    assert validation["success"] is True
    assert len(validation["checks"]) >= 20
    assert {outcome["state"] for outcome in validation["checks"]} == {"passed"}


def test_the_report_needs_nothing_from_elsewhere(worked: Loop) -> None:
    page = (worked.folder.release(1) / "report.html").read_text("utf-8")

    assert "<script src" not in page and "<link" not in page and "@import" not in page


def test_the_audit_chain_commits_to_the_manifest(worked: Loop) -> None:
    told = [entry for entry in chain.entries(worked.db) if entry["action"] == "release.exported"]

    assert [(entry["object"], entry["payload"]["manifest_sha256"]) for entry in told] == [
        (f"release:v{number}", sha256_of(worked.folder.release(number) / "manifest.json"))
        for number in (1, 2)
    ]


# -- when it is not made ---------------------------------------------------------------------------------------------


def test_an_existing_release_is_not_made_again(copy_of_worked: Loop) -> None:
    loop = copy_of_worked
    before = sha256_of(loop.folder.release(1) / "manifest.json")
    entries = len(chain.entries(loop.db))

    target, manifest = export_release(loop.project, loop.folder, loop.db, 1)

    assert target == loop.folder.release(1) and manifest["version"] == 1
    assert sha256_of(target / "manifest.json") == before
    assert len(chain.entries(loop.db)) == entries


def test_a_failed_critical_check_blocks_the_release_and_leaves_no_folder(before_export: Loop) -> None:
    loop = before_export
    document = yaml.safe_load((loop.folder.root / "project.yaml").read_text())
    document["schema"]["labels"][0]["max_share"] = 0.1
    (loop.folder.root / "project.yaml").write_text(yaml.safe_dump(document))
    project, _ = load_project(loop.folder.root)
    entries = len(chain.entries(loop.db))

    with pytest.raises(ReleaseBlocked) as caught:
        export_release(project, loop.folder, loop.db, 1)

    assert caught.value.path == "release v1"
    assert "class balance of alpha: failed" in caught.value.found
    assert "Nothing was released" in caught.value.next_step
    assert not loop.folder.release(1).exists()
    assert not loop.folder.releases.exists() or list(loop.folder.releases.iterdir()) == []
    assert len(chain.entries(loop.db)) == entries
    outcomes = read_json(loop.folder.round(1).root / "blocked.json")["checks"]
    assert [outcome["meaning"] for outcome in outcomes if outcome["state"] == "failed"] == [
        "class balance of alpha"
    ]


@pytest.mark.parametrize(("state", "critical", "blocks"), [("errored", True, True), ("failed", False, False)])
def test_an_errored_critical_check_blocks_and_a_failed_uncritical_one_does_not(
    state: str, critical: bool, blocks: bool, before_export: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = before_export
    outcome = Check("n", "some meaning", state, critical, 2, ("r1", "r2"), "why")
    monkeypatch.setattr(release_module, "check", lambda frames, rules: [outcome])

    if blocks:
        with pytest.raises(ReleaseBlocked) as caught:
            loop.export(1)
        assert caught.value.found == "some meaning: errored, 2 records, for example r1, r2 (why)"
        assert not loop.folder.release(1).exists()
    else:
        assert files_in(loop.export(1)) == RELEASE_FILES


def test_a_full_disk_leaves_no_release_and_the_same_command_makes_it_later(
    worked: Loop, small_disk: SmallDisk, no_checks: None
) -> None:
    from rounds_of_work import reopened

    shutil.copytree(worked.folder.root, small_disk.root / "copy")
    loop = reopened(small_disk.root / "copy", worked)
    shutil.rmtree(loop.folder.releases)
    loop.folder.releases.mkdir()
    small_disk.fill(leave=12_288)

    with pytest.raises(StorageError) as caught:
        loop.export(1)

    assert caught.value.found == "a full disk"
    assert list(loop.folder.releases.iterdir()) == []
    small_disk.free()
    assert files_in(loop.export(1)) == RELEASE_FILES
    loop.close()


def test_an_export_killed_before_the_release_can_be_seen_is_made_again_and_verifies(
    before_export: Loop, no_checks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labeling.tracing import verify

    loop = before_export

    def die(self: Path, target: Path) -> Any:
        raise SystemExit  # after the chain was told, before the rename

    monkeypatch.setattr(
        release_module.shutil, "rmtree", lambda path: None
    )  # a killed process cleans nothing up
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(SystemExit):
            loop.export(1)
    monkeypatch.undo()
    assert [path.name[:5] for path in loop.folder.releases.iterdir()] == [".tmp-"]
    monkeypatch.setattr(release_module, "check", lambda frames, rules: [])

    loop.export(1)

    assert [path.name for path in loop.folder.releases.iterdir()] == ["v1"]
    taken_away = f"{loop.folder.release(2)}: gone; the audit chain says that it was made"
    assert verify(loop.project, loop.folder, loop.db) == [taken_away]


def test_records_of_one_source_document_share_a_split(no_checks: None) -> None:
    groups = release_module._with_source_groups(
        {"a": "1", "b": "2", "c": "2", "d": "4"}, {"a": "doc", "b": "doc", "c": None, "d": None}
    )

    assert groups["a"] == groups["b"] == groups["c"] != groups["d"]


def test_a_release_folder_is_never_named_by_a_project(worked: Loop) -> None:
    assert ProjectFolder(Path("x")).release(3) == Path("x/releases/v3")
