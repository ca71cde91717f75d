"""What the plots show and what their legends say."""

import math

import pytest
from PIL import Image
from small_runs import SECONDS, further, record

from server_app.results import plots, read_run, write_report


def lines_of(axes):
    """The curves of a plot as (colour, style, values); a line of no points is left out."""
    lines = [(line.get_color(), line.get_linestyle(), list(line.get_ydata())) for line in axes.lines]
    return [(colour, style, pytest.approx(values)) for colour, style, values in lines if values]


def legend_of(axes):
    return {
        text.get_text(): line.get_linestyle()
        for text, line in zip(axes.get_legend().get_texts(), axes.get_legend().legend_handles, strict=True)
    }


def test_curves_are_a_readable_image(make_run):
    run_dir = make_run()
    write_report(run_dir)
    with Image.open(run_dir / "curves.png") as image:
        assert image.width >= 900
        assert image.height >= 900


def test_known_clients_are_a_dashed_line_and_no_part_of_the_solid_ones(make_adapt_run):
    top, _ = plots.draw_curves(read_run(make_adapt_run())).axes
    lenet, mlp, *_ = plots.COLOURS
    best = ("#f2c14e", "-", [0.4])
    assert lines_of(top) == [
        (lenet, "-", [0.2, 0.4]),  # of a and c: 2 and 6, then 4 and 12 of 20
        (mlp, "-", [0.2, 0.4]),
        ("black", "-", [0.2, 0.4]),
        ("black", ":", [0.2, 0.4]),
        ("black", "--", [0.75, 0.81]),  # 150, then 162 of 200
        best,
    ]
    assert legend_of(top) == {
        "mean over new clients": "-",
        "all test samples of new clients": ":",
        "best mean: 0.400 in round 2": "None",
        "all test samples of known clients": "--",
        "lenet, new": "-",
        "mlp, new": "-",
        "band: 10th to 90th percentile of new clients": "solid",
    }


def test_ordinary_run_has_no_dashed_line(make_run):
    top, bottom = plots.draw_curves(read_run(make_run())).axes
    assert {style for _, style, _ in lines_of(top)} == {"-", ":"}
    assert list(legend_of(top)) == [
        "mean over clients",
        "all test samples of clients",
        "best mean: 0.003 in round 2",
        "lenet",
        "mlp",
    ]
    assert list(legend_of(bottom)) == ["local training, by training samples", "test, by test samples"]


def test_further_tests_have_curves_and_the_star_is_what_validation_chose(tracker):
    tracker.log_round(further(1, correct=(8, 6, 20), after=(10, 10, 20), held_back=(1, 1, 2)))
    tracker.log_round(further(2, correct=(2, 6, 20), after=(4, 8, 20), held_back=(5, 3)))
    top, _ = plots.draw_curves(read_run(tracker.run_dir)).axes
    black = [(style, values) for colour, style, values in lines_of(top) if colour == "black"]
    assert black == [
        ("-", [0.8, 0.6]),
        (":", [0.85, 0.7]),
        ("-.", [1.0, 0.733333]),
        ("--", [0.2, 0.8]),
    ]
    assert list(legend_of(top))[:5] == [
        "mean over clients",
        "all test samples of clients",
        "mean over clients, after one epoch",
        "mean over clients, validation",
        "chosen on validation: 0.600 in round 2",
    ]
    (star,) = [line for line in top.lines if line.get_marker() == "*"]
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([2], [0.6])


def test_known_clients_are_drawn_though_no_new_one_was_evaluated(make_adapt_run):
    run_dir = make_adapt_run(evaluated="kl")
    top, _ = plots.draw_curves(read_run(run_dir)).axes
    assert lines_of(top) == [("black", "--", [0.75, 0.81])]
    assert not top.texts


def test_loss_of_the_global_model_is_drawn_where_there_is_one(make_adapt_run):
    run_dir = make_adapt_run(extra_losses={"global": {"a": (1.0, 30), "b": (3.0, 10)}})
    _, bottom = plots.draw_curves(read_run(run_dir)).axes
    assert [list(line.get_ydata()) for line in bottom.lines] == [[2.0, 2.0], [1.0, 1.0], [1.5, 1.5]]
    assert list(legend_of(bottom)) == [
        "local training, by training samples",
        "test, by test samples of new clients",
        "global, by training samples",
    ]


def test_each_further_loss_has_a_line_and_a_colour_of_its_own(make_adapt_run):
    several = {"global": {"a": (1.0, 30)}, "tea$cher": {"a": (4.0, 30)}, "never": {}, "broken": {"a": (math.inf, 30)}}
    run = read_run(make_adapt_run(extra_losses=several, numbers={"server-loss": 9.0}))
    _, bottom = plots.draw_curves(run).axes
    labels = [line.get_label() for line in bottom.lines]
    assert labels[2:] == ["global, by training samples", r"tea\$cher, by training samples"]
    assert len({line.get_color() for line in bottom.lines}) == 4


def test_more_architectures_than_colours_are_still_drawn(make_run, monkeypatch):
    monkeypatch.setattr(plots, "COLOURS", ("#3b6fb6",))
    top, _ = plots.draw_curves(read_run(make_run())).axes
    grey = [values for colour, _, values in lines_of(top) if colour == "#7b8794"]
    assert grey == [[0.001, 0.002, 0.0], [0.002, 0.003, 0.001]]
    assert list(legend_of(top))[3:] == ["each of 2 architectures, mean of clients"]


def test_start_up_has_a_colour_of_its_own_and_leaves_room_for_the_rounds(tracker):
    tracker.log_round(record(1, seconds=SECONDS | {"total": 44.0, "start": 40.0}))
    for number in (2, 3):
        tracker.log_round(record(number))
    top, _ = plots.draw_costs(read_run(tracker.run_dir)).axes
    labels = [text.get_text() for text in top.get_legend().get_texts()]
    assert labels == ["generate", "exchange", "update", "rest of the round", "start-up"]
    start = top.containers[-1]
    assert [(bar.get_y(), bar.get_height()) for bar in start] == [(4.0, 40.0), (4.0, 0.0), (4.0, 0.0)]
    assert len({bars[0].get_facecolor() for bars in top.containers}) == 5
    assert top.get_ylim() == (0, pytest.approx(6.4))
    assert [text.get_text() for text in top.texts] == ["start-up: 40 s"]


def test_a_run_without_a_start_up_has_no_bar_of_it(make_run):
    top, _ = plots.draw_costs(read_run(make_run())).axes
    assert [text.get_text() for text in top.get_legend().get_texts()][-1] == "rest of the round"
    assert top.get_ylim()[1] > 4.0
