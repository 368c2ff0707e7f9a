"""`countersign rehearse`: the whole loop on labelled data, through the same queue, gates and flows.

Simulated annotators log in to the review app over HTTP; the review flow runs as a deployment and suspends at the gate;
a simulated lead resumes it through the Prefect API with the same form a person fills in. Everything is written into a
project of its own, stamped as a rehearsal for ever.
"""

import secrets
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from countersign.daily import resume, wait_for_deployment
from countersign.driving import prefect_running, run_phase
from countersign.output import say
from deployments.services import Service, start_review_app, start_runner
from labeling.database import accounts
from labeling.database.opening import project_database
from labeling.flagged import load_findings
from labeling.paths import ProjectFolder
from labeling.project_file import load_project
from labeling.record_store import records_table
from labeling.rehearsal import SimulatedPerson, erring, work_together
from labeling.score_store import calls_so_far
from labeling.status import all_decided
from labeling.storage import Table, read_json, write_bytes
from labeling.task_types import task_type
from schemas import tables
from schemas.errors import GateRefused, ProjectError
from schemas.project import Project
from schemas.review import Role
from schemas.values import Value, canonical_json

FLOW_TIMEOUT_S = 600.0


@dataclass
class Rehearsal:
    """What to rehearse.

    Attributes:
        annotator_columns: Columns with what each annotator says; empty: all say the truth, but for their errors.
    """

    project: Path
    truth: str
    rounds: int = 2
    annotators: int = 2
    annotator_error: float = 0.0
    annotator_columns: tuple[str, ...] = ()
    seed: int = 20260101

    def run(self) -> dict[str, Any]:
        """Runs it from the first phase to the last release; returns what cli.md lists."""
        started = time.monotonic()
        original, home = load_project(self.project)
        root = home.rehearsals / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{self.seed}"
        self._prepare(original, home, root)
        project, folder = load_project(root)
        services: list[Service] = []
        with project_database(project, folder, rehearsal=True):
            pass  # stamped before anybody can write into it
        with prefect_running() as url:
            try:
                services.append(start_review_app(folder.root, project.name, local_user=False))
                services.append(start_runner(url, [folder.root], rehearsal=True))
                answer = _Cast(self, project, folder, services[0].url).play()
            finally:
                for service in reversed(services):
                    service.stop()
        answer["wall_s"] = round(time.monotonic() - started, 1)
        return answer

    def _prepare(self, original: Project, home: ProjectFolder, root: Path) -> None:
        """A project of its own beside the real one: same settings, the truth columns carried as metadata."""
        if (root / "project.yaml").exists():
            raise ProjectError(
                str(root),
                found="a project",
                expected="a new folder",
                next_step="Remove it or choose another folder.",
            )
        columns = (self.truth, *self.annotator_columns)
        settings = original.model_dump(by_alias=True, mode="json")
        settings["name"] = f"{original.name[:48]}-rehearsal"
        settings["title"] = f"{original.title or original.name} (rehearsal)"
        settings["seed"] = self.seed
        # Simulated people belong to no pool, and nobody could take a record that asks for more of them than there are.
        people = len(self.annotator_columns) or self.annotators
        settings["review"]["routes"] = []
        settings["review"]["overlap"] = max(2, min(original.review.overlap, people))
        if people < 2:
            settings["review"]["overlap_share"] = 0.0
        settings["storage"] = {"database": None}
        settings["schedules"] = {}
        for source in settings["sources"]:
            source["path"] = str((home.root / source["path"]).resolve())
            source["gold"] = None
            source["metadata"] = list(dict.fromkeys([*source["metadata"], *columns]))
        write_bytes(
            root / "project.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode()
        )
        for name in (original.label_schema.guideline, *original.prompts.files):
            source_file = home.root / name
            if not name.startswith("builtin:") and source_file.is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source_file, root / name)


class _Cast:
    """The people of a rehearsal and the phases they go through."""

    def __init__(self, plan: Rehearsal, project: Project, folder: ProjectFolder, url: str) -> None:
        self.plan, self.project, self.folder, self.url = plan, project, folder, url
        self.scored, self.score_seconds = 0, 0.0
        self.calls: list[int] = []  # of the language model, a round each
        self.student_alone: list[int] = []

    def play(self) -> dict[str, Any]:
        say("Phase setup: reading the source, drawing the blind sample")
        self._phase("setup", 1)
        columns = self._columns()
        truth = columns[self.plan.truth]
        people = self._people(columns)
        judge = SimulatedPerson(
            self.url, name="sim-judge", **self._invitation(Role.REVIEWER, "Simulated judge")
        )
        self._lead()
        say(f"{len(people)} simulated annotators label the sample in the review app")
        work_together(people, seed=self.plan.seed)
        self._setup_gate(self._phase("setup", 1))
        rounds: list[dict[str, Any]] = []
        released: dict[str, Any] = {}
        for number in range(1, self.plan.rounds + 1):
            say(f"Round {number}, phase pre_annotate: the model drafts labels")
            counts = self._phase("pre_annotate", number)
            self.scored += counts["scored"]
            self.score_seconds += counts["score_seconds"]
            self.calls.append(calls_so_far(self.project, self.folder) - sum(self.calls))
            self.student_alone.append(counts["student_alone"])
            say(f"Round {number}, phase review: people decide, a lead signs the gate in Prefect")
            self._review(number, people)
            say(f"Round {number}, phase qa")
            outcome = self._phase("qa", number)
            if outcome["state"] == "waiting":
                say("  " + " ".join(outcome["waiting_for"]))
                judge.adjudicate_all(lambda record_id: truth[record_id], seed=self.plan.seed)
                outcome = self._phase("qa", number)
            rounds.append(outcome["figures"])
            _tell_round(outcome["figures"])
            say(f"Round {number}, phase export: checks and release v{number}")
            released = self._phase("export", number)
            if number == self.plan.rounds or all_decided(self.project, self.folder, number):
                break
            say(f"Round {number}, phase iterate: what the round taught")
            for sentence in self._phase("iterate", number)["plan"]:
                say(f"  {sentence}")
        for person, _ in people:
            person.close()
        judge.close()
        return self._answer(rounds, released, truth)

    def _phase(self, phase: str, number: int) -> dict[str, Any]:
        return run_phase(phase, self.folder.root, number, rehearsal=True)

    def _columns(self) -> dict[str, dict[str, Value]]:
        """What every truth column says of every record."""
        kind = task_type(self.project)
        frame = records_table(self.project, self.folder).read(["record_id", "metadata"])
        columns: dict[str, dict[str, Value]] = {}
        for record_id, metadata in frame.iter_rows():
            for name, cell in metadata.items():
                columns.setdefault(name, {})[record_id] = kind.from_source(cell)
        for name, values in columns.items():
            empty = [record_id for record_id, value in values.items() if value is None]
            if empty and name in (self.plan.truth, *self.plan.annotator_columns):
                raise ProjectError(
                    f"column {name!r}",
                    found=f"{len(empty)} records without a label",
                    expected="a label for every record",
                    next_step="Rehearse on the labelled part of the data.",
                )
        return columns

    def _invitation(self, role: Role, title: str) -> dict[str, str]:
        with project_database(self.project, self.folder) as db:
            token = accounts.invite(db, role, title, by=accounts.OPERATOR)
        return {"invitation": token, "password": secrets.token_urlsafe(18)}

    def _people(self, columns: dict[str, dict[str, Value]]) -> list[Any]:
        labels = self.project.label_schema.names
        people = []
        said = self.plan.annotator_columns or (self.plan.truth,) * self.plan.annotators
        for index, column in enumerate(said, start=1):
            name = f"sim-{index}"
            person = SimulatedPerson(
                self.url, name=name, **self._invitation(Role.ANNOTATOR, f"Simulated annotator {index}")
            )
            answer = erring(
                columns[column], labels, error_share=self.plan.annotator_error, seed=self.plan.seed, name=name
            )
            people.append((person, answer))
        return people

    def _lead(self) -> None:
        with project_database(self.project, self.folder) as db:
            token = accounts.invite(db, Role.MANAGER, "Simulated lead", by=accounts.OPERATOR)
            accounts.accept_invitation(db, token, "sim-lead", secrets.token_urlsafe(18))

    def _setup_gate(self, answer: dict[str, Any]) -> None:
        say(f"  {answer['figures']['sentence']}")
        if answer["state"] == "done":
            return
        from countersign.gating import decide

        note = (
            "Rehearsal: goes on with drafts of this quality, to see what the rest of the loop makes of them."
        )
        decide(self.folder.root, "approve", by="sim-lead", note=note)
        say("  The gate was not passed; the simulated lead signs to go on all the same (recorded).")

    def _review(self, number: int, people: list[Any]) -> None:
        from prefect.deployments import run_deployment

        given = {"project": str(self.folder.root), "round_number": number, "rehearsal": True}
        wait_for_deployment(f"review/{self.project.name}")
        run = run_deployment(
            f"review/{self.project.name}", parameters={"run": given}, timeout=0, as_subflow=False, _sync=True
        )
        _await_state(run.id, "PAUSED")
        decisions = work_together(people, seed=self.plan.seed + number)
        say(f"  {decisions} decisions through the review app; signing the gate")
        form = {"verdict": "approve", "signed_by": "sim-lead", "note": f"Rehearsal of round {number}"}
        resume(run.id, form)
        _await_state(run.id, "COMPLETED")

    def _answer(
        self, rounds: list[dict[str, Any]], released: dict[str, Any], truth: dict[str, Value]
    ) -> dict[str, Any]:
        release = Path(released["release"])
        provenance = pl.read_parquet(release / "provenance.parquet").select("record_id", "final", "how")
        wrong = sum(
            final != canonical_json(truth[record_id]) for record_id, final, _ in provenance.iter_rows()
        )
        automatic = provenance.filter(pl.col("how") == "automatic")
        plan = read_json(self.folder.round(1).plan)
        identity = read_json(self.folder.identities / f"{plan['identity_id']}.json")
        task = self.project.label_schema.task
        findings = sum(load_findings(self.project, self.folder, entry["round"]).height for entry in rounds)
        assisted, accepted = sum(r["assisted"] for r in rounds), sum(r["accepted"] for r in rounds)
        return {
            "rehearsal": True,
            "task": task.value,
            "records": released["counts"]["records"],
            "seed": self.plan.seed,
            "engine": f"{identity['engine']} {identity['engine_version']}",
            "model": identity["model"],
            "rounds": [
                {
                    "round": entry["round"],
                    "accuracy": entry["accuracy"],
                    "gain": entry["gain"],
                    "calibrated": {
                        "log_loss": entry["calibrated"]["log_loss"]["value"],
                        "auroc": entry["calibrated"]["auroc"]["value"],
                    },
                    "human_labels": entry["human_labels"],
                    "auto_accepted": entry["auto_accepted"],
                    "llm_calls": calls,
                    "student_alone": alone,
                }
                for entry, calls, alone in zip(rounds, self.calls, self.student_alone, strict=True)
            ],
            "guarantee": {
                "epsilon": None,
                "alpha": None,
                "statement": "No label was accepted without a person, so there is nothing to guarantee yet.",
            },
            "human_labels_total": sum(entry["human_labels"] for entry in rounds),
            "effort_saved_share": automatic.height / provenance.height if provenance.height else None,
            "accepted_as_suggested_share": accepted / assisted if assisted else None,
            "valid_suggestion_share": _valid_share(self.project, self.folder, len(rounds)),
            "settled": provenance.height,
            "final_error": wrong / provenance.height if provenance.height else None,
            "auto_accepted_error": None,
            "findings": findings,
            "release": str(release),
            "report": str(release / "report.html"),
            "project": str(self.folder.root),
            "suggestions_per_s": round(self.scored / self.score_seconds, 2) if self.score_seconds else None,
        }


def _valid_share(project: Project, folder: ProjectFolder, rounds: int) -> float | None:
    """Share of the model's suggestions that are legal labels; what was set aside counts against it."""
    kind, task = task_type(project), project.label_schema.task
    valid = total = 0
    for number in range(1, rounds + 1):
        values = (
            Table(folder.round(number).suggestions, tables.suggestions(task))
            .read(["value"])["value"]
            .to_list()
        )
        valid += sum(value in kind.labels for value in values) if kind.one_token else len(values)
        total += len(values) + Table(folder.round(number).rejected, tables.rejected(task)).rows()
    return valid / total if total else None


def _tell_round(figures: dict[str, Any]) -> None:
    accuracy, gain = figures["accuracy"], figures["gain"]
    if accuracy["value"] is None:
        say("  Accuracy on the slice is undefined: nothing of it was labelled.")
        return
    say(
        f"  Drafts right on the slice no loop sees: {accuracy['value']:.1%} "
        f"({accuracy['low']:.1%} to {accuracy['high']:.1%}, n = {accuracy['n']})"
    )
    if gain is not None and gain["value"] is not None:
        verdict = (
            "a rise"
            if gain["low"] > 0
            else "a fall"
            if gain["high"] < 0
            else "no change that could not be chance"
        )
        say(
            f"  Against the round before: {gain['value']:+.1%} ({gain['low']:+.1%} to {gain['high']:+.1%}): {verdict}"
        )


def _await_state(run_id: Any, wanted: str) -> None:
    from prefect.client.orchestration import get_client

    deadline = time.monotonic() + FLOW_TIMEOUT_S
    with get_client(sync_client=True) as client:
        while True:
            state = client.read_flow_run(run_id).state
            kind = "none" if state is None else state.type.value
            if kind == wanted:
                return
            if kind in ("FAILED", "CRASHED", "CANCELLED") or time.monotonic() > deadline:
                raise GateRefused(
                    f"flow run {run_id}",
                    found=f"state {kind}: {state.message if state else ''}",
                    expected=wanted,
                    next_step="Read the logs of the flow run in the Prefect UI.",
                )
            time.sleep(0.3)


def rehearsal_text(answer: dict[str, Any]) -> str:
    """The outcome for people."""
    lines = ["", "REHEARSAL: annotators were simulated; nothing here is real labelling.", ""]
    for entry in answer["rounds"]:
        accuracy = entry["accuracy"]
        shown = (
            "undefined"
            if accuracy["value"] is None
            else f"{accuracy['value']:.1%} ({accuracy['low']:.1%}-{accuracy['high']:.1%})"
        )
        lines.append(
            f"round {entry['round']}: drafts right {shown}, {entry['human_labels']} decisions by people, "
            f"{entry['llm_calls']} calls of the model, {entry['student_alone']} records answered by the student alone"
        )
    error = answer["final_error"]
    accepted = answer["accepted_as_suggested_share"]
    pace = answer["suggestions_per_s"]
    lines += [
        f"released: {answer['settled']} settled records of {answer['records']}, "
        f"error against the truth column {'undefined' if error is None else f'{error:.1%}'}",
        f"saved: {'undefined' if accepted is None else f'{accepted:.0%}'} of the suggestions shown needed one key "
        "only; none was accepted without a person",
        f"model: {answer['model']} on {answer['engine']}" + (f", {pace} drafts/s" if pace else ""),
        f"findings: {answer['findings']}",
        f"report:  {answer['report']}",
        f"release: {answer['release']}",
        f"took {answer['wall_s']:.0f} s",
    ]
    return "\n".join(lines)
