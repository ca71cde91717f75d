"""The noise on what a site sends and what it costs, against calculations that know nothing of the accountant's."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from asking import (
    FINISH,
    GD,
    TEST,
    ask,
    ask_globally,
    ask_to_keep_teacher,
    handled,
    kept,
    opened,
    random_theta,
    request,
    site,
    stored,
    theta_for,
    trainer,
)
from example_site.messages import request as site_request
from fresh_process import new_process
from hypothesis import given
from hypothesis import strategies as st
from site_files import GLOBAL, TABLE, load, mistake_of

from client_app.privacy import Ledger, Privacy, secret_normal, seeded_normal
from client_app.resident.serving import trainer_of
from client_app.site.tools import check
from common import protocol
from common.codec import decode, encode
from common.config import load_config
from common.errors import ProtocolError, UserError
from common.seeding import seeded_generator

NO_NOISE = torch.zeros
ONES = torch.ones
NOISED = {"clipping-norm": 0.01, "noise-multiplier": 0.7, "privacy-delta": 1e-6}
SITE = {"clipping-norm": 0.05, "noise-multiplier": 2.0, "delta": 1e-6}


def phi(x: float) -> float:
    """The normal distribution function."""
    return math.erfc(-x / math.sqrt(2)) / 2


def exact_epsilon(noise_multipliers: list[float], delta: float) -> float:
    """The smallest epsilon of so many Gaussian releases (Balle and Wang 2018, theorem 8), by bisection.

    Releases with multipliers z_1, z_2, ... are together as one with 1 / sqrt(sum of 1 / z^2).
    """
    z = 1 / math.sqrt(sum(1 / each**2 for each in noise_multipliers))
    low, high = 0.0, 1e6
    for _ in range(200):
        epsilon = (low + high) / 2
        log_second = epsilon + math.log(max(phi(-1 / (2 * z) - epsilon * z), 1e-320))
        failing = phi(1 / (2 * z) - epsilon * z) - math.exp(min(log_second, 700))
        low, high = (epsilon, high) if failing > delta else (low, epsilon)
    return high


# The mechanism


@pytest.mark.parametrize(("norm", "expected"), [(1.0, [0.6, 0.8]), (5.0, [3.0, 4.0]), (7.0, [3.0, 4.0])])
def test_a_vector_is_shortened_to_the_clipping_norm_and_never_lengthened(norm, expected):
    protected = Privacy(norm, 1.0).protect(torch.tensor([3.0, 4.0]), NO_NOISE)
    torch.testing.assert_close(protected, torch.tensor(expected))


def test_noise_has_the_standard_deviation_of_the_multiplier_times_twice_the_norm():
    # Two data sets may lead to C e and to -C e, which are 2C apart.
    protected = Privacy(0.5, 3.0).protect(torch.zeros(2), ONES)
    assert protected.tolist() == [3.0, 3.0]


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.floats(1e-6, 1e6),
)
def test_no_vector_is_longer_than_the_clipping_norm(values, norm):
    vector = torch.tensor(values)
    protected = Privacy(norm, 1.0).protect(vector, NO_NOISE)
    assert float(torch.linalg.vector_norm(protected.double())) <= norm * (1 + 1e-6)
    assert protected.dtype == torch.float32


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_training_that_diverged_looks_like_training_that_moved_nothing(bad):
    privacy = Privacy(1.0, 2.0)
    assert torch.equal(privacy.protect(torch.tensor([1.0, bad]), ONES), privacy.protect(torch.zeros(2), ONES))


def test_secret_noise_is_normal_and_no_seed_repeats_it():
    torch.manual_seed(0)
    first = secret_normal(200_000)
    torch.manual_seed(0)
    second = secret_normal(200_000)
    assert not torch.equal(first, second)
    assert torch.isfinite(first).all()
    # Five standard errors of mean, variance, fourth moment and of the share within one standard deviation.
    assert abs(first.mean()) < 5 / math.sqrt(200_000)
    assert abs(first.var() - 1) < 5 * math.sqrt(2 / 200_000)
    assert abs((first**4).mean() - 3) < 5 * math.sqrt(96 / 200_000)
    assert abs((first.abs() < 1).double().mean() - (2 * phi(1) - 1)) < 5 * 0.47 / math.sqrt(200_000)
    assert abs((first[1:] * first[:-1]).mean()) < 5 / math.sqrt(200_000)


# The ledger


@pytest.mark.parametrize("delta", [1e-5, 1e-8])
@pytest.mark.parametrize(("noise_multiplier", "count"), [(0.5, 1), (1.0, 1), (1.0, 10), (4.0, 20), (10.0, 100)])
def test_epsilon_is_a_close_upper_bound_of_the_exact_one(tmp_path, noise_multiplier, count, delta):
    privacy = Privacy(1.0, noise_multiplier, delta)
    ledger = Ledger(tmp_path / "privacy.json")
    exact = exact_epsilon([noise_multiplier] * count, delta)
    spent = ledger.spent(privacy, count)
    assert spent.delta == delta
    assert exact <= spent.epsilon <= 1.2 * exact
    assert ledger.spent(privacy).epsilon == 0.0
    assert not (tmp_path / "privacy.json").exists()  # a question costs nothing


def test_releases_of_all_settings_and_processes_add_up(tmp_path):
    path = tmp_path / "new" / "privacy.json"
    strong, weak = Privacy(1.0, 5.0), Privacy(0.1, 2.0)
    Ledger(path).charge(strong, 1)
    Ledger(path).charge(weak, 1)
    spent = Ledger(path).charge(strong, 1)
    exact = exact_epsilon([5.0, 2.0, 5.0], 1e-5)
    assert exact <= spent.epsilon <= 1.2 * exact
    assert Ledger(path).spent(weak) == spent
    assert json.loads(path.read_text()) == {"releases": {"5.0": 2, "2.0": 1}}


def test_nothing_is_sent_beyond_the_budget(tmp_path):
    ledger = Ledger(tmp_path / "privacy.json")
    limit = ledger.spent(Privacy(1.0, 3.0), 2).epsilon * 1.001
    privacy = Privacy(1.0, 3.0, max_epsilon=limit)
    for _ in range(2):
        ledger.check(privacy)
        ledger.charge(privacy, 1)
    with pytest.raises(ProtocolError, match=f"above its max-epsilon of {limit:g}") as error:
        ledger.check(privacy)
    assert error.value.reason == "privacy-budget"
    with pytest.raises(ProtocolError, match=f"above its max-epsilon of {limit:g}"):
        ledger.charge(privacy, 1)
    assert json.loads((tmp_path / "privacy.json").read_text()) == {"releases": {"3.0": 2}}
    ledger.check(Privacy(1.0, 3.0, max_epsilon=2 * limit))


def test_a_ledger_counts_what_others_have_charged_since_it_was_opened(tmp_path):
    one, other = Ledger(tmp_path / "privacy.json"), Ledger(tmp_path / "privacy.json")
    limit = one.spent(Privacy(1.0, 3.0), 2).epsilon * 1.001
    privacy = Privacy(1.0, 3.0, max_epsilon=limit)
    one.charge(privacy, 1)
    assert other.charge(privacy, 1) == one.spent(privacy)
    with pytest.raises(ProtocolError, match="budget is spent"):
        one.charge(privacy, 1)
    assert json.loads((tmp_path / "privacy.json").read_text()) == {"releases": {"3.0": 2}}


def test_processes_that_charge_one_ledger_at_once_lose_no_release(tmp_path):
    program = """
import sys
from pathlib import Path
from client_app.privacy import Ledger, Privacy
print("ready", flush=True)
sys.stdin.readline()
for _ in range(60):
    Ledger(Path(sys.argv[1])).charge(Privacy(1.0, 3.0), 1)
"""
    path = tmp_path / "privacy.json"
    command = [sys.executable, "-c", program, str(path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert json.loads(path.read_text()) == {"releases": {"3.0": 180}}


def test_several_uploads_at_once_must_fit_into_the_budget_together(tmp_path):
    ledger = Ledger(tmp_path / "privacy.json")
    limit = ledger.spent(Privacy(1.0, 3.0), 3).epsilon * 1.001
    privacy = Privacy(1.0, 3.0, max_epsilon=limit)
    ledger.charge(privacy, 1)
    ledger.check(privacy, 2)
    with pytest.raises(ProtocolError, match=f"above its max-epsilon of {limit:g}") as error:
        ledger.check(privacy, 3)
    assert error.value.reason == "privacy-budget"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"releases": [1]}', '{"releases": {"x": 1}}', '{"releases": {"1.0": -1}}']
)
def test_a_damaged_ledger_is_told_and_not_begun_anew(tmp_path, content):
    path = tmp_path / "privacy.json"
    path.write_text(content)
    with pytest.raises(UserError, match="restore it from a backup") as error:
        Ledger(path).spent(Privacy(1.0, 1.0))
    assert str(path) in str(error.value)
    assert path.read_text() == content


# Simulated clients


def by_hand(run_config, client, delta, server_round=1, exchange="personal"):
    """Clip and noise a delta as DESIGN's seeds and the two formulas say."""
    clipped = delta.double() * min(1.0, 0.01 / float(delta.double().norm()))
    generator = seeded_generator(0, f"{client}/{server_round}/noise/{exchange}")
    noise = torch.randn(len(delta), generator=generator, dtype=torch.float64)
    return (clipped + 2 * 0.01 * 0.7 * noise).float()


def test_a_simulated_client_sends_the_clipped_and_noised_delta(run_config):
    theta = theta_for(site(run_config, 1))
    result, plain = ask(run_config, 1, theta)
    assert result.privacy is None
    new_process()
    result, noised = ask(run_config | NOISED, 1, theta, run_name="noised")
    assert float(plain.norm()) > 0.01
    assert torch.equal(noised, by_hand(run_config, 1, plain))
    assert result.privacy.delta == 1e-6
    exact = exact_epsilon([0.7], 1e-6)
    assert exact <= result.privacy.epsilon <= 1.2 * exact


def test_every_exchange_costs_and_has_noise_of_its_own(run_config):
    run_config |= NOISED
    w_g, theta = theta_for(site(run_config, 0)), theta_for(site(run_config, 1))
    epsilons, noises = [], []
    for server_round in (1, 2):
        told = {
            "server_round": server_round,
            "client_lr": 1e-30,
            "client_weight_decay": 0.0,
        }  # all that is sent is noise
        result, delta = ask_globally(run_config, 1, w_g, **told)
        epsilons.append(result.privacy.epsilon)
        noises.append(delta[:1000])
        result, delta = ask(run_config, 1, theta, method=GD, **told)
        epsilons.append(result.privacy.epsilon)
        noises.append(delta[:1000])
    for count, epsilon in enumerate(epsilons, 1):
        exact = exact_epsilon([0.7] * count, 1e-6)
        assert exact <= epsilon <= 1.2 * exact
    correlations = torch.corrcoef(torch.stack(noises))
    assert (correlations - torch.eye(4)).abs().max() < 5 / math.sqrt(1000)
    assert json.loads((stored(run_config, 1) / "privacy.json").read_text()) == {"releases": {"0.7": 4}}


def test_noise_follows_from_the_seed_and_differs_among_clients(run_config):
    run_config |= NOISED | {"models": "mlp"}
    theta = theta_for(site(run_config, 1))
    first = ask(run_config, 1, theta)[1]
    new_process()
    assert torch.equal(first, ask(run_config, 1, theta)[1])
    assert torch.corrcoef(torch.stack([first, ask(run_config, 2, theta)[1]]))[0, 1].abs() < 0.1


def test_what_stays_with_the_client_has_no_noise(run_config):
    theta = theta_for(site(run_config, 1))
    run_config |= {"models": "resnet10"}
    theta = theta_for(site(run_config, 1))
    ask(run_config, 1, theta)
    plain = kept(run_config, 1, "kept")
    new_process()
    ask(run_config | NOISED, 1, theta)
    again = kept(run_config, 1, "kept")
    assert plain.keys() == again.keys() != set()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_the_codec_and_its_residual_see_only_the_noised_delta(run_config):
    theta = theta_for(site(run_config, 1))
    plain = ask(run_config, 1, theta)[1]
    new_process()
    lossy = {"upload": "topk", "topk_fraction": 0.1, "error_feedback": True}
    received = ask(run_config | NOISED, 1, theta, **lossy)[1]
    noised = by_hand(run_config, 1, plain)
    assert torch.equal(received, decode(encode(noised, "topk", 0.1), "topk", 0.1, len(theta)))
    assert torch.equal(kept(run_config, 1, "personal-residual")["delta"], noised - received)


def test_a_method_that_sends_no_vectors_costs_nothing(run_config):
    result, delta = ask(run_config | NOISED, 1, None, method="local")
    assert delta is None
    assert result.privacy is None
    assert not (stored(run_config, 1) / "privacy.json").exists()


def test_keeping_a_teacher_costs_nothing(run_config):
    reply = ask_to_keep_teacher(run_config | NOISED, 1, theta_for(site(run_config, 0)))
    assert protocol.decode_result(reply).privacy is None
    assert not (stored(run_config, 1) / "privacy.json").exists()


@pytest.mark.parametrize("kind", [TEST, FINISH], ids=["to test", "to finish"])
def test_testing_and_finishing_cost_nothing(run_config, kind):
    theta = theta_for(site(run_config, 1))
    handled(trainer(run_config | NOISED, 1), request(theta, **kind))
    assert not (stored(run_config, 1) / "privacy.json").exists()


def test_sites_of_a_deployment_decide_for_themselves():
    with pytest.raises(UserError, match=r"clipping-norm is 1, but dataset is 'sites'.*set privacy in its own file"):
        load_config({"profile": "consortium", "clipping-norm": 1.0})


# Sites


def ask_site(private, **changes):
    """A personal round: result and delta."""
    content = site_request(private, **changes)
    return opened(content, handled(trainer_of(private), content), private.personal.parameters.size)


def test_a_site_draws_noise_that_the_server_cannot_draw_again(tmp_path):
    plain = ask_site(load(tmp_path))[1]
    deltas = [ask_site(load(tmp_path, privacy=SITE))[1] for _ in range(2)]
    clipped = plain * min(1.0, 0.05 / float(plain.norm()))
    noises = [delta - clipped for delta in deltas]
    assert not torch.equal(*noises)
    for noise in noises:
        # 2 C z = 0.2, within five standard errors.
        assert abs(float(noise.std()) / 0.2 - 1) < 5 / math.sqrt(2 * len(noise))


def test_a_site_counts_over_runs_and_stops_at_its_budget(tmp_path, capsys):
    private = load(tmp_path, privacy=SITE)
    ask_site(private, run_name="first")
    spent = ask_site(private, run_name="second")[0].privacy
    exact = exact_epsilon([2.0, 2.0], 1e-6)
    assert exact <= spent.epsilon <= 1.2 * exact
    assert json.loads((tmp_path / "state" / "privacy.json").read_text()) == {"releases": {"2.0": 2}}
    limited = load(tmp_path, privacy=SITE | {"max-epsilon": spent.epsilon + 0.01})
    before = limited.personal.parameters.read()
    with pytest.raises(ProtocolError, match="privacy budget is spent"):
        ask_site(limited, run_name="second", server_round=2)
    assert torch.equal(limited.personal.parameters.read(), before)  # it did not even train
    assert json.loads((tmp_path / "state" / "privacy.json").read_text()) == {"releases": {"2.0": 2}}
    check(tmp_path / "site.yaml")
    told = capsys.readouterr().out
    assert "norm clipped to 0.05, noise of standard deviation 0.2 a value" in told
    assert f"{spent.epsilon:.4g} so far" in told
    assert f"limit (max-epsilon) {spent.epsilon + 0.01:g}" in told
    assert "the K generated values, clipped and noised, and" in told


def test_the_global_models_delta_is_noised_and_refused_too(tmp_path):
    private = load(tmp_path, GLOBAL, privacy=SITE | {"max-epsilon": 1e-3})
    theta = random_theta(private.for_seed(0).global_model("lenet").parameters.size)
    with pytest.raises(ProtocolError, match="privacy budget is spent"):
        handled(trainer_of(private), request(theta, method=GD, exchange="global_step"))
    assert not (tmp_path / "state/runs").exists()


def test_a_site_whose_budget_is_spent_is_tested_keeps_teachers_and_finishes(tmp_path):
    private = load(tmp_path, GLOBAL, privacy=SITE | {"max-epsilon": 1e-3})
    theta = random_theta(private.for_seed(0).global_model("lenet").parameters.size)
    for content in (
        request(theta, method=GD, exchange="keep_teacher"),
        site_request(private, **TEST),
        site_request(private, **FINISH),
        request(None, method="local"),
    ):
        handled(trainer_of(private), content)
    assert not (tmp_path / "state/privacy.json").exists()
    # Nor does it send what the server does not say that it waits for.
    for changes in ({"compress": ()}, {"compress": ("other",)}):
        with pytest.raises(ProtocolError, match="privacy budget is spent"):
            ask_site(private, **changes)


def test_a_damaged_ledger_keeps_a_site_from_starting(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "privacy.json").write_text("no")
    with pytest.raises(UserError, match=r"privacy\.json, which counts what this site has sent, is damaged"):
        load(tmp_path, privacy=SITE)


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        (True, "privacy is True, but must be a mapping such as {clipping-norm: 1.0"),
        ({"clipping-norm": 1.0}, "its noise-multiplier is missing"),
        (SITE | {"cliping-norm": 1.0}, "there is no key 'cliping-norm' in it; did you mean 'clipping-norm'?"),
        (SITE | {"clipping-norm": 0}, "its clipping-norm is a number of at least 1e-06"),
        (SITE | {"noise-multiplier": "1.0"}, "its noise-multiplier is a number of at least 0.001"),
        (SITE | {"noise-multiplier": math.inf}, "its noise-multiplier is a number"),
        (SITE | {"delta": 1.0}, "its delta is a number of at least 1e-20 and below 1"),
        (SITE | {"max-epsilon": True}, "its max-epsilon is a number"),
        (SITE | {"max-epsilon": math.nan}, "its max-epsilon is a number"),
    ],
)
def test_mistakes_in_privacy_are_told(tmp_path, privacy, words):
    assert words in mistake_of(tmp_path, TABLE | {"privacy": privacy})


# The message


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy-epsilon": math.nan},
        {"privacy-epsilon": -1.0},
        {"privacy-epsilon": 1},
        {"privacy-delta": 0.0},
        {"privacy-delta": 1.0},
        {"privacy-delta": None},
    ],
)
def test_an_epsilon_that_is_none_is_refused(changes):
    result = protocol.Result(10, 0.5, privacy=protocol.PrivacySpent(2.5, 1e-5))
    content = protocol.encode_result(result)
    assert protocol.decode_result(content) == result
    record = next(iter(content.metric_records.values()))
    for key, value in changes.items():
        record.pop(key)
        if value is not None:
            record[key] = value
    with pytest.raises(ProtocolError):
        protocol.decode_result(content)


def test_seeded_draws_are_those_of_their_generator():
    first = seeded_normal(torch.Generator().manual_seed(3))(5)
    assert torch.equal(first, torch.randn(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64))


def test_the_ledger_of_a_simulated_client_lies_in_its_run(run_config):
    ask(run_config | NOISED, 2, theta_for(site(run_config, 2)), run_name="elsewhere")
    assert Path(stored(run_config, 2, "elsewhere"), "privacy.json").exists()
