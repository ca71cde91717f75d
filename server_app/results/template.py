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
{{ style | safe }}</style>
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

{% set best = headline["chosen-round"] %}
{% set best_round = "not evaluated yet" if best is none else "round %d" % best %}
{% set on_validation = headline["best-chosen-on"] == "validation" %}
{% set has_known = run.has_known_clients %}
{% set of_new = " of new clients" if has_known else "" %}
{% set last_round = "not evaluated yet" if headline["last-round"] is none else "round %d" % headline["last-round"] %}
<dl class="cards">
<div><dt>{{ "Chosen on validation: mean" if on_validation else "Best mean" }} over {{ "new " if has_known }}clients</dt>
<dd>{{ headline["chosen-accuracy-mean"] | accuracy }}
<small>{{ best_round }}{{ ", best on test %.3f in round %d" % (headline["best-accuracy-mean"],
headline["best-mean-round"]) if on_validation }}
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
{% for test, key, label in further %}
{% set of_last, of_best = fewer.get(test, ("", "")) %}
<div><dt>Last mean over {{ "new " if has_known }}clients, {{ label }}</dt>
<dd>{{ headline["last-%s-mean" % key] | accuracy }}
<small>{{ of_last ~ "; " if of_last }}best {{ headline["best-%s-mean" % key] | accuracy }}
{{- ", " ~ of_best if of_best }}</small></dd></div>
{% endfor %}
{% if "epsilon" in headline %}
<div><dt>Differential privacy</dt><dd>ε {{ "%.4g" | format(headline.epsilon) }}
<small>δ {{ "%g" | format(headline.delta) }}, of all deltas sent; client {{ headline["epsilon-client"] }}, the worst of
{{ headline["noised-clients"] }} clients that add noise</small></dd></div>
{% endif %}
</dl>

<section>
<h2>Curves</h2>
{% call picture(curves) %}
Accuracy and loss against the round. Best accuracy over all
test samples{{ of_new }}: {{ headline["best-accuracy"] | accuracy }}; last: {{ headline["last-accuracy"] | accuracy }}.
{%- if has_known %} Known clients, last: {{ headline["last-accuracy-known"] | accuracy }}.{% endif %}
{% endcall %}
<p class="note">Accuracy and test loss of a round are those of the weights after its update, on the clients' own test
samples.
{% if on_validation %}
The star marks the round that is the best on validation samples, which clients neither train nor test on.
{% else %}
Best rounds are chosen on these same test samples.
{%- endif %}
{%- if has_known %} Solid lines are of new clients, the dashed line is of known ones.{% endif %}</p>
</section>

<section>
<h2>Architectures</h2>
<div class="scroll">
<table>
<thead><tr><th>Architecture</th><th class="number">Clients</th><th class="number">Last accuracy</th>
{% for test, key, label in further %}<th class="number">{{ label | capitalize }}</th>{% endfor %}

<th class="number">Best accuracy</th><th class="number">Parameters</th>
{% if run.has_chunks %}<th class="number">Chunks</th>{% endif %}</tr></thead>
<tbody>
{% for row in run.architectures() %}
<tr><td>{{ row.architecture }}</td><td class="number">{{ row.clients | count }}</td>
<td class="number">{{ row.last_accuracy | accuracy }}</td>
{% for test, key, label in further %}<td class="number">{{ row.further[test] | accuracy }}</td>{% endfor %}

<td class="number">{{ row.best_accuracy | accuracy }}</td><td class="number">{{ row.num_params }}</td>
{% if run.has_chunks %}<td class="number">{{ row.chunks }}</td>{% endif %}</tr>
{% endfor %}
</tbody>
<tfoot><tr><td>all{{ " new" if has_known }}</td><td class="number">{{ run.new_clients | length }}</td>
<td class="number">{{ headline["last-accuracy-mean"] | accuracy }}</td>
{% for test, key, label in further %}<td class="number">{{ headline["last-%s-mean" % key] | accuracy }}</td>{% endfor %}

<td class="number">{{ headline["best-accuracy-mean"] | accuracy }}</td><td></td>
{% if run.has_chunks %}<td></td>{% endif %}</tr></tfoot>
</table>
</div>
<p class="note">{{ means_over | capitalize }}; the best of a row is its own best round.</p>
</section>

<section>
<h2>Clients</h2>
<div class="scroll tall" tabindex="0" role="region" aria-label="Table of clients">
<table class="sortable">
<thead><tr><th>Client</th>{% if run.has_owners %}<th>Owner</th>{% endif %}

<th>Architecture</th>{% if has_known %}<th>Known or new</th>{% endif %}
<th class="number">Last accuracy{{ ", as deployed" if further }}</th>
{% for test, key, label in further %}<th class="number">{{ label | capitalize }}</th>{% endfor %}

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
{% for test, key, label in further %}<td class="number">{{ row[key.replace("-", "_")] | accuracy }}</td>{% endfor %}

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
{% call picture(partition_picture) %}
{%- if shows_classes -%}
Heat map of the number of samples of each class that each client holds:
{%- else -%}
Number of samples of each client, the largest first, by what they are for:
{%- endif %}
 {{ run.partition["clients"] | length }} clients
{%- if run.partition["class-names"] %}, {{ run.partition["class-names"] | length }} classes{% endif %}.
{% endcall %}
<p class="note">{{ sizes }}</p>
</section>
{% endif %}

<section>
<h2>Time and traffic</h2>
{% call picture(costs) %}
Seconds by phase and bytes down and up, a round. Means:
generate {{ mean_seconds.generate | duration }}, exchange {{ mean_seconds.exchange | duration }},
update {{ mean_seconds["update"] | duration }}{% if starts %}; start-up {{ starts | sum | duration }}{% endif %}.
{% endcall %}
<p class="note">Mean a round: generate {{ mean_seconds.generate | duration }}, exchange
{{ mean_seconds.exchange | duration }} (network and the clients' training), update
{{ mean_seconds["update"] | duration }}, whole round {{ mean_seconds.total | duration }}.
{%- if starts %} Apart from that, start-up {{ starts | sum | duration }}
{{- " in %d processes" % (starts | length) if starts | length > 1 }}: nodes, workers and registration, before the first
exchange{{ " of each" if starts | length > 1 }}.{% endif %}
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
{{ settings("Configuration", run.config) }}
</section>
</main>
<script>
{{ script | safe }}</script>
</body>
</html>
"""
