"""A client's local work (paper, Algorithm 1, ClientUpdate): SGD on its own samples, and the test of a model.

Images stay on the device as uint8 and are normalised there, a batch at a time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.evaluation import Evaluation

_TEST_BATCH = 256


@dataclass(frozen=True, eq=False)
class Samples:
    """Images and labels of one split, on the device, with the statistics that normalise them."""

    images: Tensor  # [n, C, H, W] uint8
    labels: Tensor  # [n] int64
    mean: Tensor  # [1, C, 1, 1] float32, of values 0 to 255
    std: Tensor  # [1, C, 1, 1] float32

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [b, C, H, W] float32 and labels [b] of these samples."""
        images = (self.images[indices].float() - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last), self.labels[indices]


@dataclass(frozen=True)
class SGDSettings:
    """Hyperparameters of local training."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    max_grad_norm: float


def train(model: nn.Module, samples: Samples, settings: SGDSettings, generator: torch.Generator) -> float:
    """Train in place; return the mean loss over all samples and epochs. `generator` draws the order of the samples."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
    )
    total = torch.zeros((), device=samples.labels.device)
    for _ in range(settings.epochs):
        for indices in _shuffled_batches(len(samples), settings.batch_size, generator):
            images, labels = samples.batch(indices.to(samples.labels.device))
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            total += loss.detach() * len(labels)
    return float(total) / (settings.epochs * len(samples))


def evaluate(model: nn.Module, samples: Samples) -> Evaluation:
    """Test a model on all samples."""
    model.eval()
    correct = loss = torch.zeros((), device=samples.labels.device)
    with torch.inference_mode():
        for indices in torch.arange(len(samples), device=samples.labels.device).split(_TEST_BATCH):
            images, labels = samples.batch(indices)
            logits = model(images)
            correct = correct + (logits.argmax(dim=1) == labels).sum()
            loss = loss + functional.cross_entropy(logits, labels, reduction="sum")
    return Evaluation(int(correct), len(samples), float(loss) / len(samples))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _shuffled_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    batches = list(torch.randperm(count, generator=generator).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        # Batch norm cannot train on a single value a channel: the last sample joins the batch before.
        batches[-2:] = [torch.cat(batches[-2:])]
    yield from batches
