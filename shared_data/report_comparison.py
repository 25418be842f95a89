"""The section of the report that shows several levels' runs of one configuration side by side.

v2 report --config tiny --compare v1 v3
"""

from shared_data import report_html as html
from shared_data.errors import UserError
from shared_data.metrics_log import MetricsLog
from shared_data.plots import plot_lines
from shared_data.progress import format_metric
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
            f"no run in {other.path} to compare with; make one with `uv run {level} run --config {run.settings.name}`"
        )
    return other


# The numbers by which the levels are judged: stage, metric, words.
_KEY_NUMBERS = (
    ("evaluate", "bits_per_byte", "bits per byte on held-out text"),
    ("pretrain", "perplexity", "perplexity on validation text"),
    ("sft", "qa_accuracy", "held-out questions answered right"),
    ("reward", "accuracy", "held-out pairs that the reward model orders right"),
    ("dpo", "after", "reward after DPO"),
    ("ppo", "after", "reward after PPO"),
    ("grpo", "after", "reward after GRPO"),
    ("pretrain", "tokens_per_second", "tokens per second in pretraining"),
)


def comparison(runs: list[RunFolder]) -> list[str]:
    """What is compared, the numbers that matter most, the loss curves, and every number of every stage, folded."""
    levels = [run.level for run in runs]
    parts = [
        html.heading("The levels side by side"),
        html.paragraph(
            f"The same pipeline, made {len(runs)} times: {_listed([f'{level} ({LEVELS[level]})' for level in levels])}. "
            f"{_verdict(runs)}"
        ),
    ]
    rows = [
        [words, *_values(stage, name, runs)]
        for stage, name, words in _KEY_NUMBERS
        if any(name in run.metrics().get(stage, {}) for run in runs)
    ]
    rows.append(["time of all stages", *(format_metric("seconds", _seconds(run)) for run in runs)])
    parts.append(html.table(rows, ["", *levels], numbers=True))
    series = {}
    for run in runs:
        points = [
            (row["step"], row["loss"]) for row in training_log(run).rows() if row.get("loss") is not None
        ]
        if points:
            series[run.level] = ([x for x, _ in points], [y for _, y in points])
    if series:
        path = runs[0].path / "report" / "comparison.svg"
        plot_lines(series, path, title="Training loss", y_label="nats per token", wide=True, layered=True)
        parts.append(
            html.figure(path, "Curves that coincide lie on top of each other: broad, dashed, dotted.")
        )
    rows = [
        [f"{stage}: {name.replace('_', ' ')}", *_values(stage, name, runs)]
        for stage in STAGES
        for name in dict.fromkeys(name for run in runs for name in run.metrics().get(stage, {}))
    ]
    return [*parts, html.folded("All numbers", html.table(rows, ["", *levels], numbers=True))]


def _verdict(runs: list[RunFolder]) -> str:
    """What there is to see: how close the results are, and which level is fast."""
    results = [metrics for run in runs if "bits_per_byte" in (metrics := run.metrics().get("pretrain", {}))]
    if len(results) < len(runs):
        return "Not all of them have finished pretraining."
    bits, losses = [[metrics[name] for metrics in results] for name in ("bits_per_byte", "loss")]
    apart = max(bits) / min(bits) - 1
    by_time = sorted(runs, key=_seconds)
    ratio = _seconds(by_time[-1]) / max(_seconds(by_time[0]), 1e-9)
    return (
        f"After pretraining their bits per byte on validation text are {apart:.1%} apart, and their last training losses "
        f"{max(losses) - min(losses):.4f} nats per token. {by_time[0].level} took the least time, {by_time[-1].level} "
        f"{ratio:.1f} times as long."
    )


def _listed(words: list[str]) -> str:
    """One, two and three."""
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def _seconds(run: RunFolder) -> float:
    return sum(numbers["seconds"] for numbers in run.metrics().values())


def _values(stage: str, name: str, runs: list[RunFolder]) -> list[str]:
    """A number of each run; a dash where a run does not have it."""
    values = [run.metrics().get(stage, {}).get(name) for run in runs]
    return ["–" if value is None else format_metric(name, value) for value in values]


def training_log(run: RunFolder) -> MetricsLog:
    """The metrics log of pretraining."""
    return MetricsLog(run.path / "pretrain" / "metrics_log.jsonl")
