"""Raw scores, kept under what decides them: the engine's identity and the prompt.

A score is asked for once in a project's life: the setup sample, round 1 and round 2 with an unchanged prompt all read
the same rows. A shard is committed whole or not at all, so a killed run asks again only what it had not committed.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from labeling.engines.protocol import Engine
from labeling.label_lists import label_lists
from labeling.paths import ProjectFolder
from labeling.prompts import Prompt
from labeling.scoring import CONTROL_TEXT, NO_ANSWER, NO_LABEL, TOO_LONG, BatchOutcome, score_batch
from labeling.storage import Table, write_content_addressed
from schemas import tables
from schemas.errors import EngineUnavailable, IdentityChanged, LabelsNotTold, TooManyRejected
from schemas.project import Project

SCORED = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("log_probs", pa.list_(pa.float64()), nullable=False),
        pa.field("label_mass", pa.float64(), nullable=False),
        pa.field("tokens_sent", pa.int32(), nullable=False),
        pa.field("tokens_cached", pa.int32(), nullable=False),
        pa.field("fit", pa.string(), nullable=False),
        pa.field("attempts", pa.int16(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
    ]
)
LEAST_FOR_SHARE = 20
REMEDIES = {
    NO_LABEL: "With this prompt the model hardly thinks of the labels: try other prompts or a larger model "
    "(`countersign compare`), give each label a common `word`, or use llama-server or the embedded engine, which tell "
    "every label.",
    TOO_LONG: "Choose prompts.over_long: head_tail or windows, a shorter prompt or a larger engine.context.",
    CONTROL_TEXT: "Use the embedded engine or llama-server, which take such texts as text.",
}
CHOSEN = "chosen"  # origin of shards that were not made from a whole part of records


class ScoreStore:
    """Scores and set-aside records of one engine identity and one prompt."""

    def __init__(self, project: Project, folder: ProjectFolder, *, identity_id: str, prompt_id: str) -> None:
        root = folder.scores(identity_id, prompt_id)
        self.identity_id, self.prompt_id = identity_id, prompt_id
        self.scored = Table(root / "scored", SCORED)
        self.rejected = Table(root / "rejected", tables.rejected(project.label_schema.task))
        self._refuses = project.prompts.over_long == "refuse"

    def asked(self) -> set[str]:
        """Records that were asked and answered, or set aside."""
        return self._scored_ids() | set(self.rejected.read(["record_id"])["record_id"])

    def known(self) -> set[str]:
        """Records that are not asked again: all that were asked, but those that met an engine that was away. These are
        asked once more: a server that restarts for some seconds says nothing about the records of that time. So are
        those that were too long, where the project has long records fitted: it may have refused them before."""
        rejected = self.rejected.read(["record_id", "reason"])
        passing = pl.col("reason").str.starts_with(NO_ANSWER)
        if not self._refuses:
            passing |= pl.col("reason").str.starts_with(TOO_LONG)
        final = rejected.filter(~passing | pl.col("record_id").is_duplicated())
        return self._scored_ids() | set(final["record_id"])

    def _scored_ids(self) -> set[str]:
        return set(self.scored.read(["record_id"])["record_id"])

    def set_aside(self) -> pl.DataFrame:
        """The last row of each record that was set aside and has no score since."""
        rows = self.rejected.read().unique("record_id", keep="last", maintain_order=True)
        return rows.join(self.scored.read(["record_id"]), on="record_id", how="anti") if rows.height else rows

    def rows(self, columns: Sequence[str], *, origin: str | None = None) -> pl.DataFrame:
        """Scored rows; with `origin` only the shards made from that part of records, and those of chosen records.

        An origin nobody knows (scores brought over from another project with the same records) means all rows.
        """
        if not any(meta.get("origin") == origin for meta in self.scored.metas()):
            origin = None
        frames = [
            self.scored.read_part(part, columns)
            for part in self.scored.parts()
            if origin is None or part.meta.get("origin") in (origin, CHOSEN)
        ]
        return pl.concat(frames) if frames else self.scored.read(columns).clear()

    def matrix(
        self, wanted: Sequence[str], *, origin: str | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(n, K) log-probabilities (a row of NaN where there are none) and (n,) label mass, in the order asked for."""
        frame = pl.DataFrame({"record_id": list(wanted)}, schema={"record_id": pl.String}).join(
            self.rows(["record_id", "log_probs", "label_mass"], origin=origin).unique(
                "record_id", keep="first"
            ),
            on="record_id",
            how="left",
            maintain_order="left",
        )
        rows = frame["log_probs"].to_list()
        width = next((len(row) for row in rows if row is not None), 1)
        matrix = np.array([row if row is not None else [np.nan] * width for row in rows], dtype=np.float64)
        return matrix.reshape(len(rows), width), frame["label_mass"].cast(pl.Float64).to_numpy().astype(
            np.float64
        )


def calls_so_far(project: Project, folder: ProjectFolder) -> int:
    """How often any model was asked for a record's scores in the project's life, repeated tries counted."""
    total = 0
    for identity_id, prompt_id in folder.scored_with():
        store = ScoreStore(project, folder, identity_id=identity_id, prompt_id=prompt_id)
        total += sum(sum(table.read(["attempts"])["attempts"]) for table in (store.scored, store.rejected))
    return total


def register(project: Project, folder: ProjectFolder, engine: Engine, prompt: Prompt) -> ScoreStore:
    """Writes down who the engine is and what the prompt says, and opens the scores of the two."""
    identity_id = write_content_addressed(folder.identities, engine.identity().as_dict())
    prompt_id = write_content_addressed(folder.prompts_used, prompt.as_dict())
    return ScoreStore(project, folder, identity_id=identity_id, prompt_id=prompt_id)


def score_missing(
    engine: Engine,
    prompt: Prompt,
    store: ScoreStore,
    records: Iterator[tuple[str, str]],
    *,
    project: Project,
    folder: ProjectFolder,
    known: Collection[str],
    origin: str = CHOSEN,
    on_record: Callable[[], None] | None = None,
) -> Iterator[BatchOutcome]:
    """Scores what is not known yet, yielding after each committed shard.

    Raises:
        IdentityChanged: the model was swapped; nothing of the shard at hand is stored.
        TooManyRejected: the shard's set-aside share is above `quality.max_rejected_share`; it is not stored either.
            Shards too small to tell are judged together with those before them.
        LabelsNotTold: so it is, and mostly because the model had no label in mind.
    """
    asked = lost = 0
    fresh = (record for record in records if record[0] not in known)
    lists = label_lists(project, folder, engine, prompt)
    while shard := list(islice(fresh, project.limits.shard_records)):
        ask = partial(
            score_batch,
            engine,
            prompt,
            shard,
            over_long=project.prompts.over_long,
            prompt_for=None if lists is None else lists.prompt_for,
            most_set_aside=int(project.quality.max_rejected_share * len(shard))
            if len(shard) >= LEAST_FOR_SHARE
            else None,
        )
        outcome = ask(on_record=on_record)
        try:
            _check_identity(engine, folder, store)
        except EngineUnavailable:
            # One of several servers answered and is gone, so that nobody knows what it was: the others are asked.
            outcome = ask()
            _check_identity(engine, folder, store)
        asked += len(shard)
        lost += len(outcome.set_aside)
        if len(shard) >= LEAST_FOR_SHARE:
            _check_share(outcome, project, lost=len(outcome.set_aside), asked=len(shard))
        elif asked >= LEAST_FOR_SHARE:
            _check_share(outcome, project, lost=lost, asked=asked)
        commit(store, outcome, origin=origin)
        yield outcome


def _check_identity(engine: Engine, folder: ProjectFolder, store: ScoreStore) -> None:
    now = write_content_addressed(folder.identities, engine.identity().as_dict())
    if now != store.identity_id:
        raise IdentityChanged(
            "engine",
            found=f"identity {now}",
            expected=f"{store.identity_id}, as at the start of the run",
            next_step="The model behind the engine was changed. Nothing of this batch was stored; run again to start "
            "a new set of suggestions with the new model, or put the old one back.",
        )


def _check_share(outcome: BatchOutcome, project: Project, *, lost: int, asked: int) -> None:
    if outcome.set_aside and lost / asked > project.quality.max_rejected_share:
        reasons: dict[str, int] = {}
        for item in outcome.set_aside:
            reason = item.reason.split(":", 1)[0]
            reasons[reason] = reasons.get(reason, 0) + 1
        most = max(reasons, key=lambda reason: reasons[reason])
        of_the_prompt = 2 * reasons.get(NO_LABEL, 0) > len(outcome.set_aside)
        kind = LabelsNotTold if of_the_prompt else TooManyRejected
        raise kind(
            "pre-annotation",
            found=f"{lost} of {asked} records without a usable reply ({reasons}); "
            f"for example: {outcome.set_aside[0].reason}",
            expected=f"at most {project.quality.max_rejected_share:.0%} (quality.max_rejected_share)",
            next_step=f"{REMEDIES.get(most, 'Check the engine.')} This shard was not stored, earlier ones were. Run "
            "again to go on.",
        )


def commit(store: ScoreStore, outcome: BatchOutcome, *, origin: str = CHOSEN) -> None:
    """Stores a shard: set-aside records first, so that a crash between the two only asks the scored ones again."""
    if outcome.set_aside:
        store.rejected.append(
            [
                {
                    "record_id": item.record_id,
                    "reason": item.reason,
                    "raw_reply": item.raw_reply[:4096],
                    "attempts": item.attempts,
                    "identity_id": store.identity_id,
                    "prompt_id": store.prompt_id,
                }
                for item in outcome.set_aside
            ]
        )
    if outcome.scored:
        rows = outcome.scored
        store.scored.append(
            pa.table(
                {
                    "record_id": [row.record_id for row in rows],
                    "log_probs": [list(row.log_probs) for row in rows],
                    "label_mass": [row.label_mass for row in rows],
                    "tokens_sent": [row.tokens_sent for row in rows],
                    "tokens_cached": [row.tokens_cached for row in rows],
                    "fit": [row.fit for row in rows],
                    "attempts": [row.attempts for row in rows],
                    "duration_s": [row.duration_s for row in rows],
                },
            ).cast(SCORED),
            meta={"origin": origin},
        )
