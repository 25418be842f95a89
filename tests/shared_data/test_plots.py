"""Plots: files that hold what was drawn, in the colour of the page, and the same bytes for the same numbers."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from shared_data.plots import (
    plot_attention,
    plot_bars,
    plot_histogram,
    plot_lines,
    plot_panels,
    plot_training,
    plot_zipf,
)

ROWS = [
    {"step": 1, "loss": 3.0, "eval_loss": 3.1},
    {"step": 2, "loss": 2.0},
    {"step": 3, "loss": 1.5, "eval_loss": 1.6},
]
MAPS = np.tril(np.full((2, 3, 4, 4), 0.25))  # two layers, three heads, four tokens
TOKENS = ["<0xE7>", "␣fox", "$x$", "狐狸"]
PANELS = {"bits per byte": [(0.5, 0.1, "0.5 ± 0.1"), (0.25, None, "0.25")], "tokens/s": [(7, None, "7")] * 2}
PLOTS: dict[str, Callable[[Path], None]] = {
    "training": lambda path: plot_training(ROWS, 1.25, path),
    "histogram": lambda path: plot_histogram([1, 2, 2, 3], path, title="Lengths", x_label="words"),
    "counted histogram": lambda path: plot_histogram({1: 1, 2: 2, 3: 1}, path, title="Lengths"),
    "no documents": lambda path: plot_histogram({}, path),
    "bars": lambda path: plot_bars({"too_short": 12, "markup": 3}, path),
    "zipf": lambda path: plot_zipf({"the": 10, "a": 5, "dog": 1}, path),
    "lines": lambda path: plot_lines({"norm": ([1, 2], [0.5, 25.0])}, path, y_label="norm", log_y=True),
    "attention": lambda path: plot_attention(MAPS, TOKENS, [0, 5], [0, 1, 2], path),
    "panels": lambda path: plot_panels(["a", "$b$"], PANELS, path),
    "one panel": lambda path: plot_panels(["a"], {"tokens/s": [(None, None, "–")]}, path),
    "no rows": lambda path: plot_training([], None, path),
    "no words": lambda path: plot_zipf({}, path),
}


@pytest.mark.parametrize("name", PLOTS)
def test_svg_is_well_formed_takes_the_page_colour_and_is_reproducible(name: str, tmp_path: Path) -> None:
    first, second = tmp_path / "plot.svg", tmp_path / "again" / "plot.svg"
    PLOTS[name](first)
    PLOTS[name](second)
    assert first.read_bytes() == second.read_bytes()
    assert ElementTree.fromstring(first.read_text()).tag.endswith("svg")
    assert "currentColor" in first.read_text()
    assert "#010203" not in first.read_text()


def test_training_shows_both_losses_and_the_floor(tmp_path: Path) -> None:
    plot_training(ROWS, 1.25, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    for label in ("training", "validation", "entropy floor", "nats per token"):
        assert f">{label}</text>" in text


def test_attention_names_each_map_and_its_tokens_as_they_are(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "plot.svg"
    plot_attention(MAPS, TOKENS, [0, 5], [0, 1, 2], path)
    text = path.read_text()
    for layer, head in ((0, 0), (0, 2), (5, 1)):
        assert f">layer {layer}, head {head}</text>" in text
    for token, shown in (("<0xE7>", "&lt;0xE7&gt;"), *((token, token) for token in TOKENS[1:])):
        assert text.count(f">{shown}</text>") == 2 + 3, f"{token}: beside each layer and below each head"
    assert not recwarn.list, "a letter that matplotlib's font lacks is no warning"


def test_the_shade_of_a_cell_is_its_weight(tmp_path: Path) -> None:
    def shades(maps: np.ndarray) -> set[int]:
        plot_attention(maps, ["a", "b"], [0], [0], tmp_path / "plot.svg")
        data = re.findall(r'"data:image/png;base64,([^"]+)"', (tmp_path / "plot.svg").read_text())
        pixels = imread(io.BytesIO(base64.b64decode(data[0])))
        return set(np.unique(np.rint(255 * pixels[..., 3])).astype(int).tolist())

    assert shades(np.array([[[[1.0, 0.0], [0.2, 0.8]]]])) == {255, 51, 204, 0}


def test_many_tokens_are_labelled_as_far_as_there_is_room(tmp_path: Path) -> None:
    path, T = tmp_path / "plot.svg", 100
    plot_attention(np.tril(np.full((1, 2, T, T), 0.01)), [f"t{n}" for n in range(T)], [0], [0, 1], path)
    assert path.read_text().count(">t0</text>") == 1 + 2
    assert 40 < len(re.findall(r">t\d+</text>", path.read_text())) < 100


def test_png_is_written_too(tmp_path: Path) -> None:
    plot_zipf([5, 2, 1], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_histogram_of_counts_is_that_of_the_values(tmp_path: Path) -> None:
    plot_histogram([1, 2, 2, 3], tmp_path / "a" / "plot.svg")
    plot_histogram({1: 1, 2: 2, 3: 1}, tmp_path / "b" / "plot.svg")
    assert (tmp_path / "a" / "plot.svg").read_bytes() == (tmp_path / "b" / "plot.svg").read_bytes()


def test_a_step_is_a_whole_number_on_the_axis(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    for steps, halves in ((list(range(1, 21)), False), ([x / 2 for x in range(2, 41)], True)):
        plot_lines({"reward": (steps, [0.0] * len(steps))}, path)
        numbers = [float(number) for number in re.findall(r">(\d+\.\d)<", path.read_text())]
        assert any(number % 1 == 0.5 for number in numbers) == halves


def test_curves_that_coincide_are_drawn_so_that_each_is_seen(tmp_path: Path) -> None:
    """Each narrower than the one below it, and with gaps."""
    line = (list(range(50)), [1.0] * 50)
    plot_lines(dict.fromkeys(("v1", "v2", "v3"), line), tmp_path / "plot.svg", layered=True)
    drawn = re.findall(
        r'<path d="[^"]*" clip-path="[^"]*" style="(fill: none; [^"]*#[^"]*)"',
        (tmp_path / "plot.svg").read_text(),
    )
    styles = [style for style in drawn if re.search("#3b82f6|#f59e0b|#10b981", style)]
    widths = [float(re.findall(r"stroke-width: ([\d.]+)", style)[0]) for style in styles]
    assert len(styles) == 3
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 2 * widths[1]
    assert ["stroke-dasharray" in style for style in styles] == [False, True, True]


@pytest.mark.parametrize("points", [3, 4])
def test_fewer_than_four_points_are_joined_by_no_line(points: int, tmp_path: Path) -> None:
    plot_lines({"validation": (list(range(points)), [1.0] * points)}, tmp_path / "plot.svg")
    lines = re.findall(r"fill: none; stroke: #3b82f6", (tmp_path / "plot.svg").read_text())
    assert bool(lines) == (points == 4)
