"""What several of these files start."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from consortium import Consortium


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    with contextlib.ExitStack() as stack:
        made = Consortium(tmp_path, stack)
        yield made
        made.release(*made.recorders)  # a site that is held takes long to end
        for log in sorted(tmp_path.glob("*.log")):
            print(f"--- {log.name} ---\n{log.read_text()[-3000:]}")
