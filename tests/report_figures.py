"""A report with every section filled, for the tests of what it says and of how it looks."""

from labeling.report import ReportFigures


def full_report() -> ReportFigures:
    """Every section filled, with invented figures."""
    return {
        "project": "Clinic inbox",
        "round": 2,
        "generated_at": "21 November 2026, 14:05",
        "rehearsal": False,
        "summary": ["Round 2 can be signed: nothing is open.", "Two labels are still mixed up."],
        "facts": [("Task", "classification"), ("Model", "SmolLM2-135M-Instruct Q4_1")],
        "tiles": [
            {"label": "Accuracy", "figure": {"value": 0.912, "low": 0.861, "high": 0.946, "n": 180}},
            {"label": "Records", "figure": {"value": 12_340.0}, "kind": "count", "note": "of 3 sources"},
            {"label": "Agreement", "figure": {"value": None, "undefined_because": "one annotator only"}},
        ],
        "guarantee": {
            "statement": "With 95 % confidence at most 5 % of all labels are wrong.",
            "limit": 0.05,
            "audited": 300,
            "auto_accepted": 8100,
            "human_error": {"value": 0.02, "low": 0.01, "high": 0.04, "n": 120},
        },
        "accuracy_by_round": [
            {"round": 1, "value": 0.72, "low": 0.65, "high": 0.78, "n": 180},
            {"round": 2, "value": 0.91, "low": 0.86, "high": 0.95, "n": 180},
            {"round": 3, "value": None, "undefined_because": "not reviewed yet"},
        ],
        "classes": [
            {"label": "appointment", "count": 76, "auto_accepted": 40},
            {"label": "urgent", "count": 54, "auto_accepted": 0},
        ],
        "calibration": {
            "log_loss": {"value": 0.31, "n": 300},
            "brier": {"value": 0.09, "n": 300},
            "auroc": {"value": None, "undefined_because": "only right reviewed"},
            "reliability": [
                {"mean_confidence": 0.4, "right": {"value": 0.45, "low": 0.3, "high": 0.6, "n": 40}},
                {"mean_confidence": 0.9, "right": {"value": 0.95, "low": 0.8, "high": 0.99, "n": 41}},
            ],
            "risk_coverage": [{"coverage": 0.5, "risk": 0.01}, {"coverage": 1.0, "risk": 0.09}],
        },
        "confusion": {"labels": ["appointment", "urgent"], "counts": [[70, 6], [3, 51]]},
        "agreement": [
            {"name": "krippendorff_alpha", "value": 0.81, "low": 0.74, "high": 0.87, "n": 120, "raters": 3},
            {"name": "cohen_kappa", "value": None, "undefined_because": "found 3 annotators", "n": 0},
        ],
        "pairwise": {"raters": ["Ana", "Ben"], "cells": [[None, 0.8], [0.8, None]]},
        "seconds_per_record": [4.0, 5.5, 6.0, 8.2, 11.0, 95.0],
        "annotators": [
            {"name": "Ana", "records": 120, "median_s": 6.5, "blind": {"value": 0.94, "n": 40}},
            {"name": "Ben", "records": 90, "median_s": None},
        ],
        "findings": [
            {
                "record_id": "msg-0042",
                "kind": "label_error",
                "score": 0.97,
                "sentence": "The label may be a slip.",
                "evidence": ["urgent: 93 %"],
            },
            {
                "record_id": None,
                "kind": "fatigue",
                "score": 3.1,
                "sentence": "Ana gets faster.",
                "evidence": [],
            },
        ],
    }
