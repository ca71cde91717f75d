"""Requests to the trainers of a small simulation, as the server makes them, and what comes back."""

from dataclasses import replace

import torch
from flwr.app import Context, RecordDict

from client_app.site import simulated
from client_app.site.simulated import simulated_site
from client_app.trainer import trainer_for
from common import protocol
from common.config import load_config
from common.protocol import Instructions

NUM_CLIENTS = 4
SHAPE, CLASSES = (3, 8, 8), 4  # of the images that `run_config` names

TOLD = Instructions(
    method="mh-pfedhn",
    run_name="run",
    server_round=1,
    seed=0,
    evaluate=False,
    anchor=True,
    local_epochs=1,
    batch_size=8,
    client_lr=0.02,
    client_momentum=0.9,
    client_weight_decay=5e-4,
    max_grad_norm=50.0,
    global_model="lenet",
    teacher_round=0,
    temperature=3.0,
    distillation_coefficient=0.5,
    upload="dense",
    download="dense",
    topk_fraction=0.3,
    error_feedback=False,
)


def context_of(run_config, **node_config):
    return Context(run_id=1, node_id=5, node_config=node_config, state=RecordDict(), run_config=run_config)


def trainer(run_config, client=0, num_clients=NUM_CLIENTS):
    return trainer_for(context_of(run_config, **{"partition-id": client, "num-partitions": num_clients}))


def site(run_config, client=0):
    """The client's site as nobody has touched it yet, with a model of its own."""
    simulated._shared_model.cache_clear()
    return simulated_site(load_config(run_config), client, NUM_CLIENTS)


def told(**changes) -> Instructions:
    return replace(TOLD, **changes)


def theta_for(site, seed=1, scale=0.02):
    return random_theta(site.personal.parameters.size, seed, scale)


def random_theta(size, seed=1, scale=0.02):
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def request(theta, **changes):
    return protocol.encode_request(told(**changes), {} if theta is None else {"theta": theta})


def answer(handle, theta, **changes):
    """Send a request; return the result and delta (None without vectors)."""
    instructions = told(**changes)
    reply = handle(request(theta, **changes))
    result = protocol.decode_training_result(reply)
    if "vectors" not in reply.array_records:
        return result, None
    form = instructions.upload, instructions.topk_fraction
    return result, protocol.decode_vectors(reply, {"delta": len(theta)}, *form)["delta"]


def ask(run_config, client=0, theta=None, **changes):
    """One personal exchange."""
    return answer(trainer(run_config, client).train, theta, **changes)


def ask_globally(run_config, client=0, theta=None, **changes):
    """One global exchange."""
    return answer(trainer(run_config, client).train_global, theta, **({"method": "mh-pfedhn-gd"} | changes))


# A round after those in which tests train, as a client loads what it kept in earlier ones.
LATER = {"server_round": 10, "evaluate": True}


def ask_to_finish(run_config, client=0, theta=None, **changes):
    return protocol.decode_evaluation(trainer(run_config, client).finish(request(theta, **(LATER | changes))))


def ask_to_evaluate(run_config, client=0, theta=None, **changes):
    return protocol.decode_evaluation(trainer(run_config, client).evaluate(request(theta, **(LATER | changes))))


def stored(run_config, client=0, run="run"):
    return load_config(run_config).results_path / run / "clients" / str(client)


def kept(run_config, client=0, name="kept", run="run"):
    """The tensors that the client has kept last under this name."""
    return torch.load(stored(run_config, client, run) / f"{name}.pt", weights_only=True)["state"]
