import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_figures import full_report

from labeling.report import ReportFigures, render_report

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Collects text, references and tags, and fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.words: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} repeats an attribute"
        assert not [name for name in names if name.startswith("on")], f"{tag} has a handler"
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "action", "srcset", "data", "poster"}:
                self.references.append(str(value))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()
        if tag in {"td", "th", "p", "div", "li", "dd", "dt", "h1", "h2", "h3", "b", "text", "title"}:
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def test_a_full_report_is_well_formed_and_refers_to_nothing_outside() -> None:
    html = render_report(full_report())
    page = Page(html)
    assert page.references == []
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    assert "http:" not in html and "https:" not in html and "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html
    assert page.tags.count("svg") >= 6


def test_the_figures_are_written_with_their_interval_and_n() -> None:
    text = Page(render_report(full_report())).text
    assert "91 % 86 % to 95 %, n = 180" in text
    assert "12,340" in text and "of 3 sources" in text
    assert "0.81" in text and "0.74 to 0.87" in text
    assert "2 % (1 % to 4 %, n = 120)" in text
    assert "appointment taken for urgent (6)" in text


def test_undefined_figures_say_so_and_why() -> None:
    text = Page(render_report(full_report())).text
    for reason in ("one annotator only", "only right reviewed", "found 3 annotators", "not reviewed yet"):
        assert re.search(rf"undefined\W*{reason}", text), reason
    assert "None" not in text and "nan" not in text.lower().split()


def test_a_rehearsal_is_stamped_and_a_real_round_is_not() -> None:
    stamped = render_report({**full_report(), "rehearsal": True})
    assert 'class="rehearsal"' in stamped and "<title>Rehearsal: Clinic inbox</title>" in stamped
    real = render_report(full_report())
    assert 'class="rehearsal"' not in real and "<title>Clinic inbox</title>" in real


def test_times_are_told_of_people_and_not_of_a_simulation() -> None:
    figures: ReportFigures = {**full_report(), "seconds_per_record": [4.0, 6.0, 9.0] * 200}
    real = Page(render_report(figures)).text
    assert "6.5 s" in real and re.search(r"All together\W*63 minutes", real)
    rehearsed = Page(render_report({**figures, "rehearsal": True})).text
    assert re.search(r"undefined\W*nobody read a record in a rehearsal", rehearsed)
    assert "6.5 s" not in rehearsed and "All together" not in rehearsed


def test_text_from_outside_cannot_become_markup() -> None:
    nasty = "\"><script>alert(1)</script><img src=x onerror=y>&'"
    figures = full_report()
    figures["project"] = nasty
    figures["summary"] = [nasty]
    figures["facts"] = [(nasty, nasty)]
    figures["classes"] = [{"label": nasty, "count": 1}]
    figures["confusion"] = {"labels": [nasty], "counts": [[1]]}
    figures["pairwise"] = {"raters": [nasty], "cells": [[None]]}
    figures["annotators"] = [{"name": nasty, "records": 1}]
    figures["agreement"] = [{"name": nasty, "value": None, "undefined_because": nasty}]
    figures["tiles"] = [
        {"label": nasty, "figure": {"value": None, "undefined_because": nasty}, "note": nasty}
    ]
    figures["guarantee"] = {"statement": nasty}
    figures["findings"] = [
        {"record_id": nasty, "kind": nasty, "score": 1.0, "sentence": nasty, "evidence": [nasty]}
    ]
    page = Page(render_report(figures))
    assert "script" not in page.tags and "img" not in page.tags
    assert page.text.count("<script>alert(1)</script>") >= 15


def test_an_empty_report_is_still_a_page() -> None:
    page = Page(render_report({}))
    assert "Quality report" in page.text and "section" not in page.tags


@pytest.mark.parametrize(
    ("section", "empty", "words"),
    [
        ("classes", [], "No record is settled yet"),
        ("seconds_per_record", [], "no decision has been timed"),
        ("findings", [], "Nothing was flagged"),
        ("calibration", {"reliability": [], "risk_coverage": []}, "no reviewed suggestions"),
        ("calibration", {"undefined_because": "below 50 reviews"}, "undefined, below 50 reviews"),
        ("accuracy_by_round", [{"round": 1, "value": None}], "undefined, no reason was given"),
        ("confusion", {"labels": ["a", "b"], "counts": [[0, 0], [0, 3]]}, "undefined"),
    ],
)
def test_an_empty_section_says_what_is_missing(section: str, empty: Any, words: str) -> None:
    figures: Any = {section: empty}
    assert words in Page(render_report(figures)).text


def test_a_misspelt_section_is_refused() -> None:
    figures: Any = {"clases": []}
    with pytest.raises(ValueError, match="clases"):
        render_report(figures)


def test_only_the_first_findings_are_listed_and_all_are_counted() -> None:
    figures = full_report()
    figures["findings"] = [
        {"record_id": f"r{i}", "kind": "label_error", "score": 1.0, "sentence": "s", "evidence": []}
        for i in range(100)
    ]
    text = Page(render_report(figures)).text
    assert "Possible slip 100" in text and "60 more in findings.parquet" in text and "r99" not in text


shares = st.floats(0, 1)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(shares, shares, st.integers(1, 10**6)), min_size=1, max_size=12),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=40),
    st.text(max_size=20),
)
def test_any_figures_and_names_give_a_well_formed_page(
    marks: list[tuple[float, float, int]], seconds: list[float], name: str
) -> None:
    figures: ReportFigures = {
        "project": name,
        "accuracy_by_round": [
            {"round": i, "value": value, "low": 0.0, "high": 1.0, "n": n}
            for i, (_, value, n) in enumerate(marks)
        ],
        "calibration": {
            "reliability": [
                {"mean_confidence": x, "right": {"value": value, "low": 0.0, "high": 1.0, "n": n}}
                for x, value, n in marks
            ],
            "risk_coverage": [{"coverage": x, "risk": value} for x, value, _ in sorted(marks)],
        },
        "seconds_per_record": seconds,
        "classes": [{"label": name, "count": n} for _, _, n in marks],
    }
    html = render_report(figures)
    Page(html)
    for number in re.findall(r' (?:x|y|cx|cy|x1|y1|x2|y2|width|height)="([^"]*)"', html):
        assert float(number) >= -0.01
