"""What the page of a run and that of a comparison have in common: how they are made, and the parts of both."""

from typing import Any

import jinja2

from server_app.results.dark import data_uri
from server_app.results.formatting import format_bytes, format_count, format_decimals, format_duration
from server_app.results.script import SCRIPT
from server_app.results.style import STYLE

_PARTS = """\
{% macro picture(plot) %}
{% set alternative = caller() | trim %}
<div class="scroll"><img class="light" src="{{ plot.light | image }}" alt="{{ alternative }}">
<img class="dark" src="{{ plot.dark | image }}" alt="{{ alternative }}"></div>
{% endmacro %}
{% macro settings(title, values) %}
<details>
<summary>{{ title }}</summary>
<div class="scroll">
<table class="config">
<tbody>
{% for key, value in values.items() %}
<tr><td><code>{{ key }}</code></td><td><code>{{ value }}</code></td></tr>
{% endfor %}
</tbody>
</table>
</div>
</details>
{% endmacro %}
"""

_ENVIRONMENT = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters.update(
    accuracy=format_decimals, bytes=format_bytes, count=format_count, duration=format_duration, image=data_uri
)


def page(template: str, **values: Any) -> str:
    """A page of this template, which has the macros above, `style` and `script`; all other values are escaped."""
    return _ENVIRONMENT.from_string(_PARTS + template).render(style=STYLE, script=SCRIPT, **values)
