"""Trying a site's model and loss on a first batch, so that what cannot work is told in words, and before a run."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from client_app.samples import Samples, TensorSamples
from client_app.training import CountCorrect, Criterion, argmax_correct, epochs, forward, sgd, train
from common.errors import UserError
from common.factories import Factory, describe
from common.inputs import ImageShape, length, shapes, structure
from common.settings import LocalTraining

_FIRST_BATCH = 8  # samples
_DEFAULTS_ARE_FOR = "outputs [n, classes] with whole-number targets [n] below classes, or one logit with targets 0 or 1"


def default_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy: of one logit a sample with targets 0 or 1, else of outputs [n, classes, ...]."""
    if _is_one_logit(outputs):
        return functional.binary_cross_entropy_with_logits(outputs.flatten(), targets.flatten().to(outputs.dtype))
    return functional.cross_entropy(outputs, targets if targets.is_floating_point() else targets.long())


def default_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """How often the logit's sign, or else the largest of outputs [n, classes], is right."""
    if _is_one_logit(outputs):
        return ((outputs.flatten() > 0) == (targets.flatten() > 0)).sum()
    return argmax_correct(outputs, targets)


def function_on(factory: Factory, device: torch.device) -> Callable[..., Any]:
    """A loss or a count of a user's own, on the device when it is a module, such as a loss with class weights."""
    function = factory.function_of("outputs", "targets")
    return function.to(device) if isinstance(function, nn.Module) else function


def try_first_batch(
    model: nn.Module,
    splits: tuple[Samples, Samples],
    loss: Criterion,
    correct: CountCorrect,
    global_sizes: tuple[ImageShape, int] | None,
    called: str = "model",
    global_key: str = "deploy-global",
    all_targets: Tensor | None = None,
) -> float:
    """Train on the first samples of one split and test on those of the other; return the mean loss of the training.

    The model is afterwards as it was. Raises UserError for the first thing that does not work.

    Parameters
    ----------
    global_sizes: image shape and number of classes of the public global model, for sites that deploy it.
    called: what sentences call the model.
    global_key: the key that has the global model deployed.
    all_targets: those that the model must have answers to, where they are known; else those of the samples.
    """
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first_loss = 0.0
    try:
        for which, samples in zip(("training", "test"), splits, strict=True):
            batch = _first_samples(samples, which)
            first = f"the first {len(batch)} {which} samples"
            model.train(which == "training")
            outputs = _try_model(model, batch, first, called)
            targets = all_targets
            if targets is None:  # a Dataset is not read for this
                targets = samples.targets if isinstance(samples, TensorSamples) else batch.targets
            if loss is default_loss or correct is default_correct:
                _check_defaults(outputs, targets, loss, correct)
            _try_loss(loss, outputs, batch.targets, first)
            if which == "training":
                first_loss = _try_training(model, batch, loss, first, called)
            _try_correct(correct, outputs, batch.targets, first)
            if global_sizes:
                _check_global(*global_sizes, batch, targets, loss, first, global_key)
    finally:
        model.load_state_dict(before)
        model.zero_grad()
    return first_loss


def _first_samples(samples: Samples, which: str) -> TensorSamples:
    count = min(_FIRST_BATCH, len(samples))
    try:
        inputs, targets = samples.batch(torch.arange(count, device=samples.device))
    except Exception as error:
        raise UserError(f"data: the first {count} {which} samples do not make a batch: {describe(error)}.") from error
    return TensorSamples(inputs, targets)


def _try_model(model: nn.Module, batch: TensorSamples, first: str, called: str) -> Tensor:
    given = f"inputs {shapes(batch.inputs)}"
    try:
        outputs = forward(model, batch.inputs)
    except Exception as error:
        raise UserError(f"{called}: it fails on {first} ({given}): {describe(error)}.") from error
    if not isinstance(outputs, Tensor) or length(outputs) != len(batch):
        raise UserError(
            f"{called}: for {first} ({given}) it returns something {structure(outputs)}, but must return a tensor with "
            "one row a sample."
        )
    return outputs


def _try_loss(loss: Criterion, outputs: Tensor, targets: Tensor, first: str) -> None:
    given = f"outputs {shapes(outputs)}, targets {shapes(targets)}"
    try:
        value = loss(outputs, targets)
    except Exception as error:
        raise UserError(f"loss: it fails on {first} ({given}): {describe(error)}.") from error
    if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
        raise UserError(
            f"loss: for {first} ({given}) it returns something {structure(value)}, but must return their mean loss, a "
            "tensor of one number without dimensions."
        )
    if not bool(torch.isfinite(value)):
        raise UserError(
            f"loss: for {first} it is {value.item()}, but must be finite: look for missing values and for inputs that "
            "need normalising."
        )


def _try_training(model: nn.Module, batch: TensorSamples, loss: Criterion, first: str, called: str) -> float:
    settings = LocalTraining(client_lr=1e-6, client_weight_decay=0.0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    order = torch.Generator().manual_seed(0)
    try:
        once = epochs(len(batch), len(batch), 1, order)
        optimizer = sgd(parameters, settings)
        return train(
            model, batch, once, optimizer, order, 1.0, lambda outputs, targets, indices: loss(outputs, targets)
        )
    except Exception as error:
        raise UserError(f"{called}, loss: a training step on {first} fails: {describe(error)}.") from error


def _try_correct(correct: CountCorrect, outputs: Tensor, targets: Tensor, first: str) -> None:
    given = f"outputs {shapes(outputs)}, targets {shapes(targets)}"
    try:
        value = correct(outputs.detach(), targets)
        number = float(value)
    except Exception as error:
        raise UserError(f"correct: it fails on {first} ({given}): {describe(error)}.") from error
    if number != int(number) or not 0 <= number <= len(targets):
        raise UserError(
            f"correct: for {first} ({given}) it returns {number:g}, but must return how many answers are correct, a "
            f"whole number from 0 to {len(targets)}."
        )


def _check_defaults(outputs: Tensor, targets: Tensor, loss: Criterion, correct: CountCorrect) -> None:
    """Raise UserError where the default loss or the default count would mean nothing."""
    whole = not targets.is_floating_point() and not targets.is_complex()
    if _is_one_logit(outputs):
        fits = targets.numel() == len(targets) and bool(((targets == 0) | (targets == 1)).all())
        loss_fits = fits
    else:
        in_range = whole and outputs.dim() > 1 and bool(((targets >= 0) & (targets < outputs.shape[1])).all())
        fits = in_range and outputs.dim() == 2 and targets.dim() == 1
        # Cross-entropy takes more: a class for every pixel.
        loss_fits = in_range and (len(targets), *outputs.shape[2:]) == targets.shape
    for key, is_default, right in (
        ("loss", loss is default_loss, loss_fits),
        ("correct", correct is default_correct, fits),
    ):
        if is_default and not right:
            values = f", {targets.min()} to {targets.max()}" if not targets.is_complex() else ""
            raise UserError(
                f"{key}: the default is for {_DEFAULTS_ARE_FOR}, but the outputs are {shapes(outputs)} and the "
                f"targets {shapes(targets)}{values}: give your own {key}, or change model or data."
            )


def _check_global(
    shape: ImageShape,
    num_classes: int,
    batch: TensorSamples,
    targets: Tensor,
    loss: Criterion,
    first: str,
    global_key: str,
) -> None:
    """Raise UserError unless the public global model can be trained on these samples."""
    inputs = batch.inputs
    if not isinstance(inputs, Tensor) or inputs.shape[1:] != shape or inputs.dtype != torch.float32:
        raise UserError(
            f"input-shape: with {global_key}, inputs must be float32 of shape {[len(batch), *shape]} in a batch of "
            f"{len(batch)}, but are {shapes(inputs)}."
        )
    if loss is default_loss and (targets.dim() != 1 or int(targets.max()) >= num_classes):
        raise UserError(
            f"num-classes is {num_classes}, but the targets are {shapes(targets)}, up to {targets.max()}: they "
            "must be one whole number a sample, below num-classes."
        )
    outputs = torch.zeros(len(batch), num_classes, device=batch.device)
    try:
        _try_loss(loss, outputs, batch.targets, first)
    except UserError as error:
        raise UserError(f"{global_key}: the global model's outputs must suit the loss, but {error}") from error


def _is_one_logit(outputs: Tensor) -> bool:
    return outputs.dim() == 1 or (outputs.dim() == 2 and outputs.shape[1] == 1)
