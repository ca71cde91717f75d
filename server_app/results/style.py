"""The style sheet of `report.html`."""

STYLE = """\
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7fa; color: #1f2933; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.15rem; }
p { margin: .25rem 0 .75rem; }
section > :last-child { margin-bottom: 0; }
.lead, .note { color: #52606d; }
.note { font-size: .875rem; }
.running { padding: .6rem .9rem; border-left: 4px solid #d9722e; background: #fff4ec; }
section { margin-top: 1.25rem; padding: 1.25rem; background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem; margin: 1.25rem 0 0; }
.cards div { padding: .8rem 1rem; background: #fff; border: 1px solid #e4e7eb; border-radius: 8px; }
.cards dt { color: #52606d; font-size: .8rem; }
.cards dd { margin: 0; font-size: 1.4rem; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere; }
.cards dd small { display: block; color: #52606d; font-size: .8rem; font-weight: 400; }
img { display: block; width: 100%; max-width: 880px; height: auto; margin: 0 auto; }
.scroll { overflow: auto; }
.tall { max-height: 34rem; }
table { width: 100%; border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th button { padding: 0; border: 0; background: none; color: inherit; font: inherit; text-align: inherit;
  cursor: pointer; }
th button:hover { text-decoration: underline; }
th[aria-sort="ascending"] button::after { content: " ▲"; }
th[aria-sort="descending"] button::after { content: " ▼"; }
th, td { padding: .4rem .5rem; border-bottom: 1px solid #e4e7eb; text-align: left; vertical-align: top;
  white-space: nowrap; }
th { position: sticky; top: 0; background: #fff; color: #52606d; font-size: .8rem; font-weight: 600;
  white-space: normal; vertical-align: bottom; }
tfoot td { font-weight: 600; border-bottom: 0; }
.number { text-align: right; }
.wrap { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
code, pre { font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
summary { cursor: pointer; font-weight: 600; }
.config td:last-child { white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  main { padding: 1.25rem .75rem 3rem; }
  section { padding: .9rem; }
  img { min-width: 28rem; }
  .cards { grid-template-columns: repeat(2, 1fr); gap: .5rem; }
  .cards div { padding: .6rem .7rem; }
  .cards dd { font-size: 1.15rem; }
}
@media print { .tall { max-height: none; } }
"""
