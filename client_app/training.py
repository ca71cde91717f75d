"""A client's local work (paper, Algorithm 1, ClientUpdate): SGD on its own samples, and the test of a model.

Images stay on the device as uint8 and are normalised there, a batch at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.evaluation import Evaluation

_TEST_BATCH = 256

# From logits [b, classes], labels [b] and the samples' indices [b] to the mean loss of a batch.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


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


def cross_entropy(logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
    """The ordinary loss."""
    return functional.cross_entropy(logits, labels)


def train(
    model: nn.Module,
    samples: Samples,
    settings: SGDSettings,
    generator: torch.Generator,
    loss_of: Loss = cross_entropy,
) -> float:
    """Train in place; return the mean loss over all samples and epochs.

    `generator` draws the order of the samples, and its seed what dropout leaves out.
    """
    device = samples.labels.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(generator.initial_seed())
        return _train(model, samples, settings, generator, loss_of)


def _train(
    model: nn.Module, samples: Samples, settings: SGDSettings, generator: torch.Generator, loss_of: Loss
) -> float:
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
    )
    total = torch.zeros((), device=samples.labels.device)
    for _ in range(settings.epochs):
        for batch in _shuffled_batches(len(samples), settings.batch_size, generator):
            indices = batch.to(samples.labels.device)
            images, labels = samples.batch(indices)
            loss = loss_of(model(images), labels, indices)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            total += loss.detach() * len(labels)
    return float(total) / (settings.epochs * len(samples))


def predict(model: nn.Module, samples: Samples) -> Tensor:
    """Logits of all samples, in evaluation mode. Shape [n, classes]."""
    model.eval()
    with torch.no_grad():
        every = torch.arange(len(samples), device=samples.labels.device)
        return torch.cat([model(samples.batch(indices)[0]) for indices in every.split(_TEST_BATCH)])


def evaluate(model: nn.Module, samples: Samples) -> Evaluation:
    """Test a model on all samples."""
    logits = predict(model, samples)
    correct = (logits.argmax(dim=1) == samples.labels).sum()
    loss = functional.cross_entropy(logits, samples.labels)
    return Evaluation(int(correct), len(samples), float(loss))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _shuffled_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    batches = list(torch.randperm(count, generator=generator).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        # Batch norm cannot train on a single value a channel: the last sample joins the batch before.
        batches[-2:] = [torch.cat(batches[-2:])]
    yield from batches
