"""How many bytes a server round takes for each value of the hypernetwork, and for each value that it generates.

    python benchmarks/memory.py

Plays rounds of MH-pFedHN's server half with LeNet clients (K = 239,856), replies and all, in processes of their own,
with a narrow and a wide trunk and with many and more clients. The peak of a process's resident memory (VmHWM, reset
after the first round) above what it had before the hypernetwork was made gives three equations for the two numbers and
for what a process takes besides. `server_app/room.py` refuses by these numbers what does not fit.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mh_pfedhn.processes import KEEP_MEMORY

RESULTS = Path(__file__).parent / "results"
NUM_PARAMS = 239_856  # LeNet for CIFAR-100
SIZES = ((50, 8), (50, 256), (250, 8))  # clients, and the width of the trunk


def peak_of(num_clients: int, hidden_dim: int) -> dict[str, int]:
    """Play three rounds in this process; values of network and cohort, and the bytes at the peak of the last two."""
    import torch
    from flwr.app import RecordDict

    from common.arrays import decode_arrays, encode_arrays
    from common.config import load_config
    from server_app.client import Client
    from server_app.methods.base import Replies, Reply

    config = load_config({"hidden-dim": hidden_dim, "chunk-size": 3072, "device": "cpu"})
    method = config.halves.server(config)
    clients = [Client(str(number), NUM_PARAMS, number) for number in range(num_clients)]
    generator = torch.Generator().manual_seed(0)
    before = resident("VmRSS")
    method.admit(clients)
    for number in range(3):
        if number == 1:
            Path("/proc/self/clear_refs").write_text("5")  # the first round also brings in libraries and Adam's state
        playing = method.round(clients)
        exchange = next(playing)
        outgoing = exchange.outgoing(clients)
        replies = Replies()
        for client in clients:
            # As the mailroom does it: packed one at a time, and released with its message.
            sent = encode_arrays(outgoing.pop(client.key))
            del sent
        for client in clients:
            delta = 1e-3 * torch.randn(NUM_PARAMS, generator=generator)
            content = RecordDict({"arrays": encode_arrays({"delta": delta})})
            replies[client.key] = Reply(decode_arrays(content, exchange.expected(client)), 100)
            del content, delta
        try:
            playing.send(replies)
        except StopIteration:
            del replies
    return {
        "network": sum(parameter.numel() for parameter in method.hn.parameters()),
        "generated": num_clients * NUM_PARAMS,
        "bytes": resident("VmHWM") - before,
    }


def resident(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


def solved(environment: dict[str, str]) -> dict[str, Any]:
    """Measure each size in a process of its own, and solve for the two numbers."""
    found = []
    for clients, width in SIZES:
        command = [sys.executable, __file__, "--clients", str(clients), "--width", str(width)]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    equations = np.array([[each["network"], each["generated"], 1] for each in found], dtype=float)
    network, generated, _ = np.linalg.solve(equations, np.array([each["bytes"] for each in found], dtype=float))
    return {
        "bytes-a-value-of-the-network": round(float(network), 2),
        "bytes-a-generated-value": round(float(generated), 2),
        "measured": found,
    }


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.width:
        print(json.dumps(peak_of(options.clients, options.width)))
        return
    result = {
        "as the system's allocator gives memory back": solved({}),
        "as `mh-pfedhn run` starts processes, which keep what was freed": solved(KEEP_MEMORY),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
