"""The Jinja2 template of a comparison's page, as a string: Flower's app bundle carries Python files but no HTML."""

# By this a page is known to be ours, and may be written over.
GENERATOR = "mh-pfedhn comparison"

TEMPLATE = """\
{% macro table(sheet) %}
<div class="scroll">
<table class="sortable">
<thead><tr>
{% for head in sheet.heads %}
<th{{ ' class="number"' | safe if loop.index0 >= sheet.num_words }}>{{ head }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in sheet.rows %}
<tr>
{% for cell in row %}
{% set shape = "number" if loop.index0 >= sheet.num_words else "words" %}
{% set mark = "best" if cell.is_best else "close" if cell.is_close else "" %}
{% set value, sign, deviation = cell.text.partition(" ± ") %}
<td class="{{ shape }} {{ mark }}"{% if cell.number is not none %} data-number="{{ cell.number }}"{% endif %}>
{{- value }}{% if sign %}<small>{{ sign }}{{ deviation }}</small>{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{{ generator }}">
{% if goes_on %}
<meta http-equiv="refresh" content="{{ refresh_seconds }}">
{% endif %}
<title>{{ comparison.name }}</title>
<style>
{{ style | safe }}
:root { --link: #1d5fa8; --best: #e3f1e7; }
@media screen and (prefers-color-scheme: dark) { :root { --link: #7fb4ea; --best: #203a2b; } }
main { max-width: 1400px; }
h2 { overflow-wrap: anywhere; }
th, td { padding: .4rem .35rem; }
h3 { margin: 1.25rem 0 .4rem; font-size: .95rem; }
a { color: var(--link); }
ul.note { margin: 0; padding-left: 1.1rem; }
ul.note li { margin-bottom: .35rem; overflow-wrap: anywhere; }
img { max-width: 1100px; }
.tall { overflow: auto; }
/* The first column stays in sight where a table is wider than the screen. */
th { z-index: 1; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--panel); }
th:first-child { z-index: 2; }
small { color: var(--muted); font-size: .85em; font-weight: 400; }
.best { font-weight: 700; background: var(--best); }
.close { text-decoration: underline; text-underline-offset: .2em; }
.words { white-space: normal; min-width: 5rem; }
.words:first-child { min-width: 7.5rem; }
@media (max-width: 600px) {
  img { min-width: 40rem; }
  td:first-child, th:first-child { min-width: 7.5rem; max-width: 9.5rem; white-space: normal; overflow-wrap: anywhere; }
}
</style>
</head>
<body>
<main>
<h1>{{ comparison.name }}</h1>
{% if comparison.description %}
<p class="lead">{{ comparison.description }}</p>
{% endif %}
<p class="lead">{{ comparison.runs | length }} run{{ "" if comparison.runs | length == 1 else "s" }}:
{{ states }}.</p>
{% if goes_on %}
<p class="running" role="status">Not all runs have finished: the page shows what there is, and reloads itself every
{{ refresh_seconds }} seconds.</p>
{% endif %}
{% if absent %}
<section>
<h2>Runs that have failed, or have not finished</h2>
<div class="tall" tabindex="0" role="region" aria-label="Runs that have failed or have not finished">
<table>
<thead><tr><th>Run</th><th>State</th><th>Reason</th></tr></thead>
<tbody>
{% for name, state, reason in absent %}
<tr><td>{{ name }}</td><td>{{ state }}</td><td class="wrap">{{ reason or "–" }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}

{% for accuracy, costs, failing in sheets %}
<section>
<h2>{{ accuracy.title }}</h2>
{{ table(accuracy) }}
<h3>{{ costs.title }}</h3>
{{ table(costs) }}
{% if failing %}
<ul class="note">
{% for line in failing %}
<li>{{ line }}</li>
{% endfor %}
</ul>
{% endif %}
</section>
{% endfor %}

<section>
<h2>What the numbers are</h2>
<ul class="note">
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
</section>

<section>
<h2>Accuracy</h2>
{% call picture(accuracy_plot) %}
Mean accuracy over clients against rounds and against bytes, a line a method. {{ in_words }}
{% endcall %}
<p class="note">Lines are means over seeds in the rounds that every seed has tested.</p>
</section>

{% if gain_plot %}
<section>
<h2>Gain of each client over training alone</h2>
{% call picture(gain_plot) %}
Histograms of the clients' gains in accuracy over training alone. {{ gains_in_words }}
{% endcall %}
<p class="note">To the left of the line are the clients that would do better alone.</p>
</section>
{% endif %}

{% if grid %}
<section>
<h2>{{ grid.title }}</h2>
{{ table(grid) }}
</section>
{% endif %}

<section>
<h2>Runs</h2>
<div class="tall" tabindex="0" role="region" aria-label="Table of runs">
<table class="sortable">
<thead><tr><th>Run</th><th>Method</th><th>Setting</th>{% if comparison.has_grid %}<th>Point</th>{% endif %}
<th class="number">Seed</th><th>State</th><th class="number">Mean, last</th><th>Learned nothing</th></tr></thead>
<tbody>
{% for run, link, accuracy, nothing in runs %}
<tr><td>{% if link %}<a href="{{ link }}">{{ run.name }}</a>{% else %}{{ run.name }}{% endif %}</td>
<td>{{ run.method }}</td><td>{{ run.setting }}</td>{% if comparison.has_grid %}<td>{{ run.point }}</td>{% endif %}
<td class="number">{{ run.seed }}</td><td>{{ run.state }}, {{ run.progress }}</td>
<td class="number">{{ accuracy }}</td><td class="wrap">{{ nothing }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
</section>

<section>
<h2>Settings that differ</h2>
{% if differences %}
<div class="scroll">
<table>
<thead><tr><th>Key</th><th>Value</th><th>Of</th></tr></thead>
<tbody>
{% for difference in differences %}
{% for value, names in difference["values"] %}
<tr><td>{% if loop.first %}<code>{{ difference.key }}</code>{% endif %}</td>
<td class="wrap"><code>{{ value }}</code></td><td class="wrap">{{ names }}</td></tr>
{% endfor %}
{% endfor %}
</tbody>
</table>
</div>
<p class="note">Besides seeds and names. A dash: these methods have no such key.</p>
{% else %}
<p>None, besides seeds and names.</p>
{% endif %}
{{ settings("Settings in common", in_common) }}
</section>
</main>
<script>
{{ script | safe }}</script>
</body>
</html>
"""
