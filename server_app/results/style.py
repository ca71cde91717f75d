"""The style sheet of `report.html`: light, dark where the reader's system is, and light on paper."""

STYLE = """\
:root { color-scheme: light; --ground: #f5f7fa; --panel: #ffffff; --ink: #1f2933; --muted: #52606d; --line: #e4e7eb;
  --note: #fff4ec; --accent: #d9722e; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --ground: #11161c; --panel: #1a2129; --ink: #e6eaef; --muted: #a3b0bd; --line: #35414d;
    --note: #362617; --accent: #e88a4a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.15rem; }
p { margin: .25rem 0 .75rem; }
section > :last-child { margin-bottom: 0; }
.lead, .note { color: var(--muted); }
.note { font-size: .875rem; }
.running { padding: .6rem .9rem; border-left: 4px solid var(--accent); background: var(--note); }
section { margin-top: 1.25rem; padding: 1.25rem; background: var(--panel); border: 1px solid var(--line);
  border-radius: 8px; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem; margin: 1.25rem 0 0; }
.cards div { padding: .8rem 1rem; background: var(--panel); border: 1px solid var(--line); border-radius: 8px; }
.cards dt { color: var(--muted); font-size: .8rem; }
.cards dd { margin: 0; font-size: 1.4rem; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere; }
.cards dd small { display: block; color: var(--muted); font-size: .8rem; font-weight: 400; }
img { display: block; width: 100%; max-width: 880px; height: auto; margin: 0 auto; }
/* Not a picture element with sources: a browser that prints keeps the source that the screen had. */
.dark { display: none; }
@media screen and (prefers-color-scheme: dark) {
  .light { display: none; }
  .dark { display: block; }
}
.scroll { overflow: auto; }
/* Thousands of rows are laid out when they come into view, and not before. */
.tall { max-height: 34rem; content-visibility: auto; contain-intrinsic-size: auto 34rem; }
table { width: 100%; border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
.filter { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; margin-bottom: .75rem; color: var(--muted);
  font-size: .875rem; }
.filter input { width: 16rem; max-width: 100%; padding: .3rem .5rem; border: 1px solid var(--muted);
  border-radius: 4px; background: var(--panel); color: var(--ink); font: inherit; }
th button { padding: 0; border: 0; background: none; color: inherit; font: inherit; text-align: inherit;
  cursor: pointer; }
th button:hover { text-decoration: underline; }
th[aria-sort="ascending"] button::after { content: " ▲"; }
th[aria-sort="descending"] button::after { content: " ▼"; }
th, td { padding: .4rem .5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; }
th { position: sticky; top: 0; background: var(--panel); color: var(--muted); font-size: .8rem; font-weight: 600;
  white-space: normal; vertical-align: bottom; box-shadow: inset 0 -1px var(--line); }
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
@media print {
  .scroll { overflow: visible; }
  .tall { max-height: none; content-visibility: visible; }
  .filter { display: none; }
}
"""
