"""How the update schedules learn: CIFAR-100, 20 LeNet clients of 10 classes, 100 images a class, by `mh-pfedhn run`.

    python benchmarks/cifar100_schedules.py --data-dir FOLDER_WITH_PARQUET_FILES

Writes accuracy after 10, 20, 30 and 40 rounds beside an independent calculation's to results/cifar100_schedules.json,
and a plot. Runs that are already in --runs-dir are not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
CHECKPOINTS = (10, 20, 30, 40)

COMMON = [
    "dataset=parquet",
    "num-clients=20",
    "classes-per-client=10",
    "max-samples-per-class=100",
    "models=lenet",
    "local-epochs=2",
    "batch-size=64",
    "client-lr=0.005",
    "num-rounds=40",
]
PAPER = ["anchor=false", "embedding-init-std=0.002"]
# Name -> overrides, and the accuracies that an independent plain-PyTorch calculation reached at CHECKPOINTS.
RUNS: dict[str, tuple[list[str], list[float | None]]] = {
    "joint, anchor": (["schedule=joint", "hn-lr=0.001"], [0.29, 0.47, 0.51, 0.51]),
    "joint, no anchor": (["schedule=joint", "hn-lr=0.001", *PAPER], [0.03, 0.13, 0.30, 0.48]),
    "sequential, no anchor (authors' code)": (
        ["schedule=sequential", "hn-lr=0.0002", *PAPER],
        [0.07, 0.15, 0.25, 0.43],
    ),
    "per-client, anchor": (["schedule=per-client", "hn-lr=0.0002"], [None] * 4),
    "per-client, no anchor": (["schedule=per-client", "hn-lr=0.0002", *PAPER], [None] * 4),
    "local": (["method=local"], [0.30, 0.40, 0.42, None]),
}


def accuracies(name: str, overrides: list[str], data_dir: Path, runs_dir: Path) -> list[float]:
    """Run it unless it is there, and return the weighted accuracy after each round."""
    run_name = "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
    folder = runs_dir / run_name
    if not (folder / "summary.json").exists():
        command = [str(Path(sys.executable).parent / "mh-pfedhn"), "run", "cifar100", "-c", *COMMON, *overrides]
        command += [f"data-dir={data_dir.resolve()}", f"results-dir={runs_dir.resolve()}", f"run-name={run_name}"]
        subprocess.run(command, check=True)
    return [json.loads(line)["accuracy"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """One line a run; the independent calculation's values as crosses in the same colour."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        (line,) = axes.plot(range(1, len(values) + 1), values, label=name)
        expected = [(x, y) for x, y in zip(CHECKPOINTS, RUNS[name][1], strict=True) if y is not None]
        if expected:
            axes.plot(*zip(*expected, strict=True), "x", color=line.get_color(), markersize=8)
    axes.plot([], [], "kx", label="independent calculation")
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy of the generated weights (weighted by test samples)")
    axes.set_title("CIFAR-100, 20 LeNet clients of 10 classes, about 330 training images each")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run all, print and write the JSON, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the CIFAR-100 parquet files")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("results/cifar100-schedules"), help="where run folders go"
    )
    options = parser.parse_args()
    curves = {
        name: accuracies(name, overrides, options.data_dir, options.runs_dir) for name, (overrides, _) in RUNS.items()
    }
    table: dict[str, Any] = {
        name: {
            "rounds": CHECKPOINTS,
            "accuracy": [round(values[r - 1], 4) for r in CHECKPOINTS],
            "independent-calculation": RUNS[name][1],
        }
        for name, values in curves.items()
    }
    RESULTS.mkdir(exist_ok=True)
    draw(curves, RESULTS / "cifar100_schedules.png")
    (RESULTS / "cifar100_schedules.json").write_text(json.dumps(table, indent=2) + "\n")
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
