"""Draw the figures of the theory pages; their formulas are in the pages.

python -m shared_data.figures
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.rope import rotary_frequencies
from shared_data.plots import plot_lines

_ROOT = Path(__file__).parent.parent
_GREY = b"#8b949e"  # legible on light and on dark pages, where an image cannot take the colour of the text around it


def _recolor(path: Path) -> None:
    """Replace the text colour, which a picture in a Markdown page does not know."""
    path.write_bytes(path.read_bytes().replace(b"currentColor", _GREY))


def draw_s_curves(path: Path) -> None:
    """P(candidate) = 1 - (1 - s^r)^b for several bands b and rows r (`processing/deduplication.md`)."""
    similarity = [i / 100 for i in range(101)]
    curves = {
        f"b = {bands}, r = {rows}": (similarity, [1 - (1 - s**rows) ** bands for s in similarity])
        for bands, rows in ((42, 3), (20, 6), (11, 11), (1, 128))
    }
    plot_lines(curves, path, x_label="Jaccard similarity s", y_label="P(candidate)", wide=True)
    _recolor(path)


def draw_newton_schulz(path: Path) -> None:
    """What Newton-Schulz makes of a singular value after 1, 3 and 5 iterations (`pretrain/components/muon.md`)."""
    before = [i / 200 for i in range(201)]
    curves: dict[str, tuple[list[float], list[float]]] = {}
    after = before
    for iteration in range(1, 6):
        after = [3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5 for s in after]
        if iteration % 2:
            curves[f"after {iteration}"] = (before, after)
    plot_lines(curves, path, x_label="singular value", y_label="becomes")
    _recolor(path)


def draw_rope_scaling(path: Path) -> None:
    """How fast each plane of a head turns with each kind of scaling, beside how fast it turned in training (`models/blocks/rope.md`)."""
    length, factor = 8192, 8.0  # Llama 3's, and eight times as much
    model: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 1, "rope_theta": 500_000.0}
    model |= {"max_position_embeddings": length}
    original = {"factor": factor, "original_max_position_embeddings": length}
    kinds: dict[str, dict[str, float]] = {
        "linear": {"factor": factor},
        "dynamic": {"factor": factor},
        "llama3": original | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "yarn": original,
    }
    before = rotary_frequencies(ModelConfig(**model))
    curves = {}
    for kind, entries in kinds.items():
        config = ModelConfig(**model, rope_scaling={"rope_type": kind, **entries})
        after = rotary_frequencies(config, length=int(factor * length))
        curves[kind] = (list(range(len(before))), (after / before).tolist())
    plot_lines(curves, path, x_label="plane i", y_label="θ′ ÷ θ", wide=True)
    _recolor(path)


# Two distributions over twelve tokens, and what a filter keeps of one of them (`inference/sampling.md`).
CONTEXTS = {
    "a sure model": (0.8, 0.07, 0.04, 0.03, 0.02, 0.015, 0.01, 0.005, 0.004, 0.003, 0.002, 0.001),
    "an unsure model": (0.14, 0.13, 0.12, 0.11, 0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.03, 0.02),
}
FILTERS: dict[str, Callable[[Sequence[float]], list[bool]]] = {
    "top_k 4": lambda p: [index < 4 for index in range(len(p))],
    "top_p 0.9": lambda p: [sum(p[:index]) < 0.9 - 1e-9 for index in range(len(p))],
    "min_p 0.1": lambda p: [value >= 0.1 * p[0] for value in p],
    "typical_p 0.6": lambda p: _typical(p, 0.6),
}


def _typical(p: Sequence[float], mass: float) -> list[bool]:
    entropy = -sum(value * math.log(value) for value in p)
    order = sorted(range(len(p)), key=lambda index: abs(-math.log(p[index]) - entropy))
    kept = [sum(p[index] for index in order[:place]) < mass - 1e-9 for place in range(len(p))]
    return [kept[order.index(index)] for index in range(len(p))]


def draw_filters(path: Path) -> None:
    """Which of twelve tokens each filter keeps, where the model is sure and where it is not (`inference/sampling.md`)."""
    size, left, top, height = 26, 110, 24, 70
    parts = []
    for panel, (title, p) in enumerate(CONTEXTS.items()):
        x0, base = left + panel * (size * (len(p) + 1)), top + height
        parts.append(f'<text x="{x0}" y="14" font-weight="bold">{title}</text>')
        for index, value in enumerate(p):
            bar, x = max(1.0, height * value / 0.8), x0 + index * size
            parts.append(
                f'<rect x="{x + 4}" y="{base - bar:.1f}" width="{size - 8}" height="{bar:.1f}" fill="currentColor"/>'
            )
        for row, (name, keeps) in enumerate(FILTERS.items()):
            y = base + 12 + row * size
            if panel == 0:
                parts.append(f'<text x="0" y="{y + 16}">{name}</text>')
            for index, kept in enumerate(keeps(p)):
                fill = "#2f81f7" if kept else "none"
                x = x0 + index * size
                parts.append(
                    f'<rect x="{x + 4}" y="{y}" width="{size - 8}" height="{size - 8}" fill="{fill}" stroke="currentColor"/>'
                )
    width, total = left + 2 * size * 13, top + height + 12 + size * len(FILTERS)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" font-family="sans-serif" font-size="13"'
    path.write_text(head + ' fill="currentColor">\n' + "\n".join(parts) + "\n</svg>\n", encoding="utf-8")
    _recolor(path)


if __name__ == "__main__":
    draw_s_curves(_ROOT / "v2_handwritten/data_pipeline/processing/s_curves.svg")
    draw_newton_schulz(_ROOT / "v2_handwritten/pretrain/components/newton_schulz.svg")
    draw_rope_scaling(_ROOT / "v2_handwritten/models/blocks/rope_scaling.svg")
    draw_filters(_ROOT / "v2_handwritten/inference/filters.svg")
