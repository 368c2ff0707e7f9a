"""How far the answers to one record are apart, so that an adjudicator sees the hardest first."""

from collections.abc import Callable, Sequence
from itertools import combinations

from schemas.review import Action
from schemas.values import Value


def spread(answers: Sequence[tuple[Action, Value]], distance: Callable[[Value, Value], float]) -> float:
    """Mean distance between two answers, in [0, 1]; 0 with fewer than two. Skips are no answers.

    "Cannot be labelled" is as far from every value as can be.

    >>> apart = lambda first, second: float(first != second)
    >>> spread([(Action.ACCEPT, "a"), (Action.CORRECT, "b"), (Action.REJECT, None), (Action.SKIP, None)], apart)
    1.0
    >>> spread([(Action.ACCEPT, "a"), (Action.ACCEPT, "a"), (Action.CORRECT, "b")], apart) == 2 / 3
    True
    """
    told = [(action, value) for action, value in answers if action is not Action.SKIP]
    pairs = list(combinations(told, 2))
    if not pairs:
        return 0.0
    return sum(_apart(first, second, distance) for first, second in pairs) / len(pairs)


def _apart(
    first: tuple[Action, Value], second: tuple[Action, Value], distance: Callable[[Value, Value], float]
) -> float:
    rejected = [action is Action.REJECT for action, _ in (first, second)]
    if any(rejected):
        return 0.0 if all(rejected) else 1.0
    return distance(first[1], second[1])
