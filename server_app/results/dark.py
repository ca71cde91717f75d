"""A plot in two renderings, for a page on light and on dark ground."""

import base64
import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.collections import Collection
from matplotlib.colors import LinearSegmentedColormap, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from server_app.results.plots import png

# As the scale of the heat map on white: few is near to the ground. Numbers in light ink are read on the lower part, in
# dark ink on the upper one, so there is a step between the two.
_COUNTS = LinearSegmentedColormap.from_list(
    "counts on dark", [(0, "#234d80"), (0.6, "#2d5fa2"), (0.61, "#5f8fce"), (1, "#dbe7f5")]
)
_GREYEST_COLOUR = 0.25  # saturation below which a colour is ink, paper or a shade between them
_DARKEST_COLOUR = 0.6  # lightness of a curve


@dataclass(frozen=True)
class Plot:
    """The PNG files of one figure."""

    light: bytes
    dark: bytes  # transparent where there is paper


def render(figure: Figure) -> Plot:
    """Draw a figure on white, then in colours for a dark page, in which it is left."""
    light = png(figure)
    _darken(figure)
    return Plot(light, png(figure))


def data_uri(png: bytes) -> str:
    """The address under which a page holds a PNG file in itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _darken(figure: Figure) -> None:
    for artist in figure.findobj():
        if isinstance(artist, AxesImage | Collection) and artist.get_array() is not None:
            with artist.callbacks.blocked():  # a colour bar that heard of it would choose other ticks
                artist.set_cmap(_COUNTS)
        elif isinstance(artist, Text | Line2D | Patch | Collection):
            _recolour(artist)
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_facecolor("none")


def _recolour(artist: Any) -> None:
    names = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")
    # All are read before one is set: those of markers may follow the line's.
    colours = {name: getattr(artist, f"get_{name}")() for name in names if hasattr(artist, f"get_{name}")}
    for name, colour in colours.items():
        rows = to_rgba_array(colour)  # [n, 4], or none for a colour that is not drawn
        changed = np.array([on_dark(*row) for row in rows])
        if len(changed):
            getattr(artist, f"set_{name}")(changed if isinstance(artist, Collection) else tuple(changed[0]))


def on_dark(red: float, green: float, blue: float, alpha: float = 1.0) -> tuple[float, float, float, float]:
    """The colour, each part 0 to 1, that stands on dark ground for this one on white: ink is light, hues stay."""
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    is_grey = saturation < _GREYEST_COLOUR
    lightness = 1 - 0.85 * lightness if is_grey else max(lightness, _DARKEST_COLOUR)
    return (*colorsys.hls_to_rgb(hue, lightness, saturation), alpha)
