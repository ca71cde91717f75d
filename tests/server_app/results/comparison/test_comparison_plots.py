"""What the plots show: the values of lines, bands and bars."""

import numpy as np
import pytest
from small_comparisons import write_plan, write_run

from server_app.results.comparison import read_comparison
from server_app.results.comparison.plots import draw_accuracy, draw_gain, gain_edges


def lines_of(axes):
    return {line.get_label(): (list(line.get_xdata()), pytest.approx(list(line.get_ydata()))) for line in axes.lines}


def test_lines_are_means_over_seeds_against_rounds_and_bytes(comparison):
    left, right, *_ = draw_accuracy(comparison).axes
    means = [0.3, pytest.approx(0.6), pytest.approx((0.5 + 0.8 + 0.6) / 3)]
    assert lines_of(left)["fedavg"] == ([1, 2, 3], means)
    assert lines_of(right)["fedavg"] == ([140, 280, 420], means)
    # Round 2 of those who train alone was not tested.
    assert lines_of(left)["alone"] == ([1, 3], [0.1, pytest.approx((0.5 + 0.5 + 0.6) / 3)])
    assert right.get_xlabel() == "bytes sent and received, all clients"


def test_the_band_is_from_the_smallest_to_the_largest_of_the_seeds(comparison):
    left, *_ = draw_accuracy(comparison).axes
    band = left.collections[0].get_paths()[0].vertices
    of_last_round = [y for x, y in band if x == 3]
    assert (min(of_last_round), max(of_last_round)) == (pytest.approx(0.5), pytest.approx(0.8))


def test_who_sends_nothing_is_a_level_in_the_plot_over_bytes(comparison):
    _, right, *_ = draw_accuracy(comparison).axes
    (level,) = (line for line in right.lines if line.get_label() == "alone")
    assert list(level.get_ydata()) == [pytest.approx((0.5 + 0.5 + 0.6) / 3)] * 2
    assert level.get_linestyle() == "--"  # as matplotlib calls any pattern of dashes


def test_each_setting_has_panels_and_one_legend_names_all_methods_once(comparison):
    figure = draw_accuracy(comparison)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["same", "", "mixed", ""]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "fedavg",
        "alone",
        "band: smallest to largest of the seeds",
        "dotted: sends nothing, its last accuracy",
    ]
    colours = [{line.get_label(): line.get_color() for line in axes.lines} for axes in figure.axes]
    assert len(set(colours[0].values())) == 2
    assert all(each == colours[0] for each in colours)


def test_runs_that_have_not_finished_are_no_part_of_a_line_of_some_that_have(comparison):
    *_, left, _ = draw_accuracy(comparison).axes
    assert lines_of(left)["fedavg"] == ([1, 2, 3], [pytest.approx(0.4), 0.5, 0.6])


def test_a_line_is_of_the_rounds_that_all_seeds_have_tested(tmp_path):
    folder = write_plan(tmp_path / "c", [("x", "fedavg", "same", 0), ("y", "fedavg", "same", 1)])
    write_run(folder / "x", [(0.1,), (0.2,), (0.3,)])
    write_run(folder / "y", [(0.3,), None, (0.5,), (0.9,)], seed=1)
    left, *_ = draw_accuracy(read_comparison(folder)).axes
    assert lines_of(left)["fedavg"] == ([1, 3], [pytest.approx(0.2), pytest.approx(0.4)])


def test_histograms_count_every_client_of_every_seed(comparison):
    figure = draw_gain(comparison)
    same, mixed = figure.axes
    bars = {round(bar.get_x(), 3): bar.get_height() for bar in same.patches if bar.get_height()}
    assert bars == {-0.1: 2, 0.1: 2, 0.3: 2}
    colours = {round(bar.get_x(), 3): bar.get_facecolor() for bar in same.patches if bar.get_height()}
    assert colours[-0.1] != colours[0.1] == colours[0.3]
    assert {round(bar.get_x(), 3) for bar in mixed.patches if bar.get_height()} == {-0.1, 0.3}
    assert [text.get_text() for text in same.texts] == ["mean +0.100\n33 % of 6 lose\nworst -0.100"]


def test_there_is_no_histogram_without_a_run_alone(tmp_path):
    folder = write_plan(tmp_path / "c", [("x", "fedavg", "same", 0)])
    write_run(folder / "x", [(0.1,)] * 3)
    assert draw_gain(read_comparison(folder)) is None


@pytest.mark.parametrize("values", [[0.0], [-0.1, 0.1, 0.3], [0.15], [-0.15, 0.65], [-1.0, 1.0], [0.003]])
def test_a_bin_begins_at_no_gain_and_all_values_lie_in_bins(values):
    edges = np.array(gain_edges(values))
    assert 0 in edges
    assert edges[0] <= min(values) + 1e-9
    assert edges[-1] > max(values)
    assert len(edges) <= 42
    assert np.diff(edges) == pytest.approx(edges[1] - edges[0])


def test_a_method_has_one_line_style_whichever_point_of_its_grid_was_chosen_in_a_setting(tmp_path):
    runs = [(f"{s}-{rate}", "fedavg", s, 0, {"client-lr": rate}) for s in ("same", "mixed") for rate in (0.01, 0.1)]
    folder = write_plan(tmp_path / "c", runs)
    for name, _, setting, _, grid in runs:
        chosen = grid["client-lr"] if setting == "same" else -grid["client-lr"]
        write_run(folder / name, [(0.1,), (0.2,), (0.3,)], more=[{"validation-accuracy-mean": chosen}] * 3)
    figure = draw_accuracy(read_comparison(folder))
    assert [[line.get_label() for line in axes.lines] for axes in figure.axes] == [["fedavg"]] * 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fedavg"]


def test_more_methods_than_colours_are_told_apart_by_their_lines(tmp_path):
    names = [f"method-{number}" for number in range(12)]
    folder = write_plan(tmp_path / "c", [(name, name, "same", 0) for name in names])
    for name in names:
        write_run(folder / name, [(0.1,), (0.2,), (0.3,)])
    left, *_ = draw_accuracy(read_comparison(folder)).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in left.lines}) == 12
