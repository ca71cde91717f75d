"""The public architectures of the paper (appendix E, Tables 16 to 19) for any image size, channel and class count; and
models of a user's own, named as `module:name`.

Parameter counts are those of Table 20. "ResNet-10 / 12 / 18" count residual blocks of two convolutions, not layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.data.torchvision_shim import import_torchvision
from common.errors import UserError
from common.factories import IN_THE_WORKING_FOLDER, Factory, kind_of
from common.inputs import ImageShape, InputShape, is_image_shape
from common.seeding import seeded


def lenet(shape: ImageShape, num_classes: int) -> nn.Module:
    """LeNet-style model (Table 16); 239,856 parameters for 3 x 32 x 32 images of 100 classes."""
    channels, height, width = shape
    return nn.Sequential(
        *_pooled(_conv(channels, 16)),
        *_pooled(_conv(16, 32)),
        nn.Flatten(),
        *_classifier(32 * (height // 4) * (width // 4), 108, num_classes),
    )


def vgg8(shape: ImageShape, num_classes: int) -> nn.Module:
    """Simplified VGG8 (Table 18; its second linear layer takes 180 values); 274,664 parameters for CIFAR-100."""
    channels, height, width = shape
    blocks: list[nn.Module] = []
    for before, after in ((channels, 16), (16, 32), (32, 64)):
        blocks += [_conv(before, after), nn.ReLU(inplace=True), *_pooled(_conv(after, after))]
    return nn.Sequential(
        *blocks,
        nn.Flatten(),
        *_classifier(64 * (height // 8) * (width // 8), 180, num_classes),
    )


def mlp(shape: ImageShape, num_classes: int) -> nn.Module:
    """Three linear layers (Table 17); 408,100 parameters for CIFAR-100."""
    channels, height, width = shape
    return nn.Sequential(nn.Flatten(), *_classifier(channels * height * width, 128, num_classes))


class ResidualBlock(nn.Module):
    """Two biased 3 x 3 convolutions with batch norm; a biased 1 x 1 convolution as shortcut where the width changes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, before, H, W] to [B, after, H / stride, W / stride]."""
        inner = functional.relu(self.norm1(self.conv1(images)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(images))


def resnet(blocks: tuple[int, int, int], shape: ImageShape, num_classes: int) -> nn.Module:
    """Residual network (Table 19): so many blocks of width 16, 32 and 64, average pooling, one linear layer."""
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    before = 16
    for width, count in zip((16, 32, 64), blocks, strict=True):
        for _ in range(count):
            layers.append(ResidualBlock(before, width))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def squeezenet(version: str, shape: ImageShape, num_classes: int) -> nn.Module:
    """torchvision's SqueezeNet; 786,724 (1_0) and 773,796 (1_1) parameters for CIFAR-100."""
    model: Any = import_torchvision().models.squeezenet.SqueezeNet(version, num_classes=num_classes)
    first: Any = model.features[0]
    if shape[0] != first.in_channels:
        first = nn.Conv2d(shape[0], first.out_channels, first.kernel_size, stride=first.stride)
        nn.init.kaiming_uniform_(first.weight)  # as torchvision does
        nn.init.constant_(first.bias, 0.0)
        model.features[0] = first
    assert isinstance(model, nn.Module)
    return model


def _conv(before: int, after: int) -> nn.Module:
    return nn.Conv2d(before, after, 3, padding=1)


def _pooled(conv: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    # The tables have ReLU before the pooling. Values and gradients are the same this way, with a quarter of the work.
    return conv, nn.MaxPool2d(2), nn.ReLU(inplace=True)


def _classifier(features: int, hidden: int, num_classes: int) -> tuple[nn.Module, ...]:
    relu = nn.ReLU(inplace=True)
    return nn.Linear(features, hidden), relu, nn.Linear(hidden, 64), relu, nn.Linear(64, num_classes)


MODELS: dict[str, Callable[[ImageShape, int], nn.Module]] = {
    "lenet": lenet,
    "vgg8": vgg8,
    "resnet10": partial(resnet, (3, 3, 4)),
    "resnet12": partial(resnet, (1, 5, 6)),
    "resnet18": partial(resnet, (6, 6, 6)),
    "mlp": mlp,
    "squeezenet1_0": partial(squeezenet, "1_0"),
    "squeezenet1_1": partial(squeezenet, "1_1"),
}


# Pixels a side below which pooling leaves nothing.
_SMALLEST_IMAGES = {"lenet": 4, "vgg8": 8, "squeezenet1_0": 21, "squeezenet1_1": 17}


def build_model(name: str, shape: InputShape, num_classes: int | None, seed: int) -> nn.Module:
    """Build a model with its ordinary initialisation, drawn from `seed` alone; the global generators stay as they were.

    Args:
        name: of a public architecture, or `module:name` of a user's own, which is called with shape and classes.
        shape: of one sample's input; [C, H, W] for a public architecture.
        num_classes: None where the targets are no classes.
        seed: of the initialisation, >= 0.

    Raises:
        UserError: the data are not of the kind or size that a public architecture is for, or a user's own function
            cannot be imported, fails, or returns no model.
    """
    if ":" in name:
        factory = Factory("models", name, remedy=IN_THE_WORKING_FOLDER)
        return model_from(factory, seed, input_shape=shape, num_classes=num_classes)
    if num_classes is None or not is_image_shape(shape):
        # As plain values: a mapping of the project's own type says no more.
        given = dict(shape) if isinstance(shape, dict) else shape
        classes = "no classes" if num_classes is None else f"{num_classes} classes"
        raise UserError(
            f"Model {name!r} is for images [C, H, W] of classes, but a sample of these data has the input shape "
            f"{given} and there are {classes}: name models of your own (models: module:factory)."
        )
    channels, height, width = shape
    smallest = _SMALLEST_IMAGES.get(name, 1)
    if min(height, width) < smallest:
        raise UserError(
            f"The images are {height} x {width} pixels, but model {name!r} needs {smallest} x {smallest} or more: "
            "choose other models or larger images."
        )
    with seeded(seed):
        return MODELS[name]((channels, height, width), num_classes)


def model_from(factory: Factory, seed: int, device: torch.device | None = None, **given: object) -> nn.Module:
    """The model that a user's function returns when its random numbers are drawn from `seed`, on any device.

    Raises UserError.
    """
    with seeded(seed, device or torch.device("cpu")):
        model = factory.call(**given)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{factory.key}: {factory.name} returned something {kind_of(model)}, but must return a torch.nn.Module."
        )
    return model
