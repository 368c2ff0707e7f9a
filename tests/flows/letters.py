"""Texts that name their label, now and then the other one."""

import random

LABELS = ("alpha", "beta")


def letters(count: int, seed: int = 7) -> list[dict[str, str]]:
    """Rows that mention their label, now and then the other one."""
    dice = random.Random(seed)
    rows = []
    for index in range(count):
        label = dice.choice(LABELS)
        told = label if dice.random() < 0.85 else LABELS[1 - LABELS.index(label)]
        rows.append(
            {
                "id": f"n{index}",
                "text": f"note {index} speaks of {told} things {dice.random():.6f}",
                "label": label,
            }
        )
    return rows
