"""A model and data of one's own in a simulation: every client is a writer, with a LeNet or with a transformer.

    pip install -e . pandas     # in the checkout; `make install` does it too, into .venv
    cd examples/writers         # the working folder is where my_data and my_nets are looked for
    python run.py               # a minute on two cores; python run.py 100 plays 100 rounds

For LEAF's FEMNIST, put the files all_data_*.json that its preprocessing writes into a folder `data` here.
"""

import sys

import pandas as pd

import mh_pfedhn

run = mh_pfedhn.run(
    "quickstart",
    dataset="my_data:load",
    models="lenet,my_nets:vit",
    partition="by-client",
    num_clients=0,  # all writers; of FEMNIST's 3,550, try 100 first
    max_samples_per_class=0,
    batch_size=16,
    num_rounds=int(sys.argv[1]) if len(sys.argv) > 1 else 20,
)

rounds = pd.read_csv(run.run_dir / "clients-by-round.csv")  # a row a client and round
accuracy = rounds.pivot(index="client", columns="round", values="accuracy")
writers = pd.read_csv(run.run_dir / "clients.csv", index_col="client")
writers["first-accuracy"] = accuracy.iloc[:, 0]
print(writers[["owner", "architecture", "num-params", "train-samples", "first-accuracy", "last-accuracy"]].to_string())
print(writers.groupby("architecture")[["first-accuracy", "last-accuracy"]].mean())
