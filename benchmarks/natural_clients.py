"""What a simulation of 100 natural clients costs, and whether its clients have the sizes that the file says.

    python benchmarks/natural_clients.py

Writes an npz like LEAF's FEMNIST: 28 x 28 grey images of 62 characters, about 220 a writer with a log-normal spread,
each writer with a hand of its own; the images themselves are made up. Then runs `mh-pfedhn run` with `partition:
by-client` and `num-clients: 0` on two CPUs, so with two workers. Prints and writes results/natural_clients.json:
seconds of each round, the largest memory of all processes together (PSS: pages that several share are counted once),
and the comparison of sizes.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch

from server_app.results.reading import read_clients

RESULTS = Path(__file__).parent / "results"
NUM_CLIENTS, NUM_CLASSES, SIZE = 100, 62, 28
CPUS = 2
SETTINGS = {
    "method": "mh-pfedhn",
    "dataset": "npz",
    "partition": "by-client",
    "num-clients": 0,
    "max-samples-per-class": 0,  # the quickstart, whose other settings are used, takes few
    "models": "lenet",
    "local-epochs": 2,
    "evaluate-every": 1,
    "device": "cpu",
}
_MARK = "MH_PFEDHN_NATURAL_CLIENTS"  # in the environment of every process of the run


def write_writers(path: Path, seed: int = 0) -> dict[str, int]:
    """Write the samples of all writers, in no order; the number that each has."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(rng.lognormal(np.log(205), 0.4, NUM_CLIENTS).astype(int), 20)
    strokes = rng.random((NUM_CLASSES, 7, 7)) > 0.6
    characters = np.kron(strokes, np.ones((3, 3)))  # [62, 21, 21]
    images, labels, owners = [], [], []
    for number, size in enumerate(sizes):
        darkness, paper, slant = rng.uniform(130, 200), rng.uniform(0, 40), rng.uniform(-0.25, 0.25)
        drawn = rng.integers(NUM_CLASSES, size=size)
        canvas = np.zeros((size, SIZE, SIZE))
        for row in range(21):
            left = 3 + round(slant * (row - 10))
            canvas[:, row + 3, left : left + 21] = characters[drawn, row]
        noise = rng.uniform(0, 15, canvas.shape)
        images.append((darkness * canvas + paper + noise).astype(np.uint8))
        labels.append(drawn)
        owners += [f"writer-{number:04}"] * size
    order = rng.permutation(len(owners))
    np.savez_compressed(
        path, images=np.concatenate(images)[order], labels=np.concatenate(labels)[order], owners=np.array(owners)[order]
    )
    return {f"writer-{number:04}": int(size) for number, size in enumerate(sizes)}


def run_and_watch(words: list[str]) -> tuple[float, dict[str, float]]:
    """Run a command to its end; the largest sum of its processes' PSS in MB, and what it was made of, by name."""
    mark = uuid.uuid4().hex
    peak, parts = 0.0, dict[str, float]()
    with subprocess.Popen(words, env={**os.environ, _MARK: mark}, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            found = memory_of(f"{_MARK}={mark}".encode())
            if sum(found.values()) > peak:
                peak, parts = sum(found.values()), found
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    return peak, parts


def memory_of(mark: bytes) -> dict[str, float]:
    """The PSS in MB of the processes that have this in their environment, by their names."""
    found: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if mark not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            lines = dict(line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
            name = (folder / "comm").read_text().strip()
            found[name] = found.get(name, 0.0) + int(lines["Pss"].split()[0]) * 1024 / 1e6
    return found


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Write the data, run, and compare."""
    data = folder / "writers.npz"
    expected = write_writers(data)
    given = SETTINGS | {"data-dir": data, "num-rounds": rounds, "results-dir": folder, "run-name": "run"}
    words = [str(Path(sys.executable).parent / "mh-pfedhn"), "run", "-c", *(f"{key}={given[key]}" for key in given)]
    peak, parts = run_and_watch(words)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = read_clients(folder / "run" / "clients.csv")
    found = {row.owner: (row.train_samples or 0) + (row.test_samples or 0) for row in rows}
    return {
        "question": f"{NUM_CLIENTS} natural clients (LeNet, {sum(expected.values()):,} images of 28 x 28, 62 classes), "
        f"2 local epochs, every client in every round, {CPUS} workers",
        "torch": torch.__version__,
        "samples-a-client": {
            "smallest": min(expected.values()),
            "median": float(np.median(list(expected.values()))),
            "largest": max(expected.values()),
        },
        # The first has the start-up besides, the last the hand-over of the final weights and their test.
        "seconds-by-round": [line["seconds"]["total"] for line in lines],
        "failures": sum(sum(line["failures"].values()) for line in lines),
        "peak-pss-mb": round(peak),
        "peak-pss-mb-by-process": {
            name: round(part) for name, part in sorted(parts.items(), key=lambda item: -item[1])
        },
        "sizes-in-clients-csv-equal-the-file": found == expected,
    }


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[:CPUS])  # inherited by the run, which starts a worker a CPU
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.rounds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "natural_clients.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
