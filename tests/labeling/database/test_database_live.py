"""An open round as it stands: agreement so far, disagreements, pace."""

import pytest
from clinic import Clinic, Clock

from labeling.database import queue
from labeling.live import Disagreement, disagreements, live
from schemas.review import Purpose


def say(clinic: Clinic, values: list[tuple[str, str]]) -> None:
    """Two people decide as many records, each pair of values on one record."""
    people = [clinic.person("Ana"), clinic.person("Bo")]
    clinic.round(len(values), overlap=2, purpose=Purpose.OVERLAP)
    for position, person in enumerate(people):
        for held in queue.prefetch(clinic.db, person.id, count=len(values)):
            clinic.send(person, held, values[int(held.record_id[1:])][position])


def test_agreement_so_far_is_alpha_with_its_interval_over_records_decided_twice(clinic: Clinic) -> None:
    say(clinic, [("Refill", "Refill"), ("Billing", "Billing"), ("Refill", "Billing"), ("Results", "Results")])

    figures = live(clinic.db, 1)

    # By hand: observed disagreement 1/4; the eight values are 3 Refill, 3 Billing, 2 Results, so that of the
    # 56 ordered pairs 42 differ. Alpha = 1 - (1/4) / (42/56) = 2/3.
    assert figures.agreement.value == pytest.approx(2 / 3)
    assert figures.agreement.n == 4
    assert figures.disagreements == (Disagreement("Billing", "Refill", 1),)
    assert figures.last_hour == 8


def test_what_was_taken_back_and_what_one_person_saw_do_not_count(clinic: Clinic, clock: Clock) -> None:
    say(clinic, [("Refill", "Billing"), ("Refill", "Refill")])
    clock.forward(hours=2)
    queue.undo(clinic.db, queue.decisions_of_round(clinic.db, 1)[0]["annotator_id"])

    figures = live(clinic.db, 1)

    assert figures.agreement.n == 1
    assert figures.last_hour == 0


def test_agreement_of_nobody_is_undefined(clinic: Clinic) -> None:
    clinic.round(3)

    assert live(clinic.db, 1).agreement.value is None
    assert live(clinic.db, 1).disagreements == ()


def test_values_that_are_no_plain_labels_are_shown_as_they_are_stored() -> None:
    said = [("r", "a", '["x","y"]'), ("r", "b", "[]")]

    assert disagreements(said) == (Disagreement('["x","y"]', "[]", 1),)
