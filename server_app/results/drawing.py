"""What all plots of the page have in common: size, colours, titles.

The object API of matplotlib throughout: pyplot keeps global state, and a server app runs in a thread.
"""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#1f2933"
_DPI = 160  # sharp in the 880 pixels that the page gives a plot
_GRID = "#e4e7eb"


def new_figure(height: float) -> Figure:
    """An empty figure as wide as the page's column; `height` in inches."""
    figure = Figure(figsize=(6.6, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def literal(text: str, limit: int = 24) -> str:
    """Shorten a name for a plot and keep its dollar signs from starting a formula."""
    shortened = text if len(text) <= limit else text[: limit - 1] + "…"
    return shortened.replace("$", r"\$")


def style(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give axes a title, labels and the look that all plots have."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9.5)
