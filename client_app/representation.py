"""A model as extractor and head: its representation [n, d] is what its last linear layer takes.

Methods that share representations or heads read it here. All architectures of the paper end in a linear layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from client_app.samples import Samples
from client_app.training import tested_batches
from common.errors import ProtocolError


def head_of(model: nn.Module) -> nn.Linear:
    """The last linear layer, by the order in which the model names its layers. Raises ProtocolError without any."""
    for module in reversed(list(model.modules())):
        if isinstance(module, nn.Linear):
            return module
    raise ProtocolError("no-head", "this client's model has no linear layer, so it has no head and no representation")


@contextmanager
def recorded(head: nn.Linear) -> Iterator[list[Tensor]]:
    """Within it, every batch of representations [b, d] that the model makes is added to the list, with its graph."""
    seen: list[Tensor] = []
    with head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        yield seen


def representations(model: nn.Module, samples: Samples) -> tuple[Tensor, Tensor]:
    """Representations [n, d] of all samples, in evaluation mode, and their targets [n]."""
    with recorded(head_of(model)) as seen, torch.no_grad():
        targets = [targets for _, targets in tested_batches(model, samples)]
    return torch.cat(seen), torch.cat(targets)
