"""Whose client key it is: a site with another's key in its file gets nothing, until the server's operator says so."""

import shutil

import pytest
from consortium import Consortium
from flower_processes import BIN, environment, metrics, run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def failures(consortium: Consortium) -> list[tuple[str, str]]:
    """Client and reason of all failures of the run so far."""
    lines = metrics(consortium.results)
    return [(each["client"], each["reason"]) for line in lines for each in line["failure-list"]]


def test_a_stolen_client_key_is_worth_nothing(consortium: Consortium) -> None:
    consortium.make_keys("owner", "other", "thief")
    consortium.start_server()
    consortium.start_site("owner", width=24, ward=0)
    consortium.start_site("other", width=40, ward=1)
    consortium.until_connected("owner", "other")
    assert consortium.run_profile(2, min_clients=2).returncode == 0
    assert failures(consortium) == []
    assert set(metrics(consortium.results)[-1]["client-accuracy"]) == {"owner", "other"}
    key = consortium.key("owner")

    # The owner goes away, the run is resumed, and the thief says that it is the owner.
    consortium.processes["owner"].terminate()
    assert consortium.ended("owner", within=60) == 0
    consortium.start_site("thief", width=24, ward=0, more=f"client-key: {key}\n")
    consortium.until_connected("thief")
    assert consortium.run_profile(4, resume="latest", min_clients=1, deadline=30).returncode == 0
    assert ("thief", "key-bound") in failures(consortium)
    assert set(metrics(consortium.results)[-1]["client-accuracy"]) == {"other"}
    assert key.encode() not in b"".join(path.read_bytes() for path in consortium.results.glob("*.*"))
    assert key not in consortium.log("server")

    command = [BIN / "mh-pfedhn", "site", "forget", "owner", "--state", "state"]
    done = run(*command, env=environment(consortium.home / "flwr"), cwd=consortium.home)
    assert done.stdout == f"Unbound {key[:8]}… of owner: whoever claims that key next keeps it.\n"
    # The key alone does not make it the owner: what the owner has kept of the run has to move as well.
    assert consortium.run_profile(5, resume="latest", min_clients=2, deadline=30).returncode == 0
    assert ("owner", "state-missing") in failures(consortium)
    shutil.copytree(*(consortium.home / name / "state" / "runs" for name in ("owner", "thief")), dirs_exist_ok=True)
    assert consortium.run_profile(7, resume="latest", min_clients=2, deadline=30).returncode == 0
    # The client is the one that was trained as the owner's, and keeps the name that the run has given it.
    assert set(metrics(consortium.results)[-1]["client-accuracy"]) == {"owner", "other"}
