"""The section of the report that shows several levels' runs of one configuration side by side.

v2 report --config tiny --compare v1 v3
"""

from shared_data import report_html as html
from shared_data.errors import UserError
from shared_data.metrics_log import MetricsLog
from shared_data.plots import plot_lines
from shared_data.progress import format_number
from shared_data.runs import RunFolder
from shared_data.stages import STAGES

LEVELS = {
    "v1": "level 1, Hugging Face libraries",
    "v2": "level 2, by hand in PyTorch",
    "v3": "level 3, NumPy alone",
}


def other_run(run: RunFolder, level: str) -> RunFolder:
    """The run of another level with the same configuration."""
    if level not in LEVELS:
        raise UserError(f"there is no level {level!r} to compare with; use {', '.join(LEVELS)}")
    other = RunFolder(level, run.settings)
    if not other.metrics():
        raise UserError(
            f"no run in {other.path} to compare with; make one with `{level} run --config {run.settings.name}`"
        )
    return other


def comparison(runs: list[RunFolder]) -> list[str]:
    """The numbers of several levels side by side, and their loss curves in one plot."""
    rows = []
    for stage in STAGES:
        names = dict.fromkeys(name for run in runs for name in run.metrics().get(stage, {}))
        for name in names:
            values = [run.metrics().get(stage, {}).get(name) for run in runs]
            rows.append(
                [
                    f"{stage}: {name.replace('_', ' ')}",
                    *("–" if v is None else format_number(v) for v in values),
                ]
            )
    series = {}
    for run in runs:
        points = [
            (row["step"], row["loss"]) for row in training_log(run).rows() if row.get("loss") is not None
        ]
        if points:
            series[run.level] = ([x for x, _ in points], [y for _, y in points])
    parts = [
        html.heading("The levels side by side"),
        html.paragraph("The same configuration, seed and data; three implementations."),
    ]
    if series:
        plot_lines(
            series,
            runs[0].path / "report" / "comparison.svg",
            title="Training loss",
            y_label="nats per token",
            wide=True,
        )
        parts.append(html.figure(runs[0].path / "report" / "comparison.svg"))
    return [*parts, html.table(rows, ["", *(run.level for run in runs)], numbers=True)]


def training_log(run: RunFolder) -> MetricsLog:
    """The metrics log of pretraining."""
    return MetricsLog(run.path / "pretrain" / "metrics_log.jsonl")
