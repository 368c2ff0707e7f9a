"""The five phases through the real queue, the real review app, the real Prefect server and its gates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from letters import letters
from small_projects import RELEASE_FILES, write_project

from countersign.rehearsing import Rehearsal
from labeling.database import accounts, queue, rounds
from labeling.database.opening import project_database
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from labeling.storage import read_json
from labeling.task_types import task_type
from schemas.review import Action, DecisionIn


@pytest.fixture(scope="module")
def outcome(installation: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """One rehearsal for all tests here: it takes most of a minute."""
    from letters import LABELS, letters
    from scripted_engine import ScriptedEngine
    from small_projects import write_project

    with ScriptedEngine(LABELS) as engine:
        root = tmp_path_factory.mktemp("rehearsal") / "project"
        write_project(
            root,
            letters(120),
            labels=LABELS,
            source={"id": "id"},
            engine_url=engine.url,
            setup={"sample": 20, "threshold": 0.6},
            review={"round_records": 20, "blind_slice": 20, "overlap_share": 0.25},
            embedding={"kind": "llama-server", "model": "scripted", "endpoints": [engine.url]},
        )
        _, answer = installation.command(
            "rehearse", root, "--truth", "label", "--rounds", 2, "--annotators", 2, "--annotator-error", 0.1
        )
        answer["asked_most"] = engine.asked_most()
        return installation, answer


def test_rehearse_fills_every_key_of_the_contract(outcome: tuple[Any, dict[str, Any]]) -> None:
    _, answer = outcome

    for key in ("task", "records", "seed", "engine", "model", "guarantee", "human_labels_total", "findings"):
        assert answer[key] is not None, key
    assert {"effort_saved_share", "final_error", "auto_accepted_error", "wall_s", "suggestions_per_s"} <= set(
        answer
    )
    assert [entry["round"] for entry in answer["rounds"]] == [1, 2]
    for entry in answer["rounds"]:
        assert entry["accuracy"]["n"] == 20
        assert entry["accuracy"]["low"] <= entry["accuracy"]["value"] <= entry["accuracy"]["high"]
        assert entry["auto_accepted"] == 0
        assert entry["student_alone"] == 0
    # Setup asks the sample of 20 a second time, with the labels listed the other way round.
    assert answer["rounds"][0]["llm_calls"] == 120 + 20
    assert 0 <= answer["rounds"][1]["llm_calls"] < 120  # the prompt stays: nothing but a candidate is tried
    assert answer["valid_suggestion_share"] == 1.0
    assert answer["effort_saved_share"] == 0.0


def test_no_record_was_asked_more_than_once(outcome: tuple[Any, dict[str, Any]]) -> None:
    _, answer = outcome

    # The scripted engine hides nothing from the raw route, so one call a record and prompt is all there is: the prompt,
    # the same with its labels the other way round (on the sample), and in round 2 perhaps one with exemplars.
    assert answer["asked_most"] <= 3


def test_release_holds_what_the_contract_lists_and_says_it_is_a_rehearsal(
    outcome: tuple[Any, dict[str, Any]],
) -> None:
    _, answer = outcome
    release = Path(answer["release"])

    files = {str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()}

    assert files == RELEASE_FILES
    manifest = json.loads((release / "manifest.json").read_text())
    assert manifest["rehearsal"] is True
    assert manifest["counts"]["auto_accepted"] == 0
    assert manifest["counts"]["settled"] + manifest["counts"]["unsettled"] == 120
    assert "Rehearsal" in (release / "README.md").read_text()
    provenance = pl.read_parquet(release / "provenance.parquet")
    assert provenance.height == manifest["counts"]["settled"]
    assert provenance["rehearsal"].all()


def test_released_labels_are_right_but_for_what_the_annotators_got_wrong(
    outcome: tuple[Any, dict[str, Any]],
) -> None:
    _, answer = outcome

    assert 0.0 <= answer["final_error"] <= 0.2


def test_everything_verifies_and_the_gates_are_in_the_chain(outcome: tuple[Any, dict[str, Any]]) -> None:
    installation, answer = outcome

    _, whole = installation.command("verify", answer["project"])
    record = pl.read_parquet(Path(answer["release"]) / "provenance.parquet")["record_id"][0]
    _, life = installation.command("trace", answer["project"], record)

    assert whole == {"ok": True, "problems": []}
    steps = [step["step"] for step in life["steps"]]
    assert steps[0] == "record"
    assert {"suggestion", "gold", "release"} <= set(steps)


def test_status_of_a_finished_rehearsal_says_what_is_next(outcome: tuple[Any, dict[str, Any]]) -> None:
    installation, answer = outcome

    _, status = installation.command("status", answer["project"])

    assert (status["phase"], status["round"]) == ("iterate", 2)
    assert status["rehearsal"] is True
    assert status["records"] == 120


def test_a_changed_byte_in_a_release_is_found(outcome: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    installation, answer = outcome
    victim = Path(answer["release"]) / "data" / "train.parquet"
    before = victim.read_bytes()

    victim.write_bytes(before[:-20] + bytes([before[-20] ^ 1]) + before[-19:])
    try:
        _, broken = installation.command("verify", answer["project"], check=1)
    finally:
        victim.write_bytes(before)

    assert any("train.parquet" in problem for problem in broken["problems"])


def test_run_stops_at_the_sample_with_exit_code_3_and_says_who_is_missing(
    installation: Any, lettered: Callable[..., Any]
) -> None:
    root, _ = lettered(60)

    code, answer = installation.command("run", root, check=None)

    assert code == 3
    assert answer["phase"] == "setup"
    assert answer["waiting_for"] == ["20 sample records to be labelled blind"]


def test_a_gold_column_answers_for_the_sample_and_run_goes_on_to_the_review(
    installation: Any, lettered: Callable[..., Any]
) -> None:
    root, _ = lettered(60, setup={"sample": 40, "threshold": 0.5})
    text = (root / "project.yaml").read_text()
    (root / "project.yaml").write_text(text.replace("  id: id\n", "  id: id\n  gold: label\n"))

    code, answer = installation.command("run", root, check=None)

    assert (code, answer["phase"], answer["state"]) == (3, "review", "waiting")
    assert any("least sure" in wait for wait in answer["waiting_for"])
    said = installation.said.splitlines()
    assert [line for line in said if line.startswith("Round ")] == [
        f"Round 1, phase {phase}" for phase in ("setup", "pre_annotate", "review")
    ]
    assert "  round 1: suggestions for 60 of 60 records (0 by the student alone), 0 set aside" in said
    assert "Finished in state" not in installation.said, "Prefect's own bookkeeping is for its UI"


def test_run_until_a_phase_that_is_done_runs_nothing(installation: Any, lettered: Callable[..., Any]) -> None:
    root, engine = lettered(60, setup={"sample": 40, "threshold": 0.5})
    text = (root / "project.yaml").read_text()
    (root / "project.yaml").write_text(text.replace("  id: id\n", "  id: id\n  gold: label\n"))
    installation.command("run", root, "--until", "setup")
    asked = sum(engine.asked.values())

    _, answer = installation.command("run", root, "--until", "setup")

    assert (answer["phase"], answer["state"]) == ("setup", "done")
    assert sum(engine.asked.values()) == asked


@pytest.mark.campaign
def test_a_setup_that_did_not_pass_is_measured_anew_when_more_of_it_is_labelled(
    installation: Any, lettered: Callable[..., Any]
) -> None:
    root, engine = lettered(120, setup={"sample": 20, "threshold": 0.75})
    file, setup = root / "project.yaml", ProjectFolder(root).round(1).setup
    file.write_text(file.read_text().replace("  id: id\n", "  id: id\n  gold: label\n"))
    _, answer = installation.command("run", root, check=3)
    assert "raise setup.sample" in answer["waiting_for"][0]
    assert read_json(setup)["accuracy"]["n"] == 20
    asked = dict(engine.asked)

    file.write_text(file.read_text().replace("sample: 20", "sample: 90"))
    _, answer = installation.command("run", root, check=3)

    assert read_json(setup)["accuracy"]["n"] == 90
    assert answer["phase"] == "review"
    assert all(engine.asked[text] == count for text, count in asked.items()), "nothing is asked twice"


@pytest.mark.campaign
def test_records_that_come_in_after_the_drafts_do_not_begin_the_sample_again(
    installation: Any, lettered: Callable[..., Any]
) -> None:
    root, _ = lettered(60, setup={"sample": 20, "threshold": 0.1})
    installation.command("run", root, check=3)
    project, folder = load_project(root)
    with project_database(project, folder) as db:
        person = accounts.local_user(db)
        while given := queue.claim(db, person.id):
            label = "beta" if "beta" in given.text else "alpha"
            decision = DecisionIn(
                assignment_id=given.assignment_id,
                idempotency_key=f"of-sample-{given.assignment_id}",
                expected_version=given.version,
                action=Action.CORRECT,
                value=label,
                seconds=1.0,
            )
            queue.decide(db, person.id, decision, check_value=task_type(project).check)
    installation.command("run", root, "--until", "pre_annotate")
    with (root / "records.jsonl").open("a") as source:
        source.writelines(json.dumps({**row, "id": f"new{row['id']}"}) + "\n" for row in letters(60, seed=8))

    again = "import sys; from flows.setup import setup; print(setup(run={'project': sys.argv[1]}))"
    assert installation.start(again, root).wait(120) == 0

    _, status = installation.command("status", root)
    assert status["records"] == 120 and status["phase"] == "review"
    with project_database(project, folder) as db:
        assert rounds.progress(db, 1).open == 0


@pytest.mark.parametrize(("annotators", "overlap", "share"), [(1, 2, 0.0), (2, 2, 0.4), (5, 3, 0.4)])
def test_a_rehearsed_round_asks_for_no_more_people_than_are_simulated(
    tmp_path: Path, annotators: int, overlap: int, share: float
) -> None:
    route = {"pool": "night shift", "source": "records.jsonl"}
    review = {"overlap": 3, "overlap_share": 0.4, "routes": [route]}
    original, home = write_project(tmp_path / "project", [{"text": "a", "label": "alpha"}], review=review)
    rehearsal = Rehearsal(home.root, "label", annotators=annotators)

    rehearsal._prepare(original, home, tmp_path / "rehearsed")

    made, _ = load_project(tmp_path / "rehearsed")
    assert (made.review.overlap, made.review.overlap_share) == (overlap, share)
    assert made.review.routes == (), "nobody belongs to a pool"


def test_what_was_changed_before_the_first_drafts_is_measured_again(
    installation: Any, lettered: Callable[..., Any]
) -> None:
    root, engine = lettered(60, setup={"sample": 20, "threshold": 0.999}, review={"round_records": 20})

    def change(old: str, new: str) -> None:
        text = (root / "project.yaml").read_text()
        assert old in text
        (root / "project.yaml").write_text(text.replace(old, new))

    def sample_of_the_plan() -> tuple[int, str]:
        setup = json.loads((root / "rounds/01/setup.json").read_text())
        plan = json.loads((root / "rounds/01/plan.json").read_text())
        return setup["accuracy"]["n"], plan["identity_id"]

    change("  id: id\n", "  id: id\n  gold: label\n")
    _, answer = installation.command("run", root, check=3)
    assert answer["waiting_for"][0].startswith("the setup gate"), answer
    first = sample_of_the_plan()
    installation.command("gate", root, "reject", "--by", "local", "--note", "too few records")
    change("sample: 20", "sample: 40")
    installation.command("run", root, check=3)
    assert sample_of_the_plan() == (40, first[1]), "a larger sample settles what a smaller one did not"

    installation.command("gate", root, "approve", "--by", "local", "--note", "good enough")
    engine.model_alias = "another.gguf"
    _, answer = installation.command("run", root, check=1)
    assert "--until setup" in answer["problems"][0]["next"]
    _, answer = installation.command("run", root, "--until", "setup", check=3)
    assert answer["waiting_for"][0].startswith("the setup gate"), "nobody has signed for this model"
    assert sample_of_the_plan()[1] != first[1]
    installation.command("gate", root, "approve", "--by", "local", "--note", "this one too")
    installation.command("run", root, "--until", "pre_annotate")


@pytest.mark.parametrize("drafted", [pytest.param(False, marks=pytest.mark.campaign), True])
def test_labels_moved_by_hand_are_refused_where_scores_are_kept_in_their_order(
    drafted: bool, installation: Any, lettered: Callable[..., Any]
) -> None:
    root, _ = lettered(60, setup={"sample": 40, "threshold": 0.5})
    file = root / "project.yaml"
    file.write_text(file.read_text().replace("  id: id\n", "  id: id\n  gold: label\n"))
    installation.command("run", root, "--until", "pre_annotate" if drafted else "setup")
    told = file.read_text()
    moved = told.replace("alpha", "gamma").replace("beta", "alpha").replace("gamma", "beta")
    assert moved != told
    file.write_text(moved)

    for command in ("check", "run", "review"):
        _, answer = installation.command(command, root, check=1)
        (problem,) = answer["problems"]
        assert (problem["path"], problem["found"]) == ("schema.labels", "beta, alpha")
        assert problem["expected"].endswith("in their order: alpha, beta")
    if drafted:
        file.write_text(told)
        installation.command("run", root, check=3)
    else:
        installation.command("run", root, "--until", "setup")
        installation.command("run", root, "--until", "pre_annotate")
        drafts = pl.concat(
            [pl.read_parquet(part) for part in (root / "rounds/01/suggestions").glob("*.parquet")]
        )
        records = pl.concat([pl.read_parquet(part) for part in (root / "records").glob("*.parquet")])
        both = drafts.join(records, on="record_id")
        assert (both["value"] == both["gold"]).mean() > 0.7
