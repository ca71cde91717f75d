"""Sites that are missing, slow, lost or late: what a run waits for, and what it does without."""

import csv
from pathlib import Path

import pytest
from consortium import Consortium
from flower_processes import metrics

pytestmark = pytest.mark.e2e


def test_a_run_waits_for_a_missing_site_and_takes_in_one_that_comes_while_it_goes_on(consortium: Consortium) -> None:
    consortium.start_site("a", width=24, ward=0)  # which may be there before the server
    consortium.start_server()
    consortium.until_connected("a")
    consortium.begin_run(2, min_clients=2, deadline=2)
    assert consortium.ended("run", within=120) == 1
    assert "1 of at least 2 nodes (min-clients) connected within 2 s (deadline)" in consortium.log("run")
    assert "mh-pfedhn: the run ended as finished:failed" in consortium.log("run")

    # The same once more, with time for the missing one to come.
    consortium.hold("a")
    consortium.begin_run(6, min_clients=2, deadline=300)
    consortium.until_says("run", "1 of at least 2 nodes (min-clients) are connected; waiting for more.")
    consortium.start_site("b", width=40, ward=1)
    # From here on a site is too late for round 1, which lasts as long as a is held.
    consortium.until_says("run", "6 rounds, results in")
    consortium.start_site("c", width=32, ward=2)
    consortium.until_connected("c")
    consortium.release("a")
    assert consortium.ended("run", within=240) == 0
    assert "2 clients joined, 2 in all." in consortium.log("run")
    assert "1 clients joined, 3 in all." in consortium.log("run")
    a, b, c = (consortium.label(name) for name in "abc")
    lines = metrics(consortium.results)
    assert [line["failures"] for line in lines] == [{}] * 6
    assert set(lines[0]["client-train-loss"]) == {a, b}
    assert set(lines[-1]["client-train-loss"]) == set(lines[-1]["client-accuracy"]) == {a, b, c}
    assert rounds_trained(consortium.results) == {a: 6, b: 6, c: sum(c in line["client-train-loss"] for line in lines)}


@pytest.mark.slow
def test_a_slow_site_loses_its_rounds_to_the_deadline_or_the_quorum(consortium: Consortium) -> None:
    consortium.start_server()
    consortium.start_site("a", width=24, ward=0)
    consortium.start_site("b", width=40, ward=1)
    consortium.until_connected("a", "b")
    a, b = consortium.label("a"), consortium.label("b")
    consortium.hold("b")
    consortium.begin_run(6, deadline=30)
    consortium.until_says("run", f"Round 2: client {b}: busy: ")
    consortium.release("b")
    assert consortium.ended("run", within=300) == 0
    lines = metrics(consortium.results)
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["failures"] for line in lines[:2]] == [{"late": 1}, {"busy": 1}]
    assert {failure["client"] for line in lines for failure in line["failure-list"]} == {b}
    assert [set(line["client-train-loss"]) for line in lines[:2]] == [{a}, {a}]
    assert all(a in line["client-train-loss"] for line in lines)
    assert lines[-1]["failures"] == {}
    assert set(lines[-1]["client-train-loss"]) == set(lines[-1]["client-accuracy"]) == {a, b}

    consortium.hold("b")
    consortium.begin_run(3, run_name="quorum", deadline=1200, quorum=0.5)
    consortium.until_says("quorum", f"Round 3: client {b}: busy: ", within=300)
    # The end of a run waits for all: it brings the final model.
    consortium.release("b")
    assert consortium.ended("quorum", within=300) == 0
    lines = metrics(consortium.home / "results" / "quorum")
    assert [line["failures"] for line in lines] == [{"late": 1}, {"busy": 1}, {"busy": 1}]
    assert [set(line["client-train-loss"]) for line in lines] == [{a}, {a}, {a}]
    assert set(lines[-1]["client-accuracy"]) == {a, b}
    assert rounds_trained(consortium.home / "results" / "quorum") == {a: 3, b: 0}


@pytest.mark.slow
def test_a_site_that_stops_in_the_middle_of_a_run_comes_back_as_the_client_that_it_was(consortium: Consortium) -> None:
    consortium.start_server()
    consortium.start_site("a", width=24, ward=0)
    consortium.start_site("b", width=40, ward=1)
    consortium.until_connected("a", "b")
    a, b = consortium.label("a"), consortium.label("b")
    consortium.begin_run(8, min_clients=1, deadline=300)
    consortium.until_says("run", "Round 1 took")
    consortium.hold("a")  # so that the rounds do not run out while the other goes
    consortium.processes["b"].terminate()
    assert consortium.ended("b", within=60) == 0
    consortium.release("a")
    gone = f"Client {b} is no longer connected; the rounds go on without it until it is back."
    consortium.until_says("run", gone)
    consortium.hold("a")  # nor while it comes back
    consortium.start_again("b")
    consortium.until_connected("b", times=2)
    consortium.release("a")
    assert consortium.ended("run", within=240) == 0
    assert consortium.log("run").count(gone) == 1
    assert f"Client {b} is back." in consortium.log("run")
    assert consortium.label("b") == b
    lines = metrics(consortium.results)
    assert [line["round"] for line in lines] == list(range(1, 9))
    cohorts = [set(line["client-train-loss"]) for line in lines]
    assert cohorts[0] == cohorts[-1] == {a, b}
    assert {a} in cohorts
    assert all(a in cohort for cohort in cohorts)
    # At most the message that was under way when it stopped.
    assert [failure["client"] for line in lines for failure in line["failure-list"]] in ([], [b])
    # One row each: no new client, and so the embedding that it had.
    assert rounds_trained(consortium.results) == {a: 8, b: cohorts.count({a, b})}


@pytest.mark.slow
def test_a_run_that_is_left_with_too_few_sites_ends_and_can_go_on_when_they_are_back(consortium: Consortium) -> None:
    consortium.start_server()
    consortium.start_site("a", width=24, ward=0)
    consortium.start_site("b", width=40, ward=1)
    consortium.begin_run(5, min_clients=2, deadline=30)
    consortium.until_says("run", "Round 1 took")
    consortium.hold("a")
    consortium.processes["b"].terminate()
    assert consortium.ended("b", within=60) == 0
    consortium.release("a")
    assert consortium.ended("run", within=180) == 1
    assert "1 of at least 2 clients (min-clients) are here; waiting." in consortium.log("run")
    assert "1 clients are connected and registered after 30 s, but min-clients is 2" in consortium.log("run")
    before = metrics(consortium.results)
    assert before

    consortium.start_again("b")
    consortium.begin_run(5, min_clients=2, deadline=120, resume="latest")
    assert consortium.ended("run", within=300) == 0
    lines = metrics(consortium.results)
    assert lines[: len(before)] == before
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5]
    a, b = consortium.label("a"), consortium.label("b")
    assert set(lines[-1]["client-train-loss"]) == {a, b}
    assert rounds_trained(consortium.results).keys() == {a, b}


def rounds_trained(run_dir: Path) -> dict[str, int]:
    """By client; there must be one row a client."""
    with (run_dir / "clients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    trained = {row["client"]: int(row["rounds-trained"]) for row in rows}
    assert len(trained) == len(rows)
    return trained
