"""`clients-by-round.csv`: a row a client and round, which a table's reader takes in a line; at the end as parquet, too.

A round's rows come from its line of `metrics.jsonl`, so that both say the same.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.files import append_bytes, write, write_bytes
from common.text import kebab
from server_app.results.reading import ClientRow


@dataclass(frozen=True)
class RoundRow:
    """What a client reached in a round; a column is named as its field, with `-` for `_`, and an empty cell is None.

    The columns are the same for every run, so that rows can be appended and the tables of several runs be joined.
    """

    round: int
    client: str
    architecture: str
    known: bool  # an adapt run's checkpoint has it: it is evaluated, but not trained
    accuracy: float | None  # of the deployed weights on its test samples; None where it was not tested
    loss: float | None  # of the same, a mean a sample
    test_samples: int | None
    train_loss: float | None  # None where no update of its own was used
    train_samples: int | None
    validation_accuracy: float | None
    after_training_accuracy: float | None  # on its test samples, after a local epoch
    epsilon: float | None  # of all that it has sent so far; None where it adds no noise
    failure: str | None  # its reason codes, joined by ";"


_COLUMNS = [kebab(field.name) for field in fields(RoundRow)]
_WHOLE = ("round", "test-samples", "train-samples")
_TEXT = ("client", "architecture", "failure")
_BLOCK = 1 << 24  # bytes of the table that are turned into parquet at a time


class ClientsByRound:
    """The table in a run's folder.

    Methods raise OSError for what cannot be written.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "clients-by-round.csv"
        self.parquet = run_dir / "clients-by-round.parquet"

    def take_up(self, last_round: int, kept: Sequence[Mapping[str, Any]], clients: Mapping[str, ClientRow]) -> None:
        """Drop the rounds after this one, which are run again; `kept` are the lines of metrics up to it.

        A table that is missing is made from these lines, without the losses on test samples, which they do not have.
        """
        self.parquet.unlink(missing_ok=True)
        if not self._cut_after(last_round):
            rows = (row for line in kept for row in rows_of(line, clients, {}))
            write_bytes(self.path, _encoded(_COLUMNS) + _encoded(*map(_cells, rows)))

    def remove(self) -> None:
        """Remove what a run has left that did not come to a line of metrics."""
        self.path.unlink(missing_ok=True)
        self.parquet.unlink(missing_ok=True)

    def append(
        self, line: Mapping[str, Any], clients: Mapping[str, ClientRow], losses: Mapping[str, float | None]
    ) -> None:
        """Add a round: its line of `metrics.jsonl`, its clients, and the losses of those that were tested."""
        is_new = not self.path.exists() or self.path.stat().st_size == 0
        header = _encoded(_COLUMNS) if is_new else b""
        append_bytes(self.path, header + _encoded(*map(_cells, rows_of(line, clients, losses))))

    def write_parquet(self, clients: Iterable[str]) -> None:
        """Write the same table as parquet. `clients` are all that it may hold.

        It is read and written in blocks, so that its size does not matter.
        """
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet

        kinds = dict.fromkeys(_COLUMNS, pa.float64()) | dict.fromkeys(_WHOLE, pa.int64())
        kinds |= dict.fromkeys(_TEXT, pa.string()) | {"known": pa.bool_()}
        if all(client.isdecimal() and str(int(client)) == client for client in clients):
            kinds["client"] = pa.int64()  # simulated clients are numbers, and who reads the CSV finds numbers
        columns = arrow_csv.ConvertOptions(column_types=kinds, null_values=[""], strings_can_be_null=True)

        def fill(file: Any) -> None:
            with (
                arrow_csv.open_csv(
                    self.path, arrow_csv.ReadOptions(block_size=_BLOCK), convert_options=columns
                ) as blocks,
                parquet.ParquetWriter(file, blocks.schema) as writer,
            ):
                for block in blocks:
                    writer.write_batch(block)

        write(self.parquet, fill)

    def _cut_after(self, last_round: int) -> bool:
        """Whether the table is there, with these columns; if so, without later rounds and what a crash cut short."""
        if not self.path.exists():
            return False
        with self.path.open("rb") as file:
            if file.readline() != _encoded(_COLUMNS):
                return False
            end = file.tell()
            for row in file:
                if not row.endswith(b"\n") or int(row.partition(b",")[0]) > last_round:
                    break
                end += len(row)
        os.truncate(self.path, end)
        return True


def rows_of(
    line: Mapping[str, Any], clients: Mapping[str, ClientRow], losses: Mapping[str, float | None]
) -> Iterator[RoundRow]:
    """The rows of the clients that were tested, were trained or failed in a round, given by its line of metrics."""
    maps = {
        name: line.get(f"client-{name}", {})
        for name in ("accuracy", "train-loss", "validation-accuracy", "after-training-accuracy")
    }
    epsilons = {client: epsilon for client, (epsilon, _) in line.get("client-privacy", {}).items()}
    reasons: dict[str, dict[str, None]] = {}
    for failure in line["failure-list"]:
        reasons.setdefault(failure["client"], {})[failure["reason"]] = None
    for client in dict.fromkeys([*(client for values in maps.values() for client in values), *reasons]):
        if client not in clients:
            continue  # a node that was not admitted is no client
        row = clients[client]
        yield RoundRow(
            line["round"],
            client,
            row.architecture,
            row.known,
            maps["accuracy"].get(client),
            losses.get(client),
            row.test_samples,
            maps["train-loss"].get(client),
            row.train_samples,
            maps["validation-accuracy"].get(client),
            maps["after-training-accuracy"].get(client),
            epsilons.get(client),
            ";".join(reasons.get(client, ())) or None,
        )


def _cells(row: RoundRow) -> list[Any]:
    values = [getattr(row, field.name) for field in fields(RoundRow)]
    return [str(value).lower() if isinstance(value, bool) else value for value in values]


def _encoded(*rows: Sequence[Any]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()
