"""The style sheet of the report page: light and dark, wide and narrow, nothing fetched from elsewhere."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #f6f7f9; --card: #ffffff; --ink: #1a1f29; --soft: #5b6472; --rule: #e1e5eb; --grid: #e9ecf1;
  --warn-ground: #fff6df; --warn-ink: #6b4700; --warn-rule: #eac968;
  --good: #0a7040; --bad: #b3261e; --good-ground: #e4f5ec; --bad-ground: #fdebea; --flat-ground: #eef0f4;
  --s0: #2563eb; --s1: #c2410c; --s2: #047857; --s3: #7c3aed; --s4: #be185d; --s5: #0e7490;
  --s6: #a16207; --s7: #4b5563;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #11141a; --card: #191e27; --ink: #e7eaf0; --soft: #9aa5b5; --rule: #2b323e; --grid: #252c37;
    --warn-ground: #33290f; --warn-ink: #f5dc9a; --warn-rule: #6f5a1f;
    --good: #6ee7a8; --bad: #ff9d94; --good-ground: #12352a; --bad-ground: #40201f; --flat-ground: #262c37;
    --s0: #7aa7ff; --s1: #fb9460; --s2: #4fd1a0; --s3: #b99bff; --s4: #f58bbd; --s5: #5cc8e0;
    --s6: #e3b341; --s7: #a3adba;
  }
}
* { box-sizing: border-box; }
figure { margin: 0; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1240px; margin: 0 auto; padding: 40px 24px 56px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 6px; }
h2 { font-size: 19px; letter-spacing: -0.005em; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 0 0 8px; }
p { margin: 0 0 14px; }
.under, .note { color: var(--soft); }
.note { font-size: 14px; max-width: 78ch; }
.banner {
  margin: 20px 0 0; padding: 12px 16px; border: 1px solid var(--warn-rule); border-left-width: 5px;
  border-radius: 8px; background: var(--warn-ground); color: var(--warn-ink);
}
section {
  margin-top: 24px; padding: 22px 24px; border: 1px solid var(--rule); border-radius: 12px;
  background: var(--card);
}
.highlights {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 16px; margin-top: 24px;
}
.highlight { padding: 16px 20px; border: 1px solid var(--rule); border-radius: 12px; }
.highlight { background: var(--card); }
.highlight b { display: block; font-size: 28px; line-height: 1.25; letter-spacing: -0.02em; }
.highlight span { display: block; line-height: 1.4; color: var(--soft); font-size: 13.5px; }
.highlight .name { font-size: 13px; font-weight: 600; margin-bottom: 2px; }
.scroll { overflow-x: auto; margin: 14px -24px -22px; padding: 0 24px 22px; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 10px; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { font-size: 12.5px; line-height: 1.3; color: var(--soft); font-weight: 600; vertical-align: bottom; }
th { white-space: normal; min-width: 74px; }
tbody tr:last-child td { border-bottom: 0; }
tbody tr.reference td { background: var(--flat-ground); }
tbody tr.family td { border-top: 2px solid var(--rule); }
td:first-child { font-weight: 600; }
.number { text-align: right; }
.pill { display: inline-block; padding: 1px 10px; border-radius: 99px; font-size: 13px; white-space: nowrap; }
.pill { background: var(--flat-ground); color: var(--soft); }
.pill.better { background: var(--good-ground); color: var(--good); }
.pill.worse { background: var(--bad-ground); color: var(--bad); }
dl { display: grid; grid-template-columns: minmax(150px, max-content) 1fr; gap: 8px 24px; margin: 14px 0 0; }
dl { font-size: 14.5px; }
dt { font-weight: 600; }
dd { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 10px 0 4px; font-size: 14px; }
.legend i { display: inline-block; width: 18px; height: 3px; margin-right: 8px; vertical-align: middle; }
.legend i { border-radius: 2px; background: var(--c, var(--soft)); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 24px; }
.charts { margin-top: 16px; }
.chart { display: block; width: 100%; height: auto; }
.chart text { font-size: 12.5px; fill: var(--soft); }
.chart text.axis { font-size: 13px; fill: var(--ink); }
.chart .grid { stroke: var(--grid); }
.chart .level { stroke: var(--soft); stroke-dasharray: 6 5; }
.chart .line { fill: none; stroke: var(--c); stroke-width: 2.25; stroke-linejoin: round; }
.chart .reference { stroke: var(--ink); stroke-dasharray: 2 4; }
.chart .point { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
.chart .point.hollow { fill: var(--card); stroke: var(--c); stroke-width: 2; }
.chart text.label { fill: var(--c); font-weight: 600; stroke: var(--card); stroke-width: 4; paint-order: stroke; }
.chart.key { display: inline-block; width: 30px; height: 16px; margin-right: 6px; vertical-align: middle; }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(500px, 100%), 1fr)); }
.plots .line { stroke-width: 1.5; opacity: 0.65; }
.ref { --c: var(--ink); }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); }
.s3 { --c: var(--s3); } .s4 { --c: var(--s4); } .s5 { --c: var(--s5); }
.s6 { --c: var(--s6); } .s7 { --c: var(--s7); }
footer { margin-top: 28px; color: var(--soft); font-size: 13.5px; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media (max-width: 640px) {
  main { padding: 24px 14px 40px; }
  h1 { font-size: 24px; }
  section { padding: 18px 16px; }
  .highlights { grid-template-columns: 1fr 1fr; gap: 10px; }
  .highlight { padding: 12px 14px; }
  .highlight b { font-size: 22px; }
  .scroll { margin: 14px -16px -18px; padding: 0 0 18px; }
  .charts { grid-template-columns: 1fr; }
  th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); padding-left: 16px; }
  tbody tr.reference td:first-child { background: var(--flat-ground); }
  dl { grid-template-columns: 1fr; gap: 2px; }
  dd { margin-bottom: 10px; }
}
@media print {
  body { background: none; } main { max-width: none; padding: 0; } section { break-inside: avoid; }
}
"""
