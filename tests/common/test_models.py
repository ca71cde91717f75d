"""The architectures of the paper's appendix E: parameter counts of Table 20, shapes, and seeded initialisation."""

import math
import random
from collections import Counter
from functools import cache

import numpy as np
import own_code
import pytest
import torch
from torch import nn

from common.data.datasets import DATASETS
from common.errors import UserError
from common.inputs import ShapesByName
from common.models import MODELS, ResidualBlock, build_model
from common.params import ParameterVector

CIFAR10, CIFAR100, TINY, EMNIST = ((3, 32, 32), 10), ((3, 32, 32), 100), ((3, 32, 32), 200), ((1, 32, 32), 62)
NAMES = {"cifar10": CIFAR10, "cifar100": CIFAR100, "tiny-imagenet": TINY, "emnist-byclass": EMNIST}

# (CIFAR-10, CIFAR-100, Tiny-ImageNet, EMNIST), and tau for CIFAR-100 at N = 3072
TABLE_20 = {
    "lenet": ((234_006, 239_856, 246_356, 237_098), 79),
    "vgg8": ((268_814, 274_664, 281_164, 271_906), 90),
    "resnet10": ((347_178, 353_028, 359_528, 350_270), 115),
    "resnet12": ((523_242, 529_092, 535_592, 526_334), 173),
    "resnet18": ((565_386, 571_236, 577_736, 568_478), 186),
}
CIFAR100_ONLY = {"mlp": (408_100, 133), "squeezenet1_0": (786_724, 257), "squeezenet1_1": (773_796, 252)}
RESNET_BLOCKS = {"resnet10": (3, 3, 4), "resnet12": (1, 5, 6), "resnet18": (6, 6, 6)}


@cache
def built(name, shape, num_classes, seed=0):
    return build_model(name, shape, num_classes, seed)


def weights_of(model):
    return ParameterVector(model).read()


@pytest.mark.parametrize("name", TABLE_20)
@pytest.mark.parametrize("column", range(4), ids=list(NAMES))
def test_parameter_counts_are_those_of_table_20(name, column):
    shape, num_classes = list(NAMES.values())[column]
    model = built(name, shape, num_classes)
    assert ParameterVector(model).size == TABLE_20[name][0][column]
    assert sum(parameter.numel() for parameter in model.parameters()) == TABLE_20[name][0][column]


@pytest.mark.parametrize("name", CIFAR100_ONLY)
def test_parameter_counts_of_the_models_that_the_paper_uses_on_cifar100_alone(name):
    assert ParameterVector(built(name, *CIFAR100)).size == CIFAR100_ONLY[name][0]


@pytest.mark.parametrize("name", MODELS)
def test_chunks_of_3072_values_on_cifar100(name):
    tau = {**{name: tau for name, (_, tau) in TABLE_20.items()}, **{name: t for name, (_, t) in CIFAR100_ONLY.items()}}
    assert math.ceil(ParameterVector(built(name, *CIFAR100)).size / 3072) == tau[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_data_sets_have_the_shapes_and_classes_that_the_table_was_made_for(name):
    assert (DATASETS[name].image_shape, DATASETS[name].num_classes) == NAMES[name]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("shape", "num_classes"),
    [((3, 32, 32), 10), ((1, 32, 32), 62), ((1, 28, 28), 10), ((3, 48, 40), 5), ((4, 33, 31), 2)],
    ids=["32x32x3", "32x32x1", "28x28x1", "48x40x3", "33x31x4"],
)
def test_any_size_channels_and_classes_give_one_score_a_class(name, shape, num_classes):
    model = built(name, shape, num_classes).eval()
    with torch.no_grad():
        scores = model(torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)))
    assert scores.shape == (2, num_classes)
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_takes_part_in_the_loss(name):
    model = build_model(name, (1, 28, 28), 3, 0).eval()
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_lenet_at_another_size_has_the_count_that_its_layers_add_up_to():
    # 28 x 28 is 7 x 7 after two poolings: conv 1-16, conv 16-32, linear 1568-108-64-5
    by_hand = (9 + 1) * 16 + (16 * 9 + 1) * 32 + (32 * 49 + 1) * 108 + (108 + 1) * 64 + (64 + 1) * 5
    assert ParameterVector(built("lenet", (1, 28, 28), 5)).size == by_hand


def test_the_second_linear_layer_of_vgg8_takes_180_values():
    linear = [module for module in built("vgg8", *CIFAR100).modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(1024, 180), (180, 64), (64, 100)]


# Initialisation


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(name):
    torch.manual_seed(1)
    first = weights_of(build_model(name, (1, 28, 28), 3, 7))
    torch.manual_seed(2)
    torch.rand(5)
    second = weights_of(build_model(name, (1, 28, 28), 3, 7))
    assert torch.equal(first, second)
    assert not torch.equal(first, weights_of(build_model(name, (1, 28, 28), 3, 8)))


@pytest.mark.parametrize("name", MODELS)
def test_building_a_model_leaves_the_global_generators_as_they_were(name):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    build_model(name, (1, 28, 28), 3, 7)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_building_a_model_leaves_the_generator_of_a_cuda_device_as_it_was():
    torch.rand(1, device="cuda")
    before = torch.cuda.get_rng_state()
    build_model("lenet", (1, 28, 28), 3, 7)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_the_initialisation_is_pytorchs_ordinary_one():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = nn.Conv2d(3, 16, 3, padding=1).weight
    assert torch.equal(build_model("lenet", (3, 8, 8), 2, 3)[0].weight, expected)


def test_models_are_built_on_the_cpu_in_float32_and_trainable():
    model = build_model("resnet10", (1, 8, 8), 2, 0)
    assert model.training
    for parameter in model.parameters():
        assert (parameter.dtype, parameter.device.type, parameter.requires_grad) == (torch.float32, "cpu", True)


# The structure of the residual networks


@pytest.mark.parametrize("name", RESNET_BLOCKS)
def test_a_resnet_counts_residual_blocks_in_its_name(name):
    blocks = [module for module in built(name, *CIFAR100).modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == int(name.removeprefix("resnet"))
    widths = Counter(block.conv2.out_channels for block in blocks)
    assert (widths[16], widths[32], widths[64]) == RESNET_BLOCKS[name]


@pytest.mark.parametrize("name", RESNET_BLOCKS)
def test_all_convolutions_of_a_resnet_are_biased_and_each_3x3_is_followed_by_its_norm(name):
    model = built(name, *CIFAR100)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(convolution.bias is not None for convolution in convolutions)
    large = [convolution for convolution in convolutions if convolution.kernel_size == (3, 3)]
    assert len(large) == len(norms) == 1 + 2 * sum(RESNET_BLOCKS[name])
    assert [norm.num_features for norm in norms] == [convolution.out_channels for convolution in large]


@pytest.mark.parametrize("name", RESNET_BLOCKS)
def test_shortcuts_are_bare_1x1_convolutions_where_the_width_changes_and_nothing_elsewhere(name):
    blocks = [module for module in built(name, *CIFAR100).modules() if isinstance(module, ResidualBlock)]
    changes = [block for block in blocks if block.conv1.in_channels != block.conv1.out_channels]
    assert [(block.conv1.in_channels, block.conv1.out_channels) for block in changes] == [(16, 32), (32, 64)]
    for block in blocks:
        if block in changes:
            # a lone convolution: no norm behind it
            assert type(block.shortcut) is nn.Conv2d
            assert (block.shortcut.kernel_size, block.shortcut.stride) == ((1, 1), (2, 2))
            assert block.shortcut.bias is not None
        else:
            assert type(block.shortcut) is nn.Identity


def test_a_residual_block_adds_its_input_to_what_it_computes():
    block = ResidualBlock(2, 2).eval()
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    images = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.equal(block(images), images.relu())


@pytest.mark.parametrize("name", RESNET_BLOCKS)
def test_groups_of_a_resnet_see_32_then_16_then_8_pixels(name):
    seen = []
    model = build_model(name, (3, 32, 32), 100, 0).eval()
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_hook(lambda block, inputs, output: seen.append(tuple(output.shape[1:])))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    shapes = [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert seen == [shape for shape, count in zip(shapes, RESNET_BLOCKS[name], strict=True) for _ in range(count)]


@pytest.mark.parametrize("name", RESNET_BLOCKS)
def test_a_resnet_starts_with_convolution_and_norm_and_ends_with_pooling_and_one_linear_layer(name):
    layers = list(built(name, *CIFAR100))
    assert [type(layer) for layer in layers[:3]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert (layers[0].in_channels, layers[0].out_channels, layers[0].stride) == (3, 16, (1, 1))
    assert [type(layer) for layer in layers[-3:]] == [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert (layers[-1].in_features, layers[-1].out_features) == (64, 100)


# A user's own


def test_a_model_of_the_users_own_is_called_with_shape_and_classes_and_drawn_from_the_seed():
    before = torch.get_rng_state()
    model = build_model("own_code:Visit", ShapesByName(numbers=(6,), code=()), 3, seed=4)
    assert isinstance(model, own_code.Visit)
    assert torch.equal(torch.get_rng_state(), before)
    again, other = (build_model("own_code:linear", (6,), 3, seed) for seed in (4, 5))
    assert torch.equal(weights_of(build_model("own_code:linear", (6,), 3, seed=4)), weights_of(again))
    assert not torch.equal(weights_of(other), weights_of(again))
    assert build_model("own_code:linear", (6,), None, seed=4).out_features == 1


@pytest.mark.parametrize(
    ("name", "shape", "classes", "words"),
    [
        ("own_code:not_a_model", (6,), 3, "models: own_code:not_a_model returned something of type dict, but must"),
        ("own_code:raises", (6,), 3, "models: own_code:raises raised ZeroDivisionError: no layers, own_code.py line"),
        ("own_code:Liner", (6,), 3, "models: there is no 'Liner' in module 'own_code'"),
        ("lenet", (6,), 3, "Model 'lenet' is for images [C, H, W] of classes, but a sample of these data has the"),
        ("lenet", (3, 8, 8), None, "(3, 8, 8) and there are no classes: name models of your own"),
        ("lenet", ShapesByName(a=(3, 8, 8)), 2, "{'a': (3, 8, 8)} and there are 2 classes"),
        ("lenet", ((3,), (8,), (8,)), 2, "((3,), (8,), (8,)) and there are 2 classes"),
    ],
)
def test_a_model_that_cannot_be_built_is_told_in_a_sentence_that_names_it(name, shape, classes, words):
    with pytest.raises(UserError) as caught:
        build_model(name, shape, classes, seed=0)
    assert words in str(caught.value)
    assert str(caught.value).endswith((".", "?"))
