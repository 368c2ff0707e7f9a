"""The cascade: from round 2 on the student answers the records it is sure of, the language model is asked the rest.

Who is asked follows from the plan, the record ids and their vectors alone, never from what is scored already: a run
that was killed goes on with the same records. The reasons are in docs/decisions/0011-cascade.md.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from labeling.calibration import CorrectnessFit, CorrectnessModel, entropy, fit_correctness, margin
from labeling.paths import ProjectFolder
from labeling.record_store import Vectors, record_ids, records_table, stream_records
from labeling.score_store import ScoreStore
from labeling.selection import self_test_sample, simple_random_sample
from labeling.students import Stack, StackFit
from schemas.plan import Plan
from schemas.project import Project

RANDOM_SHARE = 0.05
RANDOM_LEAST = 200  # a label's mean log-probability is then known to about a tenth of a nat
Floats = npt.NDArray[np.float64]


def random_share(project: Project, ids: Sequence[str]) -> set[str]:
    """Records that are asked whatever the student says; the same ones in every round, so that they are asked once."""
    wanted = max(RANDOM_LEAST, math.ceil(RANDOM_SHARE * len(ids)))
    return set(simple_random_sample(ids, wanted, project.seed + 2))


def batch_of(project: Project, folder: ProjectFolder, store: ScoreStore) -> set[str] | None:
    """The records over which batch calibration takes its means; None for all that have a score.

    Where some were left to the student, those with a score are the hard ones, and their mean is not the data's.
    """
    if store.scored.rows() + store.set_aside().height >= records_table(project, folder).rows():
        return None  # the usual case, told without reading a million ids
    ids, known = record_ids(project, folder), store.asked()
    if known.issuperset(ids):
        return None
    drawn = random_share(project, ids)
    return drawn if drawn <= known else None


def fit_student_confidence(
    fitted: StackFit, gold: Sequence[str], *, labels: Sequence[str], seed: int
) -> CorrectnessFit:
    """P(the student and the neighbours are right without the language model), from what they said out of sample.

    Args:
        fitted: The stack as fitted on the n reviewed records.
        gold: Their n settled labels.
        labels: The project's K labels.
        seed: Decides the folds.
    """
    alone, features = _alone(fitted.stack, fitted.parts_out_of_sample)
    suggested = [labels[index] for index in alone.argmax(axis=1)]
    right = np.array([said == told for said, told in zip(suggested, gold, strict=True)], dtype=np.bool_)
    return fit_correctness(features, suggested, right, labels=labels, seed=seed)


def student_confidence(stack: Stack, model: CorrectnessModel, parts: Mapping[str, Floats]) -> Floats:
    """(n,) P(right) of what the stack says without the language model, from its parts on n open records."""
    alone, features = _alone(stack, parts)
    return model.predict_proba(features, [stack.labels[index] for index in alone.argmax(axis=1)])


def _alone(stack: Stack, parts: Mapping[str, Floats]) -> tuple[Floats, dict[str, Floats]]:
    """(n, K) probabilities of the mix without the language model, and its features for the correctness model."""
    student, votes = parts["student"], parts["neighbours"]
    alone = stack.mixed({**parts, "llm": np.full(student.shape, np.nan)})
    chosen = alone.argmax(axis=1)
    return alone, {
        "margin": margin(alone),
        "entropy": entropy(alone),
        "student_agrees": (student.argmax(axis=1) == chosen).astype(np.float64),
        "student_margin": margin(student),
        "neighbour_share": votes[np.arange(len(chosen)), chosen],
    }


def left_to_student(project: Project, folder: ProjectFolder, plan: Plan, vectors: Vectors | None) -> set[str]:
    """Records that the plan does not send to the language model; none where it has no cascade.

    The engine's self-test asks its records anyway. Reviewed records are always sent: the student was trained on them,
    so that its confidence there means nothing, and later rounds learn from them what the language model's scores are
    worth.
    """
    if plan.cascade is None or plan.stack is None or vectors is None:
        return set()
    stack = Stack.from_json(plan.stack["model"])
    model = CorrectnessModel.from_json(plan.cascade.confidence)
    ids = record_ids(project, folder)
    asked = random_share(project, ids) | {*self_test_sample(ids, project.seed), *plan.stack["reference_ids"]}
    left: set[str] = set()
    for _, frame in stream_records(project, folder, []):
        open_ids = [record_id for record_id in frame["record_id"].to_list() if record_id not in asked]
        if open_ids:
            parts = stack.parts_proba(vectors.of(open_ids), lexical=vectors.lexical_of(open_ids))
            sure = student_confidence(stack, model, parts) >= plan.cascade.threshold
            left.update(record_id for record_id, is_sure in zip(open_ids, sure, strict=True) if is_sure)
    return left
