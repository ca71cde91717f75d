"""A comparison from Python: three methods with two seeds, read into pandas, drawn with matplotlib.

    pip install -e . pandas         # in the checkout; `make install` does it too, into .venv
    python examples/compare.py      # two minutes on two cores; python examples/compare.py 50 plays 50 rounds

Called again, it goes on where it was interrupted, or only draws.
"""

import sys

import matplotlib.pyplot as plt
import pandas as pd

import mh_pfedhn

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 15

comparison = mh_pfedhn.compare(
    {
        "base": "quickstart",
        "models": "lenet,mlp",
        "methods": ["mh-pfedhn", "fedavg", "local"],
        "seeds": [0, 1],
        "num-rounds": ROUNDS,
    },
    name=f"example-{ROUNDS}-rounds",
)
print(comparison.table())

# A row a method, seed, round and client. It is in these files before a run has ended, too.
rows = pd.concat(
    pd.read_csv(run.run_dir / "clients-by-round.csv").assign(method=run.method, seed=run.seed)
    for run in comparison.runs
)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
means = rows.groupby(["method", "seed", "round"])["accuracy"].mean()
for method, seeds in means.unstack("seed").groupby("method"):
    curve = seeds.droplevel("method")
    left.plot(curve.index, curve.mean(axis=1), label=method)
    left.fill_between(curve.index, curve.min(axis=1), curve.max(axis=1), alpha=0.2)
left.set(xlabel="round", ylabel="accuracy, mean over clients", title="Mean and range of the seeds")
left.legend()

last = rows[rows["round"] == ROUNDS].pivot(index=["seed", "client"], columns="method", values="accuracy")
gain = last.drop(columns="local").sub(last["local"], axis=0)
gain.plot.box(ax=right, ylabel="accuracy", title="Each client's gain over training alone")
right.axhline(0, color="grey", linewidth=1)
print(gain.describe())

path = comparison.folder / "compare.png"
figure.savefig(path, dpi=150)
print(path)
