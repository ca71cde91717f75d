"""A run that is killed and resumed ends as the run that nobody killed, bit for bit."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from flwr.app import Context, Message
from fresh_process import new_process
from in_process import InProcessGrid
from playing import NUM_CLIENTS, SIZES, ChangingGrid, Scripted, lines_of, settings_for, timeless, told

import client_app.app
import server_app.app
from common.config import load_config
from common.errors import UserError
from common.lineage import Point
from server_app import checkpoint
from server_app.methods.mh_pfedhn import MHpFedHN

CLIENTS = 4

pytestmark = pytest.mark.usefixtures("_no_drawing")


class Killed(BaseException):
    """What no handler in the server catches."""


class Federation:
    """Runs in one results folder, any of which can be killed when the clients have been asked `kill_at` times."""

    def __init__(self, run_config: dict[str, Any]) -> None:
        self.settings = run_config | {
            "num-rounds": 6,
            "num-clients": CLIENTS,
            "participation": 0.75,
            "models": "lenet,resnet10",
            "checkpoint-every": 2,
            "batch-size": 16,
        }
        self.asked = 0

    def run(self, name: str, kill_at: int | None = None, **settings: Any) -> bool:
        """Whether the run came to its end."""
        config = load_config(settings_for(self.settings | {"run-name": name}, **settings))
        self.asked = 0

        def answer(message: Message, context: Context) -> Message | None:
            self.asked += 1
            if self.asked == kill_at:
                raise Killed
            return client_app.app.app(message, context)

        new_process()  # a restarted worker holds nothing
        grid = InProcessGrid(answer, CLIENTS, dict(config.to_dict()))
        try:
            server_app.app.serve(grid, config, simulated=True)
        except Killed:
            return False
        return True

    def folder(self, name: str) -> Path:
        return Path(self.settings["results-dir"]) / name

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """Less what a clock measured."""
        lines = [json.loads(line) for line in (self.folder(name) / "metrics.jsonl").read_text().splitlines()]
        return [{key: line[key] for key in line if key not in ("seconds", "wall-seconds")} for line in lines]

    def models(self, name: str) -> list[dict[str, torch.Tensor]]:
        folders = [self.folder(name) / "clients" / str(i) for i in range(CLIENTS)]
        return [torch.load(folder / "personal-model.pt", weights_only=True) for folder in folders]

    def assert_same(self, one: str, other: str) -> None:
        assert self.metrics(one) == self.metrics(other)
        for a, b in zip(self.models(one), self.models(other), strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def federation(run_config: dict[str, Any], clock: Any) -> Federation:
    return Federation(run_config)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "mh-pfedhn"},
        {"method": "mh-pfedhn-gd", "global_model": "resnet10"},
        {"method": "mh-pfedhn", "schedule": "sequential"},
        {"method": "mh-pfedhn", "upload": "topk", "error_feedback": True, "keep_local": "*.bias"},
        {"method": "fedavg"},
        {"method": "local"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_killed_at_random_moments_it_ends_as_if_nobody_had(federation: Federation, settings: dict[str, Any]) -> None:
    """Of each of the six, up to seven kills: more than twenty in all."""
    assert federation.run("quiet", **settings)
    moments = random.Random(7)
    ended = [federation.run("killed", moments.randrange(1, 24), resume="latest", **settings) for _ in range(7)]
    assert ended.count(False) >= 4
    assert federation.run("killed", resume="latest", **settings)
    federation.assert_same("quiet", "killed")


def test_a_finished_run_is_left_alone(federation: Federation) -> None:
    assert federation.run("run")
    before = {path: path.read_bytes() for path in federation.folder("run").glob("*.json*")}
    assert federation.run("run", resume="latest")
    assert federation.asked == 0
    assert before == {path: path.read_bytes() for path in federation.folder("run").glob("*.json*")}


def test_a_finished_run_goes_on_when_it_is_given_more_rounds(federation: Federation) -> None:
    assert federation.run("six", num_rounds=6)
    assert federation.run("more", num_rounds=4)
    assert federation.run("more", num_rounds=6, resume="latest")
    federation.assert_same("six", "more")


def test_a_run_goes_on_under_another_name_and_takes_what_clients_kept(federation: Federation) -> None:
    assert federation.run("six", num_rounds=6)
    assert federation.run("four", num_rounds=4)
    assert federation.run("branch", num_rounds=6, resume=str(federation.folder("four")))
    assert [line["round"] for line in federation.metrics("branch")] == [4, 5, 6]
    assert federation.metrics("branch")[1:] == federation.metrics("six")[4:]


def rounds_on_disk(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".pt")


def round_file(server_round: int) -> str:
    return f"round-{server_round:06}.pt"


def test_a_resume_from_an_older_checkpoint_sets_aside_what_the_old_line_wrote_later(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """With 5 and 6 on disk a resume from 3 deleted 4 as it was written, and `latest` went on from 6 again."""
    assert federation.run("quiet", checkpoint_every=1)
    assert federation.run("run", num_rounds=3, checkpoint_every=1)
    run = federation.folder("run")
    old = run / "backup.pt"
    old.write_bytes((run / "checkpoints" / round_file(3)).read_bytes())
    assert federation.run("run", checkpoint_every=1, resume="latest")
    best = checkpoint.load(run / "checkpoints" / "best.pt").server_round
    written = {path: path.read_bytes() for path in run.glob("checkpoints/*.pt")}
    metrics, clients = (run / "metrics.jsonl").read_bytes(), (run / "clients.csv").read_bytes()

    # The server is killed in round 5 of the new line.
    assert not federation.run("run", 11, checkpoint_every=1, resume=str(old))
    aside = run / "set-aside" / "after-round-000003"
    later = {round_file(5), round_file(6)} | ({"best.pt"} if best > 3 else set())
    assert set(rounds_on_disk(aside)) == later
    for path, content in written.items():
        if path.name in later:
            assert (aside / path.name).read_bytes() == content
    assert checkpoint.load(aside / round_file(6)).server_round == 6
    assert ((aside / "metrics.jsonl").read_bytes(), (aside / "clients.csv").read_bytes()) == (metrics, clients)
    assert (aside / "summary.json").exists()
    assert any(str(aside) in record.getMessage() for record in caplog.records)
    assert {round_file(3), round_file(4)} <= set(rounds_on_disk(run / "checkpoints"))
    assert checkpoint.load(run).server_round == 4  # what `latest` finds

    assert federation.run("run", checkpoint_every=1, resume="latest")
    assert set(rounds_on_disk(aside)) == later
    assert [path.name for path in aside.parent.iterdir()] == ["after-round-000003"]  # nothing more was set aside
    federation.assert_same("quiet", "run")


def test_what_is_set_aside_goes_on_under_another_name_only(federation: Federation) -> None:
    assert federation.run("run", num_rounds=4)
    run = federation.folder("run")
    for count in ("", "-2"):
        assert federation.run("run", num_rounds=4, resume=str(run / "checkpoints" / round_file(2)))
        aside = run / "set-aside" / f"after-round-000002{count}" / round_file(4)
        assert aside.exists()
    for name in ("run", ""):
        with pytest.raises(UserError, match=r"which was set aside .*: go on from it under another run-name\."):
            federation.run(name, resume=str(aside))


def test_a_run_that_goes_back_to_its_best_finds_it_again_after_a_crash_in_the_first_round(
    federation: Federation,
) -> None:
    assert federation.run("run", checkpoint_every=1)
    run = federation.folder("run")
    best = checkpoint.load(run / "checkpoints" / "best.pt").server_round
    assert best < 5  # else it is one of the newest two as well
    assert not federation.run("run", 1, checkpoint_every=1, resume=str(run / "checkpoints" / "best.pt"))
    assert checkpoint.load(run).server_round == best
    assert set(rounds_on_disk(run / "checkpoints")) == {"best.pt", round_file(best)}


def test_a_branch_that_is_stopped_before_its_first_checkpoint_goes_on_from_its_parent(federation: Federation) -> None:
    assert federation.run("six")
    assert federation.run("four", num_rounds=4)
    assert not federation.run("branch", 12, resume=str(federation.folder("four")), checkpoint_every=100)
    assert federation.run("branch", resume="latest")
    assert [line["round"] for line in federation.metrics("branch")] == [4, 5, 6]
    assert federation.metrics("branch")[1:] == federation.metrics("six")[4:]


def test_a_branch_does_not_mix_with_a_run_that_is_there_already(federation: Federation) -> None:
    for name in ("one", "other"):
        assert federation.run(name, num_rounds=4)
    before = {path: path.read_bytes() for path in federation.folder("other").rglob("*") if path.is_file()}
    older = federation.folder("one") / "checkpoints" / round_file(min(checkpoint.rounds(federation.folder("one"))))
    for start in (federation.folder("one"), older):
        with pytest.raises(UserError, match=r"other holds a run already, which .* is not of: choose another run-name"):
            federation.run("other", num_rounds=6, resume=str(start))
    assert {path: path.read_bytes() for path in federation.folder("other").rglob("*") if path.is_file()} == before


def test_a_checkpoint_from_elsewhere_takes_the_place_of_one_of_its_round(
    federation: Federation, tmp_path: Path
) -> None:
    """A run is gone back to by a copy that was put by, of a round that its folder has of another line."""
    assert federation.run("run", num_rounds=2, checkpoint_every=1)
    folder = federation.folder("run") / "checkpoints"
    elsewhere = tmp_path / "backup.pt"
    shutil.copyfile(folder / round_file(2), elsewhere)
    (folder / round_file(2)).write_bytes(b"of another line")
    assert not federation.run("run", 10, num_rounds=4, checkpoint_every=100, resume=str(elsewhere))
    assert (folder / round_file(2)).read_bytes() == elsewhere.read_bytes()
    (aside,) = federation.folder("run").glob(f"set-aside/*/{round_file(2)}")
    assert aside.read_bytes() == b"of another line"


@pytest.mark.parametrize("settings", [{}, {"keep_local": "*.bias", "participation": 1.0}], ids=["statistics", "kept"])
@pytest.mark.parametrize("name", ["run", "branch"])
def test_clients_go_back_with_the_server_to_any_checkpoint_that_it_has(
    federation: Federation, name: str, settings: dict[str, Any]
) -> None:
    """From the oldest, long after: clients got nothing, or the newest state, where they were to get that round's."""
    settings = settings | {"checkpoint_every": 1, "num_rounds": 6}
    assert federation.run("quiet", **settings)
    assert federation.run("run", **settings | {"num_rounds": 2})
    assert federation.run("run", **settings | {"checkpoint_every": 4, "num_rounds": 4}, resume="latest")
    folder = federation.folder("run") / "checkpoints"
    assert {round_file(2), round_file(4)} <= set(rounds_on_disk(folder))
    moments = [14, 10]
    assert not federation.run(name, moments[0], **settings, resume=str(folder / round_file(2)))
    assert not federation.run(name, moments[1], **settings, resume="latest")
    assert federation.run(name, **settings, resume="latest")
    quiet, found = federation.metrics("quiet"), federation.metrics(name)
    assert [line["round"] for line in found] == list(range(1 if name == "run" else 2, 7))
    assert found == quiet[-len(found) :] if name == "run" else found[1:] == quiet[-len(found) + 1 :]
    for a, b in zip(federation.models("quiet"), federation.models(name), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_clients_whose_state_was_lost_are_refused_with_the_reason_and_not_reset(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    assert federation.run("run", num_rounds=2)
    for client in (0, 1):  # the second lost its batch-norm statistics only
        for path in (federation.folder("run") / "clients" / str(client)).glob("kept.*" if client else "*"):
            path.unlink()
    assert federation.run("run", resume="latest")
    assert "the server has learned from this client in round" in caplog.text
    assert "kept.000002.pt is gone" in caplog.text
    for line in federation.metrics("run")[2:]:
        assert {failure["client"] for failure in line["failure-list"]} <= {"0", "1"}
        assert line["client-train-loss"].keys() <= {"2", "3"}
        assert line["client-accuracy"].keys() == {"2", "3"}


@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    federation: Federation, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert federation.run("quiet")
    assert not federation.run("hurt", 26, resume="latest")
    newest = max((federation.folder("hurt") / "checkpoints").glob("round-*.pt"))
    assert newest.name == "round-000004.pt"
    content = bytearray(newest.read_bytes())
    if damage == "altered":
        content[len(content) // 2] ^= 1
    newest.write_bytes(content[: {"truncated": len(content) // 2, "emptied": 0}.get(damage, len(content))])
    assert federation.run("hurt", resume="latest")
    assert any(str(newest) in record.getMessage() for record in caplog.records)
    federation.assert_same("quiet", "hurt")


def test_when_all_checkpoints_are_damaged_the_run_does_not_start_anew(federation: Federation) -> None:
    assert not federation.run("hurt", 26, resume="latest")
    for path in (federation.folder("hurt") / "checkpoints").glob("round-*.pt"):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"round-000002\.pt is damaged"):
        federation.run("hurt", resume="latest")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 1}, "seed is 1, but .* was trained with 0"),
        ({"anchor": False}, "anchor is False, but .* was trained with True"),
        ({"hidden_dim": 16}, "hidden-dim is 16, but .* was trained with 8"),
        ({"hidden_layers": 2}, "hidden-layers is 2, but .* was trained with 3"),
        ({"chunk_size": 1024}, "chunk-size is 1024, but .* was trained with 2048"),
        ({"chunk_size": "auto"}, "chunk-size is 'auto', but .* was trained with 2048"),
        ({"embedding_dim": 8}, "embedding-dim is 8, but .* was trained with 4"),
        ({"heads": "per-client"}, "heads is 'per-client', but .* was trained with 'by-tau'"),
        ({"schedule": "per-client"}, "schedule is 'per-client', but .* was trained with 'joint'"),
        ({"method": "fedavg"}, "method is 'fedavg'"),
        ({"models": "lenet"}, "models is 'lenet'"),
    ],
)
def test_a_checkpoint_of_another_setting_is_refused(
    federation: Federation, settings: dict[str, Any], words: str
) -> None:
    assert not federation.run("run", 26, resume="latest")
    with pytest.raises(UserError, match=words):
        federation.run("run", resume="latest", **settings)


def test_what_only_says_how_to_go_on_may_change(federation: Federation) -> None:
    assert not federation.run("run", 26, resume="latest")
    changed = {"hn_lr": 0.5, "reduction": "sum", "embedding_lr": 0.1, "local_epochs": 2, "client_lr": 0.1}
    assert federation.run("run", resume="latest", **changed)
    assert [line["round"] for line in federation.metrics("run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "settings", [{"hidden_dim": 16}, {"chunk_size": 8}, {"embedding_dim": 8}, {"heads": "none"}], ids=str
)
def test_a_deployment_refuses_another_shape_of_network_too(deployment: "Deployment", settings: dict[str, Any]) -> None:
    deployment.run("run", [EVERYONE], num_rounds=2)
    (key,) = settings
    with pytest.raises(UserError, match=f"^{key.replace('_', '-')} is .*, but .* was trained with .*: use the same"):
        deployment.run("run", [EVERYONE], resume="latest", **settings)


def test_the_best_checkpoint_is_kept_beside_the_newest_two(federation: Federation) -> None:
    assert federation.run("run", checkpoint_every=1)
    folder = federation.folder("run") / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "round-000005.pt", "round-000006.pt"]
    best = max(federation.metrics("run"), key=lambda line: line["accuracy"])
    assert checkpoint.load(folder / "best.pt").server_round == best["round"]


def exit_handlers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is to be called when the process ends."""
    handlers: list[Any] = []
    monkeypatch.setattr("server_app.strategy.at_the_end", handlers.append)
    return handlers


def test_on_sigterm_the_last_complete_round_is_saved(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = exit_handlers(monkeypatch)
    assert federation.run("quiet")
    assert not federation.run("stopped", 17, resume="latest", checkpoint_every=100)
    assert not (federation.folder("stopped") / "checkpoints").exists()
    handlers[-1]()
    assert checkpoint.load(federation.folder("stopped")).server_round >= 3
    assert federation.run("stopped", resume="latest", checkpoint_every=100)
    federation.assert_same("quiet", "stopped")


@pytest.mark.parametrize("settings", [{}, {"method": "mh-pfedhn-gd", "global_model": "resnet10"}], ids=str)
def test_on_sigterm_in_the_middle_of_an_update_the_round_before_is_saved_and_nothing_of_this_one(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    handlers = exit_handlers(monkeypatch)
    assert federation.run("quiet", **settings)
    assert federation.run("two", num_rounds=2, **settings)
    learn = MHpFedHN.learn

    def learn_and_die(self: MHpFedHN, deltas: Any) -> None:
        learn(self, deltas)
        if self.server_round == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MHpFedHN, "learn", learn_and_die)
        assert not federation.run("stopped", checkpoint_every=100, **settings)
    handlers[-1]()
    found, expected = (checkpoint.load(federation.folder(name)) for name in ("stopped", "two"))
    assert found.server_round == expected.server_round == 2
    assert_same_values(found.method, expected.method)
    assert federation.run("stopped", resume="latest", **settings)
    federation.assert_same("quiet", "stopped")


def test_a_line_that_a_crash_cut_short_is_dropped(federation: Federation) -> None:
    assert federation.run("quiet")
    assert not federation.run("cut", 26, resume="latest")
    path = federation.folder("cut") / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"round": 4, "accur')
    assert federation.run("cut", resume="latest")
    federation.assert_same("quiet", "cut")


def test_clients_csv_counts_every_round_once(federation: Federation) -> None:
    assert federation.run("quiet")
    for moment in (12, 20, 26):
        federation.run("killed", moment, resume="latest")
    assert federation.run("killed", resume="latest")
    one, other = ((federation.folder(name) / "clients.csv").read_text() for name in ("quiet", "killed"))
    assert one == other


def test_latest_without_a_checkpoint_starts_anew_and_drops_what_the_run_had_written(federation: Federation) -> None:
    assert federation.run("quiet", checkpoint_every=0)
    assert not federation.run("killed", 17, checkpoint_every=0)
    assert [line["round"] for line in federation.metrics("killed")] == [1, 2]
    assert federation.run("killed", resume="latest", checkpoint_every=0)
    assert [line["round"] for line in federation.metrics("killed")] == [1, 2, 3, 4, 5, 6]
    federation.assert_same("quiet", "killed")
    one, other = ((federation.folder(name) / "clients.csv").read_text() for name in ("quiet", "killed"))
    assert one == other


def test_latest_of_a_run_that_never_was_is_a_run_like_any_other(federation: Federation) -> None:
    assert federation.run("quiet", num_rounds=2)
    assert federation.run("new", num_rounds=2, resume="latest")
    federation.assert_same("quiet", "new")


def test_a_path_without_a_run_name_goes_on_under_the_name_of_its_run(federation: Federation) -> None:
    assert federation.run("six")
    assert federation.run("four", num_rounds=4)
    assert federation.run("", resume=str(federation.folder("four")))
    federation.assert_same("six", "four")


# A deployment, where clients come and go: scripted clients, which have no state of their own ----------------------


class Deployment:
    """Runs of scripted clients; `nodes` holds the connected nodes of each round of this process, as in ChangingGrid."""

    def __init__(self, run_config: dict[str, Any]) -> None:
        self.settings = run_config | {"chunk-size": 16, "deadline": 30.0, "num-rounds": 6, "checkpoint-every": 1}

    def run(self, name: str, nodes: list[set[int]], answer: Any = None, **settings: Any) -> None:
        config = load_config(settings_for(self.settings | {"run-name": name}, **settings))
        self.grid = ChangingGrid(answer or Scripted(), nodes)
        server_app.app.serve(self.grid, config, simulated=False)

    def folder(self, name: str) -> Path:
        return Path(self.settings["results-dir"]) / name

    def lines(self, name: str) -> list[dict[str, Any]]:
        return timeless(lines_of(self.folder(name)))

    def state(self, name: str) -> Any:
        found = checkpoint.load(self.folder(name))
        return found.server_round, found.loop, found.method

    def assert_same(self, one: str, other: str) -> None:
        assert self.lines(one) == self.lines(other)
        first, second = (self.state(name) for name in (one, other))
        for state in (first, second):
            state[1]["waiting"].pop("seconds")
            # Each process writes a line of history of its own, but in the same rounds.
            state[1]["line"], state[1]["lineage"] = "", []
            for client in state[1]["clients"]:
                client["seen"] = client["seen"].rpartition("/")[2]
        assert first[0] == second[0]
        assert first[1] == second[1]
        assert_same_values(first[2], second[2])


def assert_same_values(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same_values(value, other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.fixture
def deployment(run_config: dict[str, Any], clock: Any) -> Deployment:
    return Deployment(run_config)


EVERYONE = {100, 101, 102, 103}
METHODS = [
    {"method": "mh-pfedhn"},
    {"method": "mh-pfedhn", "schedule": "per-client"},
    {"method": "mh-pfedhn", "schedule": "sequential"},
    {"method": "mh-pfedhn", "heads": "per-client"},
    {"method": "fedavg"},
]


@pytest.mark.parametrize("settings", METHODS, ids=lambda settings: "-".join(settings.values()))
def test_steps_after_a_resume_are_the_same_though_clients_came_in_another_order_than_that_of_their_keys(
    deployment: Deployment, settings: dict[str, Any]
) -> None:
    """Clients 2 and 3 are first, 0 comes late: after the resume all register at once. 0 and 2 are of one size."""
    arriving = [{102, 103}, {102, 103, 100}, EVERYONE]
    deployment.run("quiet", arriving, **settings)
    deployment.run("resumed", arriving, num_rounds=3, **settings)
    deployment.run("resumed", [EVERYONE], resume="latest", **settings)
    deployment.assert_same("quiet", "resumed")


def test_adams_moments_are_found_by_name_and_come_back_to_the_same_parameters(deployment: Deployment) -> None:
    deployment.run("run", [{102, 103}, {102, 103, 100}, EVERYONE], num_rounds=3)
    before = checkpoint.load(deployment.folder("run")).method
    assert [key for key, *_ in before["members"]] == ["2", "3", "0", "1"]
    assert before["adam"].keys() == before["network"].keys()
    steps = {name: int(moments["step"]) for name, moments in before["adam"].items() if name.startswith("embeddings.")}
    assert sorted(steps.values()) == [1, 2, 3, 3]
    assert steps[f"embeddings.{b'1'.hex()}"] == 1
    assert steps[f"embeddings.{b'0'.hex()}"] == 2


def test_a_client_that_joins_a_resumed_run_is_served_as_if_the_run_had_not_stopped(deployment: Deployment) -> None:
    few = EVERYONE - {101}
    deployment.run("quiet", [few, few, few, EVERYONE])
    deployment.run("resumed", [few], num_rounds=3)
    deployment.run("resumed", [EVERYONE], resume="latest")
    deployment.assert_same("quiet", "resumed")
    assert deployment.lines("resumed")[3]["client-train-loss"].keys() == set("0123")


def test_a_client_that_is_away_after_a_resume_is_left_out_until_it_is_back(deployment: Deployment) -> None:
    away = EVERYONE - {102}
    deployment.run("quiet", [EVERYONE, EVERYONE, EVERYONE, away, away, EVERYONE])
    deployment.run("resumed", [EVERYONE], num_rounds=3)
    deployment.run("resumed", [away, away, EVERYONE], resume="latest")
    assert [sorted(line["client-train-loss"]) for line in deployment.lines("resumed")[3:]] == [
        list("013"),
        list("013"),
        list("0123"),
    ]
    deployment.assert_same("quiet", "resumed")


@pytest.mark.parametrize("schedule", ["joint", "sequential"])
def test_cohorts_and_their_order_are_drawn_on_after_a_resume(deployment: Deployment, schedule: str) -> None:
    settings = {"participation": 0.5, "num_rounds": 9, "schedule": schedule}
    deployment.run("quiet", [EVERYONE], **settings)
    deployment.run("resumed", [EVERYONE], **settings | {"num_rounds": 4})
    deployment.run("resumed", [EVERYONE], resume="latest", **settings)
    deployment.assert_same("quiet", "resumed")
    trained = [sorted(line["client-train-loss"]) for line in deployment.lines("quiet")]
    assert trained[4:] != trained[:5]  # a generator begun anew would show


def test_a_known_client_that_changed_its_size_while_the_run_was_stopped_is_refused(deployment: Deployment) -> None:
    deployment.run("run", [EVERYONE], num_rounds=3)
    deployment.run("run", [EVERYONE], Scripted(sizes=SIZES | {"1": 91}), resume="latest")
    assert [line["failures"] for line in deployment.lines("run")] == [{}, {}, {}, {"changed-size": 1}, {}, {}]
    assert deployment.lines("run")[3]["client-train-loss"].keys() == set("023")


def test_instructions_tell_which_lines_led_here_and_which_rounds_the_server_may_come_back_to(
    deployment: Deployment,
) -> None:
    deployment.run("run", [EVERYONE], num_rounds=3, checkpoint_every=2)
    requests = [told(message) for message in deployment.grid.sent[NUM_CLIENTS:]]
    line = requests[0].line
    assert {each.line for each in requests} == {line}
    # A scripted test is better every round, so the best is the newest.
    assert {(each.server_round, each.returns_to, each.lineage, each.seen) for each in requests} == {
        (1, (), (), None),
        (2, (1,), (), Point("run", line, 1)),
        (3, (2,), (), Point("run", line, 2)),
        (4, (2, 3), (), Point("run", line, 3)),  # the end
    }
    branched = Point("run", line, 3)
    deployment.run("branch", [EVERYONE], num_rounds=4, checkpoint_every=2, resume=str(deployment.folder("run")))
    requests = [told(message) for message in deployment.grid.sent[NUM_CLIENTS:]]
    second = requests[0].line
    assert second != line
    assert {(each.server_round, each.line, each.lineage, each.seen) for each in requests} == {
        (4, second, (branched,), branched),
        (5, second, (branched,), Point("branch", second, 4)),
    }
    deployment.run("branch", [EVERYONE], num_rounds=5, resume="latest")
    requests = [told(message) for message in deployment.grid.sent[NUM_CLIENTS:]]
    assert requests[0].lineage == (branched, Point("branch", second, 4))


def test_a_run_that_goes_on_under_another_name_leaves_the_first_as_it_is(deployment: Deployment) -> None:
    deployment.run("quiet", [EVERYONE])
    deployment.run("run", [EVERYONE], num_rounds=3)
    before = {path: path.read_bytes() for path in deployment.folder("run").rglob("*") if path.is_file()}
    deployment.run("branch", [EVERYONE], resume=str(deployment.folder("run")))
    assert {path: path.read_bytes() for path in deployment.folder("run").rglob("*") if path.is_file()} == before
    assert deployment.lines("branch") == deployment.lines("quiet")[2:]


def test_a_run_that_is_being_written_is_left_to_its_writer(federation: Federation) -> None:
    """A service that is restarted with resume=latest must not run beside the run that it started before."""
    assert not federation.run("run", 17)
    before = (federation.folder("run") / "metrics.jsonl").read_bytes()
    with (
        FileLock(federation.folder("run") / ".lock"),
        pytest.raises(UserError, match="is being written by another run"),
    ):
        federation.run("run", resume="latest")
    assert (federation.folder("run") / "metrics.jsonl").read_bytes() == before
    assert federation.run("run", resume="latest")


def test_the_first_round_of_each_process_has_the_time_of_its_start_up(federation):
    assert not federation.run("run", 26)
    last = max(checkpoint.rounds(federation.folder("run")))
    assert federation.run("run", resume="latest")
    lines = lines_of(federation.folder("run"))
    started = [line for line in lines if "start" in line["seconds"]]
    assert [line["round"] for line in started] == [1, last + 1]
    assert all(0 <= line["seconds"]["start"] <= line["seconds"]["total"] for line in started)
