"""What a round costs in a deployment beyond what Flower itself costs, with models and data that take long to load.

    python benchmarks/deployment_round.py

Starts a SuperLink and four sites on this machine. On the same processes it runs Flower's cheapest app with the same
arrays each way (`noop_app/`) and MH-pFedHN with next to no training work; then the same with sites whose data take 20 s
to load. Prints and writes results/deployment_round.json with ratios of seconds a round, taken in one run.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mh_pfedhn.processes import flower_environment, free_port

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
SITES = 4
NUM_PARAMS = 250_000  # 1 MB each way
MODULE = f"""
import time
import torch
from torch import nn

def build():
    return nn.Linear({NUM_PARAMS // 2 - 1}, 2)

def load(seconds):
    time.sleep(seconds)
    inputs, targets = torch.zeros(2, {NUM_PARAMS // 2 - 1}), torch.zeros(2, dtype=torch.int64)
    return (inputs, targets), (inputs, targets)
"""


class Federation:
    """A server and its sites, in a folder of their own, until the end of the block."""

    def __init__(self, home: Path, load_seconds: float, stack: contextlib.ExitStack) -> None:
        self.home, self._stack = home, stack
        self.port = free_port()
        self.environment = {**flower_environment(os.environ), "FLWR_HOME": str(home / "flwr")}
        words = ["server", "--state", home / "state", "--insecure", "--host", "127.0.0.1", "--port", self.port]
        self._start("server", *words, "--command-port", free_port())
        self._wait("server", "The server is up")
        (home / "benchmark_site.py").write_text(MODULE)
        for i in range(SITES):
            path = home / f"site-{i}.yaml"
            data = f'{{factory: "benchmark_site:load", args: {{seconds: {load_seconds}}}}}'
            path.write_text(f'model: {{factory: "benchmark_site:build"}}\ndata: {data}\nstate-dir: state-{i}\n')
            words = ["site", "run", path, "--server", f"127.0.0.1:{self.port}", "--insecure", "--port", free_port()]
            self._start(f"site-{i}", *words)
        for i in range(SITES):
            self._wait(f"site-{i}", "The trainer serves")
        time.sleep(15)  # the SuperNodes connect

    def _start(self, name: str, *words: object) -> None:
        with (self.home / f"{name}.log").open("wb") as log:
            command = [str(BIN / "mh-pfedhn"), *map(str, words)]
            # Sites have a Flower home of their own, as on machines of their own: there the app is unpacked.
            home = {} if name == "server" else {"FLWR_HOME": str(self.home / f"flwr-{name}")}
            process = subprocess.Popen(
                command, env=self.environment | home, stdout=log, stderr=log, start_new_session=True
            )

        def end() -> None:
            process.terminate()
            process.wait(timeout=60)

        self._stack.callback(end)

    def _wait(self, name: str, words: str) -> None:
        ends = time.monotonic() + 300
        while words not in (self.home / f"{name}.log").read_text():
            if time.monotonic() > ends:
                raise TimeoutError(f"{name} did not say {words!r}; see {self.home / name}.log")
            time.sleep(0.5)

    def noop(self, rounds: int) -> list[float]:
        """Seconds of each round of Flower's cheapest app."""
        results = self.home / "noop.json"
        settings = f'num-values={NUM_PARAMS} num-rounds={rounds} results="{results}"'
        command = [str(BIN / "flwr"), "run", str(HERE / "noop_app"), "consortium", "--stream", "-c", settings]
        subprocess.run(command, env=self.environment, check=True, stdout=sys.stderr)
        return list(json.loads(results.read_text()))

    def ours(self, rounds: int, name: str) -> list[float]:
        """Seconds of each round of MH-pFedHN."""
        settings = [f"num-rounds={rounds}", f"min-clients={SITES}", f"run-name={name}", "checkpoint-every=0"]
        settings += [f"results-dir={self.home / 'results'}", "hidden-dim=16", "local-epochs=1"]
        command = [str(BIN / "mh-pfedhn"), "run", "consortium", "--superlink", "consortium", "-c", *settings]
        subprocess.run(command, env=self.environment, check=True, stdout=sys.stderr)
        lines = (self.home / "results" / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["seconds"]["total"] for line in lines]


def measure(load_seconds: float, rounds: int) -> dict[str, Any]:
    """Both apps by turns on the same processes; the first round of each is left out, since it fetches the app."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        federation = Federation(Path(folder), load_seconds, stack)
        noop: list[float] = []
        ours: list[float] = []
        for turn in range(2):
            noop += federation.noop(rounds)[1:]
            # The last round's time includes the handing over of the final weights.
            ours += federation.ours(rounds + 1, f"turn-{turn}")[1:-1]
    return {
        "data-takes-seconds-to-load": load_seconds,
        "noop-seconds-a-round": [round(value, 2) for value in noop],
        "ours-seconds-a-round": [round(value, 2) for value in ours],
        "ratio-of-medians": round(statistics.median(ours) / statistics.median(noop), 3),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    results = [measure(seconds, options.rounds) for seconds in (0.0, 20.0)]
    (HERE / "results" / "deployment_round.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
