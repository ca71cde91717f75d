"""The dark renderings of plots: read on a dark page, and the light ones stay as they were."""

import io

import numpy as np
import pytest
from contrast import contrast
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from server_app.results import dark, drawing, plots, read_run
from server_app.results.partition_plot import draw_partition

PANEL = "#1a2129"  # of the page, in the dark


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def test_a_dark_plot_is_transparent_where_the_light_one_is_white(make_run):
    run = read_run(make_run())
    plot = dark.render(plots.draw_curves(run))
    assert plot.light == plots.png(plots.draw_curves(run))
    light, other = pixels(plot.light), pixels(plot.dark)
    assert light.shape == other.shape
    white = (light == 255).all(axis=2)
    assert white.mean() > 0.5
    assert (other[white][:, 3] < 40).mean() > 0.99  # but for the edges of what is drawn
    assert light[..., 3].min() == 255


@pytest.mark.parametrize("colour", ["#000000", drawing.INK])
def test_ink_is_as_readable_as_text_has_to_be(colour):
    assert contrast(to_hex(dark.on_dark(*to_rgb(colour))[:3]), PANEL) >= 7


@pytest.mark.parametrize("colour", [*drawing.COLOURS, plots._BEST, "#7b8794", "#a9c1e0"])
def test_curves_and_bars_stand_out_from_the_dark_page(colour):
    assert contrast(to_hex(dark.on_dark(*to_rgb(colour))[:3]), PANEL) >= 3


def test_every_line_and_text_of_a_figure_is_changed_once(make_adapt_run):
    figure = plots.draw_curves(read_run(make_adapt_run()))
    dark.render(figure)
    top, _ = figure.axes
    black = [line for line in top.lines if line.get_label().startswith(("mean over", "all test samples"))]
    assert len(black) == 3
    assert {to_hex(line.get_color()) for line in black} == {"#ffffff"}
    texts = [top.title, top.xaxis.label, *top.get_xticklabels(), *top.get_legend().get_texts()]
    for text in texts:
        assert contrast(to_hex(text.get_color()), PANEL) >= 7, text


def test_numbers_of_a_heat_map_are_read_in_every_cell():
    counts = {str(row): [round(10 ** (power / 2.5)) for power in range(11)] for row in range(2)}
    figure = draw_partition(
        {"class-names": list("abcdefghijk"), "clients": counts, "sizes": {key: {} for key in counts}}
    )
    before = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    dark.render(figure)
    axes, bar = figure.axes
    assert [label.get_text() for label in bar.get_yticklabels()] == before
    (image,) = axes.images
    cells = image.to_rgba(image.get_array())
    assert len(axes.texts) == 22
    for text in axes.texts:
        column, row = text.get_position()
        assert contrast(to_hex(text.get_color()), to_hex(cells[row, column])) >= 4.5, text.get_text()
    fewest = to_hex(cells[0, 0])
    assert contrast(fewest, PANEL) >= 1.8  # a cell with one sample is no empty one
