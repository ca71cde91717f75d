"""Configs and the sentences that a wrong one gets."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from common.config import RUN_OPTIONS, Config, load_config
from common.errors import UserError
from common.methods import owners

FIVE_MODELS = ("lenet", "vgg8", "resnet10", "resnet12", "resnet18")


def config_of(profile_name: str, **overrides: object) -> Config:
    """The config of a profile; keys of the overrides with underscores."""
    return load_config({"profile": profile_name, **{key.replace("_", "-"): value for key, value in overrides.items()}})


def with_method(key: str, value: object) -> dict[str, Any]:
    """Overrides that set a key, and the first method that has it."""
    return {key: value} if key in RUN_OPTIONS else {key: value, "method": owners(key)[0]}


def message_of(overrides: dict[str, Any], **options: Any) -> str:
    """The sentence with which overrides are refused."""
    with pytest.raises(UserError) as caught:
        load_config(overrides, **options)
    return str(caught.value)


def assert_one_sentence(message: str) -> None:
    assert "\n" not in message
    assert message[-1] in ".?"
    assert ". " not in message


@contextlib.contextmanager
def only_sentences_about(key: str) -> Iterator[None]:
    """Let a UserError pass that names the key, and no other exception."""
    message = key
    try:
        yield
    except UserError as error:
        message = str(error)
    assert key in message
