"""Rounds small enough to work out by hand, and the files that they leave, read without the code under test."""

import csv
import json

from common.evaluation import Evaluation
from server_app.results import Failure, RoundRecord

CONFIG = {"run-name": "small", "method": "mh-pfedhn", "dataset": "cifar10", "num-rounds": 4, "anchor": True}
SECONDS = {"generate": 0.5, "exchange": 2.0, "update": 1.0, "total": 4.0}


def record(number, correct=(), **changes):
    """A round in which a, b and c got so many of their 10, 10 and 20 test samples right."""
    evaluations = {
        key: Evaluation(right, total, loss)
        for key, right, total, loss in zip("abc", correct, (10, 10, 20), (1.0, 2.0, 0.5), strict=False)
    }
    values = {
        "train_losses": {"a": (1.0, 30), "b": (2.0, 10)},
        "failures": [Failure("c", "late", "no reply within 5 s")],
        "bytes_down": 100,
        "bytes_up": 40,
        "seconds": dict(SECONDS),
    }
    return RoundRecord(number, evaluations, **(values | changes))


def of_data(counts, class_names, owners=None):
    """What a simulation knows of its data, for a tracker: all of them, and the partition of these counts by client."""
    data = {"image-shape": [1, 8, 8], "num-classes": len(class_names), "class-names": list(class_names)}
    totals = {client: sum(row) for client, row in counts.items()}
    sizes = {
        client: {"train": total - total // 4, "validation": 0, "test": total // 4} for client, total in totals.items()
    }
    partition = {"class-names": list(class_names), "clients": counts, "sizes": sizes}
    return data, partition | ({"owners": owners} if owners else {})


def read_strictly(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def lines_of(tracker):
    return [read_strictly(line) for line in (tracker.run_dir / "metrics.jsonl").read_text().splitlines()]


def rows_of(tracker):
    with (tracker.run_dir / "clients.csv").open(newline="") as file:
        return {row["client"]: row for row in csv.DictReader(file)}
