"""A consortium of sites with private models: what leaves a site, and what is lost when its processes are killed."""

import contextlib
import json
import shutil
import socket
import threading
import time

import pytest
from consortium import Consortium
from flower_processes import metrics

pytestmark = pytest.mark.e2e

SECRETS = [
    *("OncologyBackbone", "tumour_encoder", "biomarker_norm", "diagnosis_layer", "confidential_width"),
    *("build_secretly", "hidden_nets", "hidden_data", "patients", "ward", "site.yaml", "tumour", "running_mean"),
]


def test_nothing_that_tells_of_a_model_leaves_a_site(consortium: Consortium) -> None:
    consortium.start_server()
    consortium.start_site("a", width=24, ward=0)
    consortium.start_site("b", width=40, ward=1)
    done = consortium.run_profile(2)
    assert done.returncode == 0
    keys = {name: consortium.key(name) for name in ("a", "b")}
    for name, recorder in consortium.recorders.items():
        sent = bytes(recorder.sent)
        assert keys[name].encode() in sent  # what is sent can be found like this
        assert b"num-params" in sent
        assert b"train-loss" in sent
        assert [word for word in SECRETS if word.encode() in sent] == []
        assert str(consortium.home / name).encode() not in sent
    lines = metrics(consortium.results)
    assert [line["round"] for line in lines] == [1, 2]
    assert all(line["failures"] == {} for line in lines)
    assert set(lines[-1]["client-accuracy"]) == {consortium.label(name) for name in keys}
    # Width 24: 12 * 24 + 24, 24 + 24, 24 * 3 + 3 parameters; and 40.
    clients = (consortium.results / "clients.csv").read_text()
    assert ",K = 435,435," in clients
    assert ",K = 723,723," in clients


def test_of_what_goes_wrong_at_a_site_nothing_but_a_code_leaves_it(consortium: Consortium) -> None:
    """One site's code raises, then its trainer is killed, then its state-dir is lost."""
    consortium.start_server()
    consortium.start_site("a", width=24, ward=0)
    consortium.start_site("b", width=40, ward=1)
    consortium.until_connected("a", "b")
    home = consortium.home / "a"

    def until_refused(reason: str, sentence: str) -> None:
        consortium.until_says("run", f"client {consortium.label('a')}: {reason}: {sentence}", within=200)

    (home / "fail").touch()
    consortium.begin_run(40, deadline=60, checkpoint_every=0)
    until_refused("client-failed", "the site's own code raised an exception; the site's own log holds it")
    consortium.hold("a")
    (home / "fail").unlink()
    consortium.until("there is a trainer", lambda: consortium.kill("a", r"client_app\.resident"))
    until_refused("trainer-unreachable", "the site's trainer was not there, or ended before it answered")
    consortium.release("a")
    consortium.until("it has come back", lambda: (home / "state/runs/run").is_dir(), within=200)
    shutil.rmtree(home / "state/runs")
    (home / "state/runs").write_text("a file in the place of a folder")
    until_refused("state-missing", "the site no longer has what it kept in an earlier round")

    # All of it is told to the operator.
    told = consortium.log("a")
    assert "does not fit tumour_encoder" in told
    assert "train.exchange was answered with trainer-unreachable: " in told
    assert f"{home}/state/runs/run knows nothing" in told
    sent = bytes(consortium.recorders["a"].sent)
    for code in (b"client-failed", b"trainer-unreachable", b"state-missing"):
        assert code in sent
    secrets = [*SECRETS, "patient", "RuntimeError", "Traceback", "Not a directory", "/tmp/", str(consortium.home)]
    assert [word for word in secrets if word.encode() in sent] == []
    results = consortium.log("run") + (consortium.results / "metrics.jsonl").read_text()
    assert [word for word in [*SECRETS, "RuntimeError", "Traceback"] if word in results] == []


@pytest.mark.slow
def test_killed_processes_lose_nothing_but_their_round(consortium: Consortium) -> None:
    """Every kind of process is killed with -9 in the middle of the run, which then goes on to its end."""
    rounds = 10
    consortium.start_server()
    consortium.start_site("a", width=24, ward=0)
    consortium.start_site("b", width=40, ward=1)

    def rounds_done() -> int:
        path = consortium.results / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    killed: list[str] = []

    def kill_one_after_another() -> None:
        for what, name, words in (
            ("trainer", "a", r"client_app\.resident"),
            ("client process", "b", r"flwr-clientapp|flower-clientapp"),
            ("ServerApp", "server", r"flwr-serverapp|flower-serverapp"),
            ("SuperNode", "b", r"flower-supernode"),
            ("SuperLink", "server", r"mh_pfedhn\.deployment\.guard"),
        ):
            before = rounds_done()
            ends = time.monotonic() + 200
            while rounds_done() <= before and time.monotonic() < ends:
                time.sleep(0.2)
            while not consortium.kill(name, words) and time.monotonic() < ends:
                time.sleep(0.02)
            killed.append(what)

    killer = threading.Thread(target=kill_one_after_another, daemon=True)
    killer.start()
    codes = []
    for _ in range(4):
        done = consortium.run_profile(rounds, resume="latest", deadline=60, min_clients=1)
        codes.append(done.returncode)
        if done.returncode == 0:
            break
        consortium.until("the server is up again", lambda: _answers(consortium.port))
    killer.join(timeout=1)
    assert killed == ["trainer", "client process", "ServerApp", "SuperNode", "SuperLink"]
    assert codes[-1] == 0
    assert 1 in codes
    lines = metrics(consortium.results)
    assert [line["round"] for line in lines] == list(range(1, rounds + 1))
    # The same two clients from the first round to the last, with the embeddings that they had.
    clients = (consortium.results / "clients.csv").read_text().splitlines()
    assert len(clients) == 3
    summary = json.loads((consortium.results / "summary.json").read_text())
    assert summary["clients"] == 2

    # Until something was lost, and where all was there again, the run is the one in which nothing was killed.
    assert consortium.run_profile(rounds, run_name="whole", min_clients=2).returncode == 0
    whole = metrics(consortium.home / "results" / "whole")
    assert all(line["failures"] == {} for line in whole)
    undisturbed = next(count for count, line in enumerate(lines) if line["failures"] or line["clients"] < 2)
    assert undisturbed >= 2
    # What a round led to is tested in the round after it.
    for line, expected in zip(lines[: undisturbed - 1], whole, strict=False):
        assert line["client-accuracy"] == expected["client-accuracy"]
    for line, expected in zip(lines[:undisturbed], whole, strict=False):
        assert line["client-train-loss"] == expected["client-train-loss"]
    # A round that was lost is one that this run is behind: never more than were lost, and it learns to the end.
    lost = sum(bool(line["failures"]) or line["clients"] < 2 for line in lines)
    assert lost < rounds
    assert summary["last-accuracy"] > lines[0]["accuracy"]
    assert summary["last-accuracy"] >= min(line["accuracy"] for line in whole[rounds - lost - 1 :])


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
