"""Mode adapt (paper, section 4.4): new clients join a trained hypernetwork of which nothing that exists moves.

Real clients in one process: two architectures in training, one or two clients held out of it.
"""

import csv
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from in_process import InProcessGrid
from playing import (
    EVALUATE,
    FINISH,
    GLOBAL,
    KEEP_TEACHER,
    PERSONAL,
    REGISTER,
    answered_by,
    array_of,
    honest,
    key_of,
    kind_of,
    lines_of,
    network_of,
    round_of,
    settings_for,
)

from common.config import load_config
from common.errors import UserError
from common.protocol import THETA
from server_app import checkpoint
from server_app.app import serve
from server_app.hypernetwork import HyperNetwork
from server_app.methods.mh_pfedhn_g import GLOBAL_KEY

KNOWN = ("0", "1", "2")  # resnet10, mlp, resnet10
NEW = "3"  # mlp, unless a test says otherwise

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")


class Runs:
    """Trained runs, each made once, and runs that adapt them."""

    def __init__(self, settings):
        self.settings = settings
        self.trained = {}
        self.names = (f"run-{number}" for number in itertools.count())

    def run(self, simulated=True, **overrides):
        """Serve a run; return its folder and the grid. Overrides are config keys with underscores."""
        settings = settings_for({"run-name": next(self.names)} | self.settings, **overrides)
        config = load_config(settings)
        grid = InProcessGrid(honest, config.num_nodes, settings)
        serve(grid, config, simulated=simulated)
        return config.results_path / config.run_name, grid

    def train(self, **overrides) -> Path:
        """The folder of a trained run, which is the same for the same settings."""
        name = repr(sorted(overrides.items()))
        if name not in self.trained:
            self.trained[name], _ = self.run(**overrides)
        return self.trained[name]

    def adapt(self, folder, **overrides):
        """Adapt a trained run."""
        return self.run(mode="adapt", resume=str(folder), **overrides)


@pytest.fixture(scope="module")
def runs(tiny_images, tmp_path_factory):
    return Runs(
        {
            "method": "mh-pfedhn",
            "num-rounds": 2,
            "num-clients": 4,
            "held-out": 1,
            "dataset": "npz",
            "data-dir": str(tiny_images),
            "classes-per-client": 2,
            "max-samples-per-class": 0,
            "models": "resnet10,mlp",
            "local-epochs": 1,
            "batch-size": 8,
            "client-lr": 0.02,
            "hn-lr": 0.02,
            "chunk-size": 2048,
            "embedding-dim": 4,
            "hidden-dim": 12,
            "device": "cpu",
            "results-dir": str(tmp_path_factory.mktemp("results")),
            "deadline": 60.0,
            "checkpoint-every": 50,
        }
    )


def network(folder) -> HyperNetwork:
    return network_of(checkpoint.load(folder))


def assert_unmoved(before, after):
    """Everything that was there is there bit for bit, and generates the same."""
    one, other = before.state_dict(), after.state_dict()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    keys = list(before.members)
    assert list(after.members)[: len(keys)] == keys
    for old, new in zip(before.generate(keys), after.generate(keys), strict=True):
        assert torch.equal(old, new)
    return other.keys() - one.keys()


def started(folder, key, size, group=""):
    """The trained network with a client that has just joined."""
    hn = network(folder)
    hn.register(key, size, group)
    return hn


def rows_moved(before, after):
    """Share of the new client's embedding rows that moved; behind a ReLU that is never positive a row cannot."""
    same = torch.isclose(before.embedding(NEW), after.embedding(NEW), rtol=0, atol=1e-4)
    return (~same.all(dim=1)).float().mean().item()


def kinds_sent(grid, key):
    return [kind_of(message) for message in grid.sent if key_of(message.metadata.dst_node_id) == key]


def sent(grid, kind):
    return [
        (round_of(message), key_of(message.metadata.dst_node_id), message)
        for message in grid.sent
        if kind_of(message) == kind
    ]


# What moves -------------------------------------------------------------------------------------------------------


def test_of_a_new_client_with_a_known_tau_only_the_embedding_learns(runs):
    folder = runs.train()
    adapted, _ = runs.adapt(folder)
    before, after = network(folder), network(adapted)
    new = assert_unmoved(before, after)
    assert len(new) == 1
    assert after.heads.keys() == before.heads.keys()
    assert rows_moved(started(folder, NEW, after.num_params(NEW)), after) > 0.9


def test_a_new_client_with_a_new_tau_brings_a_head_that_learns_with_its_embedding(runs):
    folder = runs.train(held_out_models="lenet")
    adapted, _ = runs.adapt(folder, held_out_models="lenet")
    before, after = network(folder), network(adapted)
    new = assert_unmoved(before, after)
    tau = str(after.num_chunks(NEW))
    assert after.heads.keys() - before.heads.keys() == {tau}
    assert len(new) == 3  # embedding, weights and biases
    first = started(folder, NEW, after.num_params(NEW))
    assert rows_moved(first, after) > 0.9
    assert not torch.equal(first.heads[tau].weight, after.heads[tau].weight)
    assert not torch.equal(first.heads[tau].bias, after.heads[tau].bias)


@pytest.mark.parametrize("schedule", ["per-client", "sequential"])
def test_other_schedules_keep_what_exists_too(runs, schedule):
    folder = runs.train()
    adapted, _ = runs.adapt(folder, schedule=schedule)
    assert len(assert_unmoved(network(folder), network(adapted))) == 1


@pytest.mark.parametrize(
    ("heads", "models", "new"),
    [
        ("by-architecture", "", 1),  # its architecture has a head
        ("by-architecture", "lenet", 3),
        ("per-client", "", 3),  # it always brings one
        ("none", "", 1),
        ("none", "lenet", 1),
    ],
)
def test_all_kinds_of_heads_adapt(runs, heads, models, new):
    overrides = {"heads": heads, "held_out_models": models, "models": "mlp,vgg8"}
    folder = runs.train(**overrides)
    adapted, _ = runs.adapt(folder, **overrides)
    before, after = network(folder), network(adapted)
    assert len(assert_unmoved(before, after)) == new
    group = after.members[NEW].group
    assert bool(group) == (heads == "by-architecture")
    first = started(folder, NEW, after.num_params(NEW), group)
    assert not torch.equal(first.embedding(NEW), after.embedding(NEW))
    if (heads, models) == ("by-architecture", ""):
        assert after.head(NEW) is after.head("1")
    assert lines_of(adapted)[-1]["failures"] == {}


def test_an_adapted_run_can_be_adapted_once_more(runs):
    """From one checkpoint file of it, too."""
    overrides = {"held_out": 2}
    folder = runs.train(**overrides)
    adapted, _ = runs.adapt(folder, **overrides)
    hn = network(adapted)
    assert list(hn.members) == ["0", "1", "2", "3"]
    with pytest.raises(UserError, match="nobody to adapt to"):
        runs.adapt(adapted / "checkpoints" / "round-000002.pt", **overrides)


# Who is asked what ------------------------------------------------------------------------------------------------


def test_known_clients_are_only_tested(runs):
    adapted, grid = runs.adapt(runs.train(), num_rounds=3)
    for key in KNOWN:
        assert kinds_sent(grid, key) == [REGISTER, *[EVALUATE] * 2, FINISH]
    assert kinds_sent(grid, NEW) == [REGISTER, *[PERSONAL] * 3, FINISH]
    for line in lines_of(adapted):
        assert line["client-train-loss"].keys() == {NEW}
        assert line["client-accuracy"].keys() == {*KNOWN, NEW}


def test_known_clients_are_as_good_as_they_were_at_the_end_of_training_bit_for_bit(runs):
    """Two of them have batch norm: their statistics come from the run that trained them."""
    folder = runs.train()
    adapted, grid = runs.adapt(folder, num_rounds=3)
    last = lines_of(folder)[-1]["client-accuracy"]
    assert any(0 < accuracy < 1 for accuracy in last.values())
    for line in lines_of(adapted):
        assert {key: line["client-accuracy"][key] for key in KNOWN} == last
    assert len({line["accuracy-known"] for line in lines_of(adapted)}) == 1
    # Losses tell more than a few dozen answers that are right or wrong.
    finish = [message for message in grid.received if kind_of(answered_by(grid, message)) == FINISH]
    for message in finish:
        key = key_of(message.metadata.src_node_id)
        if key in KNOWN:
            model = [
                torch.load(each / "clients" / key / "personal-model.pt", weights_only=True)
                for each in (folder, adapted)
            ]
            assert model[0].keys() == model[1].keys()
            assert all(torch.equal(value, model[1][name]) for name, value in model[0].items())


def test_known_clients_have_the_statistics_of_the_end_of_training_from_the_first_round_on(runs):
    """However long it was: the rounds of mode adapt begin at 1 again."""
    folder = runs.train(num_rounds=5)
    adapted, _ = runs.adapt(folder, num_rounds=2)
    for line in lines_of(adapted):
        assert line["failure-list"] == []
        assert {key: line["client-accuracy"][key] for key in KNOWN} == lines_of(folder)[-1]["client-accuracy"]


def test_a_known_client_that_has_lost_its_statistics_is_refused_and_not_tested_without(runs):
    folder, _ = runs.run()
    for path in (folder / "clients" / KNOWN[0]).iterdir():
        path.unlink()
    adapted, _ = runs.adapt(folder)
    failures = [failure for line in lines_of(adapted) for failure in line["failure-list"]]
    assert {(failure["client"], failure["reason"]) for failure in failures} == {(KNOWN[0], "state-missing")}
    assert all(line["client-accuracy"].keys() == {*KNOWN[1:], NEW} for line in lines_of(adapted))


def test_statistics_of_the_training_run_are_left_as_they_are(runs):
    folder = runs.train()
    kept = {path: path.read_bytes() for path in (folder / "clients").rglob("*.pt")}
    assert any("kept" in path.name for path in kept)
    runs.adapt(folder)
    assert {path: path.read_bytes() for path in (folder / "clients").rglob("*.pt")} == kept


def test_the_table_and_the_lines_tell_known_clients_from_new_ones(runs):
    adapted, _ = runs.adapt(runs.train())
    with (adapted / "clients.csv").open() as file:
        known = {row["client"]: row["known"] for row in csv.DictReader(file)}
    assert known == {"0": "true", "1": "true", "2": "true", "3": "false"}
    for line in lines_of(adapted):
        assert line["accuracy"] == pytest.approx(line["client-accuracy"][NEW])
    summary = json.loads((adapted / "summary.json").read_text())
    assert summary["last-accuracy"] == lines_of(adapted)[-1]["accuracy"]


def test_participation_counts_the_new_clients(runs):
    overrides = {"held_out": 2}
    _, grid = runs.adapt(runs.train(**overrides), **overrides, participation=0.5, num_rounds=4)
    cohorts = [key for _, key, _ in sent(grid, PERSONAL)]
    assert len(cohorts) == 4
    assert set(cohorts) == {"2", "3"}


# The global model -------------------------------------------------------------------------------------------------


def test_w_g_goes_to_every_new_client_once_and_is_the_teacher_of_all_rounds(runs):
    settings = {"method": "mh-pfedhn-gd", "held_out": 2, "models": "mlp,lenet"}
    folder = runs.train(**settings)
    adapted, grid = runs.adapt(folder, **settings, participation=0.5, num_rounds=5)
    before, after = network(folder), network(adapted)
    assert len(assert_unmoved(before, after)) == 2  # v_g among what did not move
    (w_g,) = before.generate([GLOBAL_KEY])
    first = {}
    for server_round, key, _ in sent(grid, PERSONAL):
        first.setdefault(key, server_round)
    assert first.keys() == {"2", "3"}
    assert sent(grid, GLOBAL) == []  # nobody trains it
    assert {key: server_round for server_round, key, _ in sent(grid, KEEP_TEACHER)} == first
    assert len(sent(grid, KEEP_TEACHER)) == 2
    for _, _, message in sent(grid, KEEP_TEACHER):
        assert torch.equal(array_of(message, THETA), w_g)
    replies = [message for message in grid.received if kind_of(answered_by(grid, message)) == KEEP_TEACHER]
    assert len(replies) == 2
    assert all(list(reply.content.array_records) == [] for reply in replies)
    assert all(dict(reply.content["metrics"]).keys() == {"num-examples"} for reply in replies)
    personal = sent(grid, PERSONAL)
    assert [int(array_of(message, "teacher-round")) for _, _, message in personal] == [
        first[key] for _, key, _ in personal
    ]
    assert all(line["failures"] == {} for line in lines_of(adapted))
    assert not any("global-loss" in line for line in lines_of(adapted))


def test_a_new_client_really_distils(runs):
    settings = {"method": "mh-pfedhn-gd", "models": "mlp,lenet", "distillation_coefficient": 0.5}
    folder = runs.train(**settings)
    distilled, _ = runs.adapt(folder, **settings)
    plain, _ = runs.adapt(folder, **settings | {"distillation_coefficient": 0.0})
    assert not torch.equal(network(distilled).embedding(NEW), network(plain).embedding(NEW))


def test_without_distillation_w_g_is_not_sent(runs):
    settings = {"method": "mh-pfedhn-g", "models": "mlp,lenet"}
    folder = runs.train(**settings)
    adapted, grid = runs.adapt(folder, **settings)
    assert sent(grid, GLOBAL) == sent(grid, KEEP_TEACHER) == []
    assert all(list(message.content["arrays"]) == [THETA] for _, _, message in sent(grid, PERSONAL))
    assert len(assert_unmoved(network(folder), network(adapted))) == 1


# Refusals ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_without_a_global_model_cannot_start_gd(runs):
    with pytest.raises(UserError, match="has no global model: it is of a run with method 'mh-pfedhn'"):
        runs.adapt(runs.train(), method="mh-pfedhn-gd")


@pytest.mark.parametrize(
    ("key", "value", "then"),
    [
        ("seed", 5, "0"),
        ("anchor", False, "True"),
        ("models", "mlp,resnet10", "'resnet10,mlp'"),
        ("num-clients", 5, "4"),
        ("held-out", 2, "1"),
        ("classes-per-client", 3, "2"),
        ("max-samples-per-class", 30, "0"),
        ("partition", "by-client", "'non-iid-1'"),
        ("test-fraction", 0.5, "0.25"),
        ("validation-fraction", 0.1, "0.0"),
        ("keep-local", "*.bias", "''"),
        ("freeze", "0.*", "''"),
        ("hidden-dim", 8, "12"),
        ("hidden-layers", 2, "3"),
        ("chunk-size", 1024, "2048"),
        ("embedding-dim", 8, "4"),
    ],
)
def test_what_changes_the_meaning_of_the_weights_must_be_as_it_was(runs, key, value, then):
    with pytest.raises(UserError, match=rf"^{key} is .*, but .*round-000002\.pt was trained with {then}: use the same"):
        runs.adapt(runs.train(), **{key: value})


def test_a_run_of_another_method_holds_no_hypernetwork(runs):
    """What only this method's settings fix says nothing of a run that did not have them."""
    with pytest.raises(UserError, match=r"round-000002\.pt does not hold a hypernetwork: "):
        runs.adapt(runs.train(method="fedavg"))


def test_seed_and_anchor_must_be_as_they_were_in_a_deployment_too(runs):
    for key, value in (("seed", 5), ("anchor", False)):
        with pytest.raises(UserError, match=f"^{key} is .*: use the same"):
            runs.adapt(runs.train(), simulated=False, **{key: value})


def test_without_a_new_client_there_is_nobody_to_adapt_to(runs):
    folder = runs.train(held_out=0, models="mlp")
    with pytest.raises(UserError, match=r"nobody to adapt to.*held-out"):
        runs.adapt(folder, held_out=0, models="mlp")


@pytest.mark.parametrize("method", ["fedavg", "local"])
def test_methods_without_a_hypernetwork_cannot_adapt(runs, method):
    with pytest.raises(UserError, match=f"method '{method}' has nothing frozen that could adapt"):
        runs.adapt(runs.train(), method=method)


def test_clients_would_not_find_what_they_kept_in_another_results_folder(runs, tmp_path):
    with pytest.raises(UserError, match="set results-dir to the folder that holds the run"):
        runs.adapt(runs.train(), results_dir=str(tmp_path))


def test_a_run_without_checkpoints_cannot_be_adapted(runs):
    folder = runs.train(checkpoint_every=0, models="mlp")
    with pytest.raises(UserError, match=r"has no checkpoints"):
        runs.adapt(folder, models="mlp")


def test_known_clients_whose_model_changed_are_refused_by_name(runs, caplog):
    """A simulation finds it in `models`; here the architecture comes by another way."""
    folder = runs.train(models="mlp")
    with pytest.raises(UserError, match="min-clients"):
        runs.adapt(folder, models="lenet", simulated=False)
    assert re.search(r"client 0: no-room: It has .* parameters \(K\), but .* in the checkpoint", caplog.text)


def test_the_kind_of_heads_must_be_as_it_was(runs):
    folder = runs.train(heads="by-architecture", models="mlp,vgg8", held_out_models="")
    with pytest.raises(UserError, match=r"^heads is 'by-tau'"):
        runs.adapt(folder, models="mlp,vgg8")


def test_the_global_model_must_be_as_it_was(runs):
    settings = {"method": "mh-pfedhn-gd", "models": "mlp,lenet"}
    with pytest.raises(UserError, match=r"^global-model is 'vgg8'"):
        runs.adapt(runs.train(**settings), **settings, global_model="vgg8")


def test_an_adapted_run_is_not_gone_on_with_as_if_nothing_were_frozen(runs):
    adapted, _ = runs.adapt(runs.train(), num_rounds=1)
    before = (adapted / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"mode is 'train', but .* was trained with 'adapt'"):
        runs.run(resume=str(adapted), run_name=adapted.name, num_clients=4, num_rounds=3)
    assert (adapted / "metrics.jsonl").read_bytes() == before
