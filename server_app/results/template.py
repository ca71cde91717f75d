"""The Jinja2 template of `report.html`, as a string: Flower's app bundle carries Python files but no HTML."""

TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{% if not run.summary %}
<meta http-equiv="refresh" content="{{ refresh_seconds }}">
{% endif %}
<title>{{ name }}</title>
<style>
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
</style>
</head>
<body>
<main>
<h1>{{ name }}</h1>
<p class="lead">{{ run.config.get("method", "unknown method") }} on
{{ run.config.get("dataset", "the sites' own data") }},
{{ run.clients | length }} client{{ "" if run.clients | length == 1 else "s" }}
{%- if run.config.get("mode") == "adapt" %}.
Mode adapt: what the hypernetwork learned in training is frozen; new clients
({{ run.new_clients | length }} here) get embeddings of their own, clients known from training
({{ run.clients | length - run.new_clients | length }} here) are only evaluated.
{%- endif %}</p>
{% if not run.summary %}
<p class="running" role="status">This run has not finished: the page shows what it had written after round
{{ headline.rounds }} and reloads itself every {{ refresh_seconds }} seconds.</p>
{% endif %}

{% set best = headline["best-mean-round"] %}
{% set best_round = "not evaluated yet" if best is none else "round %d" % best %}
{% set has_known = run.has_known_clients %}
{% set of_new = " of new clients" if has_known else "" %}
{% set last_round = "not evaluated yet" if headline["last-round"] is none else "round %d" % headline["last-round"] %}
<dl class="cards">
<div><dt>Best mean over {{ "new " if has_known }}clients</dt><dd>{{ headline["best-accuracy-mean"] | accuracy }}
<small>{{ best_round }}
</small></dd></div>
<div><dt>Last mean over {{ "new " if has_known }}clients</dt><dd>{{ headline["last-accuracy-mean"] | accuracy }}
<small>{{ last_round }}, std {{ headline["last-accuracy-std"] | accuracy }}</small></dd></div>
<div><dt>Worst 10 % of {{ "new " if has_known }}clients</dt><dd>{{ headline["last-accuracy-worst10"] | accuracy }}
<small>{{ last_round }}, their mean</small></dd></div>
<div><dt>All test samples{{ of_new }}</dt><dd>{{ headline["last-accuracy"] | accuracy }}
<small>{{ last_round }}{{ ", best %.3f in round %d" % (headline["best-accuracy"], headline["best-round"])
if headline["best-round"] is not none }}
{{- "; known clients " ~ (headline["last-accuracy-known"] | accuracy) if has_known }}
</small></dd></div>
<div><dt>Rounds</dt><dd>{{ headline.rounds }}{{ " of %d" % planned if planned }}
<small>{{ "finished" if run.summary else "not finished" }}</small></dd></div>
<div><dt>Wall time</dt><dd>{{ headline["wall-seconds"] | duration }}
<small>{{ mean_seconds.total | duration }} a round</small></dd></div>
<div><dt>Sent to clients</dt><dd>{{ headline["bytes-down"] | bytes }}
<small>{{ (headline["bytes-down"] / run.metrics | length) | bytes }} a round</small></dd></div>
<div><dt>Received</dt><dd>{{ headline["bytes-up"] | bytes }}
<small>{{ (headline["bytes-up"] / run.metrics | length) | bytes }} a round</small></dd></div>
{% if "epsilon" in headline %}
<div><dt>Differential privacy</dt><dd>ε {{ "%.4g" | format(headline.epsilon) }}
<small>δ {{ "%g" | format(headline.delta) }}, of all deltas sent; client {{ headline["epsilon-client"] }}, the worst of
{{ headline["noised-clients"] }} clients that add noise</small></dd></div>
{% endif %}
</dl>

<section>
<h2>Curves</h2>
<div class="scroll"><img src="{{ curves | image }}" alt="Accuracy and loss against the round. Best accuracy over all
test samples{{ of_new }}: {{ headline["best-accuracy"] | accuracy }}; last: {{ headline["last-accuracy"] | accuracy }}.
{%- if has_known %} Known clients, last: {{ headline["last-accuracy-known"] | accuracy }}.{% endif %}"></div>
<p class="note">Accuracy and test loss of a round are those of the weights after its update, on the clients' own test
samples. Best rounds are chosen on these same test samples.
{%- if has_known %} Solid lines are of new clients, the dashed line is of known ones.{% endif %}</p>
</section>

<section>
<h2>Architectures</h2>
<div class="scroll">
<table>
<thead><tr><th>Architecture</th><th class="number">Clients</th><th class="number">Last accuracy</th>
<th class="number">Best accuracy</th><th class="number">Parameters</th>
{% if run.has_chunks %}<th class="number">Chunks</th>{% endif %}</tr></thead>
<tbody>
{% for row in run.architectures() %}
<tr><td>{{ row.architecture }}</td><td class="number">{{ row.clients | count }}</td>
<td class="number">{{ row.last_accuracy | accuracy }}</td><td class="number">{{ row.best_accuracy | accuracy }}</td>
<td class="number">{{ row.num_params }}</td>
{% if run.has_chunks %}<td class="number">{{ row.chunks }}</td>{% endif %}</tr>
{% endfor %}
</tbody>
<tfoot><tr><td>all{{ " new" if has_known }}</td><td class="number">{{ run.new_clients | length }}</td>
<td class="number">{{ headline["last-accuracy-mean"] | accuracy }}</td>
<td class="number">{{ headline["best-accuracy-mean"] | accuracy }}</td><td></td>
{% if run.has_chunks %}<td></td>{% endif %}</tr></tfoot>
</table>
</div>
<p class="note">Means over clients; the best of a row is its own best round.</p>
</section>

<section>
<h2>Clients</h2>
<div class="scroll tall" tabindex="0" role="region" aria-label="Table of clients">
<table class="sortable">
<thead><tr><th>Client</th>{% if run.has_owners %}<th>Owner</th>{% endif %}

<th>Architecture</th>{% if has_known %}<th>Known or new</th>{% endif %}
<th class="number">Last accuracy</th>
<th class="number">Best accuracy</th><th class="number">Best round</th><th class="number">Rounds trained</th>
<th class="number">Failures</th><th class="number">Train samples</th><th class="number">Test samples</th>
<th class="number">Parameters</th>
{% if run.has_chunks %}<th class="number">Chunks</th>{% endif %}

{% if "epsilon" in headline %}<th class="number">Epsilon</th>{% endif %}</tr></thead>
<tbody>
{% for row in run.clients %}
<tr><td>{{ row.client }}</td>{% if run.has_owners %}<td>{{ row.owner | truncate(40) }}</td>{% endif %}

<td>{{ row.architecture }}</td>
{% if has_known %}<td>{{ "known" if row.known else "new" }}</td>{% endif %}

<td class="number">{{ row.last_accuracy | accuracy }}</td>
<td class="number">{{ row.best_accuracy | accuracy }}</td><td class="number">{{ row.best_round | count }}</td>
<td class="number">{{ row.rounds_trained | count }}</td><td class="number">{{ row.failures | count }}</td>
<td class="number">{{ row.train_samples | count }}</td><td class="number">{{ row.test_samples | count }}</td>
<td class="number">{{ row.num_params | count }}</td>
{% if run.has_chunks %}<td class="number">{{ row.chunks | count }}</td>{% endif %}

{% if "epsilon" in headline %}<td class="number">{{ "–" if row.epsilon is none else "%.4g" | format(row.epsilon) }}</td>
{% endif %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if capped %}
<p class="note">No client weighs more than max-client-weight ({{ run.config.get("max-client-weight") }}) in a mean over
clients, which cut:
{% for each in capped %}
{{ each.client }} (claims {{ "%.1f" | format(100 * each.share) }} % of the samples;
{{ each.rounds }} round{{ "s" if each.rounds > 1 }}){{ ", " if not loop.last else "." }}
{% endfor %}</p>
{% endif %}
</section>

{% if partition_picture %}
<section>
<h2>Partition</h2>
<div class="scroll"><img src="{{ partition_picture | image }}" alt="
{%- if shows_classes -%}
Heat map of the number of samples of each class that each client holds:
{%- else -%}
Number of samples of each client, the largest first, by what they are for:
{%- endif %}
 {{ run.partition["clients"] | length }} clients, {{ run.partition["class-names"] | length }} classes."></div>
<p class="note">{{ sizes }}</p>
</section>
{% endif %}

<section>
<h2>Time and traffic</h2>
<div class="scroll"><img src="{{ costs | image }}" alt="Seconds by phase and bytes down and up, a round. Means:
generate {{ mean_seconds.generate | duration }}, exchange {{ mean_seconds.exchange | duration }},
update {{ mean_seconds["update"] | duration }}."></div>
<p class="note">Mean a round: generate {{ mean_seconds.generate | duration }}, exchange
{{ mean_seconds.exchange | duration }} (network and the clients' training), update
{{ mean_seconds["update"] | duration }}, whole round {{ mean_seconds.total | duration }}.
Bytes are those of the arrays as sent.</p>
</section>

<section>
<h2>Failures</h2>
{% if failures %}
<div class="scroll">
<table>
<thead><tr><th>Reason</th><th class="number">Count</th><th>Clients</th><th>Latest</th></tr></thead>
<tbody>
{% for group in failures %}
<tr><td><code>{{ group.reason }}</code></td><td class="number">{{ group["count"] | count }}</td>
<td class="wrap">
{%- for client, times in group.clients[:20] -%}
{{ client }}{{ " (%d times)" % times if times > 1 }}{{ ", " if not loop.last }}
{%- endfor %}

{% if group.clients | length > 20 %} and {{ group.clients | length - 20 }} more{% endif %}</td>
<td class="wrap">round {{ group.round }}, client {{ group.client }}: {{ group.detail | truncate(300) }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
<p class="note">A failure costs a client its round and changes nothing else.</p>
{% else %}
<p>None.</p>
{% endif %}
</section>

<section>
<details>
<summary>Configuration</summary>
<div class="scroll">
<table class="config">
<tbody>
{% for key, value in run.config.items() %}
<tr><td><code>{{ key }}</code></td><td><code>{{ value }}</code></td></tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
</section>
</main>
<script>
// Sorts a table by the column whose head is clicked; a second click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const place = "sorted " + location.pathname;  // keeps the order when the page of a running run reloads itself
  const sort = (column, descending) => {
    const numbers = heads[column].classList.contains("number");
    const rows = [...body.rows].map((row) => {
      const text = row.cells[column].textContent.trim();
      return [numbers ? parseFloat(text.replaceAll(",", "")) : text, row];
    });
    rows.sort(([a], [b]) => {
      if (numbers && (isNaN(a) || isNaN(b))) return isNaN(a) - isNaN(b);  // a dash is last in both orders
      const order = numbers ? a - b : a.localeCompare(b, "en", { numeric: true });
      return descending ? -order : order;
    });
    for (const [, row] of rows) body.append(row);
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      sort(column, descending);
      try { sessionStorage.setItem(place, JSON.stringify([column, descending])); } catch { /* not on this page */ }
    });
    head.append(button);
  });
  try {
    const [column, descending] = JSON.parse(sessionStorage.getItem(place));
    sort(column, descending);
  } catch { /* nothing was sorted before */ }
}
</script>
</body>
</html>
"""
