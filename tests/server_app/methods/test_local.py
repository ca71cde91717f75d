"""Local training as the server sees it."""

import pytest
import torch
from playing import NUM_CLIENTS, play

from client_app.site.simulated import simulated_site
from client_app.training import evaluate
from common.models import build_model

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")


def test_local_sends_no_arrays_either_way(run_config):
    played = play(run_config, method="local", num_rounds=3)
    for message in (*played.grid.sent, *played.grid.received):
        assert not message.has_error()
        assert list(message.content.array_records) == []
    assert [(line["bytes-down"], line["bytes-up"]) for line in played.lines] == [(0, 0)] * 3
    assert [line["clients"] for line in played.lines] == [4, 4, 4]
    losses = [line["train-loss"] for line in played.lines]
    assert losses[2] < losses[0]
    for i, accuracy in played.lines[-1]["client-accuracy"].items():
        model = build_model(("lenet", "mlp")[int(i) % 2], (3, 8, 8), 4, seed=0)
        model.load_state_dict(torch.load(played.folder / "clients" / i / "personal-model.pt", weights_only=True))
        test = simulated_site(played.config, int(i), NUM_CLIENTS).test
        assert evaluate(model, test).accuracy == pytest.approx(accuracy, abs=1e-6)
