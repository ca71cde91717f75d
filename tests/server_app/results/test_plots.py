"""What the plots show and what their legends say."""

import math

import pytest
from PIL import Image
from small_runs import further

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
    lenet, mlp, *_ = plots._COLOURS
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
    monkeypatch.setattr(plots, "_COLOURS", ("#3b6fb6",))
    top, _ = plots.draw_curves(read_run(make_run())).axes
    grey = [values for colour, _, values in lines_of(top) if colour == "#7b8794"]
    assert grey == [[0.001, 0.002, 0.0], [0.002, 0.003, 0.001]]
    assert list(legend_of(top))[3:] == ["each of 2 architectures, mean of clients"]


def drawn(*rows):
    """The axes, colours [clients, classes, RGBA] and scale of a heat map of these counts."""
    classes = [f"class-{number}" for number in range(len(rows[0]))]
    figure = plots.draw_partition({"class-names": classes, "clients": {str(i): row for i, row in enumerate(rows)}})
    axes, bar = figure.axes
    (image,) = axes.images
    return axes, image.to_rgba(image.get_array()), [label.get_text() for label in bar.get_yticklabels()]


def test_a_few_samples_of_a_class_are_seen_beside_thousands_of_another_and_none_is_no_colour():
    axes, colours, ticks = drawn([0, 1, 10, 2000], [2000, 0, 10, 1])
    none, one, ten, most = colours[0]
    assert none[3] == 0  # nothing is drawn there
    assert one[:3].min() < 0.9  # no white
    darkness = [3 - colour[:3].sum() for colour in (one, ten, most)]
    assert darkness[1] - darkness[0] > 0.3
    assert darkness[2] - darkness[1] > 0.3
    assert sorted({text.get_text() for text in axes.texts}) == ["1", "10", "2,000"]
    assert (ticks[0], ticks[-1]) == ("1", "2,000")


def test_the_colours_of_counts_end_where_the_counts_end():
    _, _, ticks = drawn([3, 30], [25, 0])
    assert ticks == ["3", "5", "10", "20", "30"]
    _, _, ticks = drawn([40, 200_000])
    assert ticks == ["40", "100", "1,000", "10,000", "100,000", "200,000"]


@pytest.mark.parametrize("rows", [([0, 0],), ([7, 7], [7, 0]), ([1],)])
def test_counts_of_one_size_or_none_are_drawn(rows):
    axes, _, _ = drawn(*rows)
    assert len(axes.texts) == sum(count > 0 for row in rows for count in row)


@pytest.mark.parametrize(("count", "step"), [(31, 2), (100, 5), (200, 10), (251, 20), (1000, 50), (2600, 200)])
def test_ticks_stay_few_and_round(count, step):
    assert plots._tick_step(count) == step
