"""The quality report of a round or a release: one HTML file that needs nothing else.

No script, no font, no picture and no link to anywhere: the page states that itself in a content security
policy, so it can be mailed, archived next to the data and opened in ten years. Light and dark follow the
reader's system.
"""

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import NotRequired, TypedDict

from labeling.charts import (
    Whisker,
    accuracy_plot,
    histogram,
    interval_bar,
    percent,
    plain,
    quantile,
    reliability_plot,
    risk_coverage_plot,
    share_bar,
)
from labeling.report_style import REPORT_CSS

OUTCOMES = {"open": "not looked at", "kept": "label kept", "changed": "label changed"}
FINDINGS_SHOWN = 40


class Figure(TypedDict):
    """A number with its interval. value None means undefined, and then `undefined_because` gives the reason.

    Shares are in [0, 1]; low and high are None where there is no interval.
    """

    value: float | None
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    n: NotRequired[int]
    undefined_because: NotRequired[str | None]


class Tile(TypedDict):
    """A headline figure: `label` above, the figure large, `note` below. kind says how to write the value."""

    label: str
    figure: Figure
    kind: NotRequired[str]  # "share" (the default), "count", "number"
    note: NotRequired[str]


class RoundAccuracy(Figure):
    """Accuracy of one round on the slice that no loop ever sees."""

    round: int


class ReliabilityRow(TypedDict):
    """One bin of equal count: mean confidence and the share that was right."""

    mean_confidence: float
    right: Figure


class RiskCoverageRow(TypedDict):
    """The most confident records: share of all that is kept, share of wrong labels among them."""

    coverage: float
    risk: float


class Calibration(TypedDict, total=False):
    """How far the confidence can be trusted. All keys optional."""

    log_loss: Figure
    brier: Figure
    auroc: Figure
    reliability: list[ReliabilityRow]
    risk_coverage: list[RiskCoverageRow]
    undefined_because: str


class AgreementRow(Figure):
    """One agreement measure, e.g. name "krippendorff_alpha"; `raters` is how many annotators it rests on."""

    name: str
    raters: NotRequired[int]


class Pairwise(TypedDict):
    """Kappa of every two annotators; cells is square, None on the diagonal and where it is undefined."""

    raters: list[str]
    cells: list[list[float | None]]


class ClassCount(TypedDict):
    """Records with one settled label: how many in all, and how many of them were accepted without a
    person.
    """

    label: str
    count: int
    auto_accepted: NotRequired[int]


class Confusion(TypedDict):
    """counts[i][j] is the number of records with gold labels[i] whose suggestion was labels[j]."""

    labels: list[str]
    counts: list[list[int]]


class Guarantee(TypedDict):
    """What the audit promises. `statement` is the whole sentence; `limit` the allowed share of wrong
    labels.
    """

    statement: str
    limit: NotRequired[float]
    audited: NotRequired[int]
    auto_accepted: NotRequired[int]
    human_error: NotRequired[Figure]


class AnnotatorRow(TypedDict):
    """One person: decisions, median time, accuracy without and with a suggestion."""

    name: str
    records: int
    median_s: NotRequired[float | None]
    blind: NotRequired[Figure]
    assisted: NotRequired[Figure]


class FindingRow(TypedDict):
    """One finding as `labeling.findings` makes it."""

    record_id: str | None
    kind: str
    score: float
    sentence: str
    evidence: list[str]
    state: NotRequired[str]


class ReportFigures(TypedDict, total=False):
    """Everything the report can show. Every key is optional; a section without its key is left out.

    Keys:
        project: name of the project.
        round: number of the round.
        release: name of the release.
        generated_at: when, as it should be read.
        rehearsal: True stamps the report: annotators were simulated.
        summary: sentences for the project lead, what to do next first.
        facts: (name, value) lines under the title: task, model, records, seed.
        tiles: headline figures.
        guarantee: of the auto-accepted labels.
        accuracy_by_round: accuracy on the untouched slice, oldest first.
        classes: class balance.
        calibration: of the confidence.
        confusion: gold against suggestions.
        agreement: measures, in the order to be shown.
        pairwise: kappa of every two annotators.
        seconds_per_record: review times, one a decision, in seconds.
        annotators: one row a person.
        findings: strongest first; the first 40 are shown, all are counted.
    """

    project: str
    round: int
    release: str
    generated_at: str
    rehearsal: bool
    summary: list[str]
    facts: list[tuple[str, str]]
    tiles: list[Tile]
    guarantee: Guarantee
    accuracy_by_round: list[RoundAccuracy]
    classes: list[ClassCount]
    calibration: Calibration
    confusion: Confusion
    agreement: list[AgreementRow]
    pairwise: Pairwise
    seconds_per_record: list[float]
    annotators: list[AnnotatorRow]
    findings: list[FindingRow]


MEASURE_NAMES = {
    "raw_agreement": "Raw agreement",
    "cohen_kappa": "Cohen's kappa",
    "fleiss_kappa": "Fleiss' kappa",
    "krippendorff_alpha": "Krippendorff's alpha",
}

FINDING_NAMES = {
    "annotator_disagreement": "People disagree",
    "model_conflict": "Model and person differ",
    "label_error": "Possible slip",
    "similar_labelled_differently": "Similar record, other label",
    "rubber_stamp": "Accepting too readily",
    "anchoring": "Pulled by suggestions",
    "fatigue": "Signs of tiring",
}


def render_report(figures: ReportFigures) -> str:
    """The report as one HTML page.

    Args:
        figures: see `ReportFigures`. Undefined figures (value None) are written as "undefined" with their
        reason.

    Returns:
        A complete HTML5 document, UTF-8, without any reference outside itself.

    Raises:
        ValueError: for a key that `ReportFigures` does not have; a misspelt section would silently be
        missing.
    """
    unknown = sorted(set(figures) - set(ReportFigures.__annotations__))
    if unknown:
        raise ValueError(f"expected sections among {sorted(ReportFigures.__annotations__)}, found {unknown}")
    rehearsal = figures.get("rehearsal", False)
    title = f"{'Rehearsal: ' if rehearsal else ''}{figures.get('project', 'Quality report')}"
    sections = [
        _summary(figures.get("summary", [])),
        _tiles(figures.get("tiles", [])),
        _guarantee(figures["guarantee"]) if "guarantee" in figures else "",
        _columns(
            _accuracy(figures["accuracy_by_round"]) if "accuracy_by_round" in figures else "",
            _classes(figures["classes"]) if "classes" in figures else "",
        ),
        _calibration(figures["calibration"], _limit(figures)) if "calibration" in figures else "",
        _confusion(figures["confusion"]) if "confusion" in figures else "",
        _agreement(figures.get("agreement"), figures.get("pairwise")),
        _annotators(figures["annotators"], rehearsal) if "annotators" in figures else "",
        _times(figures["seconds_per_record"], rehearsal) if "seconds_per_record" in figures else "",
        _findings(figures["findings"]) if "findings" in figures else "",
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{REPORT_CSS}</style></head>\n<body>"
        f"{_REHEARSAL if rehearsal else ''}<main>{_header(figures)}"
        f"{body}\n{_FOOTER}</main></body></html>\n"
    )


def _header(figures: ReportFigures) -> str:
    what = [
        f"Release {figures['release']}" if "release" in figures else "",
        f"Round {figures['round']}" if "round" in figures else "",
        "quality report",
        figures.get("generated_at", ""),
    ]
    line = " · ".join(escape(part) for part in what if part)
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in figures.get("facts", [])
    )
    title = escape(figures.get("project", "Quality report"))
    block = f'<dl class="facts">{facts}</dl>' if facts else ""
    return f'<header><h1>{title}</h1><p class="kicker">{line}</p>{block}</header>'


def _summary(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    first, *others = sentences
    rest = "".join(f"<p>{escape(sentence)}</p>" for sentence in others)
    return f'<section class="summary"><p class="lead">{escape(first)}</p>{rest}</section>'


def _tiles(tiles: Sequence[Tile]) -> str:
    if not tiles:
        return ""
    return f'<section class="tiles">{"".join(_tile(tile) for tile in tiles)}</section>'


def _tile(tile: Tile) -> str:
    figure, kind = tile["figure"], tile.get("kind", "share")
    value = figure["value"]
    if value is None:
        large = '<p class="figure undefined">undefined</p>'
        lines = [figure.get("undefined_because") or ""]
    else:
        large = f'<p class="figure">{escape(_written(value, kind))}</p>'
        lines = [_spread(figure, kind)]
    lines.append(tile.get("note", ""))
    small = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    return f'<div class="tile"><h3>{escape(tile["label"])}</h3>{large}<div>{small}</div></div>'


def _guarantee(guarantee: Guarantee) -> str:
    lines = []
    if "auto_accepted" in guarantee:
        lines.append(f"{guarantee['auto_accepted']:,} labels were accepted without a person.")
    if "audited" in guarantee:
        lines.append(f"{guarantee['audited']:,} records of a random sample were labelled blind to allow it.")
    if "human_error" in guarantee:
        lines.append(f"Error of the people themselves, added on top: {_inline(guarantee['human_error'])}.")
    rest = f"<p>{escape(' '.join(lines))}</p>" if lines else ""
    statement = escape(guarantee["statement"])
    return (
        f'<section class="promise"><h2>What is guaranteed</h2><p class="lead">{statement}</p>{rest}</section>'
    )


def _accuracy(rounds: Sequence[RoundAccuracy]) -> str:
    known = [figure for figure in rounds if figure["value"] is not None]
    marks = [
        Whisker(
            x=float(index),
            value=figure["value"] or 0.0,
            low=figure.get("low"),
            high=figure.get("high"),
            n=figure.get("n", 0),
        )
        for index, figure in enumerate(known)
    ]
    chart = accuracy_plot(marks, [f"round {figure['round']}" for figure in known]) if marks else ""
    missing = "".join(
        _undefined(f"Round {figure['round']}", figure) for figure in rounds if figure["value"] is None
    )
    text = "On the random slice that no prompt, calibration or choice has ever seen; bars are 95 % intervals."
    return _card("Accuracy, round by round", text, chart + missing)


def _classes(classes: Sequence[ClassCount]) -> str:
    if not classes:
        return _card("Class balance", "", '<p class="undefined">No record is settled yet.</p>')
    largest = max(1, *(row["count"] for row in classes))
    total = sum(row["count"] for row in classes)
    automatic = any(row.get("auto_accepted") for row in classes)
    rows = []
    for row in classes:
        accepted = row.get("auto_accepted", 0)
        bar = share_bar([((row["count"] - accepted) / largest, "people"), (accepted / largest, "automatic")])
        share = percent(row["count"] / total) if total else "–"
        rows.append(
            f'<tr><th scope="row">{escape(row["label"])}</th><td class="grow">{bar}</td>'
            f'<td class="number">{row["count"]:,}</td><td class="number quiet">{share}</td></tr>'
        )
    legend = (
        '<p class="legend"><span><span class="swatch people"></span>labelled by people</span>'
        '<span><span class="swatch automatic"></span>accepted automatically</span></p>'
        if automatic
        else ""
    )
    return _card("Class balance", f"{total:,} settled records.", f"<table>{''.join(rows)}</table>{legend}")


def _calibration(calibration: Calibration, limit: float | None) -> str:
    if reason := calibration.get("undefined_because"):
        return _card("Can the confidence be trusted?", "", _reason("Calibration", reason))
    metrics = "".join(
        f"<div><dt>{name}</dt><dd>{_inline_html(figure, 'number')}</dd><dd class='quiet'>{hint}</dd></div>"
        for name, figure, hint in (
            ("Log-loss", calibration.get("log_loss"), "smaller is better"),
            ("Brier score", calibration.get("brier"), "smaller is better, 0 is perfect"),
            ("AUROC of correctness", calibration.get("auroc"), "0.5 is a coin, 1 is perfect"),
        )
        if figure is not None
    )
    reliability = _reliability(calibration["reliability"]) if "reliability" in calibration else ""
    risk = _risk_coverage(calibration["risk_coverage"], limit) if "risk_coverage" in calibration else ""
    block = f'<dl class="facts">{metrics}</dl>' if metrics else ""
    plots = f'<div class="columns">{reliability}{risk}</div>' if reliability or risk else ""
    return _card("Can the confidence be trusted?", "", block + plots)


def _reliability(bins: Sequence[ReliabilityRow]) -> str:
    marks = [
        Whisker(
            x=row["mean_confidence"],
            value=row["right"]["value"],
            low=row["right"].get("low"),
            high=row["right"].get("high"),
            n=row["right"].get("n", 0),
        )
        for row in bins
        if row["right"]["value"] is not None
    ]
    if not marks:
        return _figure_block("Reliability", "", '<p class="undefined">undefined: no reviewed suggestions</p>')
    counts = [mark.n for mark in marks]
    each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    rows = "".join(
        f'<tr><td class="number">{percent(mark.x)}</td><td class="number">{percent(mark.value)}</td>'
        f'<td class="number">{_between(mark.low, mark.high)}</td><td class="number">{mark.n:,}</td></tr>'
        for mark in marks
    )
    table = _details(("confidence", "right", "95 % interval", "n"), rows)
    text = (
        f"{sum(counts):,} reviewed suggestions in {len(marks)} bins of {each}. On the line: kept its promise."
    )
    return _figure_block("Reliability", text, reliability_plot(marks) + table)


def _risk_coverage(points: Sequence[RiskCoverageRow], limit: float | None) -> str:
    if not points:
        return _figure_block(
            "Risk and coverage", "", '<p class="undefined">undefined: no reviewed suggestions</p>'
        )
    chart = risk_coverage_plot([(point["coverage"], point["risk"]) for point in points], limit=limit)
    tenths = [min(points, key=lambda point: abs(point["coverage"] - tenth / 10)) for tenth in range(1, 11)]
    rows = "".join(
        f'<tr><td class="number">{percent(point["coverage"])}</td>'
        f'<td class="number">{percent(point["risk"])}</td></tr>'
        for point in tenths
    )
    text = "How many labels would be wrong if only the most confident suggestions were kept."
    return _figure_block("Risk and coverage", text, chart + _details(("kept", "wrong among them"), rows))


def _confusion(confusion: Confusion) -> str:
    labels, counts = confusion["labels"], confusion["counts"]
    head = "".join(f'<th scope="col"><span>{escape(label)}</span></th>' for label in labels)
    rows = []
    for label, row in zip(labels, counts, strict=True):
        support = sum(row)
        cells = "".join(
            _heat_cell(
                f"{count or '·'}",
                share=count / max(support, 1),
                title=f"settled {label}, suggested {column}: {count} of {support}",
                hit=column == label,
            )
            for column, count in zip(labels, row, strict=True)
        )
        right = row[labels.index(label)]
        recall = percent(right / support) if support else "undefined"
        rows.append(
            f'<tr><th scope="row">{escape(label)}</th>{cells}<td class="number">{support:,}</td>'
            f'<td class="number">{recall}</td></tr>'
        )
    table = _scrolling(
        "Which labels are mixed up",
        f'<table class="confusion"><thead><tr><th>settled \\ suggested</th>{head}'
        f"<th>records</th><th>found</th></tr></thead><tbody>{''.join(rows)}</tbody></table>",
    )
    text = "Rows are the settled labels, columns what was suggested; shading is the share of the row."
    return _card("Which labels are mixed up", text, table + _worst_pairs(confusion))


def _worst_pairs(confusion: Confusion) -> str:
    labels, counts = confusion["labels"], confusion["counts"]
    pairs = [
        (counts[i][j], labels[i], labels[j])
        for i in range(len(labels))
        for j in range(len(labels))
        if i != j and counts[i][j]
    ]
    if not pairs:
        return ""
    top = sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:3]
    named = "; ".join(f"{settled} taken for {suggested} ({count})" for count, settled, suggested in top)
    return f"<p>Most frequent: {escape(named)}.</p>"


def _agreement(measures: Sequence[AgreementRow] | None, pairwise: Pairwise | None) -> str:
    if measures is None and pairwise is None:
        return ""
    rows = []
    ends = [figure.get("low") or figure["value"] or 0.0 for figure in measures or []]
    lowest = -1.0 if min(ends, default=0.0) < 0 else 0.0
    for figure in measures or []:
        name = escape(MEASURE_NAMES.get(figure["name"], figure["name"]))
        value = figure["value"]
        if value is None:
            reason = escape(figure.get("undefined_because") or "no reason was given")
            rows.append(
                f'<tr><th scope="row">{name}</th><td colspan="3"><span class="undefined">undefined</span> '
                f"{reason}</td>"
                f'<td class="number">{figure.get("n", 0):,}</td></tr>'
            )
            continue
        mark = Whisker(
            x=0.0, value=value, low=figure.get("low"), high=figure.get("high"), n=figure.get("n", 0)
        )
        rows.append(
            f'<tr><th scope="row">{name}</th><td class="number strong">{value:.2f}</td>'
            f"<td>{interval_bar(mark, low=lowest, high=1.0)}</td>"
            f'<td class="number quiet">{_plain_between(figure.get("low"), figure.get("high"))}</td>'
            f'<td class="number">{figure.get("n", 0):,}</td></tr>'
        )
    table = ""
    if rows:
        head = (
            '<tr><th>measure</th><th class="number">value</th>'
            f"<th>from {lowest:.0f} to 1</th>"
            '<th class="number">95 % interval</th><th class="number">records</th></tr>'
        )
        table = _scrolling("Agreement", f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>")
    text = (
        "All but raw agreement are corrected for chance: 1 is complete agreement, 0 is what guessing gives. "
        "Computed on records that several people labelled independently."
    )
    return _card("Do people agree?", text, table + (_pairwise(pairwise) if pairwise else ""))


def _scrolling(name: str, table: str) -> str:
    """A table that scrolls sideways where it is too wide, with the keyboard too."""
    return f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">{table}</div>'


def _pairwise(pairwise: Pairwise) -> str:
    head = "".join(f'<th scope="col"><span>{escape(rater)}</span></th>' for rater in pairwise["raters"])
    rows = []
    for i, (rater, row) in enumerate(zip(pairwise["raters"], pairwise["cells"], strict=True)):
        cells = "".join(
            _heat_cell(
                "" if i == j else "undefined" if value is None else f"{value:.2f}",
                share=max(0.0, value or 0.0),
                title=f"{rater} and {pairwise['raters'][j]}",
            )
            for j, value in enumerate(row)
        )
        rows.append(f'<tr><th scope="row">{escape(rater)}</th>{cells}</tr>')
    return '<h3 class="below">Two by two (Cohen\'s kappa)</h3>' + _scrolling(
        "Agreement, two by two",
        f'<table class="confusion"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>',
    )


def _times(seconds: Sequence[float], rehearsal: bool) -> str:
    # How fast the simulation answers says nothing of people.
    missing = "nobody read a record in a rehearsal" if rehearsal else "no decision has been timed"
    if rehearsal or not seconds:
        return _card("Time per record", "", f'<p class="undefined">undefined: {missing}</p>')
    ordered = sorted(seconds)
    facts = (
        ("Half of the records take at most", f"{plain(quantile(ordered, 0.5))} s"),
        ("Nine of ten take at most", f"{plain(quantile(ordered, 0.9))} s"),
        ("All together", _worked(sum(seconds))),
    )
    side = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    chart = histogram(seconds, unit="s", name="time per record")
    text = f"{len(seconds):,} decisions. The last bar gathers everything longer."
    return _card("Time per record", text, f'<div class="beside">{chart}<dl class="facts">{side}</dl></div>')


def _annotators(annotators: Sequence[AnnotatorRow], rehearsal: bool) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(row["name"])}</th><td class="number">{row["records"]:,}</td>'
        f'<td class="number">{_seconds(None if rehearsal else row.get("median_s"))}</td>'
        f"<td class='number'>{_inline_html(row.get('blind'), 'share')}</td>"
        f"<td class='number'>{_inline_html(row.get('assisted'), 'share')}</td></tr>"
        for row in annotators
    )
    head = (
        '<tr><th>person</th><th class="number">records</th><th class="number">median</th>'
        '<th class="number">right, blind</th><th class="number">right, with suggestion</th></tr>'
    )
    text = "Accuracy against settled labels, without and with a suggestion on the screen."
    return _card(
        "People",
        text,
        _scrolling("People", f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"),
    )


def _findings(findings: Sequence[FindingRow]) -> str:
    if not findings:
        return _card("Findings", "", "<p>Nothing was flagged.</p>")
    counts = Counter(FINDING_NAMES.get(finding["kind"], finding["kind"]) for finding in findings)
    chips = "".join(
        f'<span class="chip">{escape(name)} <b>{count:,}</b></span>' for name, count in counts.most_common()
    )
    rows = "".join(_finding_row(finding) for finding in findings[:FINDINGS_SHOWN])
    hidden = len(findings) - FINDINGS_SHOWN
    more = f"<p>{hidden:,} more in findings.parquet.</p>" if hidden > 0 else ""
    text = (
        "Where a second look pays. Screening, not a verdict: most flags about people have innocent reasons."
    )
    head = "<thead><tr><th>what</th><th>record</th><th>why</th><th>outcome</th></tr></thead>"
    table = _scrolling("Findings", f'<table class="findings">{head}<tbody>{rows}</tbody></table>')
    return _card("Findings", text, f'<p class="chips">{chips}</p>{table}{more}')


def _finding_row(finding: FindingRow) -> str:
    name = escape(FINDING_NAMES.get(finding["kind"], finding["kind"]))
    evidence = "".join(f"<li>{escape(line)}</li>" for line in finding["evidence"])
    return (
        f'<tr><td class="kind">{name}</td><td class="id">{escape(finding["record_id"] or "–")}</td>'
        f'<td>{escape(finding["sentence"])}<ul class="evidence">{evidence}</ul></td>'
        f'<td class="kind">{OUTCOMES[finding.get("state", "open")]}</td></tr>'
    )


def _heat_cell(text: str, *, share: float, title: str, hit: bool = False) -> str:
    """A table cell shaded by a share in [0, 1]."""
    css = "cell hit" if hit else "cell"
    return f'<td class="{css}" style="--share:{share:.3f}" title="{escape(title)}">{escape(text)}</td>'


def _limit(figures: ReportFigures) -> float | None:
    return figures["guarantee"].get("limit") if "guarantee" in figures else None


def _columns(first: str, second: str) -> str:
    if first and second:
        return f'<div class="columns">{first}{second}</div>'
    return first or second


def _card(title: str, text: str, inside: str) -> str:
    note = f'<p class="quiet">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{note}{inside}</section>"


def _figure_block(title: str, text: str, inside: str) -> str:
    note = f'<p class="quiet">{escape(text)}</p>' if text else ""
    return f"<div><h3>{escape(title)}</h3>{note}{inside}</div>"


def _details(names: Sequence[str], rows: str) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<details><summary>As a table</summary>{table}</details>"


def _undefined(name: str, figure: Figure) -> str:
    return _reason(name, figure.get("undefined_because") or "no reason was given")


def _reason(name: str, reason: str) -> str:
    return f'<p>{escape(name)}: <span class="undefined">undefined</span>, {escape(reason)}.</p>'


def _written(value: float, kind: str) -> str:
    if kind == "share":
        return percent(value)
    return f"{value:,.0f}" if kind == "count" else f"{value:.2f}"


def _spread(figure: Figure, kind: str) -> str:
    low, high, n = figure.get("low"), figure.get("high"), figure.get("n")
    parts = []
    if low is not None and high is not None:
        parts.append(f"{_written(low, kind)} to {_written(high, kind)}")
    if n is not None:
        parts.append(f"n = {n:,}")
    return ", ".join(parts)


def _inline(figure: Figure, kind: str = "share") -> str:
    value = figure["value"]
    if value is None:
        return f"undefined ({figure.get('undefined_because') or 'no reason was given'})"
    spread = _spread(figure, kind)
    return f"{_written(value, kind)} ({spread})" if spread else _written(value, kind)


def _inline_html(figure: Figure | None, kind: str) -> str:
    if figure is None:
        return '<span class="quiet">not measured</span>'
    value = figure["value"]
    if value is None:
        reason = escape(figure.get("undefined_because") or "no reason was given")
        return f'<span class="undefined">undefined</span> <span class="quiet">{reason}</span>'
    spread = escape(_spread(figure, kind))
    return f'{escape(_written(value, kind))} <span class="quiet spread">{spread}</span>'


def _between(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{percent(low)} to {percent(high)}"


def _plain_between(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{plain(value)} s"


def _worked(seconds: float) -> str:
    """Working time as people say it: "42 s", "12 minutes", "3.3 hours"."""
    if seconds < 90:
        return f"{plain(seconds)} s"
    return f"{plain(seconds / 60)} minutes" if seconds < 5400 else f"{plain(seconds / 3600)} hours"


_REHEARSAL = (
    '<div class="rehearsal" role="note"><b>Rehearsal</b> Annotators were simulated from a truth column that '
    "was known beforehand. No person decided anything in this report.</div>"
)

_FOOTER = (
    "<footer><p>Intervals are 95 %: Wilson for shares, bootstrap over records for agreement. “Undefined” "
    "means that the figure does not exist for these data, not that it is zero. No calibration error is "
    "shown: below 3,000 records it is noise. Made by Countersign on the machine that holds the data; this "
    "page loads nothing from anywhere.</p></footer>"
)
