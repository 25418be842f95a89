"""The sections of the report about alignment: the reward model, DPO, PPO and GRPO, and completions of the same prompts after each.

from shared_data.report_alignment import alignment
"""

from collections.abc import Iterator
from typing import Any

from shared_data import report_html as html
from shared_data.files import read_json
from shared_data.metrics_log import MetricsLog
from shared_data.plots import plot_lines
from shared_data.progress import format_number
from shared_data.runs import RunFolder
from shared_data.story_world.questions import split_prompt
from shared_data.summary import summary_rows

EXAMPLES = 6  # prompts whose completions are shown side by side
FAILURES = 4  # completions with the lowest reward, for each stage

POLICIES = {
    "dpo": "DPO raises the probability of the better completion of each pair and lowers that of the worse one, relative to the fine-tuned model.",
    "ppo": "PPO samples completions, scores them, and makes those that are better than expected more probable.",
    "grpo": "GRPO compares several completions of the same prompt: those above the group's mean become more probable.",
}
_CURVES = (
    ("loss", "Loss"),
    ("reward", "Reward of the sampled completions"),
    ("kl", "KL to the reference, nats per token"),
    ("objective/kl", "KL to the reference, nats per completion"),
    ("eval_accuracy", "Held-out pairs in the right order"),
)


def alignment(run: RunFolder) -> Iterator[str]:
    """One section for each stage that has finished, and one that compares them; nothing where none has."""
    metrics = run.metrics()
    if "reward" in metrics:
        yield from _reward_model(run, metrics["reward"])
    finished = [stage for stage in POLICIES if stage in metrics]
    for stage in finished:
        yield html.heading(stage.upper())
        yield html.paragraph(POLICIES[stage])
        yield html.table(summary_rows(stage, metrics[stage]))
        yield html.side_by_side(_curves(run, stage))
        yield from _failures(run, stage)
    yield from _same_prompts(run, finished)


def _reward_model(run: RunFolder, metrics: dict[str, float]) -> Iterator[str]:
    """Its accuracy on held-out pairs, by the flaw of the rejected completion."""
    yield html.heading("The reward model")
    yield html.paragraph("It reads a prompt and a completion and returns a score.")
    yield html.table(summary_rows("reward", metrics))
    yield html.side_by_side(_curves(run, "reward"))
    path = run.path / "reward" / "accuracy.json"
    if path.exists():
        counts = read_json(path)
        yield "<h3>Held-out pairs in the right order, by the flaw of the rejected completion</h3>"
        yield html.bars(
            [(reason, right / count, f"{right} of {count}") for reason, (right, count) in counts.items()]
        )


def _curves(run: RunFolder, stage: str) -> Iterator[str]:
    """Small plots of the stage's metrics log."""
    rows = MetricsLog(run.path / stage / "metrics_log.jsonl").rows()
    for key, title in _CURVES:
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if len(points) > 1:
            path = run.path / "report" / f"{stage}_{key.replace('/', '_')}.svg"
            plot_lines({title: tuple(zip(*points, strict=True))}, path, title=title)  # type: ignore[dict-item]
            yield html.figure(path)


def _completions(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    """The completions of held-out prompts, before and after."""
    path = run.path / stage / "completions.json"
    return read_json(path, list) if path.exists() else []


def _failures(run: RunFolder, stage: str) -> Iterator[str]:
    """The completions with the lowest reward after training."""
    worst = sorted(_completions(run, stage), key=lambda record: record["after_reward"])[:FAILURES]
    if worst:
        rows = [
            [record["prompt"], f"{record['after']} (reward {format_number(record['after_reward'])})"]
            for record in worst
        ]
        yield html.folded("Examples of failures: the completions with the lowest reward", html.table(rows))


def _same_prompts(run: RunFolder, stages: list[str]) -> Iterator[str]:
    """Completions of the same held-out prompts after each stage, where all stages were evaluated on them."""
    by_prompt = {stage: {record["prompt"]: record for record in _completions(run, stage)} for stage in stages}
    by_prompt = {stage: records for stage, records in by_prompt.items() if records}
    if not by_prompt:
        return
    first = next(iter(by_prompt.values()))
    shared = [prompt for prompt in first if all(prompt in records for records in by_prompt.values())]
    questions = [prompt for prompt in shared if split_prompt(prompt)]
    others = [prompt for prompt in shared if not split_prompt(prompt)]
    shown = [*questions[: EXAMPLES // 2], *others[: EXAMPLES - len(questions[: EXAMPLES // 2])]]
    if not shown:
        return
    yield html.heading("The same prompts after each stage")
    yield html.paragraph(
        "Sampled with the same random numbers; the reward stands behind each completion.", "soft"
    )
    for prompt in shown:
        rows = [["sft", _with_reward(first[prompt], "before")]]
        rows += [[stage, _with_reward(records[prompt], "after")] for stage, records in by_prompt.items()]
        yield html.quote("", prompt) + html.table(rows)


def _with_reward(record: dict[str, Any], moment: str) -> str:
    return f"{record[moment]} ({format_number(record[f'{moment}_reward'])})"
