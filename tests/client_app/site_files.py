"""Files of sites that an operator brings, and what is said of those that are wrong."""

from pathlib import Path

import pytest
import yaml

from client_app.site.private import load_site
from common.errors import UserError

TABLE = {
    "model": {"factory": "example_site.nets:Table"},
    "data": {"factory": "example_site.data:table"},
    "state-dir": "state",
    "client-key": "site-1",
    "device": "cpu",
}
VISION = TABLE | {
    "model": {"factory": "example_site.nets:vision"},
    "data": {"factory": "example_site.data:images"},
}
TEXT = TABLE | {
    "model": {"factory": "example_site.nets:Text"},
    "data": {"factory": "example_site.data:text"},
}
GLOBAL = VISION | {"deploy-global": True, "input-shape": [3, 8, 8], "num-classes": 3}


def write(folder: Path, content) -> Path:
    path = folder / "site.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def load(folder, content=TABLE, **changes):
    return load_site(write(folder, {key: value for key, value in (content | changes).items() if value is not None}))


def named(name, **args):
    return {"factory": f"example_site.{name}", "args": args}


def mistake_of(folder, content) -> str:
    with pytest.raises(UserError) as error:
        load_site(write(folder, content))
    return str(error.value)
