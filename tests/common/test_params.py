"""The flat vector of a model's parameters (theta_i of the paper, section 3.2), on models small enough to write out."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from common.models import build_model
from common.params import ParameterVector


def small_model():
    """14 parameters: features.conv 2 x 1 x 1 x 2 + 2, features.norm 2 + 2, head 2 x 2 + 0."""
    features = OrderedDict(conv=nn.Conv2d(1, 2, (1, 2)), norm=nn.BatchNorm2d(2))
    model = nn.Sequential(OrderedDict(features=nn.Sequential(features), head=nn.Linear(2, 2, bias=False)))
    with torch.no_grad():
        model.features.conv.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(2, 1, 1, 2))
        model.features.conv.bias.copy_(torch.tensor([5.0, 6.0]))
        model.features.norm.weight.copy_(torch.tensor([7.0, 8.0]))
        model.features.norm.bias.copy_(torch.tensor([9.0, 10.0]))
        model.head.weight.copy_(torch.tensor([[11.0, 12.0], [13.0, 14.0]]))
    return model


def values(*numbers):
    return torch.tensor([float(number) for number in numbers])


def test_read_follows_the_models_own_order():
    vector = ParameterVector(small_model())
    assert vector.size == 14
    assert vector.names == (
        *("features.conv.weight", "features.conv.bias", "features.norm.weight", "features.norm.bias"),
        "head.weight",
    )
    assert torch.equal(vector.read(), values(*range(1, 15)))
    assert vector.read().dtype == torch.float32


def test_write_puts_every_value_where_read_finds_it():
    model = small_model()
    ParameterVector(model).write(values(*range(101, 115)))
    assert model.features.conv.weight.tolist() == [[[[101.0, 102.0]]], [[[103.0, 104.0]]]]
    assert model.features.conv.bias.tolist() == [105.0, 106.0]
    assert model.features.norm.weight.tolist() == [107.0, 108.0]
    assert model.features.norm.bias.tolist() == [109.0, 110.0]
    assert model.head.weight.tolist() == [[111.0, 112.0], [113.0, 114.0]]


def test_writing_what_another_model_reads_makes_the_two_equal():
    first, second = (build_model("lenet", (1, 8, 8), 3, seed) for seed in (0, 1))
    ParameterVector(second).write(ParameterVector(first).read())
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first(images), second(images))


def test_what_is_read_is_a_copy():
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    vector = ParameterVector(model)
    vector.read().fill_(9)
    assert torch.equal(model.weight, before)
    kept = vector.read()
    vector.write(values(1, 2))
    assert torch.equal(kept, before.flatten())


def test_what_is_written_is_a_copy():
    model = nn.Linear(2, 1, bias=False)
    source = values(1, 2)
    ParameterVector(model).write(source)
    source.fill_(9)
    assert model.weight.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (("*",), (), range(1, 15)),
        (("features.*",), (), range(1, 11)),
        (("head.*",), (), range(11, 15)),
        (("*.bias",), (), (5, 6, 9, 10)),
        (("*",), ("features.norm.*",), (1, 2, 3, 4, 5, 6, 11, 12, 13, 14)),
        (("features.*",), ("*.weight",), (5, 6, 9, 10)),
        # the order is the model's, whatever the order of the patterns
        (("head.*", "features.conv.bias"), (), (5, 6, 11, 12, 13, 14)),
        # a parameter that two patterns name is there once
        (("features.*", "*.bias"), ("head.*",), range(1, 11)),
        (("features.?o*.bias",), (), (5, 6, 9, 10)),
        (("features.conv.bias",), (), (5, 6)),
    ],
)
def test_patterns_choose_by_name(include, exclude, expected):
    vector = ParameterVector(small_model(), include, exclude)
    assert torch.equal(vector.read(), values(*expected))
    assert vector.size == len(expected)


def test_a_pattern_must_match_the_whole_name():
    model = nn.Module()
    model.register_parameter("scale", nn.Parameter(values(1, 2)))
    model.register_parameter("scales", nn.Parameter(values(3)))
    assert ParameterVector(model, include=("scale",)).names == ("scale",)
    assert ParameterVector(model, exclude=("scale",)).names == ("scales",)


def test_write_leaves_parameters_outside_the_vector_alone():
    model = small_model()
    ParameterVector(model, include=("head.*",)).write(values(0, 0, 0, 0))
    assert torch.equal(ParameterVector(model).read(), values(*range(1, 11), 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("include", "exclude"),
    [(("features.*", "tail.*"), ()), (("*",), ("tail.*",)), (("HEAD.*",), ()), (("features",), ()), (("",), ())],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are(include, exclude):
    with pytest.raises(ValueError, match="matches no parameter") as caught:
        ParameterVector(small_model(), include, exclude)
    wrong = next(pattern for pattern in (*include, *exclude) if pattern not in ("*", "features.*"))
    assert repr(wrong) in str(caught.value)
    assert "features.conv.weight" in str(caught.value)


@pytest.mark.parametrize(("include", "exclude"), [(("*",), ("*",)), (("head.*",), ("*.weight",)), ((), ())])
def test_patterns_that_leave_nothing_are_refused(include, exclude):
    with pytest.raises(ValueError, match="leave no parameter"):
        ParameterVector(small_model(), include, exclude)


@pytest.mark.parametrize("shape", [(13,), (15,), (0,), (), (14, 1), (1, 14), (2, 7)])
def test_a_vector_of_another_shape_is_refused_and_changes_nothing(shape):
    model = small_model()
    with pytest.raises(ValueError, match=r"the model takes \(14,\)"):
        ParameterVector(model).write(torch.zeros(shape))
    assert torch.equal(ParameterVector(model).read(), values(*range(1, 15)))


def test_buffers_are_never_included_and_never_written():
    model = small_model()
    model.features.norm.running_mean.fill_(3)
    model.features.norm.running_var.fill_(4)
    vector = ParameterVector(model)
    assert not any("running" in name or "batches" in name for name in vector.names)
    vector.write(torch.zeros(14))
    assert model.features.norm.running_mean.tolist() == [3.0, 3.0]
    assert model.features.norm.running_var.tolist() == [4.0, 4.0]
    with pytest.raises(ValueError, match="matches no parameter"):
        ParameterVector(model, include=("*running_mean",))


def test_a_shared_parameter_counts_once_and_stays_shared():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    vector = ParameterVector(model)
    assert (vector.size, vector.names) == (4, ("0.weight",))
    vector.write(values(1, 2, 3, 4))
    assert model[1].weight is model[0].weight
    assert model[1].weight.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_write_keeps_the_parameters_themselves_so_that_an_optimizer_still_holds_them():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [(parameter, parameter.data_ptr()) for parameter in model.parameters()]
    ParameterVector(model).write(torch.zeros(14, requires_grad=True))
    for (parameter, address), now in zip(before, model.parameters(), strict=True):
        assert now is parameter
        assert now.data_ptr() == address
        assert now.is_leaf
        assert now.requires_grad
    model.head.weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert model.head.weight.tolist() == [[-1.0, -1.0], [-1.0, -1.0]]


def test_write_leaves_gradients_and_their_history_alone():
    model = small_model()
    model.head.weight.grad = torch.ones(2, 2)
    vector = ParameterVector(model)
    vector.write(torch.zeros(14))
    assert model.head.weight.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert not vector.read().requires_grad


def test_the_order_of_values_does_not_depend_on_the_memory_format():
    rows_first, channels_last = (nn.Conv2d(2, 3, 2, bias=False) for _ in range(2))
    numbers = torch.arange(24.0)
    ParameterVector(rows_first).write(numbers)
    channels_last.to(memory_format=torch.channels_last)
    ParameterVector(channels_last).write(numbers)
    assert channels_last.weight.is_contiguous(memory_format=torch.channels_last)
    assert not channels_last.weight.is_contiguous()
    assert torch.equal(channels_last.weight, rows_first.weight)
    assert torch.equal(ParameterVector(channels_last).read(), numbers)


def test_a_vector_that_is_not_contiguous_is_written_by_its_values():
    model = nn.Linear(2, 2, bias=False)
    ParameterVector(model).write(torch.arange(8.0)[::2])
    assert model.weight.tolist() == [[0.0, 2.0], [4.0, 6.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_parameters_travel_as_float32_and_keep_their_type(dtype):
    model = nn.Linear(2, 1).to(dtype)
    vector = ParameterVector(model)
    vector.write(values(0.5, -3, 1024))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert vector.read().dtype == torch.float32
    assert torch.equal(vector.read(), values(0.5, -3, 1024))


def test_writing_half_precision_rounds_to_its_nearest_value():
    model = nn.Linear(1, 1, bias=False).half()
    # float16 has 11 significant bits: above 2048 only even numbers are left.
    ParameterVector(model).write(values(2051))
    assert model.weight.item() == 2052.0


def test_a_frozen_parameter_is_part_of_the_vector_and_stays_frozen():
    model = small_model()
    model.features.requires_grad_(False)
    vector = ParameterVector(model)
    assert vector.size == 14
    vector.write(torch.zeros(14))
    assert torch.equal(model.features.conv.bias, values(0, 0))
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] * 4 + [True]


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_a_parameter_that_is_not_floating_point_is_refused_unless_it_is_left_out(dtype):
    model = nn.Linear(2, 1)
    model.register_parameter("odd", nn.Parameter(torch.zeros(3, dtype=dtype), requires_grad=False))
    with pytest.raises(TypeError, match="parameter 'odd'"):
        ParameterVector(model)
    assert ParameterVector(model, exclude=("odd",)).size == 3


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError):
        ParameterVector(nn.Flatten())
