"""Where a project stands is read from its tables and its database, phase by phase."""

from rounds_of_work import Loop

from labeling.database import rounds
from labeling.reviewing import open_review, queue_sample, sample_labels, write_annotations
from labeling.setup import draw_sample, measure_prompts, save_setup
from labeling.status import Position, all_decided, position, status
from labeling.storage import read_json, write_json
from schemas.review import SignOff


def where(loop: Loop) -> tuple[str, int, bool]:
    """Phase, round, and whether it waits for people."""
    found = position(loop.project, loop.folder, loop.db)
    return found.phase, found.round, bool(found.waiting_for)


def test_a_project_goes_through_its_phases_in_order(new_loop: type[Loop]) -> None:
    loop = new_loop(embedding={"kind": "none"})
    assert where(loop) == ("setup", 1, False)

    sample = draw_sample(loop.project, loop.folder)
    queue_sample(loop.project, loop.folder, loop.db, sample, rehearsal=True)
    assert position(loop.project, loop.folder, loop.db) == Position(
        "setup", 1, ["20 sample records to be labelled blind"]
    )
    loop.label_all()
    assert where(loop) == ("setup", 1, False)

    save_setup(loop.folder, *measure_prompts(loop.project, loop.folder, loop.engine, sample_labels(loop.db)))
    assert where(loop) == ("pre_annotate", 1, False)

    loop.suggest(1)
    assert where(loop) == ("review", 1, False)

    open_review(loop.project, loop.folder, loop.db, 1, None, rehearsal=True)
    assert where(loop) == ("review", 1, True)
    loop.label_all()
    assert position(loop.project, loop.folder, loop.db) == Position("review", 1, ["the lead's signature"])

    loop.sign(1)
    assert where(loop) == ("qa", 1, False)
    write_annotations(loop.project, loop.folder, loop.db, 1)
    loop.assure(1)
    assert where(loop) == ("export", 1, False)


def test_after_two_rounds_the_third_is_planned_next(worked: Loop) -> None:
    assert where(worked) == ("iterate", 2, False)


def test_a_setup_below_the_threshold_waits_for_the_lead(new_loop: type[Loop]) -> None:
    loop = new_loop(setup={"sample": 20, "threshold": 0.99})
    loop.setup()

    found = position(loop.project, loop.folder, loop.db)
    assert (found.phase, found.round) == ("setup", 1)
    assert found.waiting_for[0].startswith("the setup gate: Accuracy of the drafts")

    rounds.open_gate(loop.db, "setup", 1, figures=read_json(loop.folder.round(1).setup), actor="flow")
    rounds.decide_gate(loop.db, "setup", 1, SignOff(verdict="approve", signed_by="lea", note="we go on"))
    assert where(loop) == ("pre_annotate", 1, False)

    measured_anew = {**read_json(loop.folder.round(1).setup), "basis": "another model"}
    write_json(loop.folder.round(1).setup, measured_anew)
    assert position(loop.project, loop.folder, loop.db).phase == "setup", "nobody has seen these figures"


def test_open_disputes_are_waited_for(new_loop: type[Loop]) -> None:
    from labeling.quality import start_quality

    loop = new_loop()
    loop.setup()
    loop.careless = 0.5
    loop.suggest(1)
    loop.review(1)
    annotations = write_annotations(loop.project, loop.folder, loop.db, 1)
    start_quality(loop.project, loop.folder, loop.db, 1, annotations, loop.vectors)

    assert where(loop) == ("qa", 1, True)


def test_the_status_has_the_keys_of_the_contract_and_their_counts(worked: Loop) -> None:
    told = status(worked.project, worked.folder, worked.db)

    assert {"phase", "round", "records", "suggested", "reviewed", "quarantined", "waiting_for"} <= set(told)
    assert (told["records"], told["quarantined"], told["waiting_for"]) == (130, 0, [])
    assert told["suggested"] == 130 - 44
    assert told["reviewed"] == 24
    assert told["last_figures"]["round"] == 2
    assert told["rehearsal"] is True


def test_a_project_before_its_first_phase_has_a_status_too(new_loop: type[Loop]) -> None:
    loop = new_loop()

    told = status(loop.project, loop.folder, loop.db)

    assert (told["phase"], told["records"], told["suggested"], told["queue"]) == ("setup", 130, 0, None)
    assert told["last_figures"] is None


def test_a_project_ends_when_people_have_decided_everything(worked: Loop, new_loop: type[Loop]) -> None:
    assert not all_decided(worked.project, worked.folder, 2)
    loop = new_loop(
        records=40,
        review={"round_records": 200, "blind_slice": 10, "overlap_share": 0.0},
        setup={"sample": 10, "threshold": 0.1},
    )
    loop.setup()
    loop.whole_round(1)

    assert all_decided(loop.project, loop.folder, 1)
