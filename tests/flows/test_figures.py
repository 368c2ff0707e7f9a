"""A round's figures as a lead sees them in Prefect."""

from flows.figures import round_text

FIGURES = {
    "round": 2,
    "accuracy": {"value": 0.8, "low": 0.6, "high": 0.9, "n": 20},
    "calibrated": {"auroc": {"value": None}},
    "human_labels": 41,
    "reliability": [{"mean_confidence": 0.75, "right": {"value": 0.5, "low": 0.2, "high": 0.8, "n": 8}}],
}


def test_figures_come_with_interval_chart_and_link() -> None:
    text = round_text("Clinic inbox", FIGURES, "http://127.0.0.1:8321")

    assert "80.0% (60.0% to 90.0%, n = 20)" in text
    assert "| AUROC of the confidence | undefined |" in text
    assert "| 75% | 8 | ███████████████░░░░░ | ██████████░░░░░░░░░░ |" in text
    assert "<http://127.0.0.1:8321/reports/2>" in text


def test_what_is_undefined_is_called_so() -> None:
    accuracy = {"value": None, "low": None, "high": None, "n": 0}

    text = round_text("x", {**FIGURES, "accuracy": accuracy, "reliability": []}, None)

    assert "undefined (n = 0)" in text
    assert "cannot be held against outcomes yet" in text
