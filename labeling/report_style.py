"""The style sheet of the report: AA contrast in the light and the dark theme, black on white in print."""

REPORT_CSS = """
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --surface: #ffffff; --text: #1b1f24; --quiet: #565e68; --line: #dcdfe3; --grid: #e8eaed;
  --accent: #0b5cad; --second: #b3701a; --soft: #0b5cad1f; --alarm: #9b1c1c; --alarm-page: #fdecec;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121518; --surface: #1a1e23; --text: #e7eaee; --quiet: #a7b0bb; --line: #353c45; --grid: #2a3038;
    --accent: #7cb7f4; --second: #e3a54a; --soft: #7cb7f426; --alarm: #ffb3b3; --alarm-page: #3a1b1d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text); font-variant-numeric: tabular-nums;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-size: 16px; line-height: 1.5;
}
main {
  max-width: 1088px; margin: 0 auto; padding: 40px 24px 64px;
  display: grid; grid-template-columns: minmax(0, 1fr); gap: 24px;
}
h1 { font-size: 32px; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 20px; line-height: 1.3; margin: 0 0 4px; }
h3 { font-size: 15px; line-height: 1.4; margin: 0; font-weight: 600; }
h3.below { margin-top: 24px; }
p { margin: 0 0 8px; }
section > :last-child, .tile > :last-child { margin-bottom: 0; }
.kicker, .quiet { color: var(--quiet); }
.kicker { margin: 4px 0 0; }
.quiet { font-size: 14px; }
.lead { font-size: 18px; max-width: 68ch; }
section {
  background: var(--surface); border: 1px solid var(--line); border-radius: 8px; padding: 24px; min-width: 0;
}
.summary, .tiles { background: none; border: 0; padding: 0; }
.summary p:not(.lead) { max-width: 72ch; color: var(--quiet); }
.facts { display: flex; flex-wrap: wrap; gap: 8px 32px; margin: 16px 0 0; }
section .facts { margin: 16px 0 24px; }
.facts dt { font-size: 13px; color: var(--quiet); }
.facts dd { margin: 0; }
.facts dd.quiet { font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 0 16px; }
.tiles { margin-bottom: -16px; }
.tiles > .tile { margin-bottom: 16px; }
.tile {
  background: var(--surface); border: 1px solid var(--line); border-radius: 8px; padding: 16px 20px;
  display: grid; grid-row: span 3; grid-template-rows: subgrid; row-gap: 0;
}
.tile h3 { color: var(--quiet); font-size: 14px; }
.tile p { font-size: 13px; color: var(--quiet); margin: 0; }
.tile .figure {
  font-size: 32px; line-height: 40px; font-weight: 600; color: var(--text); letter-spacing: -0.01em;
}
.tile .figure.undefined { font-size: 22px; font-weight: 400; letter-spacing: 0; color: var(--quiet); }
.undefined { font-style: italic; color: var(--quiet); }
.promise { border-left: 4px solid var(--accent); }
.columns {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 24px 32px;
  align-items: start;
}
main > .columns { align-items: stretch; gap: 24px; }
.columns > * { min-width: 0; }
.rehearsal {
  background: var(--alarm-page); color: var(--alarm); border-bottom: 2px solid currentColor;
  padding: 12px 24px; text-align: center;
}
.rehearsal b { text-transform: uppercase; letter-spacing: 0.08em; margin-right: 8px; }
.chart { display: block; width: 100%; height: auto; margin-top: 12px; }
.chart text { font-size: 12px; fill: var(--quiet); }
.chart text.value { fill: var(--text); font-weight: 600; font-size: 13px; }
.chart .middle { text-anchor: middle; }
.chart .end { text-anchor: end; }
.grid { stroke: var(--grid); }
.axis { stroke: var(--quiet); stroke-opacity: 0.6; }
.reference { stroke: var(--quiet); stroke-dasharray: 4 4; }
.limit { stroke: var(--second); stroke-width: 1.5; stroke-dasharray: 6 3; }
.curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.curve.faint { stroke-opacity: 0.35; }
.area { fill: var(--soft); }
.whisker { fill: none; stroke: var(--accent); stroke-width: 1.5; }
.point { fill: var(--accent); stroke: var(--surface); stroke-width: 1.5; }
.bar, .people { fill: var(--accent); background: var(--accent); }
.automatic { fill: var(--second); background: var(--second); }
.track { fill: var(--grid); }
.sharebar { display: block; width: 100%; min-width: 80px; height: 12px; border-radius: 2px; }
.intervalbar { display: block; width: 200px; height: 24px; }
.intervalbar .whisker { stroke-width: 7; stroke-opacity: 0.4; stroke-linecap: round; }
.beside {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); gap: 8px 48px;
}
.beside > .chart { max-width: 560px; }
.beside > .facts { display: grid; gap: 16px; align-content: center; }
.beside > .facts dd { font-size: 20px; font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 24px; margin: 12px 0 0; }
.legend { font-size: 13px; color: var(--quiet); }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px; }
.swatch { vertical-align: -1px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin-top: 8px; }
th { text-align: left; font-weight: 600; }
thead th { font-size: 13px; font-weight: 400; color: var(--quiet); vertical-align: bottom; }
th, td { padding: 7px 16px 7px 0; border-bottom: 1px solid var(--grid); vertical-align: middle; }
tr > :last-child { padding-right: 0; }
tbody tr:last-child > * { border-bottom: 0; }
th.number, td.number { text-align: right; white-space: nowrap; }
td.number .quiet { font-size: 13px; }
.spread { display: block; }
.strong { font-weight: 600; }
.grow { width: 60%; }
.scroll { overflow-x: auto; }
.confusion { width: auto; margin-bottom: 12px; border-collapse: separate; border-spacing: 2px; }
.confusion th, .confusion td { border: 0; padding: 6px 12px; }
.confusion th[scope="col"] { text-align: center; }
.confusion th[scope="row"] { padding-left: 0; }
.cell {
  min-width: 64px; text-align: center; border-radius: 4px;
  background: color-mix(in srgb, var(--accent) calc(var(--share) * 42%), transparent);
}
.cell.hit { font-weight: 600; }
.chips { display: flex; flex-wrap: wrap; gap: 8px; margin: 12px 0; }
.chip { border: 1px solid var(--line); border-radius: 16px; padding: 3px 12px; font-size: 13px; }
.findings td { vertical-align: top; }
.kind, .id { white-space: nowrap; }
.id { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px; }
.evidence {
  margin: 4px 0 0; padding: 0; list-style: none; font-size: 13px; color: var(--quiet);
  display: flex; flex-wrap: wrap; gap: 0 16px;
}
details { margin-top: 8px; font-size: 14px; }
summary { cursor: pointer; color: var(--accent); }
summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
details table { max-width: 420px; }
footer { color: var(--quiet); font-size: 13px; max-width: 80ch; }
@media (max-width: 600px) {
  main { padding: 24px 16px; }
  section { padding: 16px; }
  .findings .kind { white-space: normal; }
}
@media print {
  :root {
    --page: #fff; --surface: #fff; --text: #000; --quiet: #444; --line: #bbb; --grid: #ddd;
    --accent: #0b5cad; --second: #b3701a; --soft: #0b5cad1f; --alarm: #9b1c1c; --alarm-page: #fdecec;
  }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; gap: 14pt; }
  section, .tile { padding: 10pt; }
  section:not(:has(.findings)), .tile, tr { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  details { display: none; }
}
"""
