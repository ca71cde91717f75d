"""The modes of appendices C.9 and C.10: which parameters each leaves to the server, counted by hand for CIFAR-100."""

import subprocess
import sys
from functools import cache

import pytest
from torch import nn

from common.config import MODELS, load_config
from common.models import build_model
from common.params import ParameterVector
from common.text import split
from common.variants import VARIANTS

# Weights and biases of single layers, from the shapes of Tables 16, 18 and 19.
INPUT = 3 * 3 * 3 * 16 + 16
OUTPUT = 64 * 100 + 100
LENET_SECOND_LINEAR = 108 * 64 + 64
VGG8_SECOND_LINEAR = 180 * 64 + 64
STEM_NORM = 2 * 16
LAST_BLOCK = 2 * (3 * 3 * 64 * 64 + 64) + 2 * (2 * 64)  # two convolutions, two norms, no shortcut

# The whole model (Table 20) less what a client of the mode keeps or freezes.
NUM_GENERATED = {
    "lenet/keep-output": 239_856 - OUTPUT,
    "lenet/keep-input-output": 239_856 - INPUT - OUTPUT,
    "lenet/keep-input": 239_856 - INPUT,
    "lenet/freeze-last-two": 239_856 - LENET_SECOND_LINEAR - OUTPUT,
    "lenet/freeze-output": 239_856 - OUTPUT,
    "vgg8/keep-output": 274_664 - OUTPUT,
    "vgg8/keep-input-output": 274_664 - INPUT - OUTPUT,
    "vgg8/keep-input": 274_664 - INPUT,
    "vgg8/freeze-last-two": 274_664 - VGG8_SECOND_LINEAR - OUTPUT,
    "vgg8/freeze-output": 274_664 - OUTPUT,
    # Two norms a block, each with a weight and a bias a channel.
    "resnet10/keep-norm-output": 353_028 - STEM_NORM - 4 * (3 * 16 + 3 * 32 + 4 * 64) - OUTPUT,
    "resnet12/keep-norm-output": 529_092 - STEM_NORM - 4 * (1 * 16 + 5 * 32 + 6 * 64) - OUTPUT,
    "resnet18/keep-norm-output": 571_236 - STEM_NORM - 4 * (6 * 16 + 6 * 32 + 6 * 64) - OUTPUT,
    "resnet10/freeze-last-fifth": 353_028 - 2 * LAST_BLOCK - OUTPUT,
    "resnet12/freeze-last-fifth": 529_092 - 2 * LAST_BLOCK - OUTPUT,
    "resnet18/freeze-last-fifth": 571_236 - 4 * LAST_BLOCK - OUTPUT,
}
KEEPING = [name for name, variant in VARIANTS.items() if variant.keep_local]
FREEZING = [name for name, variant in VARIANTS.items() if variant.freeze]


@cache
def model_of(name):
    return build_model(name.partition("/")[0], (3, 32, 32), 100, seed=0)


def matching(name, patterns):
    return ParameterVector(model_of(name), include=patterns).names if patterns else ()


def generated(name):
    variant = VARIANTS[name]
    return ParameterVector(model_of(name), exclude=variant.keep_local + variant.freeze)


def modes(names):
    """The variants and the plain architectures that they are variants of."""
    return {*names, *(name.partition("/")[0] for name in names)}


def test_there_are_no_other_variants():
    assert set(VARIANTS) == set(NUM_GENERATED)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_server_generates_as_many_parameters_as_the_layers_shapes_say(name):
    assert generated(name).size == NUM_GENERATED[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_pattern_matches_some_parameter(name):
    patterns = VARIANTS[name].keep_local + VARIANTS[name].freeze
    assert patterns
    for pattern in patterns:
        assert matching(name, (pattern,))


@pytest.mark.parametrize("name", VARIANTS)
def test_no_parameter_is_both_kept_and_frozen(name):
    variant = VARIANTS[name]
    assert set(matching(name, variant.keep_local)).isdisjoint(matching(name, variant.freeze))


@pytest.mark.parametrize("name", FREEZING)
def test_what_is_frozen_lies_behind_all_that_is_generated(name):
    everything = ParameterVector(model_of(name)).names
    trained = generated(name).names
    assert trained == everything[: len(trained)]


@pytest.mark.parametrize("name", ["lenet", "vgg8"])
def test_input_and_output_are_the_first_and_the_last_layer(name):
    everything = ParameterVector(model_of(name)).names  # a weight and a bias a layer
    assert generated(f"{name}/keep-input").names == everything[2:]
    assert generated(f"{name}/keep-output").names == everything[:-2]
    assert generated(f"{name}/keep-input-output").names == everything[2:-2]


@pytest.mark.parametrize("name", ["resnet10", "resnet12", "resnet18"])
def test_of_a_residual_network_that_keeps_norms_and_output_all_convolutions_are_generated(name):
    modules = model_of(name).named_modules()
    convolutions = [path for path, module in modules if isinstance(module, nn.Conv2d)]
    expected = {f"{path}.{part}" for path in convolutions for part in ("weight", "bias")}
    assert set(generated(f"{name}/keep-norm-output").names) == expected


def test_the_profiles_deal_out_the_modes_of_the_paper_evenly():
    def dealt(profile):
        names = split(load_config({"profile": profile}).models)
        assert len(set(names)) == len(names)
        return set(names)

    personalised, constrained = modes(KEEPING), modes(FREEZING)
    assert (len(personalised), len(constrained)) == (14, 12)
    assert dealt("extreme-personalisation-heterogeneous") == personalised
    assert dealt("resource-constrained-heterogeneous") == constrained
    lenet = {name for name in personalised | constrained if name.startswith("lenet")}
    assert dealt("extreme-personalisation") == personalised & lenet
    assert dealt("resource-constrained") == constrained & lenet
    assert (len(personalised & lenet), len(constrained & lenet)) == (4, 3)


def test_a_variant_is_one_of_an_architecture_that_models_takes():
    assert {name.partition("/")[0] for name in VARIANTS} <= set(MODELS)
    assert set(MODELS).isdisjoint(VARIANTS)


def test_the_table_needs_no_torch():
    # The command line reads it for every command, and importing torch takes seconds.
    code = "import sys, common.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
