"""In which rounds a client took part in a run, and under which names it kept something in each: `history.json`.

A server that goes back starts a new line of history (`common/lineage.py`), so rounds are noted by line. What is noted
here stays when the files that it speaks of are deleted: so what was lost can be told from what never was.
"""

import json
from pathlib import Path

from common.errors import ProtocolError
from common.files import make_folder, write_text

LOST = "state-missing"  # reason of the refusal where a client does not have what it should have


class History:
    """The history of one client in one run, read from the run's folder at the client.

    Raises ProtocolError for a file that is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "history.json"
        self._lines: dict[str, dict[int, list[str]]] = {}  # line -> round -> names, in the order in which they came
        if self._path.exists():
            try:
                content = json.loads(self._path.read_bytes())
                self._lines = {
                    str(line): {int(number): [str(name) for name in names] for number, names in rounds.items()}
                    for line, rounds in content["lines"].items()
                }
            except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
                raise ProtocolError(LOST, f"{self._path} is damaged: restore it from a backup") from error

    def has(self, line: str, server_round: int) -> bool:
        """Whether the client took part in this round."""
        return server_round in self._lines.get(line, {})

    def newest(self, line: str, name: str, until: int) -> int:
        """The last round of a line up to `until` in which something was kept under `name`; 0: there is none."""
        rounds = self._lines.get(line, {})
        return max((number for number, names in rounds.items() if number <= until and name in names), default=0)

    def names(self) -> set[str]:
        """All names under which something was kept."""
        return {name for rounds in self._lines.values() for names in rounds.values() for name in names}

    def enter(self, line: str, server_round: int, name: str = "") -> None:
        """Note that the client took part in a round, and that it kept something under `name` where one is given."""
        names = self._lines.setdefault(line, {}).setdefault(server_round, [])
        if name and name not in names:
            names.append(name)

    def forget(self, line: str, last: int, present: int) -> None:
        """Let the rounds of a line after `last` be none, but for the present one."""
        rounds = self._lines.get(line, {})
        for number in [number for number in rounds if last < number != present]:
            del rounds[number]

    def write(self) -> None:
        """Write the file, whole or not at all. Raises WriteError."""
        make_folder(self._path.parent)
        write_text(self._path, json.dumps({"lines": self._lines}))
