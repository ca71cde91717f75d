"""What a client answers to the server's messages, and what it keeps between them, whatever the method."""

import shutil
import sys
from dataclasses import astuple, replace

import own_method
import pytest
import torch
from asking import (
    CLASSES,
    FINISH,
    GD,
    NUM_CLIENTS,
    SHAPE,
    TEST,
    answered,
    ask,
    ask_globally,
    ask_to_evaluate,
    ask_to_finish,
    context_of,
    greeting,
    handled,
    kept,
    newest,
    random_theta,
    registered,
    request,
    site,
    stored,
    theta_for,
    trainer,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from fresh_process import new_process
from torch.nn import functional

from client_app.privacy import Privacy
from client_app.trainer import Trainer, trainer_for
from client_app.training import evaluate
from common import protocol
from common.arrays import decode_arrays
from common.codec import decode, encode
from common.config import load_config
from common.data.simulation import divide
from common.errors import UserError
from common.lineage import Point
from common.methods import built_in
from common.models import build_model
from common.params import ParameterVector
from common.protocol import VERSION, ProtocolError
from common.schema import Array as Expected
from common.schema import Vector
from common.seeding import seeded_generator

KINDS = {"to train": {}, "to test": TEST, "to finish": FINISH}


def error_of(function, *arguments, **options):
    with pytest.raises(ProtocolError) as caught:
        function(*arguments, **options)
    return caught.value


# Registration


def samples_of(site):
    return {"train-samples": len(site.train), "test-samples": len(site.test)}


def test_a_client_registers_with_its_key_the_size_of_its_model_and_its_numbers_of_samples_and_nothing_else(run_config):
    model = build_model("mlp", SHAPE, CLASSES, seed=0)
    size = sum(parameter.numel() for parameter in model.parameters())
    told = {"client-key": "1", "num-params": size} | samples_of(site(run_config, 1))
    assert registered(trainer(run_config, 1)) == told


def test_of_the_facts_that_the_method_can_tell_a_client_tells_those_that_it_is_asked_for(run_config, tmp_path):
    own = own_trainer(run_config, tmp_path)
    size = site(run_config).num_params
    nothing = {"client-key": "0", "num-params": size} | samples_of(site(run_config))
    assert registered(own, method=own_method.NAME) == nothing
    assert registered(own, "age", method=own_method.NAME) == nothing
    assert registered(own, "colour", "age", method=own_method.NAME) == nothing | {"colour": "red"}
    both = registered(own, "classes", "colour", method=own_method.NAME, colour="blue")
    assert both == nothing | {"classes": own_method.CLASSES, "colour": "blue"}


def test_a_client_registers_as_what_it_is_in_a_run_of_the_seed_that_it_is_told(run_config):
    asked = []

    def site_of(seed):
        asked.append(seed)
        return site(run_config, seed)  # another client, to tell them apart

    own = Trainer(site_of, lambda run_name: pytest.fail("a registration needs no folder"))
    assert registered(own, seed=3)["client-key"] == "3"
    assert registered(own, seed=1)["client-key"] == "1"
    assert asked == [3, 1]


def test_a_server_of_another_version_is_refused(run_config):
    old = RecordDict({"instructions": ConfigRecord({"protocol-version": VERSION - 1})})
    error = error_of(trainer(run_config).answer, protocol.REGISTER, old)
    assert error.reason == "version"
    assert f"version {VERSION - 1}" in error.detail
    for kind in KINDS.values():
        content = request(theta_for(site(run_config)), **kind)
        content["instructions"]["protocol-version"] = 0
        assert error_of(handled, trainer(run_config), content).reason == "version"


@pytest.mark.parametrize(
    ("node_config", "words"),
    [
        ({}, "partition-id=0 num-partitions=10"),
        ({"partition-id": 0}, "partition-id=0 num-partitions=10"),
        ({"num-partitions": 3}, "partition-id=0 num-partitions=10"),
        ({"partition-id": 3, "num-partitions": 3}, "partition-id is 3, but must be from 0 to 2"),
        ({"partition-id": -1, "num-partitions": 3}, "partition-id is -1"),
    ],
)
def test_a_node_that_does_not_say_which_client_it_plays_is_told_how(run_config, node_config, words):
    with pytest.raises(UserError, match=words):
        trainer_for(context_of(run_config, **node_config))


# Requests that are not right


def with_arrays(kind, **arrays):
    content = request(None, **kind)
    content["arrays"] = ArrayRecord({name: Array(values.numpy()) for name, values in arrays.items()})
    return content


def changed(content, record, **values):
    """The content with other values of a record; None takes one out."""
    for name, value in values.items():
        key = name.replace("_", "-")
        if value is None:
            content[record].pop(key, None)
        else:
            content[record][key] = value
    return content


def bad_requests(size, kind):
    good = torch.zeros(size)
    yield "unknown-method", changed(request(good, **kind), "instructions", method="fedprox")
    yield "malformed", changed(request(good, **kind), "instructions", method="")
    yield "malformed", changed(request(good, **kind), "instructions", exchange="personal_")
    yield "malformed", changed(request(good, **kind), "instructions", exchange=None)
    yield "malformed", changed(request(good, **kind), "instructions", batch_size=8)
    yield "malformed", request(None, **kind)
    yield "malformed", with_arrays(kind, weights=good)
    yield "malformed", with_arrays(kind, theta=good, more=good)
    yield "wrong-length", with_arrays(kind, theta=good[1:])
    yield "wrong-dtype", with_arrays(kind, theta=good.double())
    yield "not-finite", with_arrays(kind, theta=good.index_fill(0, torch.tensor([size - 1]), float("inf")))
    yield "malformed", RecordDict()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_bad_request_is_refused_by_name_and_leaves_no_trace(run_config, kind):
    size = site(run_config).num_params
    for reason, content in bad_requests(size, kind):
        for message_type in (protocol.TRAIN, protocol.DEPLOY):
            assert error_of(answered, trainer(run_config), message_type, content).reason == reason
    assert not stored(run_config).exists()
    after = ask(run_config, theta=torch.zeros(size))
    new_process()
    assert torch.equal(after[1], ask(run_config, theta=torch.zeros(size))[1])


def test_a_message_of_another_type_is_refused_with_the_known_ones(run_config):
    for message_type in ("train.personal", "train", "", "evaluate.deploy "):
        error = error_of(answered, trainer(run_config), message_type, request(theta_for(site(run_config))))
        assert error.reason == "malformed"
        assert "one of ['query.register', 'train.exchange', 'evaluate.deploy']" in error.detail


@pytest.mark.parametrize("kind", [{}, TEST, FINISH], ids=["to train", "to test", "at the end"])
def test_an_exchange_for_another_client_is_refused_and_leaves_no_trace(run_config, kind):
    content = request(theta_for(site(run_config)), client_key="1", **kind)
    error = error_of(handled, trainer(run_config), content)
    assert error.reason == "another-client"
    assert not stored(run_config).exists()


def test_an_unknown_method_is_answered_with_the_known_ones(run_config):
    for message_type, content in ((protocol.TRAIN, request(None)), (protocol.REGISTER, greeting())):
        content = changed(content, "instructions", method="fedprox")
        error = error_of(answered, trainer(run_config), message_type, content)
        assert error.reason == "unknown-method"
        assert error.detail == f"method is 'fedprox', but this client knows {', '.join(built_in())}"


def test_local_takes_no_arrays(run_config):
    theta = theta_for(site(run_config))
    with pytest.raises(ProtocolError, match="theta"):
        ask(run_config, theta=theta, method="local")


SETTINGS_OF = "mh-pfedhn-gd"  # has settings of every type


@pytest.mark.parametrize(
    "changes",
    [
        # Out of range.
        *({"local_epochs": 0}, {"local_epochs": -1}, {"batch_size": 0}, {"client_lr": 0.0}, {"client_lr": -0.1}),
        *({"client_lr": float("nan")}, {"client_lr": float("inf")}, {"client_momentum": 1.5}),
        *({"topk_fraction": 0.0}, {"topk_fraction": 1.5}, {"temperature": 0.0}, {"distillation_coefficient": 2.0}),
        *({"upload": "gzip"}, {"upload": ""}, {"download": "topk"}, {"global_model": "alexnet"}),
        # Of another type.
        *({"local_epochs": 1.0}, {"local_epochs": True}, {"local_epochs": "1"}, {"local_epochs": [1]}),
        *({"client_lr": 1}, {"client_lr": "0.1"}, {"client_lr": True}, {"client_lr": [0.1]}),
        *({"anchor": 1}, {"anchor": "true"}, {"error_feedback": 0.0}, {"error_feedback": b"1"}),
        *({"upload": 1}, {"upload": ["dense"]}, {"upload": b"dense"}),
        # Missing, or one too many.
        *({"anchor": None}, {"temperature": None}, {"hn_lr": 0.1}, {"": 1}),
    ],
    ids=str,
)
def test_settings_that_are_missing_out_of_range_or_of_another_type_are_malformed(run_config, changes):
    theta = theta_for(site(run_config))
    for kind in KINDS.values():
        content = changed(request(theta, **({"method": SETTINGS_OF} | kind)), "settings", **changes)
        error = error_of(handled, trainer(run_config), content)
        assert error.reason == "malformed"
        assert next(iter(changes)).replace("_", "-") in error.detail
    content = changed(greeting(method=SETTINGS_OF), "settings", **changes)
    assert error_of(trainer(run_config).answer, protocol.REGISTER, content).reason == "malformed"
    assert not stored(run_config).exists()


def test_a_request_without_settings_is_malformed(run_config):
    content = request(theta_for(site(run_config)))
    del content["settings"]
    assert error_of(handled, trainer(run_config), content).reason == "malformed"


@pytest.mark.parametrize("run_name", ["../elsewhere", "/elsewhere", "a/b", ".."])
def test_a_server_cannot_make_a_client_write_outside_its_results(run_config, tmp_path, run_name):
    theta = theta_for(site(run_config))
    with pytest.raises(ProtocolError):
        ask_to_finish(run_config, theta=theta, run_name=f"{tmp_path}{run_name}" if run_name[0] == "/" else run_name)
    assert not list(tmp_path.rglob("*.pt"))


# Exchanges


@pytest.mark.parametrize(
    "name", ["unknown", "unmarked", "load", "facts", "receives", "exchanges", "settings", "Settings", "__init__"]
)
def test_nothing_of_a_method_but_its_exchanges_can_be_called_by_a_message(run_config, tmp_path, name):
    own = own_trainer(run_config, tmp_path)
    for deploys in (False, True):
        content = request(None, method=own_method.NAME, exchange=name, deploys=deploys)
        error = error_of(answered, own, protocol.TRAIN, content)
        assert error.reason == "malformed"
        exchanges = "deploy, careless, diverged, echo, means, prototypes, vectors"
        assert error.detail == f"method 'own_method:Own' has no exchange {name!r} here, only {exchanges}"
    content = changed(request(theta_for(site(run_config))), "instructions", exchange=name)
    assert error_of(answered, trainer(run_config), protocol.TRAIN, content).reason == "malformed"
    assert not (tmp_path / "clients").exists()


def test_the_exchange_that_deploys_does_nothing_where_the_message_does_not_say_that_it_deploys(run_config):
    theta = theta_for(site(run_config))
    content = request(theta, **(FINISH | {"deploys": False}))
    reply = handled(trainer(run_config), content)
    assert {name: dict(record) for name, record in reply.items()} == {"metrics": {}}
    assert not stored(run_config).exists()


# A method from outside


def own_trainer(run_config, tmp_path, client=0, methods=(own_method.NAME,), privacy=None):
    """The trainer of a simulated client that takes part in these methods from outside."""
    own = replace(site(run_config, client), foreign_methods=frozenset(methods), privacy=privacy)
    return Trainer(lambda seed: own, lambda run_name: tmp_path / "clients" / run_name)


def own_exchange(own, name, schema, theta=None, **changes):
    """Result and arrays of an exchange of the tests' own method."""
    content = request(theta, **({"method": own_method.NAME, "exchange": name} | changes))
    reply = answered(own, protocol.TRAIN, content)
    settings = protocol.decode_settings(content, own_method.OwnSettings)
    return protocol.decode_result(reply), decode_arrays(reply, schema, protocol.upload_form(settings))


def test_arrays_of_more_dimensions_and_of_whole_numbers_go_both_ways(run_config, tmp_path):
    own = own_trainer(run_config, tmp_path)
    for rows in (0, 2, 5):
        schema = {"prototypes": Expected((rows, 3)), "labels": Expected((rows,), "int64")}
        result, arrays = own_exchange(own, "prototypes", schema, rows=rows)
        assert (result.train_loss, result.num_examples) == (0.25, len(site(run_config).train))
        assert torch.equal(arrays["prototypes"], own_method.table(rows))
        assert torch.equal(arrays["labels"], torch.arange(rows) % own_method.CLASSES)
        assert arrays["labels"].dtype == torch.int64
        content = request(None, method=own_method.NAME, exchange="echo")
        content["arrays"] = answered(
            own, protocol.TRAIN, request(None, method=own_method.NAME, exchange="prototypes", rows=rows)
        )["arrays"]
        reply = answered(own, protocol.TRAIN, content)
        assert reply["arrays"] == content["arrays"]
        assert set(reply["metrics"]) == {"num-examples"}  # nothing was trained


def test_what_a_method_receives_is_checked_against_its_schema(run_config, tmp_path):
    own = own_trainer(run_config, tmp_path)
    prototypes, labels = own_method.table(2), torch.tensor([1, 3])
    for reason, arrays in (
        ("wrong-length", {"prototypes": own_method.table(6), "labels": torch.zeros(6, dtype=torch.int64)}),
        ("wrong-length", {"prototypes": prototypes, "labels": labels[:1]}),
        ("wrong-length", {"prototypes": prototypes.flatten(), "labels": labels}),
        ("wrong-dtype", {"prototypes": prototypes, "labels": labels.float()}),
        ("out-of-range", {"prototypes": prototypes, "labels": labels + 1}),
        ("not-finite", {"prototypes": prototypes / 0, "labels": labels}),
        ("malformed", {"prototypes": prototypes}),
    ):
        content = with_arrays({"method": own_method.NAME, "exchange": "echo"}, **arrays)
        assert error_of(answered, own, protocol.TRAIN, content).reason == reason


def test_a_method_from_outside_deploys_is_tested_and_finishes_as_ours_do(run_config, tmp_path):
    own, theta = own_trainer(run_config, tmp_path), theta_for(site(run_config))
    reply = answered(own, protocol.DEPLOY, request(theta, method=own_method.NAME, **FINISH))
    assert protocol.decode_result(reply).evaluation == ask_to_finish(run_config, theta=theta)
    assert (tmp_path / "clients/run/personal-model.pt").exists()


FOREIGN = """
from client_app.methods.base import ClientMethod

class Method(ClientMethod):
    def load(self, task):
        pass
"""


@pytest.mark.parametrize("listed", [(), ("foreign_half:Other", "foreign_half", "own_method:Own")])
def test_a_method_that_the_site_does_not_list_is_refused_and_nothing_of_it_is_imported(
    run_config, tmp_path, monkeypatch, listed
):
    (tmp_path / "foreign_half.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    own = own_trainer(run_config, tmp_path, methods=listed)
    modules = set(sys.modules)
    asked = [(protocol.REGISTER, greeting()), (protocol.TRAIN, request(None)), (protocol.DEPLOY, request(None, **TEST))]
    for name in ("foreign_half:Method", "foreign_half:", ":Method", "os:system", "client_app.methods.local:Local"):
        for message_type, content in asked:
            changed(content, "instructions", method=name)
            error = error_of(answered, own, message_type, content)
            assert error.reason == "unknown-method"
            assert repr(name) in error.detail
            assert "does not list it under methods" in error.detail
    assert set(sys.modules) == modules


@pytest.mark.parametrize("name", ["base", "methods", "os", "../local", "local.py", "LOCAL", "client_app.methods.local"])
def test_a_name_without_a_class_is_that_of_one_of_our_methods_or_refused(run_config, name):
    modules = set(sys.modules)
    content = changed(request(None), "instructions", method=name)
    assert error_of(handled, trainer(run_config), content).reason in ("unknown-method", "malformed")
    assert set(sys.modules) == modules


def test_a_method_that_the_site_lists_is_imported_by_the_first_message(run_config, tmp_path, monkeypatch):
    (tmp_path / "foreign_half.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    own = own_trainer(run_config, tmp_path, methods=["foreign_half:Method"])
    content = changed(request(None, method="local", **TEST), "instructions", method="foreign_half:Method")
    content["settings"] = ConfigRecord()
    try:
        reply = answered(own, protocol.DEPLOY, content)
        assert "foreign_half" in sys.modules
    finally:
        sys.modules.pop("foreign_half", None)
    fresh = site(run_config)  # at its initialisation, since its `load` does nothing
    assert protocol.decode_result(reply).evaluation == evaluate(fresh.personal.model, fresh.test)


# Tests


def test_the_received_weights_are_tested_before_they_are_trained(run_config):
    fresh = site(run_config)
    theta = theta_for(fresh)
    result, delta = ask(run_config, theta=theta, test=True)
    fresh.personal.parameters.write(fresh.personal.anchor + theta)
    assert result.evaluation == evaluate(fresh.personal.model, fresh.test)
    assert ask_to_evaluate(run_config, theta=theta) == result.evaluation
    assert torch.equal(delta, ask(run_config, theta=theta)[1])  # and the test changes nothing in training


@pytest.mark.parametrize("kind", [{}, {"exchange": "deploy"}, {"exchange": "deploy", "final": True}], ids=str)
def test_nothing_is_tested_that_the_server_does_not_ask_to_test(run_config, tmp_path, kind):
    theta = theta_for(site(run_config))
    without_test_samples = replace(site(run_config), test=None)
    own = Trainer(lambda seed: without_test_samples, lambda run_name: tmp_path / run_name)
    assert protocol.decode_result(handled(own, request(theta, **kind))).evaluation is None
    with pytest.raises(AttributeError, match="NoneType"):
        handled(own, request(theta, test=True, **kind))


def test_what_a_client_learns_does_not_depend_on_whom_the_worker_served_before(run_config):
    config = run_config | {"models": "resnet10"}
    thetas = [theta_for(site(config), seed, scale=0.0) for seed in range(3)]
    alone = [ask(config, 0, theta, server_round=1 + i, test=True) for i, theta in enumerate(thetas)]
    new_process()
    crowded = []
    other_run = config | {"results-dir": config["results-dir"] + "-crowded"}
    torch.manual_seed(99)
    for i, theta in enumerate(thetas):
        ask(other_run, 2, theta, server_round=1 + i)
        crowded.append(ask(other_run, 0, theta, server_round=1 + i, test=True))
        ask(other_run, 1, theta, server_round=1 + i)
        ask_to_evaluate(other_run, 3, theta)
    for (result, delta), (other_result, other_delta) in zip(alone, crowded, strict=True):
        assert result == other_result
        assert torch.equal(delta, other_delta)


# Wire forms of the download


@pytest.mark.parametrize("download", ["half", "int8"])
@pytest.mark.parametrize("anchor", [True, False])
def test_delta_is_relative_to_the_weights_as_they_arrived(run_config, download, anchor):
    theta = theta_for(site(run_config, 1))
    arrived = decode(encode(theta, download, 1.0), download, 1.0, len(theta))
    assert (theta - arrived).abs().max() > 1e-6
    # Without a step, nothing of the rounding may show: the server would take it for training.
    no_step = {"client_lr": 1e-300, "client_weight_decay": 0.0}
    _, still = ask(run_config, 1, theta, download=download, anchor=anchor, **no_step)
    assert torch.equal(still, torch.zeros(len(theta)))
    lossy = ask(run_config, 1, theta, download=download, anchor=anchor, test=True)
    exact = ask(run_config, 1, arrived, anchor=anchor, test=True)
    assert lossy[0] == exact[0]
    assert torch.equal(lossy[1], exact[1])
    assert not torch.equal(lossy[1], ask(run_config, 1, theta, anchor=anchor)[1])


@pytest.mark.parametrize("download", ["half", "int8"])
def test_the_final_model_is_that_of_the_weights_as_they_arrived(run_config, download):
    theta = theta_for(site(run_config, 1))
    reported = ask_to_finish(run_config, 1, theta, download=download)
    arrived = decode(encode(theta, download, 1.0), download, 1.0, len(theta))
    assert ask_to_evaluate(run_config, 1, arrived) == reported
    model = build_model("mlp", SHAPE, CLASSES, seed=77)
    model.load_state_dict(torch.load(stored(run_config, 1) / "personal-model.pt", weights_only=True))
    assert torch.equal(ParameterVector(model).read(), site(run_config, 1).personal.anchor + arrived)


# What a lossy upload leaves out


def residual(run_config, client=1, exchange="personal"):
    return kept(run_config, client, f"{exchange}-residual")["delta"]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(("upload", "fraction"), [("topk", 0.1), ("topk", 0.001), ("half", 0.3), ("int8", 0.3)])
def test_all_that_arrives_and_what_is_left_are_the_sum_of_what_was_learned(run_config, upload, fraction, restarts):
    size = site(run_config, 1).num_params
    lossy = {"upload": upload, "topk_fraction": fraction}
    arrived, learned, left = torch.zeros(size), torch.zeros(size), torch.zeros(size)
    for server_round in (1, 2, 3):
        if restarts:
            new_process()
        theta = random_theta(size, seed=server_round)
        round_of = {"server_round": server_round}
        delta = ask(run_config, 1, theta, run_name="exact", **round_of)[1]
        received = ask(run_config, 1, theta, error_feedback=True, **lossy, **round_of)[1]
        # By hand: what is sent is the wire form of what was learned now and what was left before.
        expected = decode(encode(delta + left, upload, fraction), upload, fraction, size)
        torch.testing.assert_close(received, expected, rtol=0, atol=0)
        left = delta + left - expected
        assert torch.equal(residual(run_config), left)
        learned, arrived = learned + delta, arrived + received
        plain = ask(run_config, 1, theta, run_name="plain", **lossy, **round_of)[1]
        assert torch.equal(plain, received) == (server_round == 1)
    assert left.abs().max() > 0
    torch.testing.assert_close(arrived + left, learned, rtol=0, atol=2e-6)
    assert (arrived - learned).abs().max() > 1e-7
    assert not list(stored(run_config, 1, "plain").glob("*.pt"))


def test_personal_and_global_exchange_have_a_residual_each(run_config):
    lossy = {"upload": "topk", "error_feedback": True, "method": GD}
    w_g, theta = theta_for(site(run_config, 0)), theta_for(site(run_config, 1))
    ask_globally(run_config, 1, w_g, **lossy)
    first = residual(run_config, exchange="global_step")
    assert len(first) == len(w_g)
    ask(run_config, 1, theta, **lossy)
    assert torch.equal(residual(run_config, exchange="global_step"), first)
    assert len(residual(run_config)) == len(theta) != len(w_g)
    exact = ask_globally(run_config, 1, w_g, server_round=2, run_name="exact")[1]
    received = ask_globally(run_config, 1, w_g, server_round=2, **lossy)[1]
    expected = decode(encode(exact + first, "topk", 0.3), "topk", 0.3, len(w_g))
    assert torch.equal(received, expected)


@pytest.mark.parametrize(
    "changes", [{"upload": "dense", "error_feedback": True}, {"upload": "topk"}, {"upload": "half"}]
)
def test_nothing_is_left_of_a_dense_upload_or_without_error_feedback(run_config, changes):
    theta = theta_for(site(run_config, 1))
    ask(run_config, 1, theta, **changes)
    ask_globally(run_config, 1, theta_for(site(run_config, 0)), **changes)
    assert sorted(path.name for path in stored(run_config, 1).iterdir()) == ["history.json", "teacher.000001.pt"]
    if changes["upload"] == "dense":
        assert torch.equal(ask(run_config, 1, theta, **changes)[1], ask(run_config, 1, theta)[1])


@pytest.mark.parametrize("upload", ["topk", "half", "int8", "dense"])
def test_a_diverged_round_is_refused_as_not_finite_and_leaves_the_residual_as_it_was(run_config, upload):
    theta = theta_for(site(run_config, 1))
    feedback = {"upload": upload, "error_feedback": True}
    ask(run_config, 1, theta, upload="topk", error_feedback=True)
    before = newest(stored(run_config, 1), "personal-residual").read_bytes()

    def exchange():
        content = request(theta, server_round=2, client_lr=1e30, client_momentum=0.0, **feedback)
        reply = handled(trainer(run_config, 1), content)
        decode_arrays(reply, {"delta": Vector(len(theta))}, protocol.WireForm(upload, 0.3))

    assert error_of(exchange).reason == "not-finite"
    assert newest(stored(run_config, 1), "personal-residual").read_bytes() == before
    assert torch.isfinite(ask(run_config, 1, theta, server_round=3, **feedback)[1]).all()


def test_a_delta_that_half_cannot_send_is_refused_and_leaves_the_residual_as_it_was(run_config):
    theta = theta_for(site(run_config, 1))
    half = {"upload": "half", "error_feedback": True}
    ask(run_config, 1, theta, **half)
    before = newest(stored(run_config, 1), "personal-residual").read_bytes()
    error = error_of(ask, run_config, 1, theta, batch_size=1000, client_lr=1e8, **half)
    assert error.reason == "not-encodable"
    assert newest(stored(run_config, 1), "personal-residual").read_bytes() == before


TOPK = {"upload": "topk", "topk_fraction": 0.1}


@pytest.mark.parametrize("compress", [(), ("delta",), ("bias",), ("delta", "bias"), ("bias", "absent")], ids=str)
def test_codecs_and_their_residuals_are_for_the_arrays_that_the_server_names(run_config, tmp_path, compress):
    theta = theta_for(site(run_config))
    sent = {
        "delta": theta - theta.mean(),
        "bias": torch.linspace(-1, 1, 11) ** 3,
        "prototypes": own_method.table(4),
    }
    schema = {name: Expected(tuple(array.shape), codec=name in compress) for name, array in sent.items()}
    own = own_trainer(run_config, tmp_path)
    feedback = {"compress": compress, "error_feedback": True, **TOPK}
    _, first = own_exchange(own, "vectors", schema, theta, **feedback)
    _, second = own_exchange(own, "vectors", schema, theta, server_round=2, **feedback)
    shortened = [name for name in compress if name in sent]
    left = {}
    if shortened:
        left = torch.load(newest(tmp_path / "clients/run", "vectors-residual"), weights_only=True)["state"]
    else:
        assert not list((tmp_path / "clients").rglob("*.pt"))
    assert left.keys() == set(shortened)
    for name, array in sent.items():
        if name in shortened:
            expected = decode(encode(array, "topk", 0.1), "topk", 0.1, len(array))
            assert torch.equal(first[name], expected)
            assert not torch.equal(expected, array)
            again = 2 * array - expected
            assert torch.equal(second[name] + left[name], array + (array - expected))
            torch.testing.assert_close(second[name] + left[name], again)
        else:
            assert torch.equal(first[name], array)
            assert torch.equal(second[name], array)


@pytest.mark.parametrize("upload", ["dense", "half", "int8", "topk"])
def test_an_array_that_is_no_vector_travels_as_it_is_whatever_the_server_names(run_config, tmp_path, upload):
    # A codec would make something else of it, or fail in the middle: the server's own check is to say what is wrong.
    own = own_trainer(run_config, tmp_path)
    names = ("prototypes", "labels")
    schema = {"prototypes": Expected((2, 3)), "labels": Expected((2,), "int64")}
    _, arrays = own_exchange(own, "prototypes", schema, compress=names, upload=upload, error_feedback=True)
    assert torch.equal(arrays["prototypes"], own_method.table(2))
    assert arrays["labels"].tolist() == [0, 1]
    assert not list((tmp_path / "clients").rglob("*.pt"))


def test_a_reply_of_which_one_array_diverged_leaves_the_residuals_of_all_as_they_were(run_config, tmp_path):
    # The server refuses the reply as a whole, so nothing of it has arrived.
    own = own_trainer(run_config, tmp_path)
    content = request(
        None, method=own_method.NAME, exchange="diverged", compress=("delta",), error_feedback=True, **TOPK
    )
    answered(own, protocol.TRAIN, content)
    assert not list((tmp_path / "clients").rglob("*.pt"))


# Noise


PRIVACY = Privacy(clipping_norm=1.0, noise_multiplier=0.7, is_secret=False)


def test_whole_numbers_are_not_sent_by_a_site_that_noises_what_it_sends(run_config, tmp_path):
    own = own_trainer(run_config, tmp_path, privacy=PRIVACY)
    content = request(None, method=own_method.NAME, exchange="prototypes")
    error = error_of(answered, own, protocol.TRAIN, content)
    assert error.reason == "not-private"
    assert error.detail.endswith("the whole numbers ['labels']")
    assert not (tmp_path / "clients").exists()  # and it costs nothing


@pytest.mark.parametrize("rows", [0, 2, 5])
def test_a_table_is_clipped_and_noised_as_a_whole_and_keeps_its_shape(run_config, tmp_path, rows):
    own = own_trainer(run_config, tmp_path, privacy=PRIVACY)
    result, arrays = own_exchange(own, "means", {"prototypes": Expected((rows, 3))}, rows=rows)
    plain = (10 * own_method.table(rows)).double()
    clipped = plain * min(1.0, 1.0 / max(float(plain.norm()), 1e-9))
    noise = torch.randn(3 * rows, generator=seeded_generator(0, "0/1/noise/means"), dtype=torch.float64).view(rows, 3)
    assert torch.equal(arrays["prototypes"], (clipped + 2 * 0.7 * noise).float())
    assert result.privacy.epsilon > 0


def test_every_array_of_a_reply_is_noised_and_costs(run_config, tmp_path):
    own, theta = own_trainer(run_config, tmp_path, privacy=PRIVACY), theta_for(site(run_config))
    schema = {"delta": Vector(len(theta)), "bias": Vector(11), "prototypes": Expected((4, 3))}
    three, arrays = own_exchange(own, "vectors", schema, theta)
    plain = own_exchange(own_trainer(run_config, tmp_path / "plain"), "vectors", schema, theta)[1]
    assert not any(torch.equal(arrays[name], plain[name]) for name in schema)
    one, _ = own_exchange(own, "means", {"prototypes": Expected((2, 3))}, run_name="another")
    assert three.privacy.epsilon > 1.5 * one.privacy.epsilon
    assert '"0.7": 3' in (tmp_path / "clients/run/privacy.json").read_text()


def test_no_array_is_sent_that_would_cost_more_than_the_budget_whoever_named_it(run_config, tmp_path):
    theta = theta_for(site(run_config))
    spent = own_exchange(
        own_trainer(run_config, tmp_path / "free", privacy=PRIVACY), "means", {"prototypes": Expected((2, 3))}
    )[0].privacy.epsilon
    limited = replace(PRIVACY, max_epsilon=1.001 * spent)  # enough for one array
    own = own_trainer(run_config, tmp_path, privacy=limited)
    three = request(theta, method=own_method.NAME, exchange="vectors")
    assert error_of(answered, own, protocol.TRAIN, three).reason == "privacy-budget"
    assert not list((tmp_path / "clients").rglob("*.json"))
    one = request(None, method=own_method.NAME, exchange="means")
    assert "arrays" in answered(own, protocol.TRAIN, one)
    assert error_of(answered, own, protocol.TRAIN, one).reason == "privacy-budget"
    assert '"0.7": 1' in (tmp_path / "clients/run/privacy.json").read_text()


# A server that goes back to a checkpoint


@pytest.mark.parametrize(
    "changes",
    [{}, {"upload": "topk", "error_feedback": True}, {"method": "local"}],
    ids=["statistics", "residual", "local model"],
)
def test_a_server_that_goes_back_gets_the_answers_that_it_got_before(run_config, changes):
    config = run_config | {"models": "resnet10"}
    size = site(config).num_params

    def exchange(server_round, line, *lineage):
        theta = None if "method" in changes else random_theta(size, seed=server_round)
        told_now = {"server_round": server_round, "line": line, "lineage": lineage, "returns_to": (1, 3), "test": True}
        result, delta = ask(config, 0, theta, **told_now, **changes)
        return result, [] if delta is None else delta.tolist()

    first = {server_round: exchange(server_round, "first") for server_round in (1, 2, 3, 4, 5)}
    assert first[2] != first[3]
    new_process()
    third = Point("run", "first", 3)
    assert {server_round: exchange(server_round, "second", third) for server_round in (4, 5)} == {
        server_round: first[server_round] for server_round in (4, 5)
    }
    once = Point("run", "first", 1)
    assert {server_round: exchange(server_round, "third", once) for server_round in (2, 3)} == {
        server_round: first[server_round] for server_round in (2, 3)
    }
    assert exchange(1, "fourth") == first[1]


def test_what_a_client_kept_in_a_round_counts_from_the_next_one(run_config):
    config = run_config | {"models": "resnet10"}
    theta = torch.zeros(site(config).num_params)
    untouched = ask_to_evaluate(config, 0, theta)
    ask(config, 0, theta, server_round=4)
    assert ask_to_evaluate(config, 0, theta, server_round=4) == untouched
    assert ask_to_evaluate(config, 0, theta, server_round=5) != untouched


# A run that goes on from another


def test_a_branch_has_the_statistics_of_the_run_before_at_its_round_until_it_has_its_own(run_config):
    config = run_config | {"models": "resnet10"}
    theta = torch.zeros(site(config).num_params)
    ask(config, 0, theta, run_name="before", server_round=1, returns_to=(1,))
    at_one = ask_to_evaluate(config, 0, theta, run_name="before", server_round=2)
    ask(config, 0, theta, run_name="before", server_round=2, returns_to=(1,))
    assert ask_to_evaluate(config, 0, theta, run_name="before", server_round=3) != at_one
    new_process()
    after = {"run_name": "after", "line": "other", "lineage": (Point("before", "first", 1),)}
    assert ask_to_evaluate(config, 0, theta, **after) == at_one
    assert ask_to_evaluate(config, 0, theta, run_name="after") != at_one
    files = {path: path.read_bytes() for path in stored(config, run="before").iterdir()}
    _, delta = ask(config, 0, theta, server_round=2, **after)
    assert {path: path.read_bytes() for path in stored(config, run="before").iterdir()} == files
    assert torch.equal(delta, ask(config, 0, theta, server_round=2, run_name="before")[1])
    assert ask_to_evaluate(config, 0, theta, **after) != at_one


def test_a_run_before_in_which_a_client_took_no_part_changes_nothing(run_config):
    theta = theta_for(site(run_config, 1))
    changed_nothing = ask(run_config, 1, theta, lineage=(Point("never", "line", 3),))[1]
    assert torch.equal(changed_nothing, ask(run_config, 1, theta)[1])


def test_a_client_that_lost_what_it_had_when_the_server_learned_from_it_is_refused(run_config):
    config = run_config | {"models": "lenet"}  # nothing is kept: still the server's embedding is of another client
    theta = theta_for(site(config))
    ask(config, 0, theta)
    seen = Point("run", "first", 1)
    assert ask(config, 0, theta, server_round=2, seen=seen)
    shutil.rmtree(stored(config))
    for ask_it in (ask, ask_to_evaluate):
        error = error_of(ask_it, config, 0, theta, server_round=3, seen=seen)
        assert error.reason == "state-missing"
        assert str(stored(config)) in error.detail
    assert not stored(config).exists()


def test_a_round_that_diverged_is_in_the_history_and_the_next_goes_on_from_what_was_loaded(run_config):
    config = run_config | {"models": "resnet10"}
    theta = theta_for(site(config))
    ask(config, 0, theta)
    before = {name: tensor.clone() for name, tensor in kept(config).items()}
    request_that_diverges = request(theta, server_round=2, client_lr=1e30, client_momentum=0.0)
    handled(trainer(config), request_that_diverges)
    assert {path.name for path in stored(config).iterdir()} == {"history.json", "kept.000001.pt"}
    # The server may have taken the reply: with noise it is finite.
    after = ask_to_evaluate(config, 0, theta, server_round=3, seen=Point("run", "first", 2))
    assert after == ask_to_evaluate(config, 0, theta, server_round=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept(config).items())


# The end


@pytest.mark.parametrize("architecture", ["lenet", "resnet10"])
def test_the_personal_model_loads_in_plain_pytorch_and_is_as_good_as_reported(run_config, architecture):
    config = run_config | {"models": architecture}
    theta = torch.zeros(site(config).num_params)
    for server_round in (1, 2):
        _, delta = ask(config, 1, theta, server_round=server_round)
        theta = theta - delta
    reported = ask_to_finish(config, 1, theta)

    model = build_model(architecture, SHAPE, CLASSES, seed=77)  # another seed: all must come from the file
    model.load_state_dict(torch.load(stored(config, 1) / "personal-model.pt", weights_only=True))
    division = divide(load_config(config), NUM_CLIENTS)
    dataset, test = division.dataset, division.parts[1].test
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in astuple(division.normalisation))
    images = (dataset.read_images(test).float() / 255 - mean) / std
    labels = dataset.labels[test]
    with torch.no_grad():
        logits = model.eval()(images)
    assert reported.correct == int((logits.argmax(1) == labels).sum())
    assert reported.total == len(labels)
    assert reported.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-4, abs=1e-5)
    assert torch.equal(ParameterVector(model).read(), site(config, 1).personal.anchor + theta)
    if architecture == "resnet10":
        assert all(torch.equal(tensor, kept(config, 1)[name]) for name, tensor in model.named_buffers())


@pytest.mark.parametrize("kind", [{}, TEST, {"exchange": "deploy"}], ids=["to train", "to test", "to deploy"])
def test_only_the_weights_of_the_end_are_kept_as_the_personal_model(run_config, kind):
    theta = theta_for(site(run_config, 1))
    content = request(theta, **kind)
    handled(trainer(run_config, 1), content)
    assert not (stored(run_config, 1) / "personal-model.pt").exists()
    handled(trainer(run_config, 1), changed(content, "instructions", final=True))
    final = torch.load(stored(run_config, 1) / "personal-model.pt", weights_only=True)
    model = build_model("mlp", SHAPE, CLASSES, seed=77)
    model.load_state_dict(final)
    # As it was deployed, also where it is trained after that.
    assert torch.equal(ParameterVector(model).read(), site(run_config, 1).personal.anchor + theta)


def test_a_half_that_returns_something_else_than_an_outcome_is_told_so(run_config, tmp_path):
    own = own_trainer(run_config, tmp_path)
    with pytest.raises(UserError, match=r"Own.careless returned a dict, but must return an Outcome"):
        answered(own, protocol.TRAIN, request(None, method=own_method.NAME, exchange="careless"))
