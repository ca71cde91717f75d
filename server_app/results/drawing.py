"""What all plots of a run and of a comparison have in common: size, colours, titles.

The object API of matplotlib throughout: pyplot keeps global state, and a server app runs in a thread.
"""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#1f2933"
# Apart from each other on white and on black, and for those who do not tell red from green.
COLOURS = (
    "#3b6fb6",
    "#d9722e",
    "#3f9a5f",
    "#a64d9a",
    "#b8912f",
    "#2a9db0",
    "#c44f5c",
    "#7a6ac0",
    "#8a7560",
    "#6b8e23",
)
_WIDTH = 6.6  # inches
_DPI = 160  # sharp in the 880 pixels that the page gives a plot of this width
_GRID = "#e4e7eb"


def new_figure(height: float, width: float = _WIDTH) -> Figure:
    """An empty figure, by default as wide as the column of a run's page; `height` and `width` in inches."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def literal(text: str, limit: int = 24) -> str:
    """Shorten a name for a plot and keep its dollar signs from starting a formula."""
    shortened = text if len(text) <= limit else text[: limit - 1] + "…"
    return shortened.replace("$", r"\$")


def style(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give axes a title, labels and the look that all plots have."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(labelsize=9.5, colors=INK)
