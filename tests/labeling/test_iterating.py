"""What a round taught goes into the next; the slice teaches nothing to anybody."""

from pathlib import Path
from typing import Any

import pytest
from rounds_of_work import Loop, rows_with_truth
from scripted_engine import ScriptedEngine, code_id

from labeling import iterating
from labeling.calibration import BatchCalibration, fit_batch_calibration
from labeling.engines.opening import connect_engine
from labeling.iterating import (
    Lesson,
    _prompt_trials,
    balanced_exemplars,
    lesson,
    make_plan,
    require_no_drafts,
    slice_accuracy,
)
from labeling.prompts import Prompt, bind, prompt_of
from labeling.record_store import Vectors
from labeling.reviewing import settled_values
from labeling.score_store import ScoreStore, register
from labeling.setup import bound_prompts, load_plan, try_prompts
from labeling.storage import read_json, write_json
from labeling.suggesting import Suggester
from schemas.errors import StorageError
from schemas.plan import Plan
from tasks.reviewing import plan_next


def drawn(loop: Loop) -> set[str]:
    return set(read_json(loop.folder.round(1).slice)["slice"])


def planned_again(loop: Loop) -> Plan:
    """The plan of round 2, made anew."""
    loop.folder.round(2).plan.unlink(missing_ok=True)
    return loop.iterate(1)


# -- the slice -------------------------------------------------------------------------------------------------------


def test_the_slice_is_never_in_the_lesson(worked: Loop) -> None:
    settled = settled_values(worked.project, worked.folder, 3)

    known = lesson(worked.project, worked.folder, settled)

    assert drawn(worked) <= set(settled)
    assert set(known.ids) == set(settled) - drawn(worked)
    assert [settled[record_id] for record_id in known.ids] == list(known.labels)
    assert list(known.ids) == sorted(known.ids)


def test_nothing_of_a_plan_was_learned_from_the_slice(worked: Loop) -> None:
    plan = load_plan(worked.folder, 2)

    assert plan.stack is not None
    assert set(plan.stack["reference_ids"]).isdisjoint(drawn(worked))
    assert set(plan.exemplar_ids).isdisjoint(drawn(worked))
    assert plan.reviewed == 64 - 20
    told = (worked.folder.round(2).plan).read_text()
    assert not any(record_id in told for record_id in drawn(worked))


def test_what_people_said_about_the_slice_changes_nothing_in_the_plan(copy_of_worked: Loop) -> None:
    loop = copy_of_worked
    settled = settled_values(loop.project, loop.folder, 2)
    lied = {
        record_id: ("beta" if value == "alpha" else "alpha") if record_id in drawn(loop) else value
        for record_id, value in settled.items()
    }

    plans = [
        make_plan(loop.project, loop.folder, loop.engine, loop.vectors, number=2, settled=told)
        for told in (settled, lied)
    ]

    assert plans[0] == plans[1]


def test_records_nobody_could_label_are_no_lesson(worked: Loop) -> None:
    settled = settled_values(worked.project, worked.folder, 2)
    first = next(record_id for record_id in settled if record_id not in drawn(worked))

    known = lesson(worked.project, worked.folder, {**settled, first: None})

    assert first not in known.ids and len(known.ids) == 43


# -- exemplars -------------------------------------------------------------------------------------------------------


def test_exemplars_are_short_and_take_turns_among_the_labels() -> None:
    known = Lesson(
        tuple(f"r{n}" for n in range(6)),
        ("aaaa", "b", "cc", "ddd", "ee", "f" * 50),
        ("alpha", "alpha", "alpha", "beta", "beta", "beta"),
    )

    picked = balanced_exemplars(known, ("alpha", "beta"), 4)

    assert [(one.record_id, one.label) for one in picked] == [
        ("r1", "alpha"),
        ("r4", "beta"),
        ("r2", "alpha"),
        ("r3", "beta"),
    ]


def test_exemplars_go_on_when_a_label_has_no_more() -> None:
    known = Lesson(("r1", "r2", "r3"), ("a", "b", "c"), ("alpha", "beta", "beta"))

    assert len(balanced_exemplars(known, ("alpha", "beta", "gamma"), 10)) == 3


def test_a_record_the_engine_reads_a_command_in_is_no_exemplar() -> None:
    known = Lesson(("r1", "r2", "r3"), ("bye<|im_end|>", "goodbye then", "ok"), ("alpha", "alpha", "beta"))

    picked = balanced_exemplars(known, ("alpha", "beta"), 4, control_marks=("<|im_start|>", "<|im_end|>"))

    assert [one.record_id for one in picked] == ["r2", "r3"]
    assert len(balanced_exemplars(known, ("alpha", "beta"), 4)) == 3  # an engine that tokenizes it as text


def test_a_trial_leaves_out_exemplars_the_engine_reads_a_command_in(
    worked: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Lesson(("r1", "r2"), ("bye<|im_end|>", "ok"), ("alpha", "beta"))
    monkeypatch.setattr(worked.engine, "control_marks", ("<|im_end|>",))

    _, trials = _prompt_trials(
        worked.project, worked.folder, worked.engine, load_plan(worked.folder, 1), known
    )

    assert [[one.record_id for one in trial.exemplars] for trial in trials] == [["r2"]]


def test_a_trial_with_exemplars_is_not_judged_on_its_own_exemplars(worked: Loop) -> None:
    (trial,) = [entry for entry in load_plan(worked.folder, 2).candidates if entry["exemplars"]]

    assert trial["n"] == 44 - trial["exemplars"]
    assert trial["ships"] is (trial["p"] < 0.05)


def test_a_prompt_in_use_is_not_judged_on_its_own_exemplars_either(copy_of_worked: Loop) -> None:
    loop = copy_of_worked
    known = lesson(loop.project, loop.folder, settled_values(loop.project, loop.folder, 3))
    (bare,) = bound_prompts(loop.project, loop.folder, loop.engine)
    exemplars = balanced_exemplars(known, loop.project.label_schema.names, 6)
    in_use = bind(bare.template, loop.project, bare.codes, exemplars)
    store = register(loop.project, loop.folder, loop.engine, in_use)
    texts = dict(zip(known.ids, known.texts, strict=True))
    list(try_prompts(loop.project, loop.folder, loop.engine, [in_use], known.ids, texts))
    plan = load_plan(loop.folder, 2).model_copy(update={"prompt_id": store.prompt_id})
    write_json(loop.folder.round(2).plan, plan.model_dump())
    (loop.folder.root / "new.jinja").write_text("Labels: alpha, beta.\nText: {{ text }}\nLabel:")
    files = loop.project.prompts.model_copy(update={"files": ("new.jinja",)})
    loop.project = loop.project.model_copy(update={"prompts": files})

    after = loop.iterate(2)

    (trial,) = after.candidates
    assert trial["n"] == len(known.ids) - 6
    assert trial["ships"] is False and after.prompt_id == in_use.prompt_id
    assert f"chosen on {len(known.ids) - 6} reviewed records" in after.sentences[1]


@pytest.mark.parametrize(("over_long", "words"), [("head_tail", 140), ("refuse", 110)])
def test_exemplars_leave_room_for_the_record(
    new_loop: type[Loop], monkeypatch: pytest.MonkeyPatch, over_long: str, words: int
) -> None:
    def long(count: int) -> list[dict[str, str]]:
        tail = " ".join(f"w{number}" for number in range(words))
        return [{**row, "text": f"{row['text']} {tail}"} for row in rows_with_truth(count)]

    monkeypatch.setattr("rounds_of_work.rows_with_truth", long)
    # Of 512 tokens each takes 150, or 120 with as much for the record.
    loop = new_loop(prompts={"files": ["builtin:plain"], "exemplars": 4, "over_long": over_long})
    loop.setup()
    loop.whole_round(1)

    (trial,) = loop.iterate(1).candidates

    assert trial["exemplars"] == 2


# -- prompts ---------------------------------------------------------------------------------------------------------


def write_prompt(loop: Loop, text: str) -> None:
    path: Path = loop.folder.root / "mine.jinja"
    path.write_text(text)


def started(make: type[Loop]) -> Loop:
    loop = make(prompts={"files": ["mine.jinja"], "exemplars": 0})
    write_prompt(loop, "Labels: alpha, beta.\nText: {{ text }}\nLabel:")
    loop.setup()
    loop.whole_round(1)
    return loop


def test_a_changed_prompt_file_is_a_new_version_that_has_to_prove_itself(new_loop: type[Loop]) -> None:
    loop = started(new_loop)
    before = load_plan(loop.folder, 1)
    assert planned_again(loop).candidates == ()
    write_prompt(loop, "Labels: alpha or beta.\nText: {{ text }}\nLabel:")

    plan = planned_again(loop)

    (trial,) = plan.candidates
    assert trial["template"] == "mine.jinja" and trial["prompt_id"] != before.prompt_id
    assert (
        trial["ships"] is False
    )  # the engine hears no difference: an equal prompt does not replace the old one
    assert plan.prompt_id == before.prompt_id
    assert "stays" in plan.sentences[0] and "(changed file)" in plan.sentences[0]


def test_a_prompt_that_was_tried_in_any_round_is_not_tried_again(new_loop: type[Loop]) -> None:
    loop = started(new_loop)
    write_prompt(loop, "Labels: alpha or beta.\nText: {{ text }}\nLabel:")
    second = planned_again(loop)
    assert len(second.candidates) == 1
    third = second.model_copy(update={"round": 3, "candidates": ()})
    known = lesson(loop.project, loop.folder, settled_values(loop.project, loop.folder, 2))

    for before in (second, third):
        assert _prompt_trials(loop.project, loop.folder, loop.engine, before, known)[1] == []


def test_a_prompt_that_proves_better_replaces_the_old_one(new_loop: type[Loop]) -> None:
    loop = new_loop(prompts={"files": ["mine.jinja"], "exemplars": 0})
    # The engine looks for the record after "Text: "; here it finds the label word of the prompt in every record.
    write_prompt(loop, "{{ text }}\nText: nothing\nLabel:")
    loop.setup()
    loop.whole_round(1)
    old = load_plan(loop.folder, 1)
    write_prompt(loop, "Labels: alpha, beta.\nText: {{ text }}\nLabel:")

    plan = planned_again(loop)

    (trial,) = plan.candidates
    assert trial["ships"] is True and trial["gain"]["value"] > 0
    assert plan.prompt_id == trial["prompt_id"] != old.prompt_id
    assert "is replaced by mine.jinja" in plan.sentences[0]


def test_a_prompt_is_rebuilt_from_what_was_written_down_whatever_became_of_its_file(worked: Loop) -> None:
    plan = load_plan(worked.folder, 1)
    (bound,) = bound_prompts(worked.project, worked.folder, worked.engine)

    again = prompt_of(read_json(worked.folder.prompts_used / f"{plan.prompt_id}.json"))

    assert again.prompt_id == plan.prompt_id == bound.prompt_id
    assert again.around("x") == bound.around("x")


class OtherTokens(ScriptedEngine):
    """The same model behind a tokenizer that numbers its tokens otherwise."""

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = super().tokenize(body)["tokens"]
        self._pieces.update({number + 7: self._pieces.get(number, "") for number in ids})
        self._codes = [code_id(label) + 7 for label in self.labels]
        return {"tokens": [number + 7 for number in ids]}


def test_a_model_with_another_tokenizer_is_asked_for_its_own_label_tokens(new_loop: type[Loop]) -> None:
    loop = new_loop(prompts={"files": ["builtin:plain"], "exemplars": 0})
    loop.setup()
    loop.whole_round(1)
    with OtherTokens() as other:
        settings = loop.project.engine.model_copy(update={"endpoints": (other.url,)})
        loop.project = loop.project.model_copy(update={"engine": settings})
        loop.engine.close()
        loop.engine = connect_engine(loop.project)

        plan = loop.iterate(1)

        assert plan.candidates == (), "the same prompt, spelled for another model, is no change of it"
        used = prompt_of(read_json(loop.folder.prompts_used / f"{plan.prompt_id}.json"))
        assert [code.token_id for code in used.codes] == other._codes
        assert loop.suggest(2)["rejected"] == 0


def test_what_a_new_model_is_worth_is_learned_before_it_is_mixed_in(new_loop: type[Loop]) -> None:
    loop = new_loop(prompts={"files": ["builtin:plain"], "exemplars": 0})
    loop.setup()
    loop.whole_round(1)
    with ScriptedEngine() as other:
        other.model_alias = "another.gguf"
        settings = loop.project.engine.model_copy(update={"endpoints": (other.url,)})
        loop.project = loop.project.model_copy(update={"engine": settings})
        loop.engine.close()
        loop.engine = connect_engine(loop.project)

        plan = loop.iterate(1)

    assert plan.identity_id != load_plan(loop.folder, 1).identity_id
    assert "Batch calibration 1, chosen on 44 reviewed records." in plan.sentences


def on_another(loop: Loop, server: ScriptedEngine) -> None:
    """From here on another model works for the project."""
    settings = loop.project.engine.model_copy(update={"endpoints": (server.url,)})
    loop.project = loop.project.model_copy(update={"engine": settings})
    loop.engine.close()
    loop.engine = connect_engine(loop.project)


def known_to(loop: Loop) -> Lesson:
    return lesson(loop.project, loop.folder, settled_values(loop.project, loop.folder, 2))


def after_a_round(make: type[Loop]) -> tuple[Loop, Plan, Prompt]:
    """A project after round 1, its plan with the second of its two prompts, and that prompt."""
    loop = make(prompts={"files": ["builtin:plain", "builtin:definitions"], "exemplars": 0})
    loop.setup()
    loop.whole_round(1)
    second = bound_prompts(loop.project, loop.folder, loop.engine)[1]
    changed = {"template": second.template.name, "prompt_id": second.prompt_id}
    return loop, load_plan(loop.folder, 1).model_copy(update=changed), second


def test_what_another_model_made_of_a_prompt_is_not_held_against_it(new_loop: type[Loop]) -> None:
    loop, before, second = after_a_round(new_loop)
    assert _prompt_trials(loop.project, loop.folder, loop.engine, before, known_to(loop)) == (second, [])
    with ScriptedEngine() as other:
        other.model_alias = "another.gguf"
        on_another(loop, other)

        in_use, trials = _prompt_trials(loop.project, loop.folder, loop.engine, before, known_to(loop))

    assert in_use == second and [trial.template.name for trial in trials] == ["builtin:plain"]


class OneToken(ScriptedEngine):
    """Its tokenizer lets both labels begin with the same token."""

    def tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        return super().tokenize({**body, "content": body["content"].replace(" beta", " alpha")})


def test_a_model_that_cannot_tell_the_labels_of_the_prompt_in_use_keeps_its_template(
    new_loop: type[Loop],
) -> None:
    loop, before, second = after_a_round(new_loop)
    with OneToken() as other:
        on_another(loop, other)

        in_use, _ = _prompt_trials(loop.project, loop.folder, loop.engine, before, known_to(loop))

    assert in_use.template == second.template
    assert [code.text for code in in_use.codes] == [" A", " B"]


def test_an_engine_that_tells_fewer_labels_gets_the_prompt_with_those_near_a_record(
    new_loop: type[Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, before, second = after_a_round(new_loop)
    monkeypatch.setattr(loop.engine, "tells", 1)

    in_use, _ = _prompt_trials(loop.project, loop.folder, loop.engine, before, known_to(loop))

    assert (in_use.template, in_use.listing.most) == (second.template, 1)


def test_an_engine_that_reads_a_command_in_an_exemplar_gets_the_prompt_without(
    new_loop: type[Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, before, second = after_a_round(new_loop)
    known = known_to(loop)
    shown = balanced_exemplars(known, loop.project.label_schema.names, 2)
    used = bind(second.template, loop.project, second.codes, shown)
    register(loop.project, loop.folder, loop.engine, used)
    before = before.model_copy(update={"prompt_id": used.prompt_id})
    assert _prompt_trials(loop.project, loop.folder, loop.engine, before, known)[0].prefix == used.prefix
    monkeypatch.setattr(loop.engine, "control_marks", [shown[0].text.split()[0]])

    in_use, _ = _prompt_trials(loop.project, loop.folder, loop.engine, before, known)

    assert in_use == second


# -- plan and gain ---------------------------------------------------------------------------------------------------


def test_the_plan_is_written_for_people_too(worked: Loop) -> None:
    plan = load_plan(worked.folder, 2)
    page = worked.folder.round(2).plan.with_suffix(".md").read_text()

    assert page.startswith("# Plan of round 2")
    assert all(f"- {sentence}" in page for sentence in plan.sentences)
    assert plan.prompt_id in page and plan.identity_id in page


def test_a_plan_that_drafts_were_made_with_is_not_made_anew(copy_of_worked: Loop) -> None:
    loop = copy_of_worked
    before = loop.folder.round(2).plan.read_bytes()

    with pytest.raises(StorageError, match="Finish round 2"):
        plan_next.fn(str(loop.folder.root), 1)

    assert loop.folder.round(2).plan.read_bytes() == before
    require_no_drafts(loop.project, loop.folder, 3)


def test_the_same_round_teaches_the_same_plan(copy_of_worked: Loop) -> None:
    first = load_plan(copy_of_worked.folder, 2)

    assert planned_again(copy_of_worked) == first


def test_the_strength_is_chosen_with_the_mean_that_suggestions_will_use(
    copy_of_worked: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, fits = copy_of_worked, []

    def remember(*given: Any, **named: Any) -> BatchCalibration:
        fits.append(fit_batch_calibration(*given, **named))
        return fits[-1]

    monkeypatch.setattr(iterating, "fit_batch_calibration", remember)

    plan = planned_again(loop)

    store = ScoreStore(loop.project, loop.folder, identity_id=plan.identity_id, prompt_id=plan.prompt_id)
    used = Suggester(loop.project, plan, store, None).calibration
    (fit,) = fits
    assert fit.mean_scores == pytest.approx(used.mean_scores)


def test_too_few_reviewed_records_make_no_student(new_loop: type[Loop]) -> None:
    loop = new_loop(
        review={"round_records": 2, "blind_slice": 10, "overlap_share": 0.0},
        setup={"sample": 12, "threshold": 0.1},
    )
    loop.setup()
    loop.whole_round(1)

    plan = loop.iterate(1)

    assert plan.stack is None and plan.correctness is None
    assert "No student: 14 reviewed records (needs 20)." in plan.sentences


def test_why_there_is_no_student_is_told(copy_of_worked: Loop) -> None:
    loop = copy_of_worked
    settled = settled_values(loop.project, loop.folder, 3)
    one_label = {**settled, **{record_id: "alpha" for record_id, value in settled.items() if value}}

    def sentence(settled: dict[str, Any], **embedding: str) -> str:
        named = loop.project.embedding.model_copy(update=embedding)
        project = loop.project.model_copy(update={"embedding": named})
        vectors = Vectors.load(project, loop.folder)
        plan = make_plan(project, loop.folder, loop.engine, vectors, number=3, settled=settled)
        assert plan.stack is None
        return plan.sentences[-1]

    assert "have the same label" in sentence(one_label)
    assert "no vectors of other yet, which the setup flow makes" in sentence(settled, model="other")
    assert "embedding.kind: none" in sentence(settled, kind="none")


def test_accuracy_on_the_slice_and_its_gain_are_paired(worked: Loop) -> None:
    settled = settled_values(worked.project, worked.folder, 3)

    first = slice_accuracy(worked.project, worked.folder, 1, settled)
    second = slice_accuracy(worked.project, worked.folder, 2, settled)

    assert first["accuracy"]["n"] == second["accuracy"]["n"] == second["gain"]["n"] == 20
    assert second["gain"]["value"] == pytest.approx(second["accuracy"]["value"] - first["accuracy"]["value"])
    assert second["gain"]["low"] <= second["gain"]["value"] <= second["gain"]["high"]


def test_a_slice_record_nobody_could_label_does_not_count(worked: Loop) -> None:
    settled = settled_values(worked.project, worked.folder, 2)
    one = next(iter(drawn(worked)))

    assert slice_accuracy(worked.project, worked.folder, 1, {**settled, one: None})["accuracy"]["n"] == 19
