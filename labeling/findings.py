"""What quality assurance flags, as plain rows with a sentence a project lead can act on.

Findings about records send them back to a person; findings about people (record_id is None) say where to
look and ask. All of them are screening: a number that would be unusual for careful work, never a verdict on
anybody.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from labeling.agreement import Triple, canonical
from labeling.intervals import Interval, independent_gain, wilson
from labeling.multinomial import checked_matrix, label_codes
from labeling.neighbours import nearest

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PERMUTATIONS = 1999
MINIMUM_DECISIONS = 30


class Finding(TypedDict):
    """One flagged record or pattern.

    Keys:
        record_id: the record; None for a finding about a person.
        kind: name of the function that made it, e.g. "label_error".
        score: larger is more striking; comparable within a kind only.
        sentence: what was seen, in plain English.
        evidence: the figures or decisions behind it, one a line.
    """

    record_id: str | None
    kind: str
    score: float
    sentence: str
    evidence: list[str]


@dataclass(frozen=True)
class TimedDecision:
    """One decision with what is known to explain how long it took.

    Attributes:
        annotator: who decided.
        session: decisions without a long break between them share a session.
        order: position within the session, increasing with time.
        seconds: time from showing the record to the decision, above 0.
        text_length: code points of the record.
        confidence: P(suggestion right) as it was shown; None for blind records.
        action: accept, correct, reject or skip.
        value: what was submitted.
    """

    annotator: str
    session: str
    order: int
    seconds: float
    text_length: int
    confidence: float | None
    action: str
    value: Hashable


@dataclass(frozen=True)
class Anchoring:
    """Accuracy of one annotator with and without seeing the suggestion.

    Attributes:
        annotator: who.
        blind: accuracy on records shown without a suggestion.
        assisted: accuracy on records shown with one.
        difference: assisted minus blind, for independent records; undefined where either has no records.
    """

    annotator: str
    blind: Interval
    assisted: Interval
    difference: Interval


def annotator_disagreement(triples: Iterable[Triple]) -> list[Finding]:
    """Records on which annotators submitted different values.

    Args:
        triples: (record_id, annotator, value); None values (not annotated) are left out, empty sets are
        values.

    Returns:
        Most disputed first. The score is the share of annotator pairs that differ, in (0, 1].
    """
    by_record: dict[str, dict[str, object]] = defaultdict(dict)
    for record_id, annotator, value in triples:
        if value is not None:
            by_record[record_id][annotator] = value
    found: list[Finding] = []
    for record_id, submitted in by_record.items():
        keys = [canonical(value) for value in submitted.values()]
        pairs = list(combinations(keys, 2))
        differing = sum(first != second for first, second in pairs)
        if not differing:
            continue
        count = len(set(keys))
        found.append(
            Finding(
                record_id=record_id,
                kind="annotator_disagreement",
                score=differing / len(pairs),
                sentence=f"{len(keys)} people labelled this record and gave {count} different answers.",
                evidence=[
                    f"{annotator}: {_written(value)}" for annotator, value in sorted(submitted.items())
                ],
            )
        )
    return _strongest_first(found)


def model_conflict(
    record_ids: Sequence[str],
    given: Sequence[str],
    probabilities: Floats,
    *,
    labels: Sequence[str],
    below: float = 0.2,
) -> list[Finding]:
    """Records where a model that has not seen the person's decision finds their label unlikely.

    Args:
        record_ids: n records.
        given: n labels people gave.
        probabilities: (n, K) out-of-sample probabilities (the stack's, or the LLM's calibrated ones).
        labels: K labels, the columns.
        below: flag when the given label has a smaller probability and another label is the most likely.

    Returns:
        Most unlikely first. The score is 1 - P(given label).
    """
    codes = _checked_codes(record_ids, given, probabilities, labels)
    best = probabilities.argmax(axis=1)
    own = probabilities[np.arange(codes.size), codes]
    found = [
        Finding(
            record_id=record_ids[row],
            kind="model_conflict",
            score=float(1 - own[row]),
            sentence=(
                f'A person chose "{given[row]}"; a model that has not seen that decision gives it '
                f'{_percent(own[row])} and "{labels[int(best[row])]}" '
                f"{_percent(probabilities[row, best[row]])}."
            ),
            evidence=_likeliest(probabilities[row], labels),
        )
        for row in np.flatnonzero((own < below) & (best != codes)).tolist()
    ]
    return _strongest_first(found)


def label_error(
    record_ids: Sequence[str], given: Sequence[str], probabilities: Floats, *, labels: Sequence[str]
) -> list[Finding]:
    """Likely label errors by confident learning (cleanlab, the off-diagonal of its confident joint).

    Unlike `model_conflict` it takes into account how sure the model usually is of each label, and how often
    one label is mistaken for another.

    Args:
        record_ids: n records.
        given: n labels.
        probabilities: (n, K) out-of-sample probabilities.
        labels: K labels, the columns.

    Returns:
        Least plausible labels first; the score is 1 - P(given label) among the labels that occur. Empty when
        fewer than two labels occur.

    Source: Northcutt, Jiang and Chuang (2021), Confident Learning, JAIR 70.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    codes = _checked_codes(record_ids, given, probabilities, labels)
    occurring, renumbered = np.unique(codes, return_inverse=True)
    if occurring.size < 2:
        return []
    # cleanlab estimates a noise rate for every column; one without a single record would have none.
    shares = probabilities[:, occurring]
    shares = shares / shares.sum(axis=1, keepdims=True)
    names = [labels[int(code)] for code in occurring]
    flagged = find_label_issues(renumbered, shares, filter_by="confident_learning", n_jobs=1)
    quality = get_label_quality_scores(renumbered, shares)
    found = []
    for row in np.flatnonzero(flagged).tolist():
        likely = names[int(shares[row].argmax())]
        found.append(
            Finding(
                record_id=record_ids[row],
                kind="label_error",
                score=float(1 - quality[row]),
                sentence=f'The label "{given[row]}" may be a slip: similar records are mostly "{likely}".',
                evidence=_likeliest(shares[row], names),
            )
        )
    return _strongest_first(found)


def similar_labelled_differently(
    record_ids: Sequence[str],
    embeddings: npt.ArrayLike,
    values: Sequence[object],
    *,
    k: int = 5,
    minimum_similarity: float = 0.85,
) -> list[Finding]:
    """Records whose nearest records carry another value. Works for every task type: values are only compared.

    Args:
        record_ids: n records.
        embeddings: (n, d).
        values: n settled values; a None value (not settled) takes no part.
        k: neighbours looked at.
        minimum_similarity: cosine from which two records count as similar; depends on the embedding model.

    Returns:
        One finding for each record with such a neighbour, most similar first; both records of a pair are
        flagged. The score is the largest cosine to a record with another value.
    """
    vectors = checked_matrix(embeddings)
    if not len(record_ids) == vectors.shape[0] == len(values):
        lengths = f"{len(record_ids)}, {vectors.shape[0]} and {len(values)}"
        raise ValueError(f"expected as many ids, vectors and values, found {lengths}")
    settled = [row for row, value in enumerate(values) if value is not None]
    keys = {row: canonical(values[row]) for row in settled}
    neighbours = nearest(vectors[settled], vectors[settled], k=k, exclude_self=True)
    found = []
    for position, row in enumerate(settled):
        others = [
            (settled[int(index)], float(similarity))
            for index, similarity in zip(
                neighbours.indices[position], neighbours.similarities[position], strict=True
            )
            if similarity >= minimum_similarity and keys[settled[int(index)]] != keys[row]
        ]
        if not others:
            continue
        other, similarity = others[0]
        found.append(
            Finding(
                record_id=record_ids[row],
                kind="similar_labelled_differently",
                score=similarity,
                sentence=(
                    f"This record is labelled {_written(values[row])}, but the very similar record "
                    f"{record_ids[other]} is labelled {_written(values[other])}."
                ),
                evidence=[
                    f"{record_ids[index]}: {_written(values[index])} (similarity {closeness:.2f})"
                    for index, closeness in others
                ],
            )
        )
    return _strongest_first(found)


def acceptance_z(accepted: Bools, p_right: Floats) -> float | None:
    """How many standard deviations more suggestions were accepted than were likely right.

    Args:
        accepted: (n,) whether the suggestion was accepted unchanged.
        p_right: (n,) calibrated P(suggestion right), from blind audits.

    Returns:
        (accepted - sum p) / sqrt(sum p (1 - p)); None where the denominator is 0 (no records, or all
        certain).

    Raises:
        ValueError: if lengths differ or a probability is missing or out of range.
    """
    if accepted.shape != p_right.shape or accepted.ndim != 1:
        raise ValueError(f"expected two columns of one length, found {accepted.shape} and {p_right.shape}")
    if not ((p_right >= 0) & (p_right <= 1)).all():
        raise ValueError("expected probabilities in [0, 1], found others or NaN")
    variance = float((p_right * (1 - p_right)).sum())
    return None if variance == 0 else float((accepted.sum() - p_right.sum()) / np.sqrt(variance))


def rubber_stamp(
    annotators: Sequence[str], accepted: Bools, p_right: Floats, *, threshold: float = 3.0
) -> list[Finding]:
    """Annotators who accept clearly more suggestions than are right.

    Args:
        annotators: who made each of n decisions on records with a suggestion.
        accepted: (n,) whether the suggestion was accepted unchanged.
        p_right: (n,) calibrated P(suggestion right), from blind audits.
        threshold: z from which somebody is flagged; 3 is one in 740 by chance.

    Returns:
        Findings about people, largest z first. Nobody is flagged on records whose probabilities are all 0 or
        1.
    """
    found = []
    for annotator, rows in _rows_by(annotators).items():
        z = acceptance_z(accepted[rows], p_right[rows])
        if z is None or z < threshold:
            continue
        expected = float(p_right[rows].mean())
        share = float(accepted[rows].mean())
        found.append(
            Finding(
                record_id=None,
                kind="rubber_stamp",
                score=z,
                sentence=(
                    f"{annotator} accepted {_percent(share)} of {len(rows)} suggestions where about "
                    f"{_percent(expected)} are expected to be right. A second look at some of them, labelled "
                    "without a suggestion, would show whether this is luck."
                ),
                evidence=[
                    f"accepted: {int(accepted[rows].sum())} of {len(rows)}",
                    f"expected right: {p_right[rows].sum():.1f}",
                    f"z = {z:.1f}",
                ],
            )
        )
    return _strongest_first(found)


def anchoring_measures(annotators: Sequence[str], blind: Bools, right: Bools) -> list[Anchoring]:
    """Accuracy blind and assisted of every annotator, by name.

    Args:
        annotators: who made each of n decisions.
        blind: (n,) whether the record was shown without a suggestion.
        right: (n,) whether the decision equals gold that does not stem from that decision alone.
    """
    measures = []
    for annotator, rows in sorted(_rows_by(annotators).items()):
        hidden, correct = blind[rows], right[rows]
        blind_right, blind_n = int(correct[hidden].sum()), int(hidden.sum())
        seen_right, seen_n = int(correct[~hidden].sum()), int((~hidden).sum())
        measures.append(
            Anchoring(
                annotator=annotator,
                blind=wilson(blind_right, blind_n),
                assisted=wilson(seen_right, seen_n),
                difference=independent_gain(
                    blind_right, blind_n, second_successes=seen_right, second_n=seen_n
                ),
            )
        )
    return measures


def anchoring(annotators: Sequence[str], blind: Bools, right: Bools) -> list[Finding]:
    """Annotators who are less accurate when they see a suggestion than when they do not.

    Flags a person when the whole 95 % interval of (assisted - blind) accuracy lies below 0. Arguments as in
    `anchoring_measures`; the score is the loss of accuracy, in (0, 1].
    """
    found = []
    for measure in anchoring_measures(annotators, blind, right):
        difference, alone, assisted = measure.difference, measure.blind, measure.assisted
        if difference.value is None or difference.high is None or difference.high >= 0:
            continue
        found.append(
            Finding(
                record_id=None,
                kind="anchoring",
                score=-difference.value,
                sentence=(
                    f"{measure.annotator} is right on {_percent(alone.value)} of records without a "
                    f"suggestion and on {_percent(assisted.value)} with one. The suggestions may be "
                    "pulling; showing fewer of them for a while would tell."
                ),
                evidence=[
                    f"without suggestion: {_range(alone)}",
                    f"with suggestion: {_range(assisted)}",
                    f"difference: {_range(difference)}",
                ],
            )
        )
    return _strongest_first(found)


def fatigue(decisions: Sequence[TimedDecision], *, alpha: float = 0.01, seed: int = 0) -> list[Finding]:
    """Signs of tiring: times that drift within sessions, and runs of one answer too long for chance.

    Two permutation tests for each annotator with 30 decisions or more. Drift: the slope of log time over the
    position in the session, after text length, confidence, action and session are accounted for, against
    shuffles of the residuals within sessions. Runs: the longest run of identical values against shuffles of
    the values within sessions. The level is divided by the number of tests, so that a large team does not
    produce findings by its size.

    Args:
        decisions: in any order.
        alpha: chance that anybody at all is flagged when nobody tires.
        seed: seed of the shuffles.

    Returns:
        Findings about people, smallest p first; the score is -log10 p.

    Raises:
        ValueError: if a time is not positive.
    """
    if any(decision.seconds <= 0 for decision in decisions):
        raise ValueError("expected times above 0 s, found others")
    ordered = sorted(decisions, key=lambda decision: (decision.annotator, decision.session, decision.order))
    by_annotator: dict[str, list[TimedDecision]] = defaultdict(list)
    for decision in ordered:
        by_annotator[decision.annotator].append(decision)
    tested = {name: mine for name, mine in by_annotator.items() if len(mine) >= MINIMUM_DECISIONS}
    level = alpha / max(1, 2 * len(tested))
    rng = np.random.default_rng(seed)
    # The smallest p that n shuffles can show is 1 / (n + 1); a stricter level needs more of them.
    shuffles = max(PERMUTATIONS, int(np.ceil(2 / level)) - 1)
    found: list[Finding] = []
    for name, mine in tested.items():
        found += _drift(name, mine, level=level, shuffles=shuffles, rng=rng)
        found += _long_run(name, mine, level=level, shuffles=shuffles, rng=rng)
    return _strongest_first(found)


def _drift(
    name: str, mine: Sequence[TimedDecision], *, level: float, shuffles: int, rng: np.random.Generator
) -> list[Finding]:
    sessions = [decision.session for decision in mine]
    explained = _explanatory(mine, sessions)
    log_time = np.log([decision.seconds for decision in mine])
    position = np.array([decision.order for decision in mine], dtype=np.float64)
    residual = log_time - explained @ np.linalg.lstsq(explained, log_time, rcond=None)[0]
    drift = position - explained @ np.linalg.lstsq(explained, position, rcond=None)[0]
    spread = float(drift @ drift)
    if spread < 1e-9:
        return []
    slope = float(drift @ residual) / spread
    shuffled = np.array([drift @ residual[_within(sessions, rng)] for _ in range(shuffles)]) / spread
    p = float((1 + np.count_nonzero(np.abs(shuffled) >= abs(slope))) / (shuffles + 1))
    if p > level:
        return []
    factor = float(np.exp(100 * slope))
    direction = "faster" if slope < 0 else "slower"
    return [
        Finding(
            record_id=None,
            kind="fatigue",
            score=float(-np.log10(p)),
            sentence=(
                f"Within a session {name} gets {direction}: after 100 decisions a comparable record takes "
                f"{factor:.2f} times as long. Text length, confidence and action are accounted for; practice "
                "or easier records may still be the reason."
            ),
            evidence=[
                f"decisions: {len(mine)} in {len(set(sessions))} sessions",
                f"slope of log time: {slope:+.4f} a decision",
                f"permutation p = {p:.4f}",
            ],
        )
    ]


def _explanatory(mine: Sequence[TimedDecision], sessions: Sequence[str]) -> Floats:
    """One column each for log length, confidence, blind, and every session and action (the first of each
    left out).
    """
    columns = [
        np.ones(len(mine)),
        np.log1p([decision.text_length for decision in mine]),
        np.array([0.0 if decision.confidence is None else decision.confidence for decision in mine]),
        np.array([decision.confidence is None for decision in mine], dtype=np.float64),
    ]
    for names in (sessions, [decision.action for decision in mine]):
        for value in sorted(set(names))[1:]:
            columns.append(np.array([name == value for name in names], dtype=np.float64))
    return np.column_stack(columns)


def _long_run(
    name: str, mine: Sequence[TimedDecision], *, level: float, shuffles: int, rng: np.random.Generator
) -> list[Finding]:
    sessions = [decision.session for decision in mine]
    keys = [canonical(decision.value) for decision in mine]
    code_of = {key: code for code, key in enumerate(dict.fromkeys(keys))}
    codes = np.array([code_of[key] for key in keys])
    starts = np.array([True, *(a != b for a, b in pairwise(sessions))])
    longest, end = _longest_run(codes, starts)
    shuffled = np.array([_longest_run(codes[_within(sessions, rng)], starts)[0] for _ in range(shuffles)])
    p = float((1 + np.count_nonzero(shuffled >= longest)) / (shuffles + 1))
    if p > level:
        return []
    return [
        Finding(
            record_id=None,
            kind="fatigue",
            score=float(-np.log10(p)),
            sentence=(
                f"{name} gave the same answer, {_written(mine[end].value)}, {longest} times in a row; "
                f"shuffling the same answers rarely gives more than {int(np.quantile(shuffled, 0.99))}. "
                "Records sorted by subject would explain it; otherwise the stretch deserves a second look."
            ),
            evidence=[
                f"session {mine[end].session}, the last of them at position {mine[end].order}",
                f"decisions in all: {len(mine)}",
                f"permutation p = {p:.4f}",
            ],
        )
    ]


def _longest_run(codes: npt.NDArray[np.int64], starts: Bools) -> tuple[int, int]:
    """Length and last position of the longest run of equal codes that does not cross a session start."""
    changes = starts.copy()
    changes[1:] |= codes[1:] != codes[:-1]
    beginnings = np.append(np.flatnonzero(changes), codes.size)
    lengths = np.diff(beginnings)
    best = int(lengths.argmax())
    return int(lengths[best]), int(beginnings[best + 1] - 1)


def _within(sessions: Sequence[str], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Positions shuffled inside each session; `sessions` is sorted."""
    group = np.unique(np.asarray(sessions, dtype=object).astype(str), return_inverse=True)[1]
    return np.lexsort((rng.random(group.size), group))


def _checked_codes(
    record_ids: Sequence[str], given: Sequence[str], probabilities: Floats, labels: Sequence[str]
) -> npt.NDArray[np.int64]:
    if probabilities.shape != (len(record_ids), len(labels)) or len(given) != len(record_ids):
        expected = (len(record_ids), len(labels))
        raise ValueError(
            f"expected probabilities of shape {expected} and a label each, found {probabilities.shape} "
            f"and {len(given)} labels"
        )
    return label_codes(given, labels)


def _rows_by(names: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        rows[name].append(row)
    return dict(rows)


def _strongest_first(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda finding: (-finding["score"], finding["record_id"] or finding["sentence"]))


def _likeliest(shares: Floats, labels: Sequence[str]) -> list[str]:
    top = np.argsort(-shares, kind="stable")[:3]
    return [f"{labels[int(code)]}: {_percent(shares[code])}" for code in top]


def _written(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, set | frozenset | list | tuple):
        inside = Counter(str(item) for item in value)
        return "nothing" if not inside else "{" + ", ".join(sorted(inside.elements())) + "}"
    return str(value)


def _percent(share: float | None) -> str:
    return "an undefined share" if share is None else f"{100 * share:.0f} %"


def _range(interval: Interval) -> str:
    if interval.value is None or interval.low is None or interval.high is None:
        return f"undefined (n = {interval.n})"
    low, high = f"{100 * interval.low:.0f}", f"{100 * interval.high:.0f}"
    return f"{100 * interval.value:.0f} % ({low} to {high}, n = {interval.n})"
