"""The estimate of a comparison: what is counted, what is measured and how often, and how it is listed."""

import numpy as np
import pytest
import torch

from common.config import Config
from common.data.simulation import divide
from mh_pfedhn.cli import main
from mh_pfedhn.comparing import estimate
from mh_pfedhn.comparing.estimate import Estimator, described
from server_app.client import Client
from server_app.methods.base import Exchange, Method
from server_app.rehearsal import memory_for, rehearse


@pytest.fixture
def timed(monkeypatch):
    """Speeds that are known: a second a sample in training, a tenth in a test; counts what was measured."""
    measured = []

    def timed(site, batch_size):
        measured.append((site.num_params, batch_size))
        return estimate._Speed(1.0, 0.1)

    monkeypatch.setattr(estimate, "_timed", timed)
    return measured


@pytest.fixture
def two_workers(monkeypatch):
    monkeypatch.setattr(estimate, "workers", lambda config: 2)


def clients_of(config):
    return estimate._clients(config, divide(config, config.num_parts(config.num_nodes)))


@pytest.mark.usefixtures("two_workers")
def test_training_and_tests_of_all_clients_are_divided_among_the_workers(small, timed):
    run = small({"num-clients": 4, "local-epochs": 3, "methods": ["local"]}).runs[0]
    clients = clients_of(run.config)
    train, test = sum(client.num_train for client in clients), sum(client.num_test for client in clients)
    found = Estimator().of(run)
    messages = 4 * 0.005
    assert found.seconds / 4 == pytest.approx((3 * train + 0.1 * test) / 2 + messages, rel=1e-3)  # four rounds


@pytest.mark.usefixtures("two_workers")
def test_further_tests_and_the_epoch_before_one_of_them_are_counted(small, timed):
    settings = {"num-clients": 4, "local-epochs": 1, "methods": ["local"], "validation-fraction": 0.25}
    settings |= {"evaluate-every": 2}
    plain = small(settings).runs[0]
    division = divide(plain.config, 4)
    validation = sum(len(part.validation) for part in division.parts)
    clients = clients_of(plain.config)
    train, test = sum(client.num_train for client in clients), sum(client.num_test for client in clients)
    messages = 4 * 0.005
    a_round = Estimator().of(plain).seconds / 4
    assert a_round == pytest.approx((train + 0.1 * (test + validation) / 2) / 2 + messages, rel=1e-3)
    after = Estimator().of(small(settings | {"evaluate-after-training": True}).runs[0]).seconds / 4
    assert after - a_round == pytest.approx((train + 0.1 * test) / 2 / 2, rel=1e-3)


@pytest.mark.usefixtures("two_workers")
def test_what_is_held_of_a_data_set_counts_once_a_process_and_without_a_limit(small, timed, monkeypatch, tiny_images):
    monkeypatch.setattr(estimate, "SAMPLE_BYTES", 1000)
    plain = {"methods": ["local"], "max-samples-per-class": 10}  # the array stays whole
    own = {"dataset": "own_code:float_images", "data-dir": Config.data_dir}
    with np.load(tiny_images) as file:
        sizes = {"npz": file["images"].nbytes, "own": 4 * 80 * 3 * 8 * 8 + 8 * 80}
    for settings, held, most in ((plain, sizes["npz"], 1000), (plain | own, sizes["own"], 80 * 8)):
        run = small(settings).runs[0]
        model = 16 * clients_of(run.config)[0].num_params
        rest = estimate._BYTES_BESIDE + 3 * estimate._BYTES_A_PROCESS + 2 * model
        assert 3 * held < Estimator().of(run).num_bytes - rest <= 3 * held + 2 * most


@pytest.mark.usefixtures("two_workers")
def test_an_exchange_takes_as_long_as_its_slowest_client(small, timed):
    joint = small({"methods": {"mh-pfedhn": {"hidden-dim": 4}}, "num-clients": 3}).runs[0]
    sequential = small({"methods": {"mh-pfedhn": {"hidden-dim": 4, "schedule": "sequential"}}, "num-clients": 3}).runs[
        0
    ]
    # One client after the other, with a test of its own, where two work at once else.
    assert Estimator().of(sequential).seconds > 1.3 * Estimator().of(joint).seconds


def test_each_architecture_is_measured_once_and_the_global_model_as_one(small, timed):
    plan = small(
        {
            "methods": ["local", "fedavg", "mh-pfedhn-g"],
            "models": "lenet,mlp",
            "num-clients": 4,
            "hidden-dim": 4,
            "global-model": "mlp",
            "seeds": [0, 1, 2],
        }
    )
    estimator = Estimator()
    for run in plan.runs:
        estimator.of(run)
    assert len(timed) == 2


def test_a_step_and_a_test_are_really_timed(small):
    run = small().runs[0]
    found = Estimator().of(run)
    assert 0 < found.seconds < 60
    assert 1e9 < found.num_bytes < 1e10


def test_the_list_has_each_run_with_what_is_done_and_the_whole(small, leave, timed):
    plan = small({"methods": ["local"], "seeds": [0, 1, 2]})
    leave(plan.runs[0])
    leave(plan.runs[1], rounds=3, finished=False, checkpoint=3)
    text = described(plan, [plan.runs[0].name])
    header, first, second, third, whole, seconds, memory = text.splitlines()
    assert header.split() == ["run", "rounds", "time", "memory"]
    assert first.split() == ["local-quickstart-0", "4", "finished"]
    assert second.endswith("  goes on after round 3")
    assert third.split()[:2] == ["local-quickstart-2", "4"]
    assert whole == f"3 runs, 1 of them finished, in {plan.folder}"
    assert seconds.startswith("about ")
    assert seconds.endswith(" for the rest (simulations to start: 1)")
    assert " of memory at most, and " in memory


def test_a_dry_run_starts_nothing_and_leaves_no_files(tmp_path, tiny_images, monkeypatch, capsys, timed):
    monkeypatch.chdir(tmp_path)
    settings = ["dataset=npz", f"data-dir={tiny_images}", "num-clients=2", "models=lenet", "classes-per-client=2"]
    assert main(["compare", "quickstart", "--dry-run", "-c", "method=local", *settings]) == 0
    assert "1 runs, 0 of them finished" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# A round without clients


class Counting(Method):
    """Two exchanges, and one kind of array that is only bounded."""

    def round(self, cohort):
        replies = yield Exchange("first", to=cohort, send={"theta": torch.zeros(5)}, losses="")
        assert set(replies) == {client.key for client in cohort}
        yield Exchange("second", to=cohort[:1])

    def deploy(self, clients):
        yield Exchange("deploy", to=clients, deploys=True)


CLIENTS = [Client(str(i), 50, 1, num_train=10, num_test=5) for i in range(4)]


def test_a_round_is_played_with_answers_that_fit(small, monkeypatch):
    monkeypatch.setattr("server_app.rehearsal._method", Counting)
    found = rehearse(small({"participation": 0.5}).runs[0].config, CLIENTS)
    played = [(len(each.clients), each.losses, each.num_bytes) for each in found.exchanges]
    assert played == [(2, "", 40), (1, "train", 0)]
    assert found.seconds > 0
    assert found.fits


def test_a_hypernetwork_is_judged_by_its_full_width_and_played_with_in_narrower_ones(small, monkeypatch):
    config = small({"methods": ["mh-pfedhn"], "hidden-dim": 64, "chunk-size": 10}).runs[0].config
    needed = memory_for(config, CLIENTS)
    monkeypatch.setattr("server_app.rehearsal._MOST_BYTES", needed / 7.9)
    made = []
    prepare = config.halves.server.prepare

    def prepared(self, clients):
        prepare(self, clients)
        made.append(self.hn.hidden_dim)

    monkeypatch.setattr(config.halves.server, "prepare", prepared)
    found = rehearse(config, CLIENTS)
    assert (made, found.seconds > 0, found.fits) == ([64, 8, 2], True, True)
    assert found.exchanges[0].num_bytes == 2 * 4 * 50 * 4  # four vectors down and up


class Growing(Counting):
    """Takes memory by its width."""

    def memory_for(self, clients):
        return 1e9 * self.config.method_settings["hidden-dim"]


def test_wide_and_narrow_are_timed_in_turns_and_the_quickest_of_three_counts(small, monkeypatch):
    config = small({"methods": ["mh-pfedhn"], "hidden-dim": 64}).runs[0].config
    monkeypatch.setattr("server_app.rehearsal._method", Growing)
    monkeypatch.setattr("server_app.rehearsal._MOST_BYTES", 8e9)
    monkeypatch.setattr("server_app.rehearsal.free_memory", lambda device: 100e9)
    played, first_of = [], {8: 0.9, 2: 0.8}

    def play(method, cohort):
        width = method.config.method_settings["hidden-dim"]
        played.append(width)
        # A wide round takes 0.11 s, a narrow one 0.05 s; all but one of each are disturbed.
        quiet = {8: 0.11, 2: 0.05}[width]
        return [], quiet if played.count(width) == 3 else first_of[width]

    monkeypatch.setattr("server_app.rehearsal._play", play)
    found = rehearse(config, CLIENTS)
    assert played == [8, 2, 8, 2, 8, 2, 8, 2]
    assert found.seconds == pytest.approx(0.11 + (64 - 8) * 0.01)


@pytest.mark.parametrize("method", ["fedavg", "mh-pfedhn"])
def test_whom_there_is_no_room_for_is_left_out_of_the_round(small, monkeypatch, method):
    clients = [*CLIENTS, Client("large", 10**9, 1, num_train=10, num_test=5)]
    own = {"hidden-dim": 4, "chunk-size": 10} if method == "mh-pfedhn" else {}
    config = small({"methods": [method], **own}).runs[0].config
    for module in ("rehearsal", "room", "methods.fedavg"):
        monkeypatch.setattr(f"server_app.{module}.free_memory", lambda device: 10**6)
    found = rehearse(config, clients)
    assert not found.fits
    assert [len(exchange.clients) for exchange in found.exchanges] == [4]
    none = rehearse(config, clients[-1:])
    assert (list(none.exchanges), none.fits) == ([], False)


def test_the_list_says_which_runs_do_not_fit(small, timed, monkeypatch):
    plan = small({"methods": ["local", "fedavg"], "seeds": [0]})
    monkeypatch.setattr("server_app.methods.fedavg.free_memory", lambda device: 10**4)
    monkeypatch.setattr(estimate, "free_memory", lambda device: 10**12)
    _, local, fedavg, *_ = described(plan).splitlines()
    assert fedavg.endswith("  the server has no room for all clients")
    monkeypatch.setattr(estimate, "free_memory", lambda device: 10**8)
    _, local, *_ = described(plan).splitlines()
    assert local.endswith("  does not fit into memory")


def test_what_differs_for_clients_alone_shares_a_rehearsal(small, timed, monkeypatch):
    rehearsed = []
    monkeypatch.setattr(estimate, "rehearse", lambda *given: rehearsed.append(given) or rehearse(*given))
    settings = {"methods": ["mh-pfedhn"], "client-lr": [0.01, 0.02], "hidden-dim": [4, 8], "seeds": [0, 1]}
    estimator = Estimator()
    for run in small(settings).runs:
        estimator.of(run)
    assert [config.method_settings["hidden-dim"] for config, _ in rehearsed] == [4, 8]
