"""A score is asked for once in a project's life, whatever happens in between."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_engine import ScriptedEngine
from small_projects import ProjectFactory, SmallDisk, write_project

from labeling.engines.fleet import Fleet
from labeling.engines.llama_server import LlamaServer
from labeling.engines.opening import connect_engine
from labeling.engines.protocol import Identity, LabelCode, LabelScores, Tokens
from labeling.ingest import ingest
from labeling.paths import ProjectFolder
from labeling.prompts import Prompt
from labeling.record_store import record_ids, stream_records
from labeling.score_store import ScoreStore, register, score_missing
from labeling.setup import bound_prompts, kept_figures, measure_prompts, save_setup
from labeling.storage import Table
from schemas.errors import EngineUnavailable, IdentityChanged, StorageError, TooManyRejected
from schemas.project import Project

ROOT = Path(__file__).resolve().parent.parent.parent
Connect = Callable[..., LlamaServer]


class Work:
    """A project with records, an engine and the scores of the two."""

    def __init__(self, project: Project, folder: ProjectFolder) -> None:
        self.project, self.folder = project, folder
        ingest(project, folder)
        self.engine = connect_engine(project)
        self.prompt: Prompt = bound_prompts(project, folder, self.engine)[0]
        self.store: ScoreStore = register(project, folder, self.engine, self.prompt)

    def records(self) -> Iterator[tuple[str, str]]:
        for _, frame in stream_records(self.project, self.folder, ["text"]):
            yield from frame.select("record_id", "text").iter_rows()

    def score(self) -> int:
        """Scores what is missing; returns the number of shards."""
        shards = score_missing(
            self.engine,
            self.prompt,
            self.store,
            self.records(),
            project=self.project,
            folder=self.folder,
            known=self.store.known(),
        )
        return sum(1 for _ in shards)

    def scored(self) -> set[str]:
        return set(self.store.scored.read(["record_id"])["record_id"])

    def rejected(self) -> list[tuple[str, str, int]]:
        return list(self.store.rejected.read(["record_id", "reason", "attempts"]).iter_rows())


@pytest.fixture
def work(project_folder: ProjectFactory, scripted: ScriptedEngine) -> Iterator[Callable[..., Work]]:
    made: list[Work] = []

    def make(texts: list[str] | int = 40, *, shard: int = 10, **settings: Any) -> Work:
        rows = [{"text": text} for text in texts] if isinstance(texts, list) else texts_of(texts)
        limits = {"shard_records": shard}
        made.append(Work(*project_folder(rows, engine_url=scripted.url, limits=limits, **settings)))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()


def texts_of(count: int) -> list[dict[str, str]]:
    return [
        {"text": f"record number {number} {('alpha', 'beta', 'none')[number % 3]}"} for number in range(count)
    ]


def test_every_record_is_scored_once_in_shards(work: Callable[..., Work], scripted: ScriptedEngine) -> None:
    job = work(45)

    assert job.score() == 5

    assert job.scored() == set(record_ids(job.project, job.folder))
    assert set(scripted.asked.values()) == {1}
    assert [part.rows for part in job.store.scored.parts()] == [10, 10, 10, 10, 5]


def test_running_again_asks_nothing(work: Callable[..., Work], scripted: ScriptedEngine) -> None:
    job = work()
    job.score()
    before = scripted.asked.copy()

    assert job.score() == 0
    assert scripted.asked == before


def test_only_new_records_are_asked_about_after_a_second_ingest(
    work: Callable[..., Work], scripted: ScriptedEngine
) -> None:
    job = work(20)
    job.score()
    with (job.folder.root / "records.jsonl").open("a") as file:
        file.write('{"text": "a new one"}\n')
    ingest(job.project, job.folder)
    scripted.asked.clear()

    job.score()

    assert scripted.asked == {"a new one": 1}


def test_the_matrix_is_in_the_order_asked_for_with_nan_where_there_is_no_score(
    work: Callable[..., Work],
) -> None:
    job = work(10)
    job.score()
    ids = record_ids(job.project, job.folder)

    scores, mass = job.store.matrix([ids[3], "nobody", ids[0]])

    assert scores.shape == (3, 2)
    assert np.isnan(scores[1]).all() and np.isnan(mass[1])
    assert np.isfinite(scores[[0, 2]]).all() and mass[[0, 2]] == pytest.approx([0.9, 0.9])


def test_another_prompt_has_scores_of_its_own(work: Callable[..., Work], scripted: ScriptedEngine) -> None:
    job = work(10, prompts={"files": ["builtin:plain", "builtin:definitions"]})
    first, second = bound_prompts(job.project, job.folder, job.engine)
    job.score()
    job.prompt, job.store = second, register(job.project, job.folder, job.engine, second)

    assert job.store.known() == set()
    job.score()
    assert first.prompt_id != second.prompt_id
    assert set(scripted.asked.values()) == {2}


# -- set aside -------------------------------------------------------------------------------------------------------


def test_a_record_without_a_usable_reply_is_kept_with_its_reason_and_not_asked_again(
    work: Callable[..., Work], scripted: ScriptedEngine
) -> None:
    job = work([f"text {number}" for number in range(25)] + ["a bad one"], shard=26)
    scripted.misbehave("bad", "malformed")

    job.score()
    job.score()

    ((record_id, reason, attempts),) = job.rejected()
    assert record_id not in job.scored() and len(job.scored()) == 25
    assert reason.startswith("unusable reply: unreadable JSON") and attempts == 3
    assert scripted.asked["a bad one"] == 3
    raw = job.store.rejected.read(["raw_reply"])["raw_reply"][0]
    assert "unreadable JSON" in raw


def test_a_record_that_met_an_engine_that_was_away_is_asked_once_more(
    work: Callable[..., Work], scripted: ScriptedEngine
) -> None:
    texts = [f"text {number}" for number in range(25)] + ["alpha away", "beta away for good"]
    job = work(texts, shard=27)
    scripted.misbehave("away", "503", times=6)
    job.score()
    assert [reason.split(":")[0] for _, reason, _ in job.rejected()] == ["no answer"] * 2

    scripted.misbehave("for good", "503")
    job.score()
    job.score()

    assert scripted.asked["alpha away"] == 4 and scripted.asked["beta away for good"] == 6
    assert len(job.scored()) == 26
    (left,) = job.store.set_aside()["record_id"]
    assert left not in job.scored() and job.store.known() == job.store.asked()
    assert len(job.store.known()) == 27


def test_a_record_that_was_refused_for_its_length_is_asked_once_long_ones_are_fitted(
    work: Callable[..., Work], scripted: ScriptedEngine
) -> None:
    texts = [f"text {number}" for number in range(25)] + ["word " * 600]
    job = work(texts, shard=26, prompts={"files": ["builtin:plain"], "over_long": "refuse"})
    job.score()
    job.score()
    assert [reason.split(":")[0] for _, reason, _ in job.rejected()] == ["prompt too long"]

    prompts = job.project.prompts.model_copy(update={"over_long": "head_tail"})
    job.project = job.project.model_copy(update={"prompts": prompts})
    job.store = register(job.project, job.folder, job.engine, job.prompt)
    job.score()
    job.score()

    assert len(job.scored()) == 26 and job.store.set_aside().is_empty()
    assert len(scripted.asked) == 26 and set(scripted.asked.values()) == {1}


def test_the_setup_is_measured_anew_once_long_records_are_fitted(
    work: Callable[..., Work],
) -> None:
    texts = [f"text {number}" for number in range(9)] + ["word " * 600]
    job = work(texts, prompts={"files": ["builtin:plain"], "over_long": "refuse"})
    truth = dict.fromkeys(record_ids(job.project, job.folder), "alpha")
    save_setup(job.folder, *measure_prompts(job.project, job.folder, job.engine, truth))
    before = kept_figures(job.project, job.folder, job.engine, truth)
    prompts = job.project.prompts.model_copy(update={"over_long": "windows"})
    job.project = job.project.model_copy(update={"prompts": prompts})

    assert kept_figures(job.project, job.folder, job.engine, truth) is None
    _, figures = measure_prompts(job.project, job.folder, job.engine, truth)

    assert before is not None and (before["unusable"], figures["unusable"]) == (1, 0)


def test_what_is_too_long_for_any_fitting_is_asked_for_twice_and_no_more(work: Callable[..., Work]) -> None:
    job = work(["word " * 600], shard=1, quality={"max_rejected_share": 1.0})
    job.prompt = replace(job.prompt, prefix="word " * 500)
    job.store = register(job.project, job.folder, job.engine, job.prompt)

    for _ in range(3):
        job.score()

    assert [reason.split(":")[0] for _, reason, _ in job.rejected()] == ["prompt too long"] * 2


@pytest.mark.parametrize(
    ("text", "over_long", "remedy"),
    [
        ("word " * 600, "refuse", "prompts.over_long"),
        ("a <|im_end|>", "head_tail", "take such texts as text"),
    ],
)
def test_a_run_that_records_stop_says_what_helps_against_their_kind(
    text: str, over_long: str, remedy: str, project_folder: ProjectFactory, scripted: ScriptedEngine
) -> None:
    engine = {"kind": "ollama", "model": "scripted.gguf", "context": 512, "slots": 2}
    job = Work(
        *project_folder(
            [{"text": f"{number} {text}"} for number in range(20)],
            engine={**engine, "endpoints": [scripted.url]},
            prompts={"files": ["builtin:plain"], "over_long": over_long},
        )
    )

    with pytest.raises(TooManyRejected) as caught:
        job.score()

    assert remedy in caught.value.next_step and "Check the engine" not in caught.value.next_step
    job.engine.close()


def test_too_many_unusable_replies_stop_the_run_and_nothing_of_the_shard_is_stored(
    work: Callable[..., Work], scripted: ScriptedEngine
) -> None:
    texts = [f"good {number}" for number in range(30)] + [f"bad {number}" for number in range(7)]
    texts += [f"fine {number}" for number in range(23)]
    job = work(texts, shard=30)
    ids = dict(job.records())
    job.records = lambda: iter(sorted(ids.items(), key=lambda item: texts.index(item[1])))  # type: ignore[method-assign]
    scripted.misbehave("bad", "length stop")

    with pytest.raises(TooManyRejected) as caught:
        job.score()

    assert caught.value.found.startswith("7 of 30 records without a usable reply ({'unusable reply': 7})")
    assert "no top_logprobs" in caught.value.found
    assert caught.value.expected == "at most 20% (quality.max_rejected_share)"
    assert {ids[record_id] for record_id in job.scored()} == {f"good {number}" for number in range(30)}
    assert job.rejected() == []
    scripted.faults.clear()
    job.score()
    assert len(job.scored()) == 60


def test_an_engine_that_is_gone_is_noticed_even_in_shards_of_five(
    work: Callable[..., Work], scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labeling.scoring.time.sleep", lambda seconds: None)
    job = work(60, shard=5)
    scripted.misbehave("record", "refuse")

    with pytest.raises(TooManyRejected) as caught:
        job.score()

    assert caught.value.found.startswith("20 of 20 records")
    assert len(job.rejected()) == 15


# -- identity --------------------------------------------------------------------------------------------------------


def test_a_model_swapped_in_the_middle_halts_the_run_and_nothing_of_that_shard_is_stored(
    work: Callable[..., Work], scripted: ScriptedEngine
) -> None:
    job = work(60, shard=20)
    scripted.swap_after(27, "another.gguf")

    with pytest.raises(IdentityChanged) as caught:
        job.score()

    assert len(job.scored()) == 20 and job.rejected() == []
    assert job.store.identity_id in caught.value.expected
    assert "Nothing of this batch was stored" in caught.value.next_step


def test_after_a_swap_the_new_model_starts_scores_of_its_own(
    work: Callable[..., Work], scripted: ScriptedEngine
) -> None:
    job = work(20)
    job.score()
    old = job.store
    scripted.model_alias = "another.gguf"

    job.store = register(job.project, job.folder, job.engine, job.prompt)
    job.score()

    assert job.store.identity_id != old.identity_id
    assert len(old.known()) == len(job.store.known()) == 20
    assert set(scripted.asked.values()) == {2}


class Leaving:
    """A server that is gone after so many answers."""

    def __init__(self, inner: LlamaServer, answers: int) -> None:
        self._inner, self._left = inner, answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _here(self) -> LlamaServer:
        if self._left <= 0:
            raise EngineUnavailable("x", found="nobody", expected="an answer", next_step="Start it.")
        return self._inner

    def identity(self) -> Identity:
        return self._here().identity()

    def score(self, prompt: Tokens, codes: Sequence[LabelCode], *, slot: int) -> LabelScores:
        inner = self._here()
        self._left -= 1
        return inner.score(prompt, codes, slot=slot)


def test_what_a_server_said_that_is_gone_before_it_was_asked_who_it_is_is_asked_of_the_others(
    work: Callable[..., Work], scripted: ScriptedEngine, connect: Connect
) -> None:
    job = work(40, shard=40)
    with ScriptedEngine() as second:
        second._pieces = scripted._pieces  # the same tokenizer
        job.engine = Fleet([connect(scripted), Leaving(connect(second), 6)])  # type: ignore[assignment,list-item]
        job.store = register(job.project, job.folder, job.engine, job.prompt)
        second.model_alias = "another.gguf"

        assert job.score() == 1

    assert sum(second.asked.values()) == 6
    assert len(job.scored()) == len(scripted.asked) == 40 and not job.rejected()


# -- disks and kills -------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_stops_the_run_and_it_goes_on_once_there_is_room(
    small_disk: SmallDisk, scripted: ScriptedEngine
) -> None:
    job = Work(
        *write_project(
            small_disk.root / "project", texts_of(60), engine_url=scripted.url, limits={"shard_records": 10}
        )
    )
    shards = score_missing(
        job.engine,
        job.prompt,
        job.store,
        job.records(),
        project=job.project,
        folder=job.folder,
        known=set(),
    )
    next(shards)
    small_disk.fill()

    with pytest.raises(StorageError) as caught:
        next(shards)

    assert caught.value.found == "a full disk"
    assert len(job.scored()) == 10
    small_disk.free()
    job.score()
    assert job.scored() == set(record_ids(job.project, job.folder))
    assert job.store.scored.verify() == []
    job.engine.close()


_CHILD = """
import sys
from labeling.engines.opening import connect_engine
from labeling.project_file import load_project
from labeling.record_store import stream_records
from labeling.score_store import register, score_missing
from labeling.prompts import bind, label_codes, load_template
from labeling.storage import project_lock
project, folder = load_project(sys.argv[1])
engine = connect_engine(project)
codes = label_codes(project.label_schema.labels, engine.first_token)
prompt = bind(load_template(project.prompts.files[0], folder.root), project, codes)
with project_lock(folder.lock, "pre-annotation"):
    store = register(project, folder, engine, prompt)
    records = (row for _, frame in stream_records(project, folder, ["text"])
               for row in frame.select("record_id", "text").iter_rows())
    for outcome in score_missing(engine, prompt, store, records, project=project, folder=folder, known=store.known()):
        print(len(outcome.scored), flush=True)
"""


def _run(folder: ProjectFolder) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(folder.root)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def _killed_at_random(tmp_path: Path, *, records: int, shard: int, kills: int, seed: int) -> None:
    """Kills a pre-annotation at random moments and compares with one that nobody disturbed."""
    dice = random.Random(seed)
    rows, limits = texts_of(records), {"shard_records": shard}
    with ScriptedEngine() as quiet:
        whole = Work(*write_project(tmp_path / "whole", rows, engine_url=quiet.url, limits=limits))
        whole.score()
        whole.engine.close()
        expected = whole.store.scored.content_hash(leave_out=["duration_s"])
    with ScriptedEngine() as server:
        job = Work(*write_project(tmp_path / "killed", rows, engine_url=server.url, limits=limits))
        job.engine.close()
        server.delay_s = 0.004
        texts = dict(job.records())
        asked_when_committed: dict[str, int] = {}
        for _ in range(kills):
            process = _run(job.folder)
            before = sum(server.asked.values())
            target = before + dice.randint(1, records // kills)
            while sum(server.asked.values()) < target and process.poll() is None:
                time.sleep(0.004)
            process.send_signal(signal.SIGKILL)
            process.wait()
            for record_id in job.store.known():
                asked_when_committed.setdefault(record_id, server.asked[texts[record_id]])
        job.engine = connect_engine(job.project)
        job.score()
        job.engine.close()

        assert job.scored() == set(texts) and len(job.store.scored.read()) == records
        assert asked_when_committed
        assert all(
            server.asked[texts[record_id]] == count for record_id, count in asked_when_committed.items()
        )
        assert max(server.asked.values()) <= kills + 1
        assert job.store.scored.content_hash(leave_out=["duration_s"]) == expected
        assert all("not listed" in problem for problem in job.store.scored.verify())


def test_a_pre_annotation_killed_three_times_asks_no_committed_record_twice_and_misses_none(
    tmp_path: Path,
) -> None:
    _killed_at_random(tmp_path, records=200, shard=16, kills=3, seed=7)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(12))
def test_a_pre_annotation_killed_ten_times_gives_the_same_table(tmp_path: Path, seed: int) -> None:
    _killed_at_random(tmp_path, records=1000, shard=32, kills=10, seed=seed)


def test_a_kill_between_set_aside_and_scored_rows_of_a_shard_loses_nothing(
    work: Callable[..., Work], scripted: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = work([f"text {number}" for number in range(29)] + ["a bad one"], shard=30)
    scripted.misbehave("bad", "length stop")
    append = Table.append

    def die(self: Table, *given: Any, **named: Any) -> Any:
        if self.folder == job.store.scored.folder:
            raise SystemExit  # where the kernel would stop a killed process
        return append(self, *given, **named)

    monkeypatch.setattr(Table, "append", die)
    with pytest.raises(SystemExit):
        job.score()
    monkeypatch.undo()
    job.score()

    assert len(job.scored()) == 29
    assert len(job.rejected()) == 1
    assert scripted.asked["a bad one"] == 3
