"""The hypernetwork's forward pass and initialisation, against the float64 loop in `reference.py`."""

import json
import math
import os
import random
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import CHUNK, CLIENTS, Reference, build
from torch import nn

import server_app
from server_app.hypernetwork import HyperNetwork, Member, choose_chunk_size

TAUS = {"five": 5, "two": 2, "five-too": 5, "one": 1, "tiny": 1}
# Two groups of one tau; a group of two taus; a client without a label beside one that has its tau and a label.
GROUPS = {"five": "a", "five-too": "b", "two": "a", "one": "c"}
HEADS = ("by-tau", "by-architecture", "per-client", "none")


def initial_values(hypernetwork: HyperNetwork, clients=CLIENTS) -> list[torch.Tensor]:
    """Trunk, then embeddings and heads in a fixed order, whatever the order of registration."""
    tensors = [parameter.detach().clone() for parameter in hypernetwork.trunk.parameters()]
    for key in sorted(clients):
        head = hypernetwork.head(key)
        tensors += [t.detach().clone() for t in (hypernetwork.embedding(key), head.weight, head.bias)]
    return tensors


def assert_generates_reference(hypernetwork: HyperNetwork, clients: dict[str, int], chunk_size: int, keys) -> None:
    # Sums of 8 + 1 products of size one: float32 keeps about 1e-6 of the largest, so 1e-5 of the vector's scale.
    reference = Reference(hypernetwork, clients, chunk_size)
    generated = hypernetwork.generate(keys)
    assert len(generated) == len(keys)
    for key, theta in zip(keys, generated, strict=True):
        expected = reference.generate(key)
        assert theta.shape == (clients[key],)
        np.testing.assert_allclose(
            theta.detach().numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=key
        )


# --- generate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", CLIENTS)
def test_generate_equals_loop_over_chunks(key):
    assert_generates_reference(build(), CLIENTS, CHUNK, [key])


def test_generate_mixed_cohort_equals_loop():
    assert_generates_reference(build(), CLIENTS, CHUNK, list(CLIENTS))


@pytest.mark.parametrize("hidden_layers", [1, 2, 4])
def test_generate_equals_loop_for_other_trunk_depths(hidden_layers):
    hypernetwork = build(hidden_layers=hidden_layers)
    assert sum(isinstance(module, nn.Linear) for module in hypernetwork.trunk) == hidden_layers
    assert sum(isinstance(module, nn.ReLU) for module in hypernetwork.trunk) == hidden_layers
    assert_generates_reference(hypernetwork, CLIENTS, CHUNK, list(CLIENTS))


@pytest.mark.parametrize("num_params", [49, 50, 51, 99, 100, 101, 1])
def test_generate_around_chunk_boundaries(num_params):
    hypernetwork = build({"x": num_params}, chunk_size=50)
    assert_generates_reference(hypernetwork, {"x": num_params}, 50, ["x"])


@pytest.mark.parametrize("keys", list(permutations(["five", "two", "five-too", "tiny"]))[1::5])
def test_generate_returns_vectors_in_the_order_asked(keys):
    assert_generates_reference(build(), CLIENTS, CHUNK, list(keys))


def test_generate_a_key_asked_twice_is_returned_twice():
    assert_generates_reference(build(), CLIENTS, CHUNK, ["two", "five", "two"])


def test_generate_nothing():
    assert build().generate([]) == []


def test_generate_repeated_calls_agree():
    hypernetwork = build()
    first = [theta.detach().clone() for theta in hypernetwork.generate(["five", "two"])]
    second = hypernetwork.generate(["five", "two"])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_client_gets_the_same_vector_whoever_else_is_in_the_cohort():
    hypernetwork = build()
    (alone,) = hypernetwork.generate(["five"])
    among_others = hypernetwork.generate(list(CLIENTS))[list(CLIENTS).index("five")]
    torch.testing.assert_close(alone, among_others, rtol=1e-5, atol=1e-6)  # batching may reorder float32 sums


def test_generated_vectors_are_float32_with_graph_and_touch_no_grad():
    hypernetwork = build()
    for theta in hypernetwork.generate(list(CLIENTS)):
        assert theta.dtype == torch.float32
        assert theta.requires_grad
        assert theta.grad_fn is not None
    assert all(parameter.dtype == torch.float32 for parameter in hypernetwork.parameters())
    assert all(parameter.grad is None for parameter in hypernetwork.parameters())


def test_generate_follows_the_current_parameters():
    hypernetwork = build()
    hypernetwork.generate(list(CLIENTS))
    with torch.no_grad():
        for parameter in hypernetwork.parameters():
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel()).float()).view_as(parameter))
    assert_generates_reference(hypernetwork, CLIENTS, CHUNK, list(CLIENTS))


@pytest.mark.parametrize("keys", [["nobody"], ["five", "nobody"]])
def test_generate_unknown_key_raises(keys):
    with pytest.raises(KeyError, match="nobody"):
        build().generate(keys)


def test_vjp_through_generate_equals_finite_differences_of_generate():
    """Both sides are the implementation's: autograd's derivative of <theta, delta> against a central difference.

    h = 1e-3 is small enough that no ReLU switches on the way (a fixed seed). The float32 rounding of the vectors, about
    1e-7 an entry, makes up to 1e-3 of noise after division by 2 h, hence the absolute tolerance; the gradients compared
    are the largest of each parameter, of size one and more.
    """
    hypernetwork = build()
    keys = list(CLIENTS)
    generator = np.random.default_rng(0)
    deltas = [torch.from_numpy(generator.standard_normal(CLIENTS[key])) for key in keys]  # float64

    def inner_product() -> torch.Tensor:
        pairs = zip(hypernetwork.generate(keys), deltas, strict=True)
        return torch.stack([theta.double() @ delta for theta, delta in pairs]).sum()

    parameters = list(hypernetwork.parameters())
    gradients = torch.autograd.grad(inner_product(), parameters)
    h = 1e-3
    for parameter, gradient in zip(parameters, gradients, strict=True):
        position = np.unravel_index(int(gradient.abs().argmax()), gradient.shape)
        with torch.no_grad():
            original = parameter[position].item()
            parameter[position] = original + h
            above = inner_product().item()
            parameter[position] = original - h
            below = inner_product().item()
            parameter[position] = original
        assert (above - below) / (2 * h) == pytest.approx(gradient[position].item(), rel=1e-2, abs=2e-3)


# --- who shares a head ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("keys", [list(CLIENTS), ["tiny", "five-too", "two"]])
def test_generate_equals_loop_over_chunks_for_all_kinds_of_heads(heads, keys):
    assert_generates_reference(build(groups=GROUPS, heads=heads), CLIENTS, CHUNK, keys)


@pytest.mark.parametrize(
    ("heads", "sharing"),
    [
        ("by-tau", [{"five", "five-too"}, {"two"}, {"one", "tiny"}]),
        ("by-architecture", [{"five"}, {"five-too"}, {"two"}, {"one"}, {"tiny"}]),
        ("per-client", [{"five"}, {"five-too"}, {"two"}, {"one"}, {"tiny"}]),
        ("none", [set(CLIENTS)]),
    ],
)
def test_clients_that_share_a_head(heads, sharing):
    hypernetwork = build(groups=GROUPS, heads=heads)
    found: dict[int, set[str]] = {}
    for key in CLIENTS:
        found.setdefault(id(hypernetwork.head(key)), set()).add(key)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, sharing))
    assert len(hypernetwork.heads) == len(sharing)


def test_clients_of_one_group_and_tau_share_a_head():
    groups = {"five": "a", "five-too": "a", "one": "b", "tiny": "b"}
    hypernetwork = build(groups=groups, heads="by-architecture")
    assert hypernetwork.head("five") is hypernetwork.head("five-too")
    assert hypernetwork.head("one") is hypernetwork.head("tiny")
    assert_generates_reference(hypernetwork, CLIENTS, CHUNK, list(CLIENTS))


def test_a_client_without_a_label_takes_the_head_of_its_tau():
    hypernetwork = build({"five": 33, "five-too": 30, "other": 31}, {"five": "a"}, heads="by-architecture")
    assert hypernetwork.head("five-too") is hypernetwork.head("other") is hypernetwork.heads["5"]
    assert hypernetwork.head("five") is not hypernetwork.head("other")
    assert not torch.isclose(hypernetwork.head("five").weight, hypernetwork.heads["5"].weight).any()


def test_without_heads_one_output_layer_serves_all_chunks_of_everybody():
    hypernetwork = build(heads="none")
    (head,) = hypernetwork.heads.values()
    assert head.weight.shape == (1, 8, CHUNK)
    assert head.bias.shape == (1, CHUNK)
    before = [theta.detach() for theta in hypernetwork.generate(list(CLIENTS))]
    with torch.no_grad():
        head.bias[0, 2] += 1.0
    for old, new in zip(before, hypernetwork.generate(list(CLIENTS)), strict=True):
        expected = old.clone()
        expected[2::CHUNK] += 1.0  # in every chunk
        torch.testing.assert_close(new.detach(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("heads", HEADS)
def test_order_of_registration_does_not_change_initial_values_of_any_kind_of_heads(heads):
    reference = initial_values(build(groups=GROUPS, heads=heads))
    for order in list(permutations(CLIENTS))[1::37]:
        values = initial_values(build({key: CLIENTS[key] for key in order}, GROUPS, heads=heads))
        assert all(torch.equal(a, b) for a, b in zip(reference, values, strict=True)), order


@pytest.mark.parametrize("heads", ["by-architecture", "per-client"])
def test_heads_that_are_not_shared_start_differently(heads):
    hypernetwork = build(groups=GROUPS, heads=heads)
    assert not torch.isclose(hypernetwork.head("five").weight, hypernetwork.head("five-too").weight).any()


@pytest.mark.parametrize("heads", ["by-architecture", "per-client"])
def test_any_string_is_a_group_or_the_key_of_a_client_with_its_own_head(heads):
    names = {"a.b": 10, "a/b": 10, "5": 33, "weight": 12}
    hypernetwork = build(names, {name: name for name in names}, heads=heads)
    assert len({id(hypernetwork.head(name)) for name in names}) == len(names)
    assert_generates_reference(hypernetwork, names, CHUNK, list(names))


def test_unknown_heads_name_the_allowed_ones():
    with pytest.raises(ValueError, match="by-size") as error:
        build(heads="by-size")
    assert all(name in str(error.value) for name in HEADS)


# --- what is known about the clients --------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", HEADS)
def test_counted_new_values_are_those_that_registration_adds(heads):
    members = {key: Member(size, GROUPS.get(key, "")) for key, size in CLIENTS.items()}
    hypernetwork = build({}, heads=heads)
    for batch in (["five"], ["five-too", "one", "tiny"], ["five", "one"], ["two", "five"], []):
        joining = {key: members[key] for key in batch}
        before = sum(parameter.numel() for parameter in hypernetwork.parameters())
        counted = hypernetwork.count_new_values(joining)
        assert sum(parameter.numel() for parameter in hypernetwork.parameters()) == before  # counting adds nothing
        for key, member in joining.items():
            hypernetwork.register(key, member.num_params, member.group)
        assert sum(parameter.numel() for parameter in hypernetwork.parameters()) - before == counted
        assert hypernetwork.count_new_values(joining) == 0


def test_counting_in_the_papers_size_takes_no_memory():
    hypernetwork = HyperNetwork()
    tau = math.ceil(11_689_512 / 3072)
    assert hypernetwork.count_new_values({"x": Member(11_689_512)}) == tau * 64 + tau * 129 * 3072


@pytest.mark.parametrize("heads", HEADS)
def test_settings_and_members_make_another_of_the_same_shape(heads):
    hypernetwork = build(groups=GROUPS, heads=heads, hidden_layers=2, embedding_init_std=0.5)
    with torch.no_grad():
        for parameter in hypernetwork.parameters():
            parameter.add_(1.0)
    assert hypernetwork.members == {key: Member(size, GROUPS.get(key, "")) for key, size in CLIENTS.items()}
    assert list(hypernetwork.members) == list(CLIENTS)
    other = HyperNetwork(**hypernetwork.settings)
    assert other.settings == hypernetwork.settings
    for key, member in hypernetwork.members.items():
        other.register(key, *member)
    assert [(name, value.shape) for name, value in other.state_dict().items()] == [
        (name, value.shape) for name, value in hypernetwork.state_dict().items()
    ]
    other.load_state_dict(hypernetwork.state_dict())
    # What both register later starts equally: seed, std and scale are among the settings.
    for each in (hypernetwork, other):
        each.register("late", 60, "z")
    for one, two in zip(hypernetwork.generate([*CLIENTS, "late"]), other.generate([*CLIENTS, "late"]), strict=True):
        assert torch.equal(one, two)


def test_a_client_keeps_the_group_that_it_first_gave():
    hypernetwork = build({"five": 33}, {"five": "a"}, heads="by-architecture")
    head = hypernetwork.head("five")
    hypernetwork.register("five", 33, "b")
    assert hypernetwork.members == {"five": Member(33, "a")}
    assert hypernetwork.head("five") is head
    assert len(hypernetwork.heads) == 1


@pytest.mark.parametrize("heads", HEADS)
def test_after_freezing_only_what_is_registered_later_learns(heads):
    hypernetwork = build(groups=GROUPS, heads=heads)
    before = {id(parameter) for parameter in hypernetwork.parameters()}
    hypernetwork.freeze()
    hypernetwork.register("known-tau", 34, "a")
    hypernetwork.register("new-tau", 60, "a")
    learning = [parameter for parameter in hypernetwork.parameters() if parameter.requires_grad]
    assert not before & {id(parameter) for parameter in learning}
    new_heads = {"by-tau": 1, "by-architecture": 1, "per-client": 2, "none": 0}[heads]
    assert len(learning) == 2 + 2 * new_heads
    for key in ("known-tau", "new-tau"):
        (theta,) = hypernetwork.generate([key])
        (gradient,) = torch.autograd.grad(theta.sum(), [hypernetwork.embedding(key)])
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("sizes", "chunk_size"),
    [
        ([11_000_000], 3072),
        ([239_856, 571_236], 3072),
        ([196_608], 3072),
        ([196_607], 3071),
        ([2000], 31),
        ([11_000_000, 2000], 3072),
        ([11_000_000, 2000, 2000], 31),
        ([1, 239_856, 239_856], 3072),
        ([1, 2000, 5000], 31),
        ([64], 1),
        ([63], 1),
        ([1], 1),
    ],
)
def test_automatic_chunk_size(sizes, chunk_size):
    assert choose_chunk_size(sizes) == chunk_size
    assert choose_chunk_size(reversed(sizes)) == chunk_size
    assert choose_chunk_size(size for size in sizes) == chunk_size
    for size in sorted(sizes)[1:] or sizes:  # all but the smallest
        assert math.ceil(size / chunk_size) >= min(64, size)


# --- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "tau"), TAUS.items())
def test_num_params_and_num_chunks(key, tau):
    hypernetwork = build()
    assert hypernetwork.num_params(key) == CLIENTS[key]
    assert hypernetwork.num_chunks(key) == tau


@pytest.mark.parametrize(
    ("num_params", "tau"),
    [
        (239_856, 79),
        (274_664, 90),
        (353_028, 115),
        (529_092, 173),
        (571_236, 186),
        (408_100, 133),
        (3072, 1),
        (3073, 2),
    ],
)
def test_num_chunks_of_the_papers_models(num_params, tau):
    hypernetwork = HyperNetwork(hidden_dim=1, hidden_layers=1)  # chunk size by default, everything else small
    hypernetwork.register("client", num_params=num_params)
    assert hypernetwork.num_chunks("client") == tau
    assert hypernetwork.generate(["client"])[0].shape == (num_params,)


def test_default_sizes_are_the_papers():
    hypernetwork = HyperNetwork()
    hypernetwork.register("client", num_params=3073)
    assert hypernetwork.embedding("client").shape == (2, 64)
    assert hypernetwork.heads["2"].weight.shape == (2, 128, 3072)
    linears = [module for module in hypernetwork.trunk if isinstance(module, nn.Linear)]
    assert [(linear.in_features, linear.out_features) for linear in linears] == [(64, 128), (128, 128), (128, 128)]


def test_a_head_is_one_stacked_tensor():
    hypernetwork = build()
    for tau in (5, 2, 1):
        head = hypernetwork.heads[str(tau)]
        assert isinstance(head.weight, nn.Parameter)
        assert isinstance(head.bias, nn.Parameter)
        assert head.weight.shape == (tau, 8, CHUNK)
        assert head.bias.shape == (tau, CHUNK)
    for key, tau in TAUS.items():
        assert isinstance(hypernetwork.embedding(key), nn.Parameter)
        assert hypernetwork.embedding(key).shape == (tau, 6)


def test_parameters_are_the_trunk_one_head_a_tau_and_one_embedding_a_client():
    hypernetwork = build()
    expected = {id(parameter) for parameter in hypernetwork.trunk.parameters()}
    expected |= {id(hypernetwork.embedding(key)) for key in CLIENTS}
    for tau in (5, 2, 1):
        expected |= {id(hypernetwork.heads[str(tau)].weight), id(hypernetwork.heads[str(tau)].bias)}
    listed = [id(parameter) for parameter in hypernetwork.parameters()]
    assert len(listed) == len(set(listed)) == 6 + 5 + 6
    assert set(listed) == expected


def test_clients_of_equal_tau_share_a_head_and_keep_their_own_embedding():
    hypernetwork = build()
    assert hypernetwork.num_chunks("five") == hypernetwork.num_chunks("five-too")
    assert hypernetwork.embedding("five") is not hypernetwork.embedding("five-too")
    before = [theta.detach().clone() for theta in hypernetwork.generate(list(CLIENTS))]
    with torch.no_grad():
        hypernetwork.heads["5"].bias.add_(1.0)
    after = hypernetwork.generate(list(CLIENTS))
    for key, old, new in zip(CLIENTS, before, after, strict=True):
        shift = 1.0 if TAUS[key] == 5 else 0.0
        torch.testing.assert_close(new.detach(), old + shift, rtol=0, atol=1e-5)


def test_heads_that_arrive_as_tau_5_then_tau_2_are_found_by_tau():
    """The trap of PAPER-NOTES: created in order of arrival, looked up in sorted order."""
    clients = {"big": 35, "small": 11}
    hypernetwork = build(clients)
    assert hypernetwork.heads["5"].weight.shape[0] == 5
    assert hypernetwork.heads["2"].weight.shape[0] == 2
    assert_generates_reference(hypernetwork, clients, CHUNK, ["big", "small"])
    assert_generates_reference(hypernetwork, clients, CHUNK, ["small", "big"])


def test_registering_again_changes_nothing():
    hypernetwork = build()
    with torch.no_grad():
        hypernetwork.embedding("five").add_(1.0)
    parameters = {name: (id(p), p.detach().clone()) for name, p in hypernetwork.named_parameters()}
    hypernetwork.register("five", num_params=33)
    after = dict(hypernetwork.named_parameters())
    assert after.keys() == parameters.keys()
    for name, (identity, value) in parameters.items():
        assert id(after[name]) == identity
        assert torch.equal(after[name], value)


def test_a_new_client_leaves_what_exists_alone():
    hypernetwork = build({"five": 33})
    embedding, head = hypernetwork.embedding("five"), hypernetwork.heads["5"]
    values = [t.detach().clone() for t in hypernetwork.parameters()]
    identities = [id(t) for t in hypernetwork.parameters()]
    hypernetwork.register("five-too", num_params=30)
    hypernetwork.register("two", num_params=14)
    assert hypernetwork.embedding("five") is embedding
    assert hypernetwork.heads["5"].weight is head.weight
    assert hypernetwork.heads["5"].bias is head.bias
    by_identity = {id(t): t for t in hypernetwork.parameters()}
    assert all(torch.equal(by_identity[i], value) for i, value in zip(identities, values, strict=True))


@pytest.mark.parametrize("num_params", [32, 34, 14])  # the same tau or another one: both are refused
def test_registering_with_another_size_raises_and_changes_nothing(num_params):
    hypernetwork = build()
    before = list(hypernetwork.state_dict())
    with pytest.raises(ValueError, match="five"):
        hypernetwork.register("five", num_params=num_params)
    assert hypernetwork.num_params("five") == 33
    assert list(hypernetwork.state_dict()) == before
    assert_generates_reference(hypernetwork, CLIENTS, CHUNK, list(CLIENTS))


@pytest.mark.parametrize("num_params", [0, -1])
def test_num_params_below_one_raises(num_params):
    hypernetwork = build({})
    with pytest.raises(ValueError, match=str(num_params)):
        hypernetwork.register("x", num_params=num_params)
    with pytest.raises(KeyError):
        hypernetwork.generate(["x"])


@pytest.mark.parametrize("key", ["0", "site.eu-1", "weight", "keys", "a/b c", "7d9f2c8e-5b0e-4c3f-9d55-8e0f3b0a1c11"])
def test_any_string_is_a_client_key(key):
    """The key comes from the client and is opaque; a dot or a method's name in it must not matter."""
    clients = {key: 10, "other": 33}
    hypernetwork = build(clients)
    assert_generates_reference(hypernetwork, clients, CHUNK, ["other", key])


def test_keys_that_differ_in_case_or_punctuation_are_different_clients():
    clients = {"site-1": 10, "Site-1": 33, "site_1": 12, "site.1": 10, "site-1 ": 7}
    hypernetwork = build(clients)
    assert len({id(hypernetwork.embedding(key)) for key in clients}) == len(clients)
    assert_generates_reference(hypernetwork, clients, CHUNK, list(clients))


# --- initial values -------------------------------------------------------------------------------------------------


def test_order_of_registration_does_not_change_initial_values():
    reference = initial_values(build())
    for order in list(permutations(CLIENTS))[1::17]:
        values = initial_values(build({key: CLIENTS[key] for key in order}))
        assert all(torch.equal(a, b) for a, b in zip(reference, values, strict=True)), order


def test_initial_values_do_not_depend_on_who_else_is_registered():
    everyone, alone = build(), build({"two": 14})
    assert torch.equal(everyone.embedding("two"), alone.embedding("two"))
    assert torch.equal(everyone.heads["2"].weight, alone.heads["2"].weight)
    assert torch.equal(everyone.heads["2"].bias, alone.heads["2"].bias)


def test_initial_values_do_not_depend_on_the_clients_k_within_a_tau():
    assert torch.equal(build({"x": 8}).embedding("x"), build({"x": 14}).embedding("x"))
    assert torch.equal(build({"x": 8}).heads["2"].weight, build({"x": 14}).heads["2"].weight)


def test_initial_values_are_the_same_in_another_process():
    """A restarted server must draw what the first one drew; Python's hash() of a string differs between processes."""
    script = (
        "import json\n"
        "from server_app.hypernetwork import HyperNetwork\n"
        "hn = HyperNetwork(chunk_size=7, embedding_dim=6, hidden_dim=8, seed=3)\n"
        "hn.register('client-7', num_params=14)\n"
        "values = [hn.embedding('client-7'), hn.heads['2'].weight, hn.heads['2'].bias, *hn.trunk.parameters()]\n"
        "print(json.dumps([value.tolist() for value in values]))\n"
    )
    paths = [str(Path(server_app.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    elsewhere = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = build({"client-7": 14}, head_init_scale=0.1)
    head = here.heads["2"]
    values = [here.embedding("client-7"), head.weight, head.bias, *here.trunk.parameters()]
    assert json.loads(elsewhere) == [value.tolist() for value in values]


def test_seeds_clients_and_heads_differ():
    one, other = build(seed=1), build(seed=2)
    for a, b in zip(initial_values(one), initial_values(other), strict=True):
        assert not torch.isclose(a, b).any()
    assert not torch.isclose(one.embedding("five"), one.embedding("five-too")).any()
    assert not torch.isclose(one.heads["5"].weight[:2], one.heads["2"].weight).any()
    weight = one.heads["5"].weight
    assert not torch.isclose(weight[0], weight[1]).any()
    embedding = one.embedding("five")
    assert not torch.isclose(embedding[0], embedding[1]).any()


def assert_uniform(tensor: torch.Tensor, bound: float) -> None:
    """Within the bound, and with a uniform draw's spread; the samples here number 500 or more, the seed is fixed."""
    values = tensor.detach().double().flatten()
    assert len(values) >= 500
    assert values.abs().max().item() <= bound * (1 + 1e-6)
    assert values.max().item() > 0.97 * bound
    assert values.min().item() < -0.97 * bound
    assert abs(values.mean().item()) < 0.15 * bound  # five standard errors of 500 samples are 0.13
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_heads_start_uniform_in_the_linear_range_times_the_scale(scale):
    hypernetwork = build({"x": 2000}, chunk_size=50, hidden_dim=16, head_init_scale=scale)
    head = hypernetwork.heads["40"]
    assert_uniform(head.weight, scale / math.sqrt(16))
    assert_uniform(head.bias, scale / math.sqrt(16))


def test_head_scale_is_a_tenth_by_default():
    hypernetwork = HyperNetwork(chunk_size=50, embedding_dim=6, hidden_dim=16)
    hypernetwork.register("x", num_params=2000)
    assert_uniform(hypernetwork.heads["40"].weight, 0.1 / math.sqrt(16))
    assert_uniform(hypernetwork.heads["40"].bias, 0.1 / math.sqrt(16))


def test_trunk_starts_in_the_linear_range_whatever_the_heads_scale():
    hypernetwork = build({}, embedding_dim=20, hidden_dim=50, head_init_scale=0.1)
    linears = [module for module in hypernetwork.trunk if isinstance(module, nn.Linear)]
    assert [linear.in_features for linear in linears] == [20, 50, 50]
    for linear in linears:
        bound = 1 / math.sqrt(linear.in_features)
        assert_uniform(linear.weight, bound)
        assert linear.bias.abs().max().item() <= bound * (1 + 1e-6)
        assert linear.bias.abs().max().item() > 0.8 * bound
    assert not torch.isclose(linears[1].weight, linears[2].weight).any()


@pytest.mark.parametrize("std", [None, 1.0, 0.002])
def test_embeddings_start_normal_with_the_given_std(std):
    options = {} if std is None else {"embedding_init_std": std}
    hypernetwork = build({"x": 700}, embedding_dim=64, **options)
    std = 1.0 if std is None else std
    values = hypernetwork.embedding("x").detach().double().flatten() / std
    assert len(values) == 6400
    assert abs(values.mean().item()) < 5 / math.sqrt(6400)
    assert values.std().item() == pytest.approx(1.0, rel=0.05)
    beyond_two = (values.abs() > 2).double().mean().item()  # normal: 0.0455; uniform of the same spread: 0
    assert beyond_two == pytest.approx(0.0455, abs=5 * math.sqrt(0.0455 / 6400))


def test_no_global_random_generator_is_consumed():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    hypernetwork = build()
    hypernetwork.register("late", num_params=60)
    hypernetwork.generate([*CLIENTS, "late"])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


def test_initial_values_do_not_depend_on_the_global_generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = initial_values(build())
        torch.manual_seed(2)
        second = initial_values(build())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_new_client_can_start_at_the_mean_of_those_that_share_its_head():
    hypernetwork = build({"a": 30, "b": 30, "other": 14, "new": 29})
    hypernetwork.start_at_mean("new", ["a", "b", "other"])
    mean = (hypernetwork.embedding("a") + hypernetwork.embedding("b")) / 2
    assert torch.allclose(hypernetwork.embedding("new"), mean)
    assert hypernetwork.embedding("new").requires_grad


def test_a_new_client_whose_head_nobody_shares_keeps_its_random_start():
    hypernetwork = build({"a": 30, "new": 14})
    before = hypernetwork.embedding("new").detach().clone()
    hypernetwork.start_at_mean("new", ["a"])
    assert torch.equal(hypernetwork.embedding("new"), before)
