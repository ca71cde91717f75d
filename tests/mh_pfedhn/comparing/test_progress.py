"""How far a comparison is: which run a line is of, and the estimate of the time left."""

import pytest

from mh_pfedhn.comparing.progress import Progress
from server_app import batch


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def progress(small):
    """The plan's runs, and progress over them; of which some are finished already."""

    def progress(finished=(), plan=None, complete=None):
        plan = plan or small()
        clock = Clock()
        return plan.runs, Progress(plan.runs, set(finished), complete or (lambda run: None), clock), clock

    return progress


def begins(run):
    return batch.BEGINS % run.name


def complete(run):
    return batch.COMPLETE % run.name


def test_lines_of_a_run_say_which_it_is_of_how_many(progress):
    runs, shown, _ = progress()
    assert shown.shown("Starting Flower Simulation") == "Starting Flower Simulation"
    assert shown.shown(begins(runs[1])) == "run 2 of 4 | fedavg, quickstart, seed 0 | begins"
    line = "round   1/4 | mean accuracy 0.500 | train loss 1.000"
    assert shown.shown(line) == f"run 2 of 4 | fedavg, quickstart, seed 0 | {line}"
    assert shown.shown("Round 1: client 3: late") == "Round 1: client 3: late"


def test_the_time_left_follows_from_the_rounds_of_the_run_under_way(progress):
    runs, shown, clock = progress()
    shown.shown(begins(runs[0]))
    clock.now = 30.0  # what the first round waits for does not count
    assert "left in all" not in shown.shown("round   1/4 | x")
    clock.now = 40.0
    # Two rounds of this run and four of each of the others, ten seconds each.
    assert shown.shown("round   2/4 | x").endswith(" | 2 min 20 s left in all")


def test_finished_runs_tell_the_time_of_their_method_and_the_mean_of_all_that_of_others(progress, small, leave):
    plan = small({"methods": ["local", "fedavg", "mh-pfedhn"]})
    leave(plan.runs[0], seconds=2.0, start=50.0)
    leave(plan.runs[1], seconds=4.0)
    _, shown, _ = progress([plan.runs[0].name, plan.runs[1].name], plan)
    # Left are one of each method with seed 1, and mh-pfedhn of both seeds at the mean of 2 and 4.
    assert shown.left() == pytest.approx(4 * (2.0 + 4.0 + 3.0 + 3.0))


def test_an_interrupted_run_has_only_the_rounds_after_its_checkpoint_left(progress, small, leave):
    plan = small()
    leave(plan.runs[0], seconds=1.0)
    leave(plan.runs[1], rounds=3, finished=False, checkpoint=3)
    _, shown, _ = progress([plan.runs[0].name], plan)
    assert shown.left() == pytest.approx(1 + 4 + 4)


def test_a_run_that_is_complete_is_told_once_and_counts_no_more(progress, small, leave):
    told = []
    plan = small()
    runs, shown, _ = progress((), plan, told.append)
    shown.shown(begins(runs[0]))
    leave(runs[0], seconds=1.0)
    line = shown.shown(complete(runs[0]))
    assert line == "run 1 of 4 | local, quickstart, seed 0 | is complete | 12 s left in all"
    assert told == [runs[0]]
    shown.end(runs[1], finished=False)
    assert shown.left() == pytest.approx(8)
    assert shown.shown("round   1/4 | x") == "round   1/4 | x"  # of no run that is known
