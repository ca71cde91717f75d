"""Local training and testing against loops written out by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from client_app.training import Samples, SGDSettings, evaluate, predict, train

CLASSES = 3
MEAN = torch.tensor([0.5, 0.4, 0.3])
STD = torch.tensor([0.25, 0.2, 0.3])
SETTINGS = SGDSettings(epochs=2, batch_size=4, lr=0.05, momentum=0.9, weight_decay=0.01, max_grad_norm=50.0)


def samples_of(count: int, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    return Samples(
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
    loss = train(model, samples, SGDSettings(2, 4, 0.05, 0.9, 0.01, max_grad_norm), generator())

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
    train(model, samples_of(4), SGDSettings(1, 4, 0.5, 0.0, 0.0, max_grad_norm=1e-2), generator())
    assert (weights(model) - before).norm().item() == pytest.approx(0.5 * 1e-2, rel=1e-3)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (5, [5]), (3, [3]), (1, [1])],
)
def test_a_last_batch_of_one_sample_joins_the_one_before(count, sizes):
    samples = samples_of(count)
    marked = Samples(samples.images.clone(), samples.labels, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    marked.images[:, 0, 0, 0] = torch.arange(count)
    model = BatchSizes()
    train(model, marked, SGDSettings(2, 4, 1e-6, 0.0, 0.0, 50.0), generator())
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
    loss = train(model, samples, SGDSettings(3, 4, 0.0, 0.0, 0.0, 50.0), generator())
    expected = functional.cross_entropy(small_model()(normalised(samples.images)), samples.labels).item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_parameters_without_gradient_stay():
    model = small_model()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    train(model, samples_of(8), SETTINGS, generator())
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[4].weight, small_model()[4].weight)


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
    result = evaluate(FirstPixel(), Samples(images, labels, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)))
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
    plain = small_model()
    assert mean == pytest.approx(train(plain, samples, SETTINGS, generator()) + 3.0, rel=1e-5)
    assert torch.equal(weights(model), weights(plain))
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
