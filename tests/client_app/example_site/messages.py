"""The server's side of a conversation with a site."""

import torch

from common import protocol
from common.protocol import Instructions


def told(**changes) -> Instructions:
    values = {
        "method": "mh-pfedhn",
        "run_name": "run",
        "server_round": 1,
        "seed": 0,
        "evaluate": True,
        "anchor": True,
        "local_epochs": 2,
        "batch_size": 8,
        "client_lr": 0.05,
        "client_momentum": 0.9,
        "client_weight_decay": 0.0,
        "max_grad_norm": 50.0,
        "global_model": "lenet",
        "teacher_round": 0,
        "temperature": 2.0,
        "distillation_coefficient": 0.5,
        "upload": "dense",
        "download": "dense",
        "topk_fraction": 0.3,
        "error_feedback": False,
        "checkpoint_round": 0,
    }
    return Instructions(**(values | changes))


def request(site, **changes):
    """A personal exchange of a PrivateSite, all zeros: training starts at theta_0."""
    return protocol.encode_request(told(**changes), {"theta": torch.zeros(site.personal.parameters.size)})
