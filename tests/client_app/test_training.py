"""Local training and testing against loops written out by hand."""

import random
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from client_app.samples import DatasetSamples, ImageSamples, TensorSamples
from client_app.training import all_finite, cross_entropy, epochs, evaluate, predict, sgd
from client_app.training import train as train_on_batches
from common.settings import LocalTraining

CLASSES = 3
MEAN = torch.tensor([0.5, 0.4, 0.3])
STD = torch.tensor([0.25, 0.2, 0.3])
SETTINGS = LocalTraining(local_epochs=2, batch_size=4, client_lr=0.05, client_weight_decay=0.01)


def samples_of(count: int, seed: int = 0) -> ImageSamples:
    generator = torch.Generator().manual_seed(seed)
    return ImageSamples(
        images=torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator),
        labels=torch.randint(0, CLASSES, (count,), generator=generator),
        mean=255 * MEAN.view(1, 3, 1, 1),
        std=255 * STD.view(1, 3, 1, 1),
    )


def normalised(images):
    return (images.to(torch.float32) / 255 - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)


def small_model(norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        between = nn.BatchNorm2d(4) if norm else nn.Identity()
        return nn.Sequential(nn.Conv2d(3, 4, 8), between, nn.Flatten(), nn.ReLU(), nn.Linear(4, CLASSES))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train(model, samples, settings, generator, loss_of=cross_entropy):
    """Local training as a method has it: passes over the samples by SGD on the parameters that are not frozen."""
    batches = epochs(len(samples), settings.batch_size, settings.local_epochs, generator)
    optimizer = sgd([each for each in model.parameters() if each.requires_grad], settings)
    return train_on_batches(model, samples, batches, optimizer, generator, settings.client_max_grad_norm, loss_of)


def plain(local_epochs, batch_size, client_lr, client_max_grad_norm=50.0):
    """Settings without momentum and weight decay."""
    rest = {"client_momentum": 0.0, "client_weight_decay": 0.0, "client_max_grad_norm": client_max_grad_norm}
    return LocalTraining(local_epochs=local_epochs, batch_size=batch_size, client_lr=client_lr, **rest)


class Drawn(Dataset):
    """Ten samples whose inputs are drawn from each of the global generators when they are read."""

    def __init__(self):
        self.values = []

    def __len__(self):
        return 10

    def __getitem__(self, index):
        draws = [float(torch.rand(1)), random.random(), float(np.random.rand())]  # noqa: NPY002
        self.values.append((index, *draws))
        return torch.tensor(draws), index % CLASSES


class BatchSizes(nn.Module):
    """Notes which samples come in each batch; a sample is recognised by its first pixel."""

    def __init__(self):
        super().__init__()
        self.inner = small_model()
        self.batches = []

    def forward(self, images):
        self.batches.append([round(float(value)) for value in images[:, 0, 0, 0]])
        return self.inner(images)


def test_a_batch_is_normalised_from_the_uint8_samples_that_it_names():
    samples = samples_of(10)
    indices = torch.tensor([7, 2, 2])
    images, labels = samples.batch(indices)
    torch.testing.assert_close(images, normalised(samples.images[indices]))
    assert images.dtype == torch.float32
    assert torch.equal(labels, samples.labels[indices])
    assert samples.images.dtype == torch.uint8


@pytest.mark.parametrize("max_grad_norm", [50.0, 0.05], ids=["without clipping", "with clipping"])
def test_training_equals_sgd_written_out_by_hand(max_grad_norm):
    samples, model, by_hand = samples_of(18), small_model(), small_model()
    loss = train(model, samples, replace(SETTINGS, client_max_grad_norm=max_grad_norm), generator())

    order = generator()
    parameters = list(by_hand.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    losses, clipped = [], 0
    for _ in range(2):
        for batch in torch.randperm(18, generator=order).split(4):
            each = functional.cross_entropy(by_hand(normalised(samples.images[batch])), samples.labels[batch])
            losses += [each.item()] * len(batch)
            gradients = torch.autograd.grad(each, parameters)
            norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
            clipped += bool(norm > max_grad_norm)
            factor = (max_grad_norm / (norm + 1e-6)).clamp(max=1)
            with torch.no_grad():
                for parameter, gradient, velocity in zip(parameters, gradients, velocities, strict=True):
                    velocity.mul_(0.9).add_(factor * gradient + 0.01 * parameter)
                    parameter -= 0.05 * velocity
    assert clipped == (10 if max_grad_norm < 1 else 0)
    torch.testing.assert_close(weights(model), weights(by_hand))
    assert loss == pytest.approx(sum(losses) / 36, rel=1e-5)
    assert not torch.equal(weights(model), weights(small_model()))


def test_clipping_bounds_one_step_by_learning_rate_times_norm():
    model = small_model()
    before = weights(model)
    train(model, samples_of(4), plain(1, 4, 0.5, 1e-2), generator())
    assert (weights(model) - before).norm().item() == pytest.approx(0.5 * 1e-2, rel=1e-3)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (5, [5]), (3, [3]), (1, [1])],
)
def test_a_last_batch_of_one_sample_joins_the_one_before(count, sizes):
    samples = samples_of(count)
    marked = ImageSamples(samples.images.clone(), samples.labels, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    marked.images[:, 0, 0, 0] = torch.arange(count)
    model = BatchSizes()
    train(model, marked, plain(2, 4, 1e-6), generator())
    assert [len(batch) for batch in model.batches] == sizes * 2
    first, second = model.batches[: len(sizes)], model.batches[len(sizes) :]
    for epoch in (first, second):
        assert sorted(sample for batch in epoch for sample in batch) == list(range(count))
    assert count < 4 or first != second  # every epoch has its own order


def test_batch_norm_trains_when_one_sample_is_left_over():
    model = small_model(norm=True)  # 1 x 1 maps: batch norm refuses a single sample
    assert train(model, samples_of(9), SETTINGS, generator()) > 0


def test_the_loss_is_the_mean_over_samples_though_batches_differ_in_size():
    samples, model = samples_of(10), small_model()
    loss = train(model, samples, plain(3, 4, 0.0), generator())
    expected = functional.cross_entropy(small_model()(normalised(samples.images)), samples.labels).item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_parameters_without_gradient_stay():
    model = small_model()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    train(model, samples_of(8), SETTINGS, generator())
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[4].weight, small_model()[4].weight)


def test_only_the_parameters_of_the_optimizer_move_and_are_clipped():
    # As a method asks for it that trains a part of a model; the gradients of the rest must not count in the norm.
    samples = samples_of(4)
    norm = 1e-2
    for part, rest in ((0, 4), (4, 0)):
        model = small_model()
        before = [each.clone() for each in model[part].parameters()]
        optimizer = sgd(model[part].parameters(), plain(1, 4, 0.5))
        order = generator()
        train_on_batches(model, samples, epochs(4, 4, 1, order), optimizer, order, norm)
        moved = [each.detach() - then for each, then in zip(model[part].parameters(), before, strict=True)]
        assert torch.cat([each.flatten() for each in moved]).norm().item() == pytest.approx(0.5 * norm, rel=1e-3)
        assert torch.equal(weights(model[rest]), weights(small_model()[rest]))


def test_a_step_is_taken_for_each_of_the_batches_and_the_loss_is_the_mean_over_their_samples():
    samples, model = samples_of(10), small_model()
    batches = [torch.tensor(each) for each in ([1, 2, 3], [3], [9, 1])]
    seen = []

    def loss(logits, labels, indices):
        seen.append(indices.tolist())
        return logits.sum() * 0 + float(len(seen))

    optimizer = torch.optim.Adam(model.parameters())  # a method's own
    assert train_on_batches(model, samples, batches, optimizer, generator(), 50.0, loss) == pytest.approx(11 / 6)
    assert seen == [[1, 2, 3], [3], [9, 1]]
    assert optimizer.state[next(model.parameters())]["step"] == 3


def test_every_pass_has_the_order_that_the_generator_gives():
    order, again = generator(), generator()
    expected = [*torch.randperm(10, generator=again).split(4), *torch.randperm(10, generator=again).split(4)]
    found = list(epochs(10, 4, 2, order))
    assert [each.tolist() for each in found] == [each.tolist() for each in expected]


def test_momentum_begins_anew_in_every_round():
    model, in_a_new_process = small_model(), small_model()
    train(model, samples_of(18), SETTINGS, generator())
    in_a_new_process.load_state_dict(model.state_dict())
    for each in (model, in_a_new_process):
        train(each, samples_of(18), SETTINGS, generator(2))
    assert torch.equal(weights(model), weights(in_a_new_process))


def test_the_generator_alone_decides_the_result():
    results = []
    for seed, global_seed in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(global_seed)
        model = small_model()
        loss = train(model, samples_of(18), SETTINGS, generator(seed))
        results.append((loss, weights(model)))
    (loss, same), (loss_again, same_again), (_, other) = results
    assert loss == loss_again
    assert torch.equal(same, same_again)
    assert not torch.equal(same, other)


class FirstPixel(nn.Module):
    """Says class 0, 1 or 2 by the value of the first pixel, with a margin of 2."""

    def forward(self, images):
        return 2.0 * functional.one_hot(images[:, 0, 0, 0].long(), CLASSES)


@pytest.mark.parametrize("count", [3, 512, 1100])
def test_evaluation_counts_every_sample_once(count):
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count) % CLASSES
    labels = torch.arange(count) % CLASSES
    labels[::3] = 1  # every third answer, 0, is wrong
    result = evaluate(FirstPixel(), ImageSamples(images, labels, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)))
    wrong = len(labels[::3])
    assert (result.correct, result.total) == (count - wrong, count)
    right_loss = torch.tensor([2.0, 0, 0]).logsumexp(0).item() - 2
    assert result.loss == pytest.approx(right_loss + 2 * wrong / count, rel=1e-4)


def test_evaluation_uses_the_running_statistics_and_changes_nothing():
    model, samples = small_model(norm=True), samples_of(20)
    train(model, samples, SETTINGS, generator())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = evaluate(model, samples)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        logits = model.eval()(normalised(samples.images))
    assert result.correct == int((logits.argmax(1) == samples.labels).sum())
    assert result.loss == pytest.approx(functional.cross_entropy(logits, samples.labels).item(), rel=1e-4)


@pytest.mark.parametrize("count", [3, 256, 257, 600])
def test_predictions_are_the_logits_of_all_samples_in_order(count):
    model, samples = small_model(norm=True), samples_of(count)
    train(model, samples_of(20), SETTINGS, generator())  # leaves it in training mode
    logits = predict(model, samples)
    assert logits.shape == (count, CLASSES)
    assert not logits.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(logits, model.eval()(normalised(samples.images)))


def test_a_loss_of_ones_own_is_told_which_samples_it_is_about():
    samples, model = samples_of(18), small_model()
    seen = []

    def loss(logits, labels, indices):
        assert torch.equal(labels, samples.labels[indices])
        seen.append(indices.tolist())
        return functional.cross_entropy(logits, labels) + 3.0

    mean = train(model, samples, SETTINGS, generator(), loss)
    other = small_model()
    assert mean == pytest.approx(train(other, samples, SETTINGS, generator()) + 3.0, rel=1e-5)
    assert torch.equal(weights(model), weights(other))
    assert [len(batch) for batch in seen] == [4, 4, 4, 4, 2] * 2
    for epoch in (seen[:5], seen[5:]):
        assert sorted(sample for batch in epoch for sample in batch) == list(range(18))


def test_the_generator_alone_decides_what_dropout_leaves_out():
    results = []
    for global_seed in (10, 20):
        torch.manual_seed(global_seed)
        model = nn.Sequential(nn.Dropout(0.5), small_model())
        train(model, samples_of(18), SETTINGS, generator())
        results.append(weights(model))
    assert torch.equal(*results)


def draws():
    return float(torch.rand(1)), random.random(), float(np.random.rand())  # noqa: NPY002


def test_what_model_and_data_draw_follows_from_the_generator_and_disturbs_nobody():
    def drawn(seed):
        dataset = Drawn()
        with torch.random.fork_rng():
            model = nn.Linear(3, CLASSES)
        train(model, DatasetSamples(dataset, torch.device("cpu")), SETTINGS, generator(seed))
        return dataset.values

    def seed_all():
        torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002

    seed_all()
    undisturbed = [draws(), draws()]
    seed_all()
    first = draws()
    values = drawn(1)
    assert [first, draws()] == undisturbed
    assert drawn(1) == values
    other = drawn(2)
    for column in range(1, 4):
        assert {row[column] for row in values}.isdisjoint(row[column] for row in other)
    assert len({row[1:] for row in values}) == 20  # every epoch draws anew


def test_a_seed_of_64_bits_is_taken():
    results = []
    for _ in range(2):
        model = nn.Sequential(nn.Dropout(0.5), small_model())
        train(model, samples_of(8), SETTINGS, generator(2**63 + 5))
        results.append(weights(model))
    assert torch.equal(*results)


def test_what_was_seeded_is_restored_when_the_training_fails():
    def fail(logits, labels, indices):
        raise ValueError("no loss")

    for each in (torch.manual_seed, random.seed, np.random.seed):
        each(5)
    expected = draws()
    for each in (torch.manual_seed, random.seed, np.random.seed):
        each(5)
    with pytest.raises(ValueError, match="no loss"):
        train(small_model(), samples_of(8), SETTINGS, generator(), fail)
    assert draws() == expected


# Samples


INPUTS = torch.arange(20.0).view(10, 2)
OTHER = torch.arange(10)
TARGETS = 100 + torch.arange(10)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (INPUTS, lambda rows: INPUTS[rows]),
        ((INPUTS, OTHER), lambda rows: (INPUTS[rows], OTHER[rows])),
        ([INPUTS, OTHER], lambda rows: (INPUTS[rows], OTHER[rows])),
        ({"one": INPUTS, "other": OTHER}, lambda rows: {"one": INPUTS[rows], "other": OTHER[rows]}),
    ],
    ids=["tensor", "tuple", "list", "mapping"],
)
@pytest.mark.parametrize("kind", ["tensors", "dataset"])
def test_a_batch_has_the_rows_that_it_names_in_their_structure(kind, inputs, expected):
    def row(tensors, index):
        if isinstance(tensors, dict):
            return {name: tensor[index] for name, tensor in tensors.items()}
        return (
            type(tensors)(tensor[index] for tensor in tensors) if isinstance(tensors, tuple | list) else tensors[index]
        )

    cpu = torch.device("cpu")
    samples = {
        "tensors": TensorSamples(inputs, TARGETS),
        "dataset": DatasetSamples([(row(inputs, index), int(TARGETS[index])) for index in range(10)], cpu),
    }[kind]
    assert (len(samples), samples.device) == (10, cpu)
    batch, targets = samples.batch(torch.tensor([7, 2, 2]))
    assert targets.tolist() == [107, 102, 102]
    wanted = expected([7, 2, 2])
    assert type(batch) is type(wanted)
    if isinstance(wanted, dict):
        assert batch.keys() == wanted.keys()
        batch, wanted = tuple(batch.values()), tuple(wanted.values())
    pairs = zip(batch, wanted, strict=True) if isinstance(wanted, tuple) else [(batch, wanted)]
    assert all(torch.equal(*pair) for pair in pairs)


def test_images_keep_their_device_and_come_channels_last():
    samples = samples_of(6)
    assert (len(samples), samples.device) == (6, torch.device("cpu"))
    images, _ = samples.batch(torch.arange(4))
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("as_count", [int, torch.tensor])
def test_evaluation_adds_up_the_losses_and_counts_that_it_is_given_by_samples(as_count):
    result = evaluate(
        small_model(),
        samples_of(600),
        lambda outputs, targets: torch.tensor({256: 2.0, 88: 5.0}[len(targets)]),
        lambda outputs, targets: as_count(len(targets) // 2),
    )
    assert (result.correct, result.total) == (300, 600)
    assert result.loss == pytest.approx((512 * 2.0 + 88 * 5.0) / 600, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_of_a_single_batch_is_that_of_the_criterion_to_the_last_bit(dtype):
    for count in (1, 3, 49, 113, 255, 256):
        value = torch.rand((), generator=generator(count), dtype=torch.float64).to(dtype)
        assert evaluate(small_model(), samples_of(count), lambda outputs, targets, loss=value: loss).loss == float(
            value
        )


def test_a_loss_that_is_not_finite_is_told_as_it_is():
    losses = iter([float("inf"), 1.0])
    assert evaluate(small_model(), samples_of(300), lambda outputs, targets: torch.tensor(next(losses))).loss == float(
        "inf"
    )


def test_evaluation_holds_the_outputs_of_one_batch_at_a_time():
    held, alive = [], []

    def loss(outputs, targets):
        held.append(weakref.ref(outputs))
        alive.append(sum(each() is not None for each in held))
        return functional.cross_entropy(outputs, targets)

    evaluate(small_model(), samples_of(900), loss)
    assert alive == [1, 1, 1, 1]


def test_values_are_finite_only_if_all_are():
    good = torch.zeros(3)
    assert all_finite([good, torch.arange(2)])
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not all_finite([good, torch.tensor([0.0, bad])])
