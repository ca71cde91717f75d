"""Who is let in, and how a client is found again."""

import json
import multiprocessing
import stat

import pytest
from filelock import FileLock

from common.errors import ProtocolError, UserError
from common.protocol import Registration
from server_app.client import NOWHERE, Client, natural_order
from server_app.rounds.bindings import Bindings
from server_app.rounds.registry import Registry


def registration(key, size, facts=None, train=30, test=10):
    return Registration(key, size, train, test, facts or {})


def client(key, size, node_id, facts=None, train=30, test=10):
    return Client(key, size, node_id, facts or {}, train, test)


@pytest.fixture
def registry():
    registry = Registry(max_params=100, max_samples=1000)
    registry.admit(registration("a", 50), node_id=7, live_nodes={7})
    return registry


def test_clients_come_in_the_natural_order_of_their_keys_whoever_came_first():
    registry = Registry(max_params=100, max_samples=1000)
    for node, key in enumerate(("10", "2", "0", "11", "1")):
        registry.admit(registration(key, 50), node, range(5))
    assert [client.key for client in registry.clients] == ["0", "1", "2", "10", "11"]


def test_natural_order_is_total():
    keys = ["b", "a", "10", "9", "aa", "z", "client-10", "client-9"]
    assert sorted(keys, key=natural_order) == sorted(reversed(keys), key=natural_order)
    assert sorted(["client-10", "client-9"], key=natural_order) == ["client-9", "client-10"]


def test_a_key_held_by_a_live_node_is_refused_to_another(registry):
    with pytest.raises(ProtocolError, match="a is held by node 7, still connected") as error:
        registry.admit(registration("a", 50), node_id=8, live_nodes={7, 8})
    assert error.value.reason == "key-in-use"
    assert registry.clients == [client("a", 50, node_id=7)]
    assert registry.nodes() == {7}


def test_a_client_comes_back_through_a_new_node_when_the_old_one_is_gone(registry):
    known = registry.clients[0]
    assert registry.admit(registration("a", 50), node_id=8, live_nodes={8}) is known
    assert registry.clients == [client("a", 50, node_id=8)]
    assert registry.nodes() == {8}


def test_the_same_node_may_register_again(registry):
    registry.admit(registration("a", 50), node_id=7, live_nodes={7})
    assert registry.clients == [client("a", 50, node_id=7)]


@pytest.mark.parametrize("node", [7, 8])
def test_a_client_cannot_change_its_size(registry, node):
    with pytest.raises(ProtocolError, match="was 50 and is now 51: use a new client key") as error:
        registry.admit(registration("a", 51), node_id=node, live_nodes={node})
    assert error.value.reason == "changed-size"
    # What speaks through its node has another model now, so it is not there itself.
    assert registry.clients == [client("a", 50, node_id=NOWHERE if node == 7 else 7)]


@pytest.mark.parametrize("facts", [{}, {"group": "y"}, {"group": "x", "global-num-params": 40}])
def test_a_client_that_comes_back_declares_what_it_declared(registry, facts):
    registry.admit(registration("b", 50, {"group": "x"}), node_id=8, live_nodes={7, 8})
    with pytest.raises(ProtocolError, match=r"it declared {'group': 'x'}, and now .*use a new client key") as error:
        registry.admit(registration("b", 50, facts), node_id=9, live_nodes={7, 9})
    assert error.value.reason == "changed-facts"
    assert registry.client("b") == client("b", 50, 8, {"group": "x"})
    registry.admit(registration("b", 50, {"group": "x"}), node_id=9, live_nodes={7, 9})
    assert registry.client("b").node_id == 9


def test_a_node_that_speaks_for_a_new_client_speaks_for_the_old_one_no_more(registry):
    registry.admit(registration("b", 60), node_id=7, live_nodes={7})
    assert registry.clients == [client("a", 50, NOWHERE), client("b", 60, 7)]
    registry.admit(registration("a", 50), node_id=8, live_nodes={7, 8})
    assert registry.clients == [client("a", 50, 8), client("b", 60, 7)]


def test_nodes_are_those_that_clients_speak_through(registry):
    registry.admit(registration("b", 60), node_id=9, live_nodes={7, 8, 9})
    assert registry.nodes() == {7, 9}
    assert Registry(max_params=100, max_samples=1000).nodes() == set()


def test_what_a_client_chose_to_tell_is_kept():
    registry = Registry(max_params=100, max_samples=1000)
    facts = {"global-num-params": 40, "group": "x"}
    registry.admit(registration("a", 50, facts), 1, {1, 2})
    registry.admit(registration("b", 60), 2, {1, 2})
    assert registry.clients == [client("a", 50, 1, facts), client("b", 60, 2, {})]


def test_a_client_that_was_removed_may_register_again_with_another_size(registry):
    registry.remove("a")
    assert registry.clients == []
    assert registry.nodes() == set()
    registry.admit(registration("a", 60), node_id=7, live_nodes={7})
    assert registry.clients == [client("a", 60, 7)]


def test_a_client_may_be_as_large_as_the_limit_and_not_larger(registry):
    registry.admit(registration("b", 100), node_id=8, live_nodes={7, 8})
    with pytest.raises(ProtocolError, match=r"num-params is 101, above max-params \(100\)") as error:
        registry.admit(registration("c", 101), node_id=9, live_nodes={7, 8, 9})
    assert error.value.reason == "too-large"
    assert [client.key for client in registry.clients] == ["a", "b"]


def test_a_known_client_that_grew_too_large_is_refused_and_stays_as_it_was(registry):
    with pytest.raises(ProtocolError) as error:
        registry.admit(registration("a", 101), node_id=8, live_nodes={8})
    assert error.value.reason == "too-large"
    assert registry.clients == [client("a", 50, node_id=7)]


def test_a_restored_client_has_no_node_until_it_comes_back_as_what_it_was(registry):
    registry.restore(client("b", 60, NOWHERE, {"group": "x"}))
    assert registry.nodes() == {7}
    for size, facts, reason in ((61, {"group": "x"}, "changed-size"), (60, {"group": "y"}, "changed-facts")):
        with pytest.raises(ProtocolError) as error:
            registry.admit(registration("b", size, facts), node_id=8, live_nodes={7, 8})
        assert error.value.reason == reason
    known = registry.client("b")
    assert registry.admit(registration("b", 60, {"group": "x"}), node_id=8, live_nodes={7, 8}) is known
    assert known == client("b", 60, 8, {"group": "x"})
    assert registry.nodes() == {7, 8}


@pytest.mark.parametrize(("train", "test", "key"), [(1001, 10, "train-samples"), (30, 1001, "test-samples")])
def test_a_client_may_have_as_many_samples_as_the_limit_and_not_more(registry, train, test, key):
    registry.admit(registration("b", 50, train=1000, test=1000), node_id=8, live_nodes={7, 8})
    with pytest.raises(ProtocolError, match=rf"{key} is 1,001, above max-samples \(1,000\)") as error:
        registry.admit(registration("c", 50, train=train, test=test), node_id=9, live_nodes={7, 8, 9})
    assert error.value.reason == "too-many-samples"
    assert [client.key for client in registry.clients] == ["a", "b"]


@pytest.mark.parametrize("node", [7, 8])
def test_a_client_that_registers_again_may_have_other_numbers_of_samples(registry, node):
    known = registry.client("a")
    assert registry.admit(registration("a", 50, train=40, test=20), node, live_nodes={node}) is known
    assert known == client("a", 50, node, train=40, test=20)
    with pytest.raises(ProtocolError):
        registry.admit(registration("a", 50, train=1001, test=20), node, live_nodes={node})
    assert known == client("a", 50, NOWHERE, train=40, test=20)  # who speaks there says something else now


def test_a_node_may_bring_some_keys_into_a_run_and_not_one_each_round(registry):
    for key in ("b", "c"):
        registry.admit(registration(key, 50), 7, {7, 8})
    with pytest.raises(ProtocolError, match=r"under 3 client keys in this run.*, or restart the run") as error:
        registry.admit(registration("d", 50), 7, {7, 8})
    assert error.value.reason == "too-many-keys"
    assert registry.nodes() == set()
    assert registry.admit(registration("b", 50), 7, {7, 8}).node_id == 7  # back under an old one
    assert registry.admit(registration("d", 50), 8, {7, 8}).node_id == 8  # another node


def test_keys_of_earlier_processes_do_not_count_and_neither_do_refused_ones():
    registry = Registry(max_params=100, max_samples=1000)
    for key in "abcd":
        registry.restore(client(key, 50, NOWHERE))
        registry.admit(registration(key, 50), 7, {7})
    for number in range(5):
        with pytest.raises(ProtocolError, match="max-params"):
            registry.admit(registration(f"large-{number}", 101), 7, {7})
    registry.admit(registration("e", 50), 7, {7})
    for _ in range(5):  # the same key, for which the method has no room
        registry.remove("e")
        registry.admit(registration("e", 50), 7, {7})


def test_a_client_that_is_refused_binds_no_key(state):
    registry = bound(state)
    registry.restore(client(KEY, 60, NOWHERE))
    assert refusal(registry, KEY, 7).reason == "changed-size"
    assert not (state / "bindings.json").exists()


# Bound to a node ------------------------------------------------------------------------------------------------------

KEY = "0b6d1c9e-7a51-4c3f-9d5e-2f1a86c4e077"  # of the site "hospital", through node 7
ALIKE = "0b6d1c9e-ffff-4c3f-9d5e-2f1a86c4e077"


@pytest.fixture
def state(tmp_path):
    """A server's state folder, with two registered sites."""
    sites = {"hospital": {"key": "ecdsa ...", "node-id": "7"}, "thief": {"key": "ecdsa ...", "node-id": "8"}}
    (tmp_path / "registered.json").write_text(json.dumps(sites))
    return tmp_path


def bound(state):
    """The registry of a run that has just started, or was resumed."""
    return Registry(max_params=100, max_samples=1000, bindings=Bindings(state))


def refusal(registry, key, node_id, live_nodes=(7, 8)):
    with pytest.raises(ProtocolError) as error:
        registry.admit(registration(key, 50), node_id, live_nodes)
    return error.value


@pytest.mark.parametrize("live_nodes", [{7, 8}, {8}])
def test_a_bound_key_is_refused_to_another_node_whether_its_owner_is_there_or_not(state, live_nodes):
    registry = bound(state)
    registry.admit(registration(KEY, 50), 7, {7, 8})
    error = refusal(registry, KEY, 8, live_nodes)
    assert error.reason == "key-bound"
    assert error.detail == (
        "the client key 0b6d1c9e… belongs to hospital; `mh-pfedhn site forget KEY` on the server unbinds it"
    )
    assert registry.client(KEY).node_id == 7


def test_a_key_is_bound_in_later_runs_and_after_a_resume_too(state):
    bound(state).admit(registration(KEY, 50), 7, {7})
    resumed = bound(state)
    resumed.restore(Client(KEY, 50, NOWHERE))
    for registry in (resumed, bound(state)):
        assert refusal(registry, KEY, 8).reason == "key-bound"
        assert registry.admit(registration(KEY, 50), 7, {7, 8}).node_id == 7


def test_a_site_may_take_a_new_key_and_its_old_one_stays_its_own(state):
    registry = bound(state)
    registry.admit(registration(KEY, 50), 7, {7})
    registry.admit(registration("new", 60), 7, {7})
    assert refusal(registry, KEY, 8).reason == "key-bound"
    assert {client.key: client.node_id for client in registry.clients} == {"new": 7, KEY: NOWHERE}
    registry.admit(registration(KEY, 50), 7, {7})
    assert {client.key: client.node_id for client in registry.clients} == {"new": NOWHERE, KEY: 7}


def test_a_key_that_is_forgotten_while_a_run_goes_on_is_free_once_its_holder_is_gone(state):
    registry = bound(state)
    registry.admit(registration(KEY, 50), 7, {7, 8})
    assert Bindings(state).forget(KEY) == ["0b6d1c9e… of hospital"]
    assert refusal(registry, KEY, 8).reason == "key-in-use"
    registry.admit(registration(KEY, 50), 8, {8})
    assert refusal(registry, KEY, 7).reason == "key-bound"  # it is the other's now


def test_a_client_is_admitted_only_with_its_binding_on_disk(state, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server_app.rounds.bindings.write_text", full)
    registry = bound(state)
    error = refusal(registry, KEY, 7)
    assert error.reason == "not-bound"
    assert error.detail.endswith("bindings.json cannot be written: No space left on device")
    assert registry.clients == []


def test_only_the_server_can_read_the_bindings(state):
    bound(state).admit(registration(KEY, 50), 7, {7})
    path = state / "bindings.json"
    assert json.loads(path.read_text()) == {KEY: 7}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_bindings_bind_nothing_anew_and_cost_a_node_its_registration_and_no_more(state, content):
    registry = bound(state)
    registry.admit(registration(KEY, 50), 7, {7})
    (state / "bindings.json").write_text(content)
    for node, key in ((8, KEY), (8, "new"), (7, KEY), (7, "new")):
        error = refusal(registry, key, node)
        assert error.reason == "not-bound"
        assert "bindings.json" in error.detail
        assert "restore it" in error.detail
    assert [(client.key, client.node_id) for client in registry.clients] == [(KEY, 7)]  # it is still there
    with pytest.raises(UserError, match=r"bindings.json .*restore it"):
        Bindings(state).forget(KEY)
    assert (state / "bindings.json").read_text() == content


def test_without_the_names_of_sites_nodes_are_shown_by_their_numbers(state):
    registry = bound(state)
    registry.admit(registration(KEY, 50), 7, {7, 8})
    (state / "registered.json").write_text("7")
    assert registry.node_name(7) == "node 7"
    error = refusal(registry, KEY, 8)
    assert error.reason == "key-bound"
    assert "belongs to node 7" in error.detail
    assert registry.admit(registration(ALIKE, 50), 8, {7, 8}).label == "0b6d1c9e…"
    with pytest.raises(UserError, match=r"registered.json .*restore it"):
        Bindings(state).forget("hospital")


def test_a_lock_that_another_process_holds_costs_a_new_key_its_registration_and_a_bound_one_nothing(state, monkeypatch):
    monkeypatch.setattr("server_app.rounds.bindings._LOCK_PATIENCE", 0.05)
    registry = bound(state)
    registry.admit(registration(KEY, 50), 7, {7, 8})
    with FileLock(state / "bindings.lock"):
        assert registry.admit(registration(KEY, 50), 7, {7, 8}).node_id == 7
        assert refusal(registry, "new", 8).reason == "not-bound"
    assert registry.admit(registration("new", 50), 8, {7, 8}).node_id == 8


def _claim(state, node_id):
    for number in range(20):
        Bindings(state).bind(f"key-{node_id}-{number}", node_id)


def test_two_runs_that_bind_at_a_time_lose_nothing(state):
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=_claim, args=(state, node_id)) for node_id in (7, 8)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(json.loads((state / "bindings.json").read_text())) == 40


@pytest.mark.parametrize("name", [KEY, "0b6d1c9e…", "0b6d1c9e", "0b6d1c9e-7", "hospital"])
def test_a_key_is_forgotten_by_itself_its_beginning_or_its_site(state, name):
    bindings = Bindings(state)
    bindings.bind(KEY, 7)
    bindings.bind("other", 8)
    assert bindings.forget(name) == ["0b6d1c9e… of hospital"]
    assert json.loads((state / "bindings.json").read_text()) == {"other": 8}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nobody", "No client key is bound that 'nobody' could mean; bound are: 0b6d1c9e… of hospital, "),
        ("", "No client key is bound that '' could mean; bound are: "),
        ("0b6d1c9e", "'0b6d1c9e' could mean 2 client keys, give more of it; bound are: 0b6d1c9e… of hospital, "),
    ],
)
def test_what_cannot_be_forgotten_is_told_with_what_is_bound(state, name, sentence):
    bindings = Bindings(state)
    bindings.bind(KEY, 7)
    bindings.bind(ALIKE, 9)
    with pytest.raises(UserError) as error:
        bindings.forget(name)
    assert str(error.value) == sentence + ("" if "hospital" in sentence else "0b6d1c9e… of hospital, ") + (
        "0b6d1c9e… of node 9."
    )
    assert json.loads((state / "bindings.json").read_text()) == {KEY: 7, ALIKE: 9}


# What is shown --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "label"), [("7", "7"), ("hospital-a-2", "hospital-a-2"), ("hospital-a-20", "hospital…"), (KEY, "0b6d1c9e…")]
)
def test_a_key_that_may_be_a_secret_is_shown_by_its_beginning(key, label):
    registry = Registry(max_params=100, max_samples=1000)
    assert registry.admit(registration(key, 50), 1, {1}).label == label
    assert registry.label(key) == label
    assert registry.label("node 1") == "node 1"
    assert Client(key, 50, 1).label == label


def test_labels_tell_clients_apart_and_stay_as_they_are():
    registry = Registry(max_params=100, max_samples=1000)
    for node, key in enumerate((KEY, ALIKE, "0b6d1c9e-fff0"), 1):
        registry.admit(registration(key, 50), node, {1, 2, 3})
    labels = {client.key: client.label for client in registry.clients}
    assert labels == {KEY: "0b6d1c9e…", ALIKE: "0b6d1c9e-…", "0b6d1c9e-fff0": "0b6d1c9e-f…"}
    resumed = Registry(max_params=100, max_samples=1000)
    for client in reversed(registry.clients):
        resumed.restore(Client.from_state(client.state()))
    assert {client.key: client.label for client in resumed.clients} == labels


def test_a_registered_site_is_shown_under_its_name(state):
    registry = bound(state)
    assert registry.admit(registration(KEY, 50), 7, {7, 9}).label == "hospital"
    assert registry.admit(registration(ALIKE, 50), 9, {7, 9}).label == "0b6d1c9e…"  # its node was registered otherwise
    assert registry.admit(registration("c" * 36, 50), 7, {7, 9}).label == "hospital (cccccccc…)"  # with another key
    assert (registry.node_name(7), registry.node_name(9)) == ("hospital", "node 9")


def test_no_client_can_take_the_name_of_another(state):
    registry = bound(state)
    registry.admit(registration(KEY, 50), 7, {7, 9})
    assert registry.admit(registration("hospital", 50), 9, {7, 9}).label == "hospital #2"
