"""Draw the figures of the theory pages; their formulas are in the pages.

python -m shared_data.figures
"""

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


if __name__ == "__main__":
    draw_s_curves(_ROOT / "v2_handwritten/data_pipeline/processing/s_curves.svg")
    draw_newton_schulz(_ROOT / "v2_handwritten/pretrain/components/newton_schulz.svg")
    draw_rope_scaling(_ROOT / "v2_handwritten/models/blocks/rope_scaling.svg")
