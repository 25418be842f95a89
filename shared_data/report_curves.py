"""Small plots in the report, side by side; what has too few points for a curve is a sentence.

curves(run, "dpo", rows, [("loss", "Loss")])
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shared_data import report_html as html
from shared_data.plots import FEWEST_POINTS, plot_lines, plot_training
from shared_data.progress import format_metric
from shared_data.runs import RunFolder

_BELOW_ZERO = (
    "Estimated from samples, so a point can lie below 0, which the divergence itself cannot "
    "(shared_data/alignment/policy_evaluation.md)."
)


def curves(
    run: RunFolder, stage: str, rows: Sequence[Mapping[str, Any]], wanted: Iterable[tuple[str, str, bool]]
) -> str:
    """A figure for each (name in the metrics log, title, whether the y axis is logarithmic) that the log has."""
    figures, sentences = [], []
    for key, title, log_y in wanted:
        points = [
            (row["step"], row[key])
            for row in rows
            if row.get(key) is not None and (row[key] > 0 or not log_y)
        ]
        if 0 < len(points) < FEWEST_POINTS:
            sentences.append(_sentence(key, title, points))
        elif points:
            path = run.path / "report" / f"{stage}_{key.replace('/', '_')}.svg"
            steps, values = zip(*points, strict=True)
            plot_lines({title: (steps, values)}, path, title=title, log_y=log_y)
            below = "kl" in key and min(values) < 0
            figures.append(html.figure(path, _BELOW_ZERO if below else ""))
    return (html.side_by_side(figures) if figures else "") + "".join(map(html.paragraph, sentences))


def training_curve(
    run: RunFolder, name: str, rows: Sequence[Mapping[str, Any]], floor: float | None, caption: str
) -> str:
    """The losses of a training in one plot, or in a sentence."""
    points = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    if len(points) < FEWEST_POINTS:
        return html.paragraph(_sentence("loss", "Loss in nats per token", points)) if points else ""
    path = run.path / "report" / f"{name}.svg"
    plot_training(rows, floor, path)
    return html.figure(path, caption)


def _sentence(key: str, title: str, points: Sequence[tuple[int, float]]) -> str:
    """Loss: 5.0000 at step 2, 4.8000 at step 4."""
    values = ", ".join(f"{format_metric(key, value)} at step {step:,}" for step, value in points)
    note = f" {_BELOW_ZERO}" if "kl" in key and min(value for _, value in points) < 0 else ""
    return f"{title}: {values}.{note}"


def kl_per_completion(row: Mapping[str, Any]) -> float | None:
    """The KL of a row of the metrics log in nats per completion: GRPO's trainers log the mean over tokens."""
    if "objective/kl" in row:
        return row["objective/kl"]
    length = row.get("completion_length", row.get("completions/mean_length"))
    return None if length is None or row.get("kl") is None else row["kl"] * length
