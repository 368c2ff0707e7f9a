"""The co-pilot: a suggestion made as a record opens, shown the labels people gave just before to records alike.

It helps where the table has no suggestion (a reply that could not be used, a round opened before pre-annotation). What
it says carries no confidence: nothing was ever calibrated on it. It never stands in anybody's way: an engine that is
busy, slow or gone means no suggestion, and is left alone for a while.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from labeling.alike import most_alike
from labeling.engines.protocol import Engine, LabelCode
from labeling.engines.sharing import shared_engine
from labeling.paths import ProjectFolder
from labeling.prompts import Exemplar, Prompt, bind, label_codes, load_template, only_text
from labeling.scoring import Scored, score_batch
from labeling.storage import read_json, write_content_addressed
from labeling.task_types import task_type
from schemas.errors import LabelingError
from schemas.project import Project

LONGEST_EXEMPLAR = 600  # characters; a long example would cost the person its reading time
TURN_TIMEOUT_S = 2.0
PAUSE_S = 60.0  # after a failure; an engine that is down must not be asked with every record


@dataclass(frozen=True)
class Recent:
    """An answer somebody gave a moment ago."""

    record_id: str
    text: str
    label: str


@dataclass(frozen=True)
class Fresh:
    """A suggestion made just now.

    Attributes:
        value: The likeliest label.
        others: The next labels with their share of the label tokens' probability; not calibrated.
        exemplars: The recent answers in the prompt, the most alike last.
        made: What made it: template, prompt, identity of the engine, exemplars; plain data.
    """

    value: str
    others: tuple[tuple[str, float], ...]
    exemplars: tuple[Recent, ...]
    made: dict[str, Any]


class Copilot:
    """One a process; opens the engine with the first record that needs it."""

    def __init__(
        self, project: Project, folder: ProjectFolder, engine: Callable[[Project], Engine] = shared_engine
    ) -> None:
        self._project, self._folder, self._open = project, folder, engine
        self._turn = threading.Lock()
        self._codes: tuple[LabelCode, ...] | None = None
        self._quiet_until = 0.0
        self.able = task_type(project).one_token

    def suggest(self, number: int, record_id: str, text: str, recent: Sequence[Recent]) -> Fresh | None:
        """A suggestion for one record, or None: the task is not labelled by one token, the engine is busy or failed.

        Args:
            number: The round, whose prompt is used.
            record_id: The record; its own answers are never among the exemplars.
            text: Its text.
            recent: Answers to choose exemplars from.
        """
        if (
            not self.able
            or time.monotonic() < self._quiet_until
            or not self._turn.acquire(timeout=TURN_TIMEOUT_S)
        ):
            return None
        try:
            return self._made(number, record_id, text, recent)
        except LabelingError:
            self._quiet_until = time.monotonic() + PAUSE_S
            return None
        finally:
            self._turn.release()

    def _made(self, number: int, record_id: str, text: str, recent: Sequence[Recent]) -> Fresh | None:
        engine = self._open(self._project)
        plain = [one for one in recent if only_text(one.text, engine.control_marks)]
        chosen = exemplars_for(record_id, text, plain, most=self._project.prompts.exemplars)
        prompt = self._prompt(engine, number, chosen)
        outcome = score_batch(
            engine, prompt, [(record_id, text)], over_long=self._project.prompts.over_long, in_flight=1
        )
        return self._told(engine, prompt, outcome.scored[0], chosen) if outcome.scored else None

    def _prompt(self, engine: Engine, number: int, chosen: Sequence[Recent]) -> Prompt:
        if self._codes is None:
            self._codes = label_codes(
                self._project.label_schema.labels, engine.first_token, style=self._project.prompts.codes
            )
        plan = self._folder.round(number).plan
        name = read_json(plan)["template"] if plan.is_file() else self._project.prompts.files[0]
        template = load_template(name, self._folder.root)
        shown = [Exemplar(one.record_id, one.text, one.label) for one in chosen]
        return bind(template, self._project, self._codes, shown)

    def _told(self, engine: Engine, prompt: Prompt, scored: Scored, chosen: Sequence[Recent]) -> Fresh:
        logs = np.array(scored.log_probs)
        shares = np.exp(logs - logs.max())
        shares /= shares.sum()
        order = np.argsort(-shares, kind="stable")
        labels = [prompt.codes[index].label for index in order]
        identity = engine.identity().as_dict()
        return Fresh(
            value=labels[0],
            others=tuple(
                (label, float(shares[index])) for label, index in zip(labels[1:3], order[1:3], strict=True)
            ),
            exemplars=tuple(chosen),
            made={
                "by": "copilot",
                "template": prompt.template.name,
                "template_sha256": prompt.template.sha256,
                "prompt_id": prompt.prompt_id,
                "identity_id": write_content_addressed(self._folder.identities, identity),
                "model": identity["model"],
                "digest": identity["digest"],
                "exemplars": [one.record_id for one in chosen],
            },
        )


def exemplars_for(record_id: str, text: str, recent: Sequence[Recent], *, most: int) -> list[Recent]:
    """The recent answers to show the model, the most alike last, so that it stands beside the record.

    Never an answer to the record itself or to the same text: that would tell one annotator what another said.
    """
    others = [one for one in recent if one.record_id != record_id and one.text != text]
    short = [one for one in others if len(one.text) <= LONGEST_EXEMPLAR]
    picked = most_alike(text, [one.text for one in short], k=most)
    return [short[index] for index in reversed(picked)]
