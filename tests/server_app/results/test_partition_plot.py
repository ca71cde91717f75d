"""Which client holds what: classes as colours, or sizes where there are too many cells."""

import numpy as np
import pytest
from small_runs import of_data

from server_app.results import partition_plot


def drawn(*rows):
    """The axes, colours [clients, classes, RGBA] and scale of a heat map of these counts."""
    classes = [f"class-{number}" for number in range(len(rows[0]))]
    figure = partition_plot.draw_partition(
        {"class-names": classes, "clients": {str(i): row for i, row in enumerate(rows)}}
    )
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
    assert partition_plot._tick_step(count) == step


def writers(num_clients, num_classes, validation=0):
    """Clients of different sizes, in no order."""
    counts = {str(client): [client * 7 % num_clients + 1] * num_classes for client in range(num_clients)}
    _, partition = of_data(counts, [f"class {number}" for number in range(num_classes)])
    for size in partition["sizes"].values():
        size["validation"] = validation
    return partition


@pytest.mark.parametrize(
    ("num_clients", "num_classes", "shows_classes"),
    [(20, 100, True), (100, 10, True), (500, 10, True), (100, 62, False), (501, 2, False), (2, 501, False)],
)
def test_a_heat_map_is_drawn_where_it_has_few_enough_cells(num_clients, num_classes, shows_classes):
    partition = writers(num_clients, num_classes)
    assert partition_plot.shows_classes(partition) == shows_classes
    assert bool(partition_plot.draw_partition(partition).axes[0].images) == shows_classes


@pytest.mark.parametrize("validation", [0, 3])
def test_sizes_are_stacked_by_part_with_the_largest_client_first(validation):
    partition = writers(120, 62, validation)
    (axes,) = partition_plot.draw_partition(partition).axes
    stairs = {patch.get_label(): patch.get_data() for patch in axes.patches}
    assert list(stairs) == ["train", *(["validation"] if validation else []), "test"]
    totals = stairs["test"].values
    assert sorted(totals, reverse=True) == totals.tolist()
    assert totals.tolist() == sorted((sum(size.values()) for size in partition["sizes"].values()), reverse=True)
    below = [0.0, *(each.values for each in stairs.values())]
    for part, bottom in zip(stairs.values(), below, strict=False):
        np.testing.assert_array_equal(np.broadcast_to(part.baseline, 120), np.broadcast_to(bottom, 120))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(stairs)
