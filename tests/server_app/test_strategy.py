"""The round loop: cohorts, the exchanges of a method in their order, the end of a run, and reproducibility."""

import json
import random
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fresh_process import new_process
from in_process import InProcessGrid
from playing import (
    EVALUATE,
    FINISH,
    NUM_CLIENTS,
    PERSONAL,
    Scripted,
    assert_same_network,
    cohorts,
    honest,
    key_of,
    lines_of,
    num_examples,
    play,
    reply_to,
    round_of,
    settings_for,
    start,
    strategy_for,
    timeless,
    told,
)
from writers import write

from common import protocol
from common.config import load_config
from common.errors import UserError
from common.methods import built_in
from common.models import build_model
from common.params import ParameterVector
from common.schema import Array, Vector
from server_app import checkpoint
from server_app.app import serve
from server_app.methods.base import Exchange, Method
from server_app.results.reading import read_clients

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")


# The exchanges of a method ----------------------------------------------------------------------------------------


class Describing(Method):
    """A round of three exchanges, a deployment of two, as of a method that must know of a client what it generates for.

    Clients describe themselves (nothing is trained), the first two of those who did refine that, and those who did
    train from what is made of it.
    """

    def __init__(self, config):
        super().__init__(config)
        self.learned = []  # (name of the exchange, clients whose good replies came), as the method got them

    def round(self, cohort):
        described = yield self.describe(cohort)
        self.learned.append(("describe", list(described)))
        some = [client for client in cohort if client.key in described][:2]
        refined = yield Exchange("refine", to=some, expect={"answer": Vector(2)}, losses="refined")
        self.learned.append(("refine", list(refined)))
        ready = [client for client in cohort if client.key in described]
        trained = yield Exchange("personal", to=ready, send=made_from(described), deploys=True)
        self.learned.append(("personal", list(trained)))

    def deploy(self, clients):
        described = yield self.describe(clients)
        ready = [client for client in clients if client.key in described]
        yield Exchange("deploy", to=ready, send=made_from(described), deploys=True)

    def describe(self, clients):
        question = {"question": torch.tensor([7, self.server_round])}
        return Exchange("describe", to=clients, send=question, expect={"answer": Array((2,))}, losses="")

    def numbers(self):
        return {"learned-exchanges": len(self.learned)}


def made_from(described):
    sums = described.of("answer")
    return lambda clients: {client.key: {"made": sums[client.key].sum().view(1)} for client in clients}


class Answering(Scripted):
    """Clients of such a method: client i answers (i, i + 1)."""

    def exchange(self, key, message, instructions, evaluation):
        if instructions.exchange == "describe":
            return reply_to(message, protocol.Result(), {"answer": self.answer(key)})
        if instructions.exchange == "refine":
            return reply_to(message, protocol.Result(num_examples(key), 9.0), {"answer": self.answer(key)})
        return super().exchange(key, message, instructions, evaluation)

    def answer(self, key):
        return torch.tensor([float(key), float(key) + 1])


def play_describing(small, special=None, hold=None, method=Describing, **overrides):
    """The settings are those of local training, which the clients do not follow."""
    config = load_config(settings_for(small, method="local", **overrides))
    grid = InProcessGrid(Answering(special), NUM_CLIENTS, hold=hold)
    return start(config, grid, strategy_for(config, method(config)))


def exchanges(played, *rounds):
    """(name, clients asked) of the exchanges of some rounds, in the order of sending."""
    order = []
    for message in played.grid.sent[NUM_CLIENTS:]:
        if round_of(message) in rounds:
            name = told(message).exchange
            if not order or order[-1][0] != name:
                order.append((name, []))
            order[-1][1].append(key_of(message.metadata.dst_node_id))
    return order


def made_for(message):
    return float(message.content["arrays"]["made"].numpy()[0])


def fails_once():
    """Spoils the first reply that it is given."""
    seen = []

    def fails(message, reply):
        seen.append(message)
        if len(seen) == 1:
            raise RuntimeError("nothing to describe")
        return reply

    return fails


def test_the_exchanges_of_a_round_are_played_in_order_each_with_what_the_one_before_brought(small):
    played = play_describing(small, hold=lambda message: int(message.metadata.dst_node_id) % 3)
    everyone = list("0123")
    for server_round in (1, 2, 3):
        assert exchanges(played, server_round) == [
            ("describe", everyone),
            ("refine", ["0", "1"]),
            ("personal", everyone),
        ]
    assert played.method.learned == [("describe", everyone), ("refine", ["0", "1"]), ("personal", everyone)] * 3
    for key, message in played.sent(PERSONAL):
        assert made_for(message) == 2 * int(key) + 1
    for _, message in played.sent("describe", 2):
        assert message.content["arrays"]["question"].numpy().tolist() == [7, 2]
        assert message.content["arrays"]["question"].dtype == "int64"
    messages = [message for message in played.grid.sent[NUM_CLIENTS:] if round_of(message) <= 3]
    assert {message.metadata.message_type for message in messages} == {protocol.TRAIN}
    # One losses' name an exchange; where nothing is trained there is none.
    for line in played.lines:
        assert (line["clients"], line["refined-clients"], line["refined-loss"]) == (4, 2, 9.0)
        assert line["client-train-loss"] == {"0": 1.0, "1": 2.0, "2": 3.0, "3": 4.0}
        assert line["failures"] == {}


def test_who_fails_an_exchange_is_asked_no_more_where_the_method_says_so(small):
    played = play_describing(small, {("1", "describe", 2): fails_once()})
    assert exchanges(played, 2) == [
        ("describe", list("0123")),
        ("refine", ["0", "2"]),
        ("describe", ["1"]),  # a deployment of its own, since it does not get the weights of round 1 for training
        ("deploy", ["1"]),
        ("personal", list("023")),
    ]
    assert played.method.learned[3:6] == [("describe", list("023")), ("refine", ["0", "2"]), ("personal", list("023"))]
    assert [line["failures"] for line in played.lines] == [{}, {"client-raised": 1}, {}]
    assert played.lines[1]["client-train-loss"].keys() == set("023")
    assert [line["client-accuracy"].keys() for line in played.lines] == [set("0123")] * 3


def test_an_exchange_to_nobody_costs_nothing_and_brings_nothing(small):
    played = play_describing(small, {(key, "describe", 2): fails_once() for key in "0123"})
    assert exchanges(played, 2) == [("describe", list("01230123")), ("deploy", list("0123"))]
    assert played.method.learned[3:6] == [("describe", []), ("refine", []), ("personal", [])]
    assert played.lines[1]["clients"] == 0
    assert "refined-loss" not in played.lines[1]
    assert [line["client-accuracy"].keys() for line in played.lines] == [set("0123")] * 3


def test_of_a_deployment_of_two_exchanges_the_last_deploys_and_is_tested(small):
    played = play_describing(small, participation=0.5, num_rounds=2)
    asked = played.trained(2)
    others = [key for key in "0123" if key not in asked]
    assert len(asked) == 2
    # In front of the exchange that deploys, the others get what round 1 led to.
    assert exchanges(played, 2) == [
        ("describe", asked),
        ("refine", asked),
        ("describe", others),
        ("deploy", others),
        ("personal", asked),
    ]
    assert exchanges(played, 3) == [("describe", list("0123")), ("deploy", list("0123"))]
    for message in played.grid.sent[NUM_CLIENTS:]:
        instructions, is_end = told(message), round_of(message) == 3
        deploys = instructions.exchange in ("personal", "deploy")
        assert instructions.deploys == deploys
        assert instructions.test == (deploys and round_of(message) > 1)
        assert instructions.final == (deploys and is_end)
        is_test = is_end or (key_of(message.metadata.dst_node_id) in others and round_of(message) == 2)
        assert message.metadata.message_type == (protocol.DEPLOY if is_test else protocol.TRAIN)
    assert [line["client-accuracy"].keys() for line in played.lines] == [set("0123")] * 2
    assert [line["client-train-loss"].keys() for line in played.lines] == [set(played.trained(1)), set(asked)]
    for key, message in (*played.sent(EVALUATE), *played.sent(FINISH)):
        assert made_for(message) == 2 * int(key) + 1


def test_who_fails_the_first_exchange_of_a_deployment_is_not_tested(small):
    played = play_describing(small, {("2", "describe", 3): fails_once()}, num_rounds=2)
    assert exchanges(played, 3) == [("describe", list("0123")), ("deploy", list("013"))]
    assert [line["client-accuracy"].keys() for line in played.lines] == [set("0123"), set("013")]
    assert [line["failures"] for line in played.lines] == [{}, {"client-raised": 1}]


class ApartFromTraining(Describing):
    @property
    def tests_on_arrival(self):
        return False


def test_where_the_round_deploys_something_else_everybody_is_tested_apart(small):
    played = play_describing(small, method=ApartFromTraining, num_rounds=2)
    everyone = list("0123")
    assert exchanges(played, 2) == [
        ("describe", everyone),
        ("refine", ["0", "1"]),
        ("describe", everyone),
        ("deploy", everyone),
        ("personal", everyone),
    ]
    assert not any(told(message).test for _, message in played.sent(PERSONAL))
    assert [line["client-accuracy"].keys() for line in played.lines] == [set("0123")] * 2


class NeverDeploying(Describing):
    def round(self, cohort):
        yield self.describe(cohort)


@pytest.mark.parametrize(("every", "first_due"), [(1, 2), (2, 3)])
def test_a_method_that_deploys_nothing_where_tests_are_due_ends_with_what_it_lacks(small, every, first_due):
    with pytest.raises(UserError) as error:
        play_describing(small, method=NeverDeploying, evaluate_every=every)
    assert str(error.value) == (
        "Method 'local' deployed nothing in `round`, so nothing could be tested: one of its exchanges must have "
        "deploys=True."
    )
    folder = Path(small["results-dir"]) / small["run-name"]
    assert len(lines_of(folder) if (folder / "metrics.jsonl").exists() else []) == first_due - 2


class Impatient(Describing):
    """Gives a round up where nobody describes itself."""

    def round(self, cohort):
        described = yield self.describe(cohort)
        if described:
            yield Exchange("personal", to=cohort, send=made_from(described), deploys=True)


def test_a_round_that_ends_early_for_want_of_answers_costs_its_test_and_nothing_else(small):
    def breaks(message, reply):
        raise RuntimeError("the network is gone")

    special = {(key, "describe", 2): breaks for key in "0123"}
    played = play_describing(small, method=Impatient, special=special, num_rounds=3)
    first, second, third = played.lines
    assert (first["accuracy"], first["client-accuracy"]) == (None, {})
    assert second["clients"] == 0
    assert second["failures"] == {"client-raised": 4}
    assert set(second["client-accuracy"]) == set(third["client-accuracy"]) == set("0123")


class Returning(Describing):
    def round(self, cohort):
        return None


class YieldingTuples(Describing):
    def round(self, cohort):
        yield ("describe", cohort)


class NeverHandingOver(Describing):
    def deploy(self, clients):
        yield self.describe(clients)


class Misspelling(Describing):
    saved = ("lerned",)


class KeepingObjects(Describing):
    saved = ("learned",)

    def round(self, cohort):
        yield from super().round(cohort)
        self.learned = [{"what": object()}]


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (Returning, "round and deploy must yield exchanges, as generators do"),
        (YieldingTuples, "yields a tuple, but must yield an Exchange"),
        (NeverHandingOver, "deployed nothing in `deploy`"),
        (Misspelling, "lists 'lerned' under `saved`, but has no such attribute"),
        (KeepingObjects, r"it\['learned'\]\[0\]\['what'\] is of type object, but must be tensors, numbers"),
    ],
)
def test_a_mistake_of_a_methods_author_is_one_sentence(small, method, sentence):
    with pytest.raises(UserError, match=sentence):
        play_describing(small, method=method, checkpoint_every=1)


def test_numbers_of_a_method_stand_in_the_lines_of_their_rounds(small):
    played = play_describing(small)
    assert [line["learned-exchanges"] for line in played.lines] == [3, 6, 9]


def test_draws_of_a_method_and_what_it_learned_go_on_after_a_resume(small):
    """By the checkpoint: `random` and `state()`; the loop's own draws are those of the cohorts."""

    class Drawing(Describing):
        def round(self, cohort):
            self.learned.append(self.random.random())
            yield Exchange("personal", to=cohort, deploys=True)

        def deploy(self, clients):
            yield Exchange("deploy", to=clients, deploys=True)

        def state(self):
            return {"learned": list(self.learned)}

        def load_state(self, state):
            self.learned = list(state["learned"])

    def run(name, num_rounds, start_from=None):
        config = load_config(
            settings_for(small, method="local", run_name=name, num_rounds=num_rounds, checkpoint_every=1)
        )
        strategy = strategy_for(config, Drawing(config), start=start_from)
        return start(config, InProcessGrid(Answering(), NUM_CLIENTS), strategy)

    whole = run("whole", 5).method.learned
    stopped = run("stopped", 3)
    assert whole[:3] == stopped.method.learned
    assert run("stopped", 5, checkpoint.load(stopped.folder)).method.learned == whole
    assert len(set(whole)) == 5


class Watching(InProcessGrid):
    """Keeps nothing itself, and notes whenever the server pushes or pulls which earlier messages are still alive."""

    def __init__(self, answer):
        # The later a client is asked, the sooner its reply is there, so that replies come one by one.
        super().__init__(answer, NUM_CLIENTS, hold=lambda message: 2 * (103 - message.metadata.dst_node_id))
        self.requests, self.replies = [], []
        self.alive = []  # (push or pull, requests, replies)

    def note(self, event):
        self.alive.append(
            (event, *(sum(each() is not None for each in those) for those in (self.requests, self.replies)))
        )

    def push_messages(self, messages):
        self.note("push")
        (message,) = messages
        identifiers = super().push_messages([message])
        self.requests.append(weakref.ref(message))
        self.sent[-1] = None
        return identifiers

    def pull_messages(self, message_ids):
        self.note("pull")
        found = super().pull_messages(message_ids)
        self.replies += map(weakref.ref, found)
        self.received.clear()
        return found


def test_requests_are_made_one_at_a_time_and_no_message_is_held_longer_than_it_is_looked_at(small):
    """A message is as large as a model, and there are as many as clients."""
    grid = Watching(Scripted())
    start(load_config(small | {"num-rounds": 2}), grid)
    assert len(grid.requests) == len(grid.replies) == 4 * NUM_CLIENTS  # registration, two rounds, the end
    pushes = [alive for event, *alive in grid.alive if event == "push"]
    assert pushes == [[0, 0]] * (4 * NUM_CLIENTS)
    _, *exchanges = [i for i, (event, *_) in enumerate(grid.alive) if event == "push"][NUM_CLIENTS - 1 :]
    # Registrations, which are small, are looked at together.
    pulls = [alive for event, *alive in grid.alive[exchanges[0] :] if event == "pull"]
    assert {requests for requests, _ in pulls} == {0}
    assert max(replies for _, replies in pulls) == 1  # the last that was looked at


def test_the_final_weights_are_handed_over_and_kept_by_every_client(run_config):
    played = play(run_config)
    thetas = played.method.hn.generate(list("0123"))
    for i, theta in enumerate(thetas):
        model = build_model(("lenet", "mlp")[i % 2], (3, 8, 8), 4, seed=0)
        theta_0 = ParameterVector(model).read()
        model.load_state_dict(torch.load(played.folder / "clients" / str(i) / "personal-model.pt", weights_only=True))
        torch.testing.assert_close(ParameterVector(model).read(), theta_0 + theta.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("method", built_in())
def test_a_simulation_leaves_all_files_of_a_run(run_config, method):
    settings = settings_for(run_config, method=method)
    grid = InProcessGrid(honest, NUM_CLIENTS, settings)
    config = load_config(settings)
    serve(grid, config, simulated=True)
    folder = config.results_path / "run"
    lines, summary = lines_of(folder), json.loads((folder / "summary.json").read_text())
    assert [line["round"] for line in lines] == [1, 2]
    assert summary["last-accuracy"] == lines[-1]["accuracy"]
    assert summary["method"] == method
    table = (folder / "clients.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in table[1:]] == [["0", "lenet"], ["1", "mlp"], ["2", "lenet"], ["3", "mlp"]]
    chunks = [dict(zip(table[0].split(","), row.split(","), strict=True))["chunks"] for row in table[1:]]
    assert [bool(each) for each in chunks] == [method.startswith("mh-pfedhn")] * 4  # empty where there are none
    partition = json.loads((folder / "partition.json").read_text())
    assert set(partition["clients"]) == set("0123")
    assert "owners" not in partition
    rows = [dict(zip(table[0].split(","), row.split(","), strict=True)) for row in table[1:]]
    for row in rows:
        size = partition["sizes"][row["client"]]
        assert (row["train-samples"], row["test-samples"]) == (str(size["train"]), str(size["test"]))
        assert sum(partition["clients"][row["client"]]) == sum(size.values())
    data = json.loads((folder / "data.json").read_text())
    assert (data["image-shape"], data["num-classes"], data["class-names"]) == ([3, 8, 8], 4, list("0123"))
    assert len(data["mean"]) == len(data["std"]) == 3


def test_writers_are_clients_whose_sizes_and_names_are_those_of_the_file(run_config, tmp_path, caplog):
    written = write()
    path = written.write_npz(tmp_path / "writers.npz", "owners")
    settings = settings_for(run_config, data_dir=str(path), partition="by-client", num_clients=0, min_samples=10)
    grid = InProcessGrid(honest, 5, settings)
    config = load_config(settings)
    serve(grid, config, simulated=True)
    folder = config.results_path / "run"
    rows = read_clients(folder / "clients.csv")
    sizes = {row.owner: (row.train_samples or 0) + (row.test_samples or 0) for row in rows}
    assert sizes == {name: size for name, size in written.sizes.items() if size >= 10}
    partition = json.loads((folder / "partition.json").read_text())
    assert partition["owners"] == {row.client: row.owner for row in rows}
    assert "Owners left out since they have fewer than 10 samples (min-samples): 1." in caplog.text
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert (settings["num-clients"], settings["min-samples"], settings["partition"]) == (5, 10, "by-client")


# Cohorts --------------------------------------------------------------------------------------------------------------


def test_cohorts_follow_from_the_seed(small):
    settings = {"num_rounds": 8, "participation": 0.5}
    first = cohorts(play(small, Scripted(), run_name="a", **settings))
    assert first == cohorts(play(small, Scripted(), run_name="b", **settings))
    assert first != cohorts(play(small, Scripted(), run_name="c", seed=1, **settings))


@pytest.mark.parametrize(("participation", "size"), [(0.01, 1), (0.26, 1), (0.75, 3), (1.0, 4)])
def test_a_cohort_has_its_share_of_the_clients_and_at_least_one(small, participation, size):
    played = play(small, Scripted(), participation=participation)
    assert [len(cohort) for cohort in cohorts(played)] == [size] * 3


# Reproducibility ------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_lines_whatever_the_order_of_the_replies(run_config):
    settings = {"num_rounds": 3, "participation": 0.75, "models": "lenet,resnet10"}
    runs = []
    for number, seed in enumerate((None, 1, 2)):
        shuffle = random.Random(seed)
        hold = None if seed is None else lambda message, shuffle=shuffle: shuffle.randrange(6)
        torch.manual_seed(number)
        random.seed(number)
        runs.append(play(run_config, hold=hold, run_name=f"run-{number}", **settings))
        new_process()
    arrivals = [[(each.metadata.src_node_id, round_of(each)) for each in run.grid.received] for run in runs]
    assert arrivals[0] != arrivals[1] != arrivals[2]
    assert timeless(runs[0].lines) == timeless(runs[1].lines) == timeless(runs[2].lines)
    # Lines are equal as text too: nothing is in order of arrival.
    texts = [json.dumps(timeless(run.lines)) for run in runs]
    assert texts[0] == texts[1] == texts[2]
    for run in runs[1:]:
        assert_same_network(runs[0].method.hn, run.method.hn)

    other = play(run_config, run_name="other", seed=1, **settings)
    assert timeless(other.lines) != timeless(runs[0].lines)


@pytest.mark.parametrize("method", built_in())
def test_the_server_draws_nothing_from_global_generators(small, method):
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    play(small, Scripted(), method=method, participation=0.5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002
