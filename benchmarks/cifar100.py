"""How settings learn: studies on CIFAR-100 by `mh-pfedhn run`, each a few runs that differ in one thing.

    python benchmarks/cifar100.py STUDY --data-dir FOLDER_WITH_PARQUET_FILES

Writes accuracy after some rounds, bytes a round, and an independent plain-PyTorch calculation's accuracy where there is
one, to results/cifar100_STUDY.json, and a plot. Runs that are already in --runs-dir are not repeated.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Run:
    """One run: its overrides, and the accuracies that the independent calculation reached at the study's rounds."""

    overrides: list[str]
    independent: list[float | None] = field(default_factory=list)
    after: str = ""  # the run of this study that it starts from


@dataclass(frozen=True)
class Study:
    """Runs that are shown together."""

    title: str
    rounds: tuple[int, ...]  # after which accuracy is listed; the last one is where the runs end
    runs: dict[str, Run]
    common: list[str] = field(default_factory=list)


_LENET = [
    "dataset=parquet",
    "num-clients=20",
    "classes-per-client=10",
    "max-samples-per-class=100",
    "models=lenet",
    "local-epochs=2",
    "batch-size=64",
    "client-lr=0.005",
]
_PAPER = ["anchor=false", "embedding-init-std=0.002"]
_SUM = "reduction=sum"
_GD = ["method=mh-pfedhn-gd", "temperature=15", "distillation-coefficient=0.01"]
_LENET_TITLE = "CIFAR-100, 20 LeNet clients of 10 classes, about 330 training images each"
_FIVE = [
    "dataset=parquet",
    "num-clients=5",
    "classes-per-client=10",
    "max-samples-per-class=40",
    "models=lenet,vgg8,resnet10,resnet12,resnet18",
    "hidden-dim=64",
    "checkpoint-every=0",
]
_UNSEEN = [
    "dataset=parquet",
    "num-clients=20",
    "held-out=4",
    "classes-per-client=10",
    "max-samples-per-class=60",
    "hidden-dim=64",
]

STUDIES = {
    "schedules": Study(
        _LENET_TITLE,
        (10, 20, 30, 40),
        {
            "joint, anchor": Run(["schedule=joint", "hn-lr=0.001", _SUM], [0.29, 0.47, 0.51, 0.51]),
            "joint, no anchor": Run(["schedule=joint", "hn-lr=0.001", _SUM, *_PAPER], [0.03, 0.13, 0.30, 0.48]),
            "sequential, no anchor (authors' code)": Run(
                ["schedule=sequential", "hn-lr=0.0002", _SUM, *_PAPER], [0.07, 0.15, 0.25, 0.43]
            ),
            "per-client, anchor": Run(["schedule=per-client", "hn-lr=0.0002", _SUM]),
            "per-client, no anchor": Run(["schedule=per-client", "hn-lr=0.0002", _SUM, *_PAPER]),
            "local": Run(["method=local"], [0.30, 0.40, 0.42, None]),
        },
        [*_LENET, "checkpoint-every=0"],
    ),
    "global": Study(
        _LENET_TITLE,
        (10, 20, 30, 40),
        {
            "HN, anchor": Run([], [0.29, 0.47, 0.51, 0.51]),
            "HNG, anchor": Run(["method=mh-pfedhn-g"]),
            "GD, anchor": Run(_GD, [0.43, 0.53, 0.53, 0.54]),
            "GD, anchor, reduction: sum": Run([*_GD, _SUM]),
            "HN, no anchor": Run(_PAPER, [0.03, 0.13, 0.30, 0.48]),
            "HNG, no anchor": Run(["method=mh-pfedhn-g", *_PAPER]),
            "GD, no anchor": Run([*_GD, *_PAPER]),
            "GD, no anchor, reduction: sum": Run([*_GD, _SUM, *_PAPER], [0.07, 0.25, 0.48, 0.52]),
        },
        [*_LENET, "checkpoint-every=0"],
    ),
    "heterogeneous": Study(
        "CIFAR-100, five clients of five architectures, 10 classes, about 300 training images each",
        (4, 8, 12, 16),
        {
            "HN": Run([]),
            "HNG": Run(["method=mh-pfedhn-g"]),
            "GD": Run(["method=mh-pfedhn-gd"]),
        },
        _FIVE,
    ),
    "codecs": Study(
        _LENET_TITLE,
        (5, 10, 15, 20),
        {
            "dense": Run([]),
            "half up and down": Run(["upload=half", "download=half"]),
            "int8 up and down": Run(["upload=int8", "download=int8"]),
            "top 30 % up": Run(["upload=topk", "topk-fraction=0.3"]),
            "top 5 % up": Run(["upload=topk", "topk-fraction=0.05"]),
            "top 5 % up, error feedback": Run(["upload=topk", "topk-fraction=0.05", "error-feedback=true"]),
        },
        [*_LENET, "checkpoint-every=0"],
    ),
    "unseen": Study(
        "CIFAR-100, clients that were held out of training, embeddings learned (section 4.4)",
        (5, 10, 15, 20),
        {
            "training, LeNet": Run(["models=lenet"]),
            "unseen clients, LeNet": Run(["models=lenet"], after="training, LeNet"),
            "training, LeNet, VGG8, MLP": Run(["models=lenet,vgg8,mlp"]),
            "unseen clients, LeNet, VGG8, MLP": Run(["models=lenet,vgg8,mlp"], after="training, LeNet, VGG8, MLP"),
            "unseen architecture, ResNet10": Run(
                ["models=lenet,vgg8,mlp", "held-out-models=resnet10"], after="training, LeNet, VGG8, MLP"
            ),
        },
        _UNSEEN,
    ),
}


def folder_of(name: str, runs_dir: Path) -> Path:
    """Where a run of this name goes."""
    return runs_dir / "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


def metrics(name: str, study: Study, data_dir: Path, runs_dir: Path) -> list[dict[str, Any]]:
    """Run it unless it is there, and return the lines of its metrics."""
    run, folder = study.runs[name], folder_of(name, runs_dir)
    if not (folder / "summary.json").exists():
        command = [str(Path(sys.executable).parent / "mh-pfedhn"), "run", "cifar100", "-c", *study.common]
        command += [f"num-rounds={study.rounds[-1]}", *run.overrides, f"data-dir={data_dir.resolve()}"]
        command += [f"results-dir={runs_dir.resolve()}", f"run-name={folder.name}"]
        if run.after:
            command += ["mode=adapt", f"resume={folder_of(run.after, runs_dir).resolve()}"]
        subprocess.run(command, check=True)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def draw(study: Study, curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One line a run; clients known from training dashed, the independent calculation's values as crosses."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for name, lines in curves.items():
        rounds = [line["round"] for line in lines]
        (drawn,) = axes.plot(rounds, [line["accuracy"] for line in lines], label=name)
        colour = drawn.get_color()
        if "accuracy-known" in lines[0]:
            axes.plot(
                rounds, [line["accuracy-known"] for line in lines], "--", color=colour, label=f"{name}: known clients"
            )
        expected = [(x, y) for x, y in zip(study.rounds, study.runs[name].independent, strict=False) if y is not None]
        if expected:
            axes.plot(*zip(*expected, strict=True), "x", color=colour, markersize=8)
    if any(run.independent for run in study.runs.values()):
        axes.plot([], [], "kx", label="independent calculation")
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy of the generated weights (weighted by test samples)")
    axes.set_title(study.title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run all of a study, print and write the JSON, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the CIFAR-100 parquet files")
    parser.add_argument("--runs-dir", type=Path, help="where run folders go; default: results/cifar100-STUDY")
    options = parser.parse_args()
    study = STUDIES[options.study]
    runs_dir = options.runs_dir or Path(f"results/cifar100-{options.study}")
    curves = {name: metrics(name, study, options.data_dir, runs_dir) for name in study.runs}
    table: dict[str, Any] = {}
    for name, lines in curves.items():
        # The last round's bytes include the handing over of the final weights; any other's are those of a round.
        table[name] = {
            "rounds": study.rounds,
            "accuracy": [round(lines[r - 1]["accuracy"], 4) for r in study.rounds],
            "bytes-down-a-round": lines[0]["bytes-down"],
            "bytes-up-a-round": lines[0]["bytes-up"],
        }
        if "accuracy-known" in lines[0]:
            table[name]["accuracy-of-known-clients"] = [round(lines[r - 1]["accuracy-known"], 4) for r in study.rounds]
        if study.runs[name].independent:
            table[name]["independent-calculation"] = study.runs[name].independent
    RESULTS.mkdir(exist_ok=True)
    draw(study, curves, RESULTS / f"cifar100_{options.study}.png")
    (RESULTS / f"cifar100_{options.study}.json").write_text(json.dumps(table, indent=2) + "\n")
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
