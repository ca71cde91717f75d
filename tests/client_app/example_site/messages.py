"""The server's side of a conversation with a site."""

import torch
from asking import SETTINGS
from asking import request as encode
from flwr.app import RecordDict

DEFAULTS = SETTINGS | {"local_epochs": 2, "client_lr": 0.05, "client_weight_decay": 0.0, "temperature": 2.0}


def request(site, theta=None, **changes) -> RecordDict:
    """A request to a PrivateSite, a personal exchange with a test as a rule.

    Without theta, it is all zeros: training starts at theta_0.
    """
    theta = torch.zeros(site.personal.parameters.size) if theta is None else theta
    return encode(theta, **({"tests": ("test",), "defaults": DEFAULTS} | changes))
