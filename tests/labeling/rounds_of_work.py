"""A whole project worked through its phases by plain functions: no Prefect, no browser, simulated people."""

import hashlib
import random
from pathlib import Path
from typing import Any

from small_projects import write_project

from labeling.cascade import left_to_student
from labeling.closing import signing_files
from labeling.database import accounts, queue, rounds
from labeling.database.accounts import Account
from labeling.database.connection import Database
from labeling.database.opening import project_database
from labeling.engines.opening import connect_embedder, connect_engine
from labeling.ingest import ingest
from labeling.iterating import make_plan
from labeling.paths import ProjectFolder
from labeling.prompts import prompt_of
from labeling.quality import settle, start_quality
from labeling.record_store import Vectors, embed_lexically, embed_missing, records_table, stream_records
from labeling.release import export_release
from labeling.reporting import write_report
from labeling.reviewing import (
    open_review,
    queue_sample,
    round_figures,
    sample_labels,
    settled_values,
    write_annotations,
)
from labeling.score_store import register, score_missing
from labeling.setup import draw_sample, load_plan, measure_prompts, save_setup
from labeling.storage import read_json
from labeling.suggesting import write_suggestions
from labeling.task_types import task_type
from schemas.plan import Plan
from schemas.project import Project
from schemas.review import Action, DecisionIn, Role, RoundState, SignOff

PASSWORD = "correct horse battery staple"
_WORDS = [
    "river",
    "lamp",
    "stone",
    "cloud",
    "paper",
    "violin",
    "harbour",
    "winter",
    "garden",
    "copper",
    "mirror",
    "forest",
    "engine",
    "bridge",
    "candle",
    "desert",
    "island",
    "marble",
    "needle",
    "orange",
    "pepper",
    "quartz",
    "ribbon",
    "saddle",
    "temple",
    "umbrella",
    "valley",
    "walnut",
    "yellow",
    "zephyr",
    "anchor",
    "basket",
    "cactus",
    "dragon",
    "feather",
    "glacier",
    "hammer",
    "insect",
    "jungle",
    "kettle",
    "lantern",
    "magnet",
    "nectar",
    "oyster",
    "pillow",
    "rocket",
]


def rows_with_truth(
    count: int, *, labels: tuple[str, ...] = ("alpha", "beta"), seed: int = 3
) -> list[dict[str, str]]:
    """Texts without near-duplicates; most mention their true label, some mention another or none."""
    dice = random.Random(seed)
    rows = []
    for number in range(count):
        truth = labels[number % len(labels)]
        mentioned = truth if dice.random() < 0.75 else dice.choice([*labels, "nothing"])
        words = dice.sample(_WORDS, 9)
        words.insert(dice.randrange(9), mentioned)
        rows.append({"key": f"k{number:04d}", "text": " ".join(words), "truth": truth})
    return rows


class Loop:
    """One project and everybody who works on it.

    Attributes:
        truth: True label by record id.
        careless: Share of records on which the second annotator errs, the same ones each time.
    """

    careless = 0.15

    def __init__(
        self, root: Path, url: str, *, records: int = 130, rehearsal: bool = True, **settings: Any
    ) -> None:
        self.rows = rows_with_truth(records)
        sections: dict[str, Any] = {
            "setup": {"sample": 20, "threshold": 0.6},
            "review": {"round_records": 24, "blind_slice": 20, "overlap_share": 0.4},
            "limits": {"shard_records": 32},
            "embedding": {"kind": "llama-server", "model": "scripted", "endpoints": [url]},
            "seed": 11,
            **settings,
        }
        self.project, self.folder = write_project(
            root, self.rows, source={"id": "key"}, engine_url=url, **sections
        )
        ingest(self.project, self.folder)
        self._open(rehearsal)
        self.people = {
            name: self._person(role, name)
            for name, role in {
                "ann": Role.ANNOTATOR,
                "bob": Role.ANNOTATOR,
                "lea": Role.MANAGER,
                "rex": Role.REVIEWER,
            }.items()
        }

    def _open(self, rehearsal: bool) -> None:
        self.engine = connect_engine(self.project)
        self.db: Database = project_database(self.project, self.folder, rehearsal=rehearsal)
        by_key = {row["key"]: row["truth"] for row in self.rows}
        told = records_table(self.project, self.folder).read(["record_id", "source_id"])
        self.truth = {record_id: by_key[key] for record_id, key in told.iter_rows()}
        self.check = task_type(self.project).check
        self._keys = 0

    def _person(self, role: Role, name: str) -> Account:
        token = accounts.invite(self.db, role, name, by=accounts.OPERATOR)
        return accounts.accept_invitation(self.db, token, name, PASSWORD)

    def close(self) -> None:
        self.db.close()
        self.engine.close()

    def key(self) -> str:
        self._keys += 1
        return f"loop-{id(self):x}-{self._keys:06d}"

    @property
    def vectors(self) -> Vectors | None:
        return Vectors.load(self.project, self.folder)

    # -- what people do ------------------------------------------------------------------------------------------------

    def answer(self, name: str, record_id: str) -> str:
        """What somebody says about a record: the truth, but for bob's slips."""
        truth = self.truth[record_id]
        digest = hashlib.sha256(f"{name}{record_id}".encode()).digest()
        if name == "bob" and digest[0] / 256 < self.careless:
            return next(label for label in self.project.label_schema.names if label != truth)
        return truth

    def decide_one(self, name: str) -> bool:
        """Whether there was a record for this person."""
        person = self.people[name]
        given = queue.claim(self.db, person.id)
        if given is None:
            return False
        value = self.answer(name, given.record_id)
        same = given.suggestion is not None and given.suggestion["value"] == value
        decision = DecisionIn(
            assignment_id=given.assignment_id,
            idempotency_key=self.key(),
            expected_version=given.version,
            action=Action.ACCEPT if same else Action.CORRECT,
            value=value,
            seconds=4.0,
        )
        queue.decide(self.db, person.id, decision, check_value=self.check)
        return True

    def label_all(self) -> int:
        count = 0
        while any([self.decide_one("ann"), self.decide_one("bob")]):
            count += 1
        return count

    def sign(self, number: int) -> None:
        sign_off = SignOff(verdict="approve", signed_by="lea", note="looked at it")
        figures = {
            **round_figures(self.project, self.db, number),
            "files": signing_files(self.folder, number),
        }
        rounds.sign(self.db, number, sign_off, figures)

    def adjudicate(self, number: int) -> None:
        judge = self.people["rex"].id
        for dispute in queue.disputes(self.db, judge, number):
            queue.adjudicate(
                self.db,
                judge,
                number,
                dispute.record_id,
                value=self.truth[dispute.record_id],
                expected_version=dispute.version,
                idempotency_key=self.key(),
                check_value=self.check,
            )

    # -- phases --------------------------------------------------------------------------------------------------------

    def setup(self) -> Plan:
        embedder = connect_embedder(self.project)
        if embedder is not None:
            embed_missing(self.project, self.folder, embedder)
            embed_lexically(self.project, self.folder)
            embedder.close()
        sample = draw_sample(self.project, self.folder)
        queue_sample(self.project, self.folder, self.db, sample, rehearsal=self.db.rehearsal)
        self.label_all()
        plan, figures = measure_prompts(self.project, self.folder, self.engine, sample_labels(self.db))
        save_setup(self.folder, plan, figures)
        return plan

    def score(self, number: int) -> int:
        plan = load_plan(self.folder, number)
        prompt = prompt_of(read_json(self.folder.prompts_used / f"{plan.prompt_id}.json"))
        store = register(self.project, self.folder, self.engine, prompt)
        scored = 0
        left = left_to_student(self.project, self.folder, plan, self.vectors)
        for part, frame in stream_records(self.project, self.folder, ["text"]):
            shards = score_missing(
                self.engine,
                prompt,
                store,
                frame.select("record_id", "text").iter_rows(),
                project=self.project,
                folder=self.folder,
                known=store.known() | left,
                origin=part.path,
            )
            scored += sum(len(outcome.scored) for outcome in shards)
        return scored

    def suggest(self, number: int) -> dict[str, Any]:
        self.score(number)
        return write_suggestions(self.project, self.folder, load_plan(self.folder, number), self.vectors)

    def review(self, number: int) -> None:
        open_review(self.project, self.folder, self.db, number, self.vectors, rehearsal=self.db.rehearsal)
        self.label_all()
        self.sign(number)

    def assure(self, number: int) -> dict[str, Any]:
        annotations = write_annotations(self.project, self.folder, self.db, number)
        start_quality(self.project, self.folder, self.db, number, annotations, self.vectors)
        if rounds.state_of(self.db, number) is RoundState.ADJUDICATING:
            self.adjudicate(number)
        settled = settle(self.project, self.folder, self.db, number, annotations)
        write_report(self.project, self.folder, self.db, number)
        return settled

    def export(self, number: int) -> Path:
        return export_release(self.project, self.folder, self.db, number)[0]

    def iterate(self, number: int) -> Plan:
        """The plan of the round after `number`."""
        return make_plan(
            self.project,
            self.folder,
            self.engine,
            self.vectors,
            number=number + 1,
            settled=settled_values(self.project, self.folder, number + 1),
        )

    def whole_round(self, number: int) -> None:
        self.suggest(number)
        self.review(number)
        self.assure(number)


def reopened(root: Path, loop: Loop) -> Loop:
    """The same project in another folder, with connections of its own."""
    again = Loop.__new__(Loop)
    again.rows, again.people = loop.rows, loop.people
    again.project, again.folder = loop.project, ProjectFolder(root)
    again._open(rehearsal=False)
    return again


def project_of(loop: Loop) -> Project:
    return loop.project
