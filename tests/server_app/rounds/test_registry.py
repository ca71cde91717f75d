"""Who is let in, and how a client is found again."""

import pytest

from common.errors import ProtocolError
from common.protocol import Registration
from server_app.client import NOWHERE, Client, natural_order
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
    with pytest.raises(ProtocolError, match="'a' is held by node 7") as error:
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
    with pytest.raises(ProtocolError, match="was 50 and is now 51") as error:
        registry.admit(registration("a", 51), node_id=node, live_nodes={node})
    assert error.value.reason == "changed-size"
    assert registry.clients == [client("a", 50, node_id=7)]


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
    assert registry.client("a").facts is not facts  # a method may drop one


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
    with pytest.raises(ProtocolError) as error:
        registry.admit(registration("b", 61), node_id=8, live_nodes={7, 8})
    assert error.value.reason == "changed-size"
    known = registry.client("b")
    assert registry.admit(registration("b", 60), node_id=8, live_nodes={7, 8}) is known
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
    assert known == client("a", 50, node, train=40, test=20)
