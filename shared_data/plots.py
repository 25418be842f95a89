"""Plots of a corpus, of a training run and of attention, as SVG or PNG files.

Lines and letters of an SVG take the colour of the text around it (`currentColor`), so that the report can be read in light
and in dark. matplotlib is imported when the first plot is drawn: it takes half a second.

    from shared_data.plots import plot_zipf
    plot_zipf({"the": 100, "a": 51, "dog": 33}, "zipf.svg")
"""

import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from shared_data.files import atomic_write

BLUE, ORANGE, GREEN, RED = "#3b82f6", "#f59e0b", "#10b981", "#ef4444"
FEWEST_POINTS = 4  # of a curve; fewer are shown as points, or said in words
_LABELLED_BANDS = 16  # more would not be legible,
_NARROWEST_LABELLED = 0.05  # nor would the numbers of narrow ones
_INK = "#010203"  # stands for the text colour while matplotlib draws
# Inches, for plots that share the width of a page, or have it to themselves.
_COLUMN, _PAGE = ((4.6, 2.8), (7.4, 3.4))
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # letters stay letters: smaller, and in the font of the page
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
# One above the other.
_LAYERS: tuple[dict[str, Any], ...] = (
    {"linewidth": 6.0, "alpha": 0.4},
    {"linewidth": 2.4, "linestyle": (0, (5, 4))},
    {"linewidth": 1.8, "linestyle": (0, (1, 3))},
    {"linewidth": 0.8},
)


@contextmanager
def _axes(path: Path | str, size: tuple[float, float] = _COLUMN, columns: int = 1) -> Iterator[Any]:
    """Axes to draw on, or several side by side; the figure is written to the path when the block ends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    path = Path(path)
    is_svg = path.suffix == ".svg"
    # The salt makes the ids inside an SVG the same on every run, and different between plots of one page.
    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": path.name}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # A letter that our font lacks is drawn by the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=size)
        yield figure.subplots(ncols=columns, sharey=True)
        buffer = io.BytesIO()
        metadata = {"Date": None} if is_svg else None
        figure.savefig(buffer, format=path.suffix.lstrip("."), transparent=is_svg, metadata=metadata)
    content = buffer.getvalue()
    with atomic_write(path) as file:
        file.write(content.replace(_INK.encode(), b"currentColor") if is_svg else content)


def plot_lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: Path | str,
    *,
    title: str = "",
    x_label: str = "step",
    y_label: str = "",
    floor: tuple[str, float] | None = None,
    log_y: bool = False,
    wide: bool = False,
    layered: bool = False,
    joined: bool = True,
) -> None:
    """Draw named curves, each as (x, y), and a dashed level that none should cross (name, height).

    `layered` is for curves that coincide: broad, then dashed, then dotted, so that each is seen below the next. Points are
    `joined` by lines where there are enough for a curve.
    """
    colors = (BLUE, ORANGE, GREEN, RED)
    with _axes(path, _PAGE if wide else _COLUMN) as axes:
        for (name, (x, y)), color, layer in zip(series.items(), colors, _LAYERS, strict=False):
            style = layer if layered else {"marker": "o" if len(x) <= 30 else None, "markersize": 3.5}
            if len(x) < FEWEST_POINTS or not joined:
                style = {"marker": "o", "markersize": 4, "linestyle": "none"}
            axes.plot(x, y, label=name, color=color, **style)
        if floor is not None:
            axes.axhline(floor[1], color=RED, linestyle=(0, (5, 3)), linewidth=1.2, label=floor[0])
        heights = [value for _, y in series.values() for value in y]
        # A linear axis shows less than a decade better.
        if log_y and heights and max(heights) > 10 * min(heights) > 0:
            _logarithmic(axes)
        if all(isinstance(value, int) for x, _ in series.values() for value in x):
            axes.xaxis.get_major_locator().set_params(integer=True)  # no half steps
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if len(series) > 1 or floor is not None:
            axes.legend()


def _logarithmic(axes: Any) -> None:
    """A logarithmic y axis with numbers as people write them, at 1, 2 and 5 of each power of ten."""

    def label(value: float, position: int) -> str:
        return f"{value:g}" if f"{value:e}"[0] in "125" else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(label)
    axes.yaxis.set_minor_formatter(label)


def plot_training(rows: Sequence[Mapping[str, Any]], floor: float | None, path: Path | str) -> None:
    """The loss over the steps of a metrics log, in nats per token, and the entropy floor in the same unit."""
    series = {}
    for key, name in (("loss", "training"), ("eval_loss", "validation")):
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            series[name] = ([x for x, _ in points], [y for _, y in points])
    level = ("entropy floor", floor) if floor is not None else None
    plot_lines(series, path, title="Loss", y_label="nats per token", floor=level, wide=True)


def plot_shares(
    steps: Sequence[int],
    shares: Float[np.ndarray, "n E"],
    path: Path | str,
    *,
    title: str = "",
) -> None:
    """Bands that fill the height at every step, one an expert from below; lines where the bands of a balanced layer would end."""
    heights = shares.T
    E = len(heights)
    with _axes(path) as axes:
        # Light and dark in turn, so that neighbours can be told apart however many they are.
        colors = [(BLUE, ORANGE)[band % 2] for band in range(E)]
        axes.stackplot(steps, heights, colors=colors, alpha=0.55, linewidth=0)
        for band in range(1, E):
            axes.axhline(band / E, color=_INK, linewidth=0.6, alpha=0.5, linestyle=(0, (4, 4)))
        if E <= _LABELLED_BANDS:
            last = heights[:, -1]
            middles = np.cumsum(last) - last / 2
            broad = [band for band in range(E) if last[band] >= _NARROWEST_LABELLED]
            numbers = axes.secondary_yaxis("right")
            numbers.set_yticks(middles[broad], labels=broad)
            numbers.set_ylabel("expert")
        axes.grid(visible=False)
        axes.set(
            title=title,
            xlabel="step",
            ylabel="share of the assignments",
            ylim=(0, 1),
            xlim=(steps[0], steps[-1]),
        )
        axes.xaxis.get_major_locator().set_params(integer=True)


def plot_histogram(
    values: Sequence[float] | Mapping[int, int],
    path: Path | str,
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "documents",
    bins: int = 50,
) -> None:
    """How often each size occurs; `values` are sizes, or the number of occurrences by size."""
    sizes, counts = (list(values), list(values.values())) if isinstance(values, Mapping) else (values, None)
    with _axes(path) as axes:
        axes.hist(sizes, bins=bins, weights=counts, color=BLUE, alpha=0.85)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)


def plot_bars(
    counts: Mapping[str, float], path: Path | str, *, title: str = "", x_label: str = "documents"
) -> None:
    """Named amounts, the largest on top."""
    ordered = sorted(counts.items(), key=lambda item: item[1])
    with _axes(path, (_COLUMN[0], max(_COLUMN[1], 0.8 + 0.25 * len(ordered)))) as axes:
        bars = axes.barh(
            [name.replace("_", " ") for name, _ in ordered], [n for _, n in ordered], color=BLUE, alpha=0.85
        )
        axes.bar_label(bars, fmt="{:,.0f}", padding=3)
        axes.grid(visible=False, axis="y")
        axes.set(title=title, xlabel=x_label)


def plot_panels(
    names: Sequence[str],
    panels: Mapping[str, Sequence[tuple[float | None, float | None, str]]],
    path: Path | str,
) -> None:
    """Several amounts of each name: a panel of bars for each kind of amount, with the names at the left.

    A panel has for each name the amount (None: no bar), its spread or None, and the label of the bar.
    """
    width = 0.075 * max(map(len, names)) + 1.5 * len(panels)
    with _axes(path, (width, 1.0 + 0.32 * len(names)), columns=len(panels)) as all_axes:
        for axes, (title, amounts) in zip(np.atleast_1d(all_axes), panels.items(), strict=True):
            values = [value or 0.0 for value, _, _ in amounts]
            spreads = [spread or 0.0 for _, spread, _ in amounts] if any(s for _, s, _ in amounts) else None
            bars = axes.barh(range(len(names)), values, xerr=spreads, color=BLUE, alpha=0.85, ecolor=_INK)
            labels = [text.partition(" ")[0] for _, _, text in amounts]  # the spread is drawn
            axes.bar_label(bars, labels=labels, padding=3, fontsize=8)
            axes.set_title(textwrap.fill(title, 16), fontsize=9)
            axes.set_yticks(range(len(names)), labels=names, parse_math=False)
            axes.set_xticks([])
            axes.margins(x=0.45)  # room for the labels
            axes.tick_params(axis="y", length=0)
            axes.spines["bottom"].set_visible(False)
            axes.grid(visible=False)
        np.atleast_1d(all_axes)[0].invert_yaxis()  # the first name on top; the panels share the axis


def plot_zipf(
    counts: Mapping[str, int] | Sequence[int], path: Path | str, *, title: str = "Frequency by rank (Zipf)"
) -> None:
    """Frequency against rank, both logarithmic: natural language lies near a line of slope -1 (Zipf 1949)."""
    frequencies = sorted(counts.values() if isinstance(counts, Mapping) else counts, reverse=True)
    with _axes(path) as axes:
        if frequencies:
            ranks = range(1, len(frequencies) + 1)
            axes.loglog(ranks, frequencies, color=BLUE, label="words")
            axes.loglog(
                ranks,
                [frequencies[0] / rank for rank in ranks],
                color=ORANGE,
                linestyle=":",
                label="1 / rank",
            )
            axes.set_ylim(bottom=0.7)
            axes.legend()
        axes.set(title=title, xlabel="rank", ylabel="occurrences")


def plot_attention(
    maps: Float[np.ndarray, "L H T T"],
    tokens: Sequence[str],
    layers: Sequence[int],
    heads: Sequence[int],
    path: Path | str,
) -> None:
    """Attention maps, a row of them a layer and a column a head: the bluer, the more the token beside reads from the one below.

    `layers` and `heads` are their numbers.
    """
    L, H, T, _ = maps.shape
    # Inches of a map: a line of letters for each token, until the picture becomes too large.
    side = min(3.0 if L * H > 1 else 6.0, max(1.2, 0.11 * T))
    labelled = range(0, T, math.ceil(0.11 * T / side))
    # Blue that is the more opaque the larger the weight: it can be read on light and on dark pages.
    picture = np.zeros((L, T + 1, H, T + 1, 4), np.uint8)
    picture[..., :3] = list(bytes.fromhex(BLUE[1:]))
    picture[:, :T, :, :T, 3] = np.rint(255 * np.nan_to_num(maps).transpose(0, 2, 1, 3))
    with _axes(path, (side * H + 1.3, side * L + 1.3)) as axes:
        pixels = picture.reshape(L * (T + 1), H * (T + 1), 4)
        # Many pixels a cell, for programs that blur what they enlarge.
        scale = max(1, 1600 // max(pixels.shape))
        extent = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
        axes.imshow(pixels.repeat(scale, 0).repeat(scale, 1), interpolation="none", extent=extent)
        for row, layer in enumerate(layers):
            for column, head in enumerate(heads):
                x, y = column * (T + 1) - 0.5, row * (T + 1) - 0.5
                axes.plot([x, x, x + T], [y, y + T, y + T], color=_INK, alpha=0.4, linewidth=0.6)
                # No token reads what comes after it: that half of a map is free.
                axes.text(x + T, y, f"layer {layer}, head {head}", ha="right", va="top", fontsize=7)
        for axis, count in ((axes.xaxis, H), (axes.yaxis, L)):
            places = [index * (T + 1) + place for index in range(count) for place in labelled]
            names = [tokens[place] for place in labelled] * count
            axis.set_ticks(places, labels=names, fontsize=6.5, parse_math=False)
        axes.tick_params(length=0, pad=2)
        axes.tick_params(axis="x", rotation=90)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("the token that is read", fontsize=8)
        axes.set_ylabel("the token that reads", fontsize=8)
        axes.set(xlim=(-0.5, H * (T + 1) - 1.5), ylim=(L * (T + 1) - 1.5, -0.5))
