"""A client's local work (paper, Algorithm 1, ClientUpdate): SGD on its own samples, and the test of a model."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from client_app.samples import Samples
from common.evaluation import Evaluation
from common.inputs import Inputs
from common.seeding import seeded
from common.settings import LocalTraining

TEST_BATCH = 256

# From outputs [b, ...] and targets [b, ...] to the mean loss of a batch, and to the number of correct answers.
Criterion = Callable[[Tensor, Tensor], Tensor]
CountCorrect = Callable[[Tensor, Tensor], Tensor | int]
# The same with the samples' indices [b] as a third argument, for what is known of each sample.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
    """The ordinary loss."""
    return functional.cross_entropy(logits, labels)


def argmax_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the logits [n, classes] are largest at their label [n]."""
    return (logits.argmax(dim=1) == labels).sum()


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """What the model makes of a batch: a tensor as it is, several as its arguments, by position or by name."""
    if isinstance(inputs, Mapping):
        outputs = model(**inputs)
    elif isinstance(inputs, tuple | list):
        outputs = model(*inputs)
    else:
        outputs = model(inputs)
    return outputs  # type: ignore[no-any-return]


def train(
    model: nn.Module,
    samples: Samples,
    batches: Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    max_grad_norm: float,
    loss_of: Loss = cross_entropy,
) -> float:
    """Take a step for each batch, in place; return the mean loss over all samples seen.

    Parameters
    ----------
    model: what is trained, in training mode.
    samples: what it is trained on.
    batches: indices [b] of the samples of each step; `epochs` makes them.
    optimizer: holds the parameters that move; `sgd` makes one.
    generator: its seed is that of what model and data draw from the global generators: dropout, augmentation.
    max_grad_norm: longer gradients of these parameters are shortened to it.
    loss_of: the loss of a batch.
    """
    with seeded(generator.initial_seed(), samples.device):
        return _train(model, samples, batches, optimizer, max_grad_norm, loss_of)


def _train(
    model: nn.Module,
    samples: Samples,
    batches: Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    loss_of: Loss,
) -> float:
    model.train()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    total, seen = torch.zeros((), device=samples.device), 0
    for batch in batches:
        indices = batch.to(samples.device)
        inputs, targets = samples.batch(indices)
        loss = loss_of(forward(model, inputs), targets, indices)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        total += loss.detach() * len(indices)
        seen += len(indices)
    return float(total) / seen


def sgd(parameters: Iterable[nn.Parameter], settings: LocalTraining) -> torch.optim.SGD:
    """The optimizer of local training, without a past: momentum begins anew in every round."""
    return torch.optim.SGD(
        parameters,
        settings.client_lr,
        momentum=settings.client_momentum,
        weight_decay=settings.client_weight_decay,
        fused=True,
    )


def epochs(count: int, batch_size: int, number: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices [b] of the batches of so many passes over `count` samples, each in an order of its own."""
    for _ in range(number):
        yield from _shuffled_batches(count, batch_size, generator)


def predict(model: nn.Module, samples: Samples) -> Tensor:
    """Outputs for all samples, in evaluation mode. Shape [n, classes] for a classifier."""
    with torch.no_grad():
        return torch.cat([outputs for outputs, _ in tested_batches(model, samples)])


def evaluate(
    model: nn.Module,
    samples: Samples,
    loss: Criterion = functional.cross_entropy,
    correct: CountCorrect = argmax_correct,
) -> Evaluation:
    """Test a model on all samples; the loss is the mean over them.

    Batches are added up as they come, since the outputs of all samples, such as a class for every pixel, may not fit.
    """
    num_correct: Tensor | int = 0
    mean_loss = torch.zeros((), dtype=torch.float64, device=samples.device)
    with torch.no_grad():
        for outputs, targets in tested_batches(model, samples):
            num_correct = num_correct + correct(outputs, targets)
            # A single batch weighs exactly 1, so that its loss is what the criterion says to the last bit.
            mean_loss += loss(outputs, targets).double() * (len(targets) / len(samples))
    return Evaluation(int(num_correct), len(samples), float(mean_loss))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def tested_batches(model: nn.Module, samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs and targets of one batch after the other, in evaluation mode."""
    model.eval()
    for indices in torch.arange(len(samples), device=samples.device).split(TEST_BATCH):
        inputs, targets = samples.batch(indices)
        yield forward(model, inputs), targets


def _shuffled_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    batches = list(torch.randperm(count, generator=generator).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        # Batch norm cannot train on a single value a channel: the last sample joins the batch before.
        batches[-2:] = [torch.cat(batches[-2:])]
    yield from batches
