"""Seconds a round of `mh-pfedhn run`, against a plain single-process PyTorch loop that does the same work.

    python benchmarks/simulation.py --data-dir FOLDER_WITH_PARQUET_FILES

20 LeNet clients on CIFAR-100, 100 images a class, 2 local epochs, every client tested in every round. The plain loop
has a DataLoader a client with per-image transforms and the LeNet of the paper's Table 16, as one would write them;
partition, hypernetwork and its update are this project's on both sides. The loop runs before and after `mh-pfedhn run`,
whose first round (which starts the workers) is not counted. Prints JSON.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from common.config import load_config
from common.data.simulation import divide
from common.data.torchvision_shim import import_torchvision
from common.params import ParameterVector
from common.settings import LocalTraining
from server_app.hypernetwork import HyperNetwork
from server_app.optim import HyperNetworkOptimizer

SETTINGS = {
    "profile": "cifar100",
    "dataset": "parquet",
    "num-clients": 20,
    "max-samples-per-class": 100,
    "local-epochs": 2,
    "evaluate-every": 1,
}


class Images(Dataset[tuple[Tensor, int]]):
    """Decoded images as torchvision's CIFAR keeps them; each access makes a PIL image and transforms it."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        transforms = import_torchvision().transforms
        self.pixels = pixels.permute(0, 2, 3, 1).numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def plain_lenet(num_classes: int) -> nn.Module:
    """Table 16, layer by layer."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(2048, 108), nn.ReLU()),
        *(nn.Linear(108, 64), nn.ReLU()),
        nn.Linear(64, num_classes),
    )


class PlainLoop:
    """The same federation in one process, client after client."""

    def __init__(self, data_dir: Path) -> None:
        self.config = load_config(SETTINGS | {"data-dir": str(data_dir)})
        division = divide(self.config, self.config.num_clients)
        data, parts = division.dataset, division.parts
        self.loaders = [
            (
                DataLoader(Images(data.read_images(p.train), data.labels[p.train]), batch_size=64, shuffle=True),
                DataLoader(Images(data.read_images(p.test), data.labels[p.test]), batch_size=64),
            )
            for p in parts
        ]
        self.model = plain_lenet(data.num_classes)
        self.vector = ParameterVector(self.model)
        self.anchor = self.vector.read()
        self.hn = HyperNetwork()
        self.keys = [str(i) for i in range(self.config.num_clients)]
        for key in self.keys:
            self.hn.register(key, self.vector.size)
        self.optimizer = HyperNetworkOptimizer(self.hn, float(self.config.method_settings["hn-lr"]))
        self.training = self.config.settings(LocalTraining)

    def round(self) -> None:
        """Generate, test, train, update."""
        with torch.no_grad():
            thetas = self.hn.generate(self.keys)
        deltas = {}
        for key, theta, (train, test) in zip(self.keys, thetas, self.loaders, strict=True):
            start = self.anchor + theta
            self.vector.write(start)
            self.model.eval()
            correct = 0
            with torch.no_grad():
                for images, labels in test:
                    correct += int((self.model(images).argmax(dim=1) == labels).sum())
            self.model.train()
            optimizer = torch.optim.SGD(
                self.model.parameters(),
                self.training.client_lr,
                momentum=self.training.client_momentum,
                weight_decay=self.training.client_weight_decay,
            )
            for _ in range(self.training.local_epochs):
                for images, labels in train:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(self.model(images), labels).backward()
                    nn.utils.clip_grad_norm_(self.model.parameters(), 50.0)
                    optimizer.step()
            deltas[key] = start - self.vector.read()
        self.optimizer.apply(deltas)

    def seconds(self, rounds: int) -> list[float]:
        """Wall time of each of so many rounds."""
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            self.round()
            times.append(time.perf_counter() - began)
        return times


def flower_seconds(data_dir: Path, rounds: int) -> list[float]:
    """Wall time of each round but the first of one `mh-pfedhn run`."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"{key}={value}" for key, value in SETTINGS.items() if key != "profile"]
        overrides += [f"data-dir={data_dir.resolve()}", f"results-dir={folder}", "run-name=run"]
        # Line r is written when round r + 1 ends, the last two together: that leaves two differences fewer than rounds.
        command = [str(Path(sys.executable).parent / "mh-pfedhn"), "run", SETTINGS["profile"], "-c", *overrides]
        subprocess.run([*map(str, command), f"num-rounds={rounds + 2}"], check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    walls = [line["wall-seconds"] for line in lines[:-1]]
    return [after - before for before, after in itertools.pairwise(walls)]


def main() -> None:
    """Time loop, Flower, loop; print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the CIFAR-100 parquet files")
    parser.add_argument("--rounds", type=int, default=10, help="counted rounds of `mh-pfedhn run`")
    options = parser.parse_args()
    loop = PlainLoop(options.data_dir)
    loop.round()  # not counted, as Flower's first
    before = loop.seconds(3)
    flower = flower_seconds(options.data_dir, options.rounds)
    after = loop.seconds(3)
    plain = statistics.mean(before + after)
    result = {
        "question": "seconds a round: 20 LeNet clients, CIFAR-100, 100 images a class, 2 local epochs",
        "torch": torch.__version__,
        "threads-of-the-plain-loop": torch.get_num_threads(),
        "plain-loop-seconds": [round(value, 3) for value in before + after],
        "mh-pfedhn-run-seconds": [round(value, 3) for value in flower],
        "ratio": round(statistics.mean(flower) / plain, 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
