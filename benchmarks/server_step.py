"""Generate + joint update for 50 LeNet clients, against one nn.Linear a chunk and one Adam step a client in a loop.

    python benchmarks/server_step.py [--device cuda]

Both sides run in one process, on the same deltas, in turns; prints JSON with the ratio of their median times. That is
done twice, each in a process of its own: with the memory settings that `mh-pfedhn run` gives its processes, for both
sides, and without them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mh_pfedhn.processes import KEEP_MEMORY
from server_app.hypernetwork import HyperNetwork
from server_app.optim import HyperNetworkOptimizer

NUM_PARAMS = 239_856  # LeNet for CIFAR-100
ENVIRONMENTS: dict[str, dict[str, str]] = {"as-under-mh-pfedhn-run": KEEP_MEMORY, "without-memory-settings": {}}
CHUNK, EMBEDDING, HIDDEN = 3072, 64, 128


class LoopedHyperNetwork(nn.Module):
    """The plain way: a list of nn.Linear, one a chunk, walked in Python; an embedding matrix a client."""

    def __init__(self, num_clients: int) -> None:
        super().__init__()
        num_chunks = -(-NUM_PARAMS // CHUNK)
        layers: list[nn.Module] = []
        for width in (EMBEDDING, HIDDEN, HIDDEN):
            layers += [nn.Linear(width, HIDDEN), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(HIDDEN, CHUNK) for _ in range(num_chunks))
        self.embeddings = nn.ParameterList(torch.randn(num_chunks, EMBEDDING) for _ in range(num_clients))

    def forward(self, client: int) -> Tensor:
        """Return theta [K] of one client."""
        features = self.trunk(self.embeddings[client])
        return torch.cat([head(row) for head, row in zip(self.heads, features, strict=True)])[:NUM_PARAMS]


def seconds(step: Callable[[], None], device: str) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measured(settings: dict[str, str]) -> dict[str, object]:
    """The result of a process of its own with these environment variables."""
    command = [sys.executable, *sys.argv, "--here"]
    done = subprocess.run(command, env=os.environ | settings, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def main() -> None:
    """Time both sides and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5, help="of each side, after one that is not counted")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--here", action="store_true", help="measure in this process, under the settings it was given")
    options = parser.parse_args()
    if not options.here:
        print(json.dumps({name: measured(env) for name, env in ENVIRONMENTS.items()}, indent=2))
        return
    keys = [f"client-{i}" for i in range(options.clients)]
    generator = torch.Generator().manual_seed(0)
    deltas = {key: (1e-3 * torch.randn(NUM_PARAMS, generator=generator)).to(options.device) for key in keys}

    hn = HyperNetwork().to(options.device)
    for key in keys:
        hn.register(key, NUM_PARAMS)
    optimizer = HyperNetworkOptimizer(hn, lr=1e-3, schedule="joint")

    def ours() -> None:
        with torch.no_grad():
            hn.generate(keys)
        optimizer.apply(deltas)

    looped = LoopedHyperNetwork(options.clients).to(options.device)
    adam = torch.optim.Adam(looped.parameters(), lr=1e-3)

    def loop() -> None:
        for client, delta in enumerate(deltas.values()):
            theta = looped(client)
            adam.zero_grad()
            theta.backward(delta)
            nn.utils.clip_grad_norm_(looped.parameters(), 50.0)
            adam.step()

    times: dict[str, list[float]] = {"ours": [], "loop": []}
    for repeat in range(options.repeats + 1):
        for name, step in (("loop", loop), ("ours", ours)):
            elapsed = seconds(step, options.device)
            if repeat:
                times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "question": f"one server round for {options.clients} LeNet clients: generate and update",
        "device": torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "loop-seconds": medians["loop"],
        "ours-seconds": medians["ours"],
        "times-faster": medians["loop"] / medians["ours"],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
