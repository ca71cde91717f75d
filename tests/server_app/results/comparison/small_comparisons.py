"""Folders of runs and of a comparison, written by hand: numbers small enough to work out on paper."""

import csv
import json
from dataclasses import astuple, fields

import yaml

from common.text import kebab
from server_app.results.reading import ClientRow

SAMPLES = {"a": 10, "b": 30}  # for testing
START, A_ROUND = 1.5, 2.0  # seconds
DOWN, UP = 100, 40  # bytes a round


def write_run(
    folder,
    rounds,
    *,
    method="fedavg",
    seed=0,
    finished=True,
    config=(),
    more=(),
    partition=None,
    traffic=1,
    start=START,
):
    """Write a run of clients a, b, … with these accuracies, a tuple a round, None for a round that was not tested.

    `more` are further keys of each line of metrics, a dict a round.
    """
    folder.mkdir(parents=True)
    keys = "abcdefghijkl"[: max(len(each) for each in rounds if each)]
    lines, last = [], {}
    for number, accuracies in enumerate(rounds, start=1):
        of_clients = dict(zip(keys, accuracies or (), strict=False))
        last |= of_clients
        # A line is written when the round after it has been played, but for the last of a run.
        played = number if finished and number == len(rounds) else number + 1
        lines.append(_line(number, of_clients, traffic, start, played))
        lines[-1] |= more[number - 1] if more else {}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = {"run-name": folder.name, "method": method, "seed": seed, "num-rounds": len(rounds), "dataset": "npz"}
    (folder / "config.yaml").write_text(yaml.safe_dump(whole | dict(config), sort_keys=False))
    write_clients(folder, {key: last.get(key) for key in keys})
    if finished:
        (folder / "summary.json").write_text("{}")
    if partition:
        names = [f"class {number}" for number in range(len(next(iter(partition.values()))))]
        (folder / "partition.json").write_text(json.dumps({"class-names": names, "clients": partition}))
    return folder


def write_runs(folder, rounds, configs):
    """Write a run of these accuracies for each of these settings; return the folders."""
    folders = []
    for number, config in enumerate(configs):
        plain = {key: value for key, value in config.items() if key not in ("method", "seed")}
        own = {key: config[key] for key in ("method", "seed") if key in config}
        folders.append(folder / f"run-{number}")
        write_run(folders[-1], rounds, config=plain, **own)
    return folders


def write_clients(folder, accuracies):
    with (folder / "clients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(kebab(column.name) for column in fields(ClientRow))
        for index, (key, accuracy) in enumerate(accuracies.items()):
            row = ClientRow(key, "lenet", 1000 + index, 2, test_samples=SAMPLES.get(key, 10), last_accuracy=accuracy)
            writer.writerow(str(cell).lower() if isinstance(cell, bool) else cell for cell in astuple(row))


def _line(number, of_clients, traffic, start, played):
    values = sorted(of_clients.values())
    correct = sum(SAMPLES.get(key, 10) * accuracy for key, accuracy in of_clients.items())
    seconds = {"generate": 0.0, "exchange": A_ROUND, "update": 0.0, "total": A_ROUND}
    if number == 1 and start is not None:
        seconds |= {"start": start, "total": A_ROUND + start}
    return {
        "round": number,
        "accuracy": correct / sum(SAMPLES.get(key, 10) for key in of_clients) if values else None,
        "accuracy-mean": sum(values) / len(values) if values else None,
        "accuracy-std": 0.0 if values else None,
        "accuracy-worst10": values[0] if values else None,
        "loss": 1.0,
        "train-loss": 1.0,
        "clients": len(of_clients),
        "failures": {},
        "bytes-down": traffic * DOWN,
        "bytes-up": traffic * UP,
        "seconds": seconds,
        "wall-seconds": (start or 0.0) + A_ROUND * played,
        "client-accuracy": of_clients,
        "client-train-loss": {},
        "failure-list": [],
    }


def write_plan(folder, runs, failures=None, **keys):
    """Write `comparison.yaml` of runs given as (name, method, setting, seed) and, if there is one, their grid."""
    folder.mkdir(exist_ok=True)
    entries = [
        {"name": name, "method": method, "setting": setting, "seed": seed, "grid": grid[0] if grid else {}, "rounds": 3}
        for name, method, setting, seed, *grid in runs
    ]
    plan = {"name": "small", "description": "Two methods.", **keys, "runs": entries}
    (folder / "comparison.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    if failures is not None:
        (folder / "failures.json").write_text(json.dumps(failures))
    return folder


def validated(*means):
    """Further keys of rounds that were tested on validation samples as well."""
    return [{"validation-accuracy-mean": mean, "validation-accuracy": mean} for mean in means]
