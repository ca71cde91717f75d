"""The update schedules (Algorithm 1 of the paper), against the hand-written float64 update in `reference.py`."""

from itertools import permutations

import numpy as np
import pytest
import torch
from reference import (
    CHUNK,
    CLIENTS,
    Reference,
    as_arrays,
    assert_same_adam_state,
    assert_same_values,
    build,
    implementation_tensors,
    random_deltas,
)

from server_app.hypernetwork import HyperNetwork
from server_app.optim import HyperNetworkOptimizer, mean_delta

LR = 1e-2
NEVER = 1e9  # a norm that no gradient here reaches
GROUPS = {"five": "a", "five-too": "b", "two": "a", "one": "c"}  # "tiny" has the tau of "one" and no label
HEADS = ("by-tau", "by-architecture", "per-client", "none")


def sizes(*keys: str) -> dict[str, int]:
    return {key: CLIENTS[key] for key in keys}


def snapshot(hypernetwork: HyperNetwork, optimizer: HyperNetworkOptimizer) -> dict:
    """Copies of every parameter and of its Adam state, by parameter name."""
    return {
        name: {
            "value": parameter.detach().clone(),
            **{k: torch.as_tensor(v).clone() for k, v in optimizer.adam.state.get(parameter, {}).items()},
        }
        for name, parameter in hypernetwork.named_parameters()
    }


def assert_equal_snapshots(before: dict, after: dict) -> None:
    assert before.keys() == after.keys()
    for name, entries in before.items():
        assert entries.keys() == after[name].keys(), name
        assert all(torch.equal(value, after[name][entry]) for entry, value in entries.items()), name


def used_by(hypernetwork: HyperNetwork, keys) -> set[int]:
    """Identities of the parameters that a cohort uses."""
    used = {id(parameter) for parameter in hypernetwork.trunk.parameters()}
    for key in keys:
        head = hypernetwork.head(key)
        used |= {id(hypernetwork.embedding(key)), id(head.weight), id(head.bias)}
    return used


class Pair:
    """The optimizer under test and the reference, stepped together and compared after every call."""

    def __init__(self, clients=CLIENTS, lr=LR, schedule="joint", reduction="sum", max_grad_norm=NEVER, **network):
        self.hypernetwork = build(clients, **network)
        self.options = {"lr": lr, "schedule": schedule, "reduction": reduction, "max_grad_norm": max_grad_norm}
        self.optimizer = HyperNetworkOptimizer(self.hypernetwork, **self.options)
        self.reference = Reference(self.hypernetwork, dict(clients), CHUNK)

    def apply(self, deltas: dict[str, torch.Tensor]) -> list[float]:
        """One call on both sides; returns the reference's gradient norms, one a step."""
        self.optimizer.apply(deltas)
        norms = self.reference.apply(as_arrays(deltas), **self.options)
        self.check()
        return norms

    def check(self) -> None:
        assert_same_values(self.hypernetwork, self.reference, self.options["lr"])
        assert_same_adam_state(self.optimizer, self.hypernetwork, self.reference)


# --- the reference itself -------------------------------------------------------------------------------------------


def test_reference_gradient_equals_central_differences():
    """Every coordinate of every parameter, in float64: differences at h = 1e-6 are good to about 1e-9."""
    clients = sizes("two", "one", "tiny")
    reference = Reference(build(clients), clients, CHUNK)
    deltas = as_arrays(random_deltas(clients, seed=1))
    h = 1e-6
    for name, gradient in reference.gradients(deltas).items():
        values = reference.values[name]
        for position in np.ndindex(values.shape):
            original = values[position]
            ends = []
            for shifted in (original + h, original - h):
                values[position] = shifted
                ends.append(sum(reference.generate(key) @ delta for key, delta in deltas.items()))
            values[position] = original
            assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(gradient[position], abs=1e-7), name


# --- joint ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_joint_equals_reference_over_several_steps(reduction):
    pair = Pair(reduction=reduction)
    for step in range(6):
        norms = pair.apply(random_deltas(CLIENTS, seed=step))
        assert len(norms) == 1
    assert pair.reference.steps["trunk", 0, "weight"] == 6


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reduction_counts_the_cohort_of_each_step(reduction):
    """Adam hides a constant factor, not one that changes with the cohort's size."""
    pair = Pair(reduction=reduction)
    pair.apply(random_deltas(CLIENTS, seed=0))
    pair.apply(random_deltas(sizes("five"), seed=1))
    pair.apply(random_deltas(sizes("two", "five"), seed=2))


def test_sum_and_mean_differ_by_the_number_of_clients():
    moments = {}
    for reduction in ("sum", "mean"):
        hypernetwork = build()
        optimizer = HyperNetworkOptimizer(hypernetwork, reduction=reduction, max_grad_norm=NEVER)
        optimizer.apply(random_deltas(CLIENTS, seed=0))
        moments[reduction] = [optimizer.adam.state[p]["exp_avg"] for p in hypernetwork.parameters()]
    for summed, averaged in zip(moments["sum"], moments["mean"], strict=True):
        # The same sums divided by 5: rounding only, of 6e-8 times the largest term.
        torch.testing.assert_close(summed, 5 * averaged, rtol=1e-5, atol=1e-5 * summed.abs().max().item())


@pytest.mark.parametrize("arrival", list(permutations(CLIENTS))[::29])
@pytest.mark.parametrize("reporting", list(permutations(CLIENTS))[7::53])
def test_joint_does_not_depend_on_the_order_of_arrival_or_of_replies(arrival, reporting):
    pair = Pair(clients=sizes(*arrival))
    for step in range(2):
        pair.apply(random_deltas(sizes(*reporting), seed=step))


def test_joint_is_bit_for_bit_the_same_whatever_the_order_of_arrival_and_of_replies():
    """Replies race; a run that is resumed or repeated must not differ for it in the last bit."""
    results = []
    for arrival, reporting in ((CLIENTS, CLIENTS), (CLIENTS, reversed(CLIENTS)), (sorted(CLIENTS), CLIENTS)):
        reporting = list(reporting)
        hypernetwork = build(sizes(*arrival))
        optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR, max_grad_norm=1.0)
        for step in range(5):
            optimizer.apply(random_deltas(sizes(*reporting), seed=step))
        results.append({name: parameter.detach() for name, parameter in hypernetwork.named_parameters()})
    for other in results[1:]:
        assert all(torch.equal(results[0][name], value) for name, value in other.items())


@pytest.mark.parametrize(("first", "second"), [(35, 11), (11, 35)])
def test_heads_of_tau_5_and_2_are_updated_whichever_came_first(first, second):
    pair = Pair(clients={"first": first, "second": second})
    for step in range(3):
        pair.apply(random_deltas({"first": first, "second": second}, seed=step))
        pair.apply(random_deltas({"second": second, "first": first}, seed=10 + step))


def test_heads_left_out_of_some_rounds_keep_their_own_step_count():
    """tau 5 first steps when the trunk is at its fourth step: its bias correction is that of a first step."""
    pair = Pair()
    for step in range(3):
        pair.apply(random_deltas(sizes("two", "one"), seed=step))
    pair.apply(random_deltas(CLIENTS, seed=3))
    pair.apply(random_deltas(sizes("five"), seed=4))
    pair.apply(random_deltas(sizes("two", "tiny", "five-too"), seed=5))
    steps = pair.reference.steps
    assert steps["trunk", 0, "weight"] == 6
    assert steps["head", 2, 0, "weight"] == 5
    assert steps["head", 5, 0, "weight"] == 3
    assert steps["embedding", "five"] == 2


@pytest.mark.parametrize("hidden_layers", [1, 2])
def test_joint_equals_reference_for_other_trunk_depths(hidden_layers):
    pair = Pair(hidden_layers=hidden_layers)
    for step in range(3):
        pair.apply(random_deltas(CLIENTS, seed=step))


def test_one_client_alone_equals_reference():
    pair = Pair(clients={"x": 50})
    for step in range(3):
        pair.apply(random_deltas({"x": 50}, seed=step))


def test_generating_between_steps_has_no_influence():
    """The optimizer takes its derivative at its own phi; graphs made by callers, kept or dropped, do not matter."""
    pair = Pair()
    kept = []
    for step in range(3):
        kept.append(pair.hypernetwork.generate(list(CLIENTS)))
        pair.apply(random_deltas(CLIENTS, seed=step))


@pytest.mark.parametrize("schedule", ["joint", "per-client"])
def test_gradients_that_someone_else_left_are_not_part_of_the_step(schedule):
    """The gradient is this cohort's vector-Jacobian product, and None elsewhere, whatever `.grad` held before."""
    pair = Pair(schedule=schedule)
    for step in range(2):
        for theta in pair.hypernetwork.generate(["five", "two"]):
            theta.sum().backward()
        pair.apply(random_deltas(sizes("two", "one"), seed=step))


def test_deltas_are_not_modified():
    hypernetwork = build()
    for schedule in ("joint", "per-client", "sequential"):
        deltas = random_deltas(CLIENTS, seed=0, scale=100.0)
        HyperNetworkOptimizer(hypernetwork, schedule=schedule, reduction="sum", max_grad_norm=1.0).apply(deltas)
        expected = random_deltas(CLIENTS, seed=0, scale=100.0)
        assert list(deltas) == list(expected)
        assert all(torch.equal(deltas[key], expected[key]) for key in deltas)


def test_defaults_are_joint_sum_2e_4_and_norm_50():
    hypernetwork = build()
    optimizer = HyperNetworkOptimizer(hypernetwork)
    reference = Reference(hypernetwork, CLIENTS, CHUNK)
    for step, scale in enumerate((100.0, 0.1, 10.0)):
        deltas = random_deltas(CLIENTS, seed=step, scale=scale)
        optimizer.apply(deltas)
        norms = reference.apply(as_arrays(deltas), lr=2e-4, schedule="joint", reduction="sum", max_grad_norm=50.0)
        assert (norms[0] > 50.0) == (scale != 0.1)
        assert_same_values(hypernetwork, reference, 2e-4)
        assert_same_adam_state(optimizer, hypernetwork, reference)


def test_adam_has_torchs_defaults():
    optimizer = HyperNetworkOptimizer(build(), lr=0.5)
    assert isinstance(optimizer.adam, torch.optim.Adam)
    for group in optimizer.adam.param_groups:
        assert group["lr"] == 0.5
        assert group["betas"] == (0.9, 0.999)
        assert group["eps"] == 1e-8
        assert group["weight_decay"] == 0
        assert not group["amsgrad"]


# --- direction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["joint", "per-client"])
def test_a_small_step_lowers_the_inner_product_by_what_the_gradient_says(schedule):
    """First order: Adam's first step moves each coordinate by lr against its sign, lowering <theta, delta> by lr |g|_1.

    lr = 1e-5 keeps second-order terms (lr^2 |g|_1^2 and the like) below a percent; the fall, about 1e-2, is far above
    the float32 noise of the vectors, about 1e-5.
    """
    clients = CLIENTS if schedule == "joint" else sizes("five")
    hypernetwork = build(clients)
    deltas = random_deltas(clients, seed=0)
    gradients = Reference(hypernetwork, clients, CHUNK).gradients(as_arrays(deltas))
    expected = 1e-5 * sum(np.abs(gradient).sum() for gradient in gradients.values())

    def inner_product() -> float:
        thetas = hypernetwork.generate(list(deltas))
        pairs = zip(thetas, deltas.values(), strict=True)
        return sum((theta.detach().double() @ delta.double()).item() for theta, delta in pairs)

    before = inner_product()
    HyperNetworkOptimizer(hypernetwork, lr=1e-5, schedule=schedule, max_grad_norm=NEVER).apply(deltas)
    assert before - inner_product() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("schedule", ["joint", "per-client", "sequential"])
def test_delta_of_sent_minus_trained_drives_theta_to_the_target(schedule):
    """A client that always trains to the same target: the distance falls to a hundredth. The opposite sign diverges."""
    hypernetwork = build()
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR, schedule=schedule)
    targets = random_deltas(CLIENTS, seed=5)

    def distance() -> float:
        thetas = hypernetwork.generate(list(targets))
        pairs = zip(thetas, targets.values(), strict=True)
        return sum((theta - target).detach().square().sum().item() for theta, target in pairs)

    start = distance()
    for _ in range(100):
        thetas = hypernetwork.generate(list(targets))
        pairs = zip(targets.items(), thetas, strict=True)
        optimizer.apply({key: (theta - target).detach() for (key, target), theta in pairs})
    assert distance() < 0.01 * start


# --- per-client and sequential --------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["per-client", "sequential"])
def test_per_client_makes_a_step_a_client_at_the_phi_before_it(schedule):
    pair = Pair(schedule=schedule)
    for step in range(3):
        norms = pair.apply(random_deltas(CLIENTS, seed=step))
        assert len(norms) == len(CLIENTS)
    assert pair.reference.steps["trunk", 0, "weight"] == 15
    assert pair.reference.steps["head", 5, 0, "weight"] == 6
    assert pair.reference.steps["embedding", "five"] == 3


@pytest.mark.parametrize("order", [("tiny", "five", "two"), ("two", "five", "tiny"), ("five-too", "one", "five")])
def test_per_client_steps_in_the_order_of_the_deltas(order):
    pair = Pair(schedule="per-client")
    for step in range(2):
        pair.apply(random_deltas(sizes(*order), seed=step))


def test_per_client_results_depend_on_the_order_enough_to_be_seen():
    """So that the test above can fail: another order is another result, by much more than its tolerance."""
    results = []
    for order in (("five", "two"), ("two", "five")):
        hypernetwork = build()
        HyperNetworkOptimizer(hypernetwork, lr=LR, schedule="per-client").apply(random_deltas(sizes(*order), seed=0))
        results.append(torch.cat([p.detach().flatten() for p in hypernetwork.trunk.parameters()]))
    assert (results[0] - results[1]).abs().max().item() > 0.5 * LR


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_per_client_steps_are_not_divided(reduction):
    """`reduction` is about joint cohorts; a step for one client is that client's gradient either way."""
    pair = Pair(schedule="per-client", reduction=reduction)
    pair.apply(random_deltas(CLIENTS, seed=0))
    pair.apply(random_deltas(sizes("five"), seed=1))


@pytest.mark.parametrize("schedule", ["sequential", "per-client", "joint"])
def test_visiting_clients_one_at_a_time_equals_the_reference_loop(schedule):
    """The authors' schedule: each theta comes from the phi that the client before left behind, its delta depends on it.

    A cohort of one is the same step under every schedule.
    """
    pair = Pair(schedule=schedule)
    targets = random_deltas(CLIENTS, seed=9)
    for _ in range(2):
        for key, target in targets.items():
            (theta,) = pair.hypernetwork.generate([key])
            expected = pair.reference.generate(key)
            # One step's tolerance on each parameter, through layers of width 8: a tenth of a step on theta.
            np.testing.assert_allclose(theta.detach().numpy(), expected, rtol=1e-5, atol=0.1 * LR)
            pair.optimizer.apply({key: (theta - target).detach()})
            pair.reference.apply({key: expected - target.numpy().astype(np.float64)}, **pair.options)
            pair.check()


# --- clipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["joint", "per-client"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_clipped_steps_equal_reference(schedule, reduction):
    """Steps of very different size under one limit: Adam's ratio of moments shows which of them were clipped."""
    pair = Pair(schedule=schedule, reduction=reduction, max_grad_norm=2.0)
    norms = []
    for step, scale in enumerate((30.0, 0.02, 1.0, 0.02)):
        norms += pair.apply(random_deltas(CLIENTS, seed=step, scale=scale))
    assert min(norms) < 2.0 < max(norms)


@pytest.mark.parametrize(("limit", "active"), [(0.5, True), (NEVER, False)])
def test_the_norm_of_all_touched_gradients_together_is_limited(limit, active):
    hypernetwork = build()
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR, max_grad_norm=limit)
    deltas = random_deltas(CLIENTS, seed=0)
    gradients = Reference(hypernetwork, CLIENTS, CHUNK).gradients(as_arrays(deltas))
    unclipped = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values()))
    assert (unclipped > limit) == active
    optimizer.apply(deltas)
    # Adam's first moment after one step is a tenth of the gradient that it was given.
    moments = [optimizer.adam.state[parameter]["exp_avg"] for parameter in hypernetwork.parameters()]
    norm = 10 * torch.cat([moment.double().flatten() for moment in moments]).norm().item()
    assert norm == pytest.approx(min(limit, unclipped), rel=1e-4)


def test_the_norm_counts_only_what_this_step_touched():
    """A large gradient of an earlier cohort's head must not weigh in the norm of the next step."""
    pair = Pair(max_grad_norm=5.0)
    pair.apply(random_deltas(sizes("five"), seed=0, scale=100.0))
    (norm,) = pair.apply(random_deltas(sizes("tiny"), seed=1, scale=0.1))
    assert norm < 5.0


# --- what a step leaves alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["joint", "per-client", "sequential"])
@pytest.mark.parametrize("cohort", [("two",), ("five", "tiny"), ("one", "two")])
def test_untouched_heads_and_embeddings_keep_value_and_adam_state(schedule, cohort):
    """After training everyone, so that Adam's momentum would move them if it could."""
    hypernetwork = build()
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR, schedule=schedule)
    optimizer.apply(random_deltas(CLIENTS, seed=0))
    before = snapshot(hypernetwork, optimizer)
    assert all("exp_avg" in entries for entries in before.values())
    for step in range(2):
        optimizer.apply(random_deltas(sizes(*cohort), seed=1 + step))
    after = snapshot(hypernetwork, optimizer)

    used = used_by(hypernetwork, cohort)
    untouched = [name for name, parameter in hypernetwork.named_parameters() if id(parameter) not in used]
    assert len(untouched) >= 5
    assert_equal_snapshots({name: before[name] for name in untouched}, {name: after[name] for name in untouched})
    for name, parameter in hypernetwork.named_parameters():
        if name in untouched:
            assert parameter.grad is None, name
        else:
            assert not torch.equal(before[name]["value"], after[name]["value"]), name
            assert after[name]["step"] > before[name]["step"], name


def test_a_head_never_used_has_no_adam_state_and_does_not_move():
    hypernetwork = build()
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR)
    head, embedding = hypernetwork.heads["5"], hypernetwork.embedding("five")
    values = [t.detach().clone() for t in (head.weight, head.bias, embedding)]
    for step in range(2):
        optimizer.apply(random_deltas(sizes("two", "one"), seed=step))
    for parameter, value in zip((head.weight, head.bias, embedding), values, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None
        assert not optimizer.adam.state.get(parameter)


@pytest.mark.parametrize("schedule", ["joint", "per-client"])
def test_a_shared_head_moves_while_the_other_clients_embedding_stays(schedule):
    hypernetwork = build()
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR, schedule=schedule)
    head = hypernetwork.heads["5"].weight.detach().clone()
    other = hypernetwork.embedding("five-too").detach().clone()
    before = hypernetwork.generate(["five-too"])[0].detach().clone()
    optimizer.apply(random_deltas(sizes("five"), seed=0))
    assert torch.equal(hypernetwork.embedding("five-too"), other)
    assert not torch.equal(hypernetwork.heads["5"].weight, head)
    assert not torch.equal(hypernetwork.generate(["five-too"])[0], before)


@pytest.mark.parametrize("schedule", ["joint", "per-client", "sequential"])
def test_no_deltas_change_nothing(schedule):
    hypernetwork = build()
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR, schedule=schedule, reduction="mean")
    fresh = snapshot(hypernetwork, optimizer)
    optimizer.apply({})
    assert_equal_snapshots(fresh, snapshot(hypernetwork, optimizer))
    optimizer.apply(random_deltas(CLIENTS, seed=0))
    trained = snapshot(hypernetwork, optimizer)
    optimizer.apply({})
    assert_equal_snapshots(trained, snapshot(hypernetwork, optimizer))


def test_rows_past_k_in_the_last_chunk_get_no_gradient():
    """K = 3 of N = 7: the last four outputs of the head are cut off, so their bias and weight columns stay put."""
    hypernetwork = build(sizes("tiny"))
    before = hypernetwork.heads["1"].bias.detach().clone(), hypernetwork.heads["1"].weight.detach().clone()
    HyperNetworkOptimizer(hypernetwork, lr=LR).apply(random_deltas(sizes("tiny"), seed=0))
    assert torch.equal(hypernetwork.heads["1"].bias[0, 3:], before[0][0, 3:])
    assert torch.equal(hypernetwork.heads["1"].weight[0, :, 3:], before[1][0, :, 3:])
    assert not torch.isclose(hypernetwork.heads["1"].bias[0, :3], before[0][0, :3], rtol=0, atol=0.5 * LR).any()


# --- who shares a head ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["joint", "per-client"])
@pytest.mark.parametrize("heads", HEADS[1:])
def test_all_kinds_of_heads_equal_reference(heads, schedule):
    """Cohorts that change, so that a head or moment that should not have moved shows."""
    pair = Pair(schedule=schedule, reduction="mean", heads=heads, groups=GROUPS)
    for step, cohort in enumerate((CLIENTS, ["two", "tiny"], ["five-too", "one"], ["tiny"], CLIENTS)):
        pair.apply(random_deltas(sizes(*cohort), seed=step))


@pytest.mark.parametrize("heads", HEADS[1:])
def test_clipped_steps_of_all_kinds_of_heads_equal_reference(heads):
    pair = Pair(max_grad_norm=2.0, heads=heads, groups=GROUPS)
    for step, scale in enumerate((30.0, 0.02, 1.0)):
        pair.apply(random_deltas(CLIENTS, seed=step, scale=scale))


@pytest.mark.parametrize("heads", ["by-architecture", "per-client"])
def test_a_head_of_the_same_tau_that_belongs_to_others_keeps_value_and_adam_state(heads):
    hypernetwork = build(heads=heads, groups=GROUPS)
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR)
    optimizer.apply(random_deltas(CLIENTS, seed=0))
    before = snapshot(hypernetwork, optimizer)
    optimizer.apply(random_deltas(sizes("five", "tiny"), seed=1))
    after = snapshot(hypernetwork, optimizer)
    used = used_by(hypernetwork, ("five", "tiny"))
    untouched = [name for name, parameter in hypernetwork.named_parameters() if id(parameter) not in used]
    assert len(untouched) == 3 * 3  # embedding, weights and biases of "five-too", "two" and "one"
    assert_equal_snapshots({name: before[name] for name in untouched}, {name: after[name] for name in untouched})


@pytest.mark.parametrize("heads", HEADS)
def test_all_kinds_of_heads_are_bit_for_bit_the_same_whatever_the_order_of_arrival_and_of_replies(heads):
    results = []
    for arrival, reporting in ((CLIENTS, CLIENTS), (CLIENTS, reversed(CLIENTS)), (sorted(CLIENTS), sorted(CLIENTS))):
        reporting = list(reporting)
        hypernetwork = build(sizes(*arrival), GROUPS, heads=heads)
        optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR, max_grad_norm=1.0)
        for step in range(3):
            optimizer.apply(random_deltas(sizes(*reporting), seed=step))
        results.append({name: parameter.detach() for name, parameter in hypernetwork.named_parameters()})
    for other in results[1:]:
        assert results[0].keys() == other.keys()
        assert all(torch.equal(results[0][name], value) for name, value in other.items())


@pytest.mark.parametrize("schedule", ["joint", "per-client"])
@pytest.mark.parametrize("heads", HEADS)
def test_frozen_parameters_do_not_move_and_have_no_adam_state(heads, schedule):
    """As the optimizer of mode adapt finds them: trained before, frozen, and clients registered since."""
    hypernetwork = build(heads=heads, groups=GROUPS)
    hypernetwork.freeze()
    frozen = {name: parameter.detach().clone() for name, parameter in hypernetwork.named_parameters()}
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR, schedule=schedule, max_grad_norm=NEVER)
    late = {"late": 20, "late-too": 31}  # a new tau (3); a tau that is there already (5)
    for key, num_params in late.items():
        hypernetwork.register(key, num_params)
    started = {key: hypernetwork.embedding(key).detach().clone() for key in late}
    reference = Reference(hypernetwork, late, CHUNK)
    deltas = random_deltas(late, seed=0)
    assert optimizer.apply(deltas)
    for name, parameter in hypernetwork.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name
            assert not optimizer.adam.state.get(parameter), name
        else:
            assert int(optimizer.adam.state[parameter]["step"]) == 1, name
    if schedule == "joint":
        for key in late:
            gradient = reference.gradients(as_arrays(deltas))["embedding", key]
            moved = (hypernetwork.embedding(key) - started[key]).detach().numpy()
            # The first step of Adam is lr against the gradient's sign.
            large = np.abs(gradient) > 1e-3
            np.testing.assert_allclose(moved[large], -LR * np.sign(gradient[large]), rtol=0, atol=0.01 * LR)


# --- the mean of a global step --------------------------------------------------------------------------------------


def test_mean_delta_weighs_by_samples():
    deltas = [
        (torch.tensor([1.0, 0.0, 8.0]), 10),
        (torch.tensor([0.0, 4.0, 0.0]), 30),
        (torch.tensor([2.0, 0.0, 0.0]), 40),
    ]
    torch.testing.assert_close(mean_delta(deltas), torch.tensor([90.0, 120.0, 80.0]) / 80, rtol=1e-6, atol=0)


def test_mean_delta_of_one_client_is_its_delta_whatever_its_samples():
    (delta,) = random_deltas(sizes("five"), seed=0).values()
    assert torch.equal(mean_delta([(delta, 3)]), delta)


def test_mean_delta_equals_a_float64_mean_and_leaves_the_deltas_alone():
    deltas = [*random_deltas(dict.fromkeys("abcdefgh", 50), seed=0).values()]
    copies = [delta.clone() for delta in deltas]
    samples = [1, 7, 100, 31, 5, 5, 900, 12]
    mean = mean_delta(list(zip(deltas, samples, strict=True)))
    expected = np.average([delta.double().numpy() for delta in deltas], axis=0, weights=samples)
    assert mean.dtype == torch.float32
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(delta, copy) for delta, copy in zip(deltas, copies, strict=True))


# --- clients that come later ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["joint", "per-client"])
@pytest.mark.parametrize("late", [{"late": 20}, {"late": 31}])  # a new tau (3); a tau that is there already (5)
def test_a_client_registered_after_training_started_is_trained_from_its_first_step(schedule, late):
    pair = Pair(clients=sizes("five", "two"), schedule=schedule)
    for step in range(3):
        pair.apply(random_deltas(sizes("five", "two"), seed=step))
    pair.hypernetwork.register("late", num_params=late["late"])
    pair.reference.adopt(pair.hypernetwork, late)
    assert not pair.optimizer.adam.state.get(pair.hypernetwork.embedding("late"))

    pair.apply(random_deltas(sizes("five"), seed=3))  # registered, not yet in a cohort
    assert not pair.optimizer.adam.state.get(pair.hypernetwork.embedding("late"))
    pair.apply(random_deltas({"two": 14, **late}, seed=4))
    assert int(pair.optimizer.adam.state[pair.hypernetwork.embedding("late")]["step"]) == 1
    pair.apply(random_deltas({**late, "two": 14}, seed=5))
    tau = pair.reference.tau("late")
    assert pair.reference.steps["head", tau, 0, "weight"] == (6 if tau == 5 else 2)


def test_an_optimizer_made_before_any_client_is_registered():
    hypernetwork = build({})
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR, max_grad_norm=NEVER)
    for key in ("two", "five"):
        hypernetwork.register(key, num_params=CLIENTS[key])
    clients = sizes("two", "five")
    reference = Reference(hypernetwork, clients, CHUNK)
    for step in range(2):
        deltas = random_deltas(clients, seed=step)
        optimizer.apply(deltas)
        reference.apply(as_arrays(deltas), lr=LR, max_grad_norm=NEVER)
        assert_same_values(hypernetwork, reference, LR)
        assert_same_adam_state(optimizer, hypernetwork, reference)


def test_every_parameter_is_in_adam_once():
    hypernetwork = build(sizes("five"))
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR)
    hypernetwork.register("five-too", num_params=30)
    hypernetwork.register("two", num_params=14)
    for step in range(2):
        optimizer.apply(random_deltas(sizes("five", "five-too", "two"), seed=step))
    held = [id(parameter) for group in optimizer.adam.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in hypernetwork.parameters())


# --- errors ---------------------------------------------------------------------------------------------------------


def test_unknown_schedule_names_the_allowed_ones():
    with pytest.raises(ValueError, match="parallel") as error:
        HyperNetworkOptimizer(build(), schedule="parallel")
    assert all(name in str(error.value) for name in ("joint", "per-client", "sequential"))


def test_unknown_reduction_names_the_allowed_ones():
    with pytest.raises(ValueError, match="median") as error:
        HyperNetworkOptimizer(build(), reduction="median")
    assert all(name in str(error.value) for name in ("sum", "mean"))


@pytest.mark.parametrize("schedule", ["joint", "per-client", "sequential"])
@pytest.mark.parametrize("length", [0, 32, 34, 35])  # 35 is tau * N: the length before the cut is wrong, too
def test_a_delta_of_the_wrong_length_raises_and_changes_nothing(schedule, length):
    hypernetwork = build()
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR, schedule=schedule)
    optimizer.apply(random_deltas(CLIENTS, seed=0))
    before = snapshot(hypernetwork, optimizer)
    with pytest.raises(ValueError, match="five"):
        optimizer.apply({**random_deltas(sizes("two"), seed=1), "five": torch.ones(length)})
    assert_equal_snapshots(before, snapshot(hypernetwork, optimizer))


def test_parameters_and_moments_stay_float32():
    hypernetwork = build()
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=LR)
    optimizer.apply(random_deltas(CLIENTS, seed=0))
    for parameter, _ in implementation_tensors(hypernetwork, CLIENTS, CHUNK).values():
        assert parameter.dtype == torch.float32
        assert optimizer.adam.state[parameter]["exp_avg"].dtype == torch.float32


def test_embeddings_may_learn_at_a_rate_of_their_own():
    """Adam's first step moves every value with a gradient by the learning rate, whatever the gradient's size."""
    hypernetwork = build({"a": 14})
    embedding, head = hypernetwork.embedding("a").detach().clone(), hypernetwork.heads["2"].bias.detach().clone()
    optimizer = HyperNetworkOptimizer(hypernetwork, lr=1e-3, embedding_lr=0.5)
    assert optimizer.apply({"a": torch.ones(14)})
    moved = (hypernetwork.embedding("a") - embedding).abs()
    assert torch.allclose(moved[moved > 1e-2], torch.tensor(0.5), rtol=1e-2)
    assert (moved > 1e-2).any()
    assert torch.allclose((hypernetwork.heads["2"].bias - head).abs().max(), torch.tensor(1e-3), rtol=1e-2)
