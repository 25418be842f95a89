"""The part of the report that tells of alignment: the reward model, DPO, PPO and GRPO, and what each made of the same prompts.

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

EXAMPLES = 6  # prompts whose replies are laid side by side
FAILURES = 4  # replies of least worth that are shown of each stage

POLICIES = {
    "dpo": "DPO raises the probability of the better reply of each pair and lowers that of the worse one, measured against the tuned model.",
    "ppo": "PPO lets the model write replies, has them scored, and makes what was better than expected more probable.",
    "grpo": "GRPO compares several replies to the same prompt: what was better than the group's mean becomes more probable.",
}
_CURVES = (
    ("loss", "Loss"),
    ("reward", "Reward of the sampled replies"),
    ("kl", "KL to the tuned model, nats a token"),
    ("objective/kl", "KL to the tuned model, nats a reply"),
    ("validation_accuracy", "Held-out pairs in the right order"),
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
    """How well it tells the better reply, by what was wrong with the other."""
    yield html.heading("The reward model")
    yield html.paragraph("It reads a prompt and a reply and says in one number what the reply is worth.")
    yield html.table(summary_rows("reward", metrics))
    yield html.side_by_side(_curves(run, "reward"))
    path = run.path / "reward" / "accuracy.json"
    if path.exists():
        counts = read_json(path)
        yield "<h3>Held-out pairs in the right order, by what is wrong with the worse reply</h3>"
        yield html.bars(
            [(reason, right / count, f"{right} of {count}") for reason, (right, count) in counts.items()]
        )


def _curves(run: RunFolder, stage: str) -> Iterator[str]:
    """Small plots of what the stage's log holds."""
    rows = MetricsLog(run.path / stage / "metrics_log.jsonl").rows()
    for key, title in _CURVES:
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if len(points) > 1:
            path = run.path / "report" / f"{stage}_{key.replace('/', '_')}.svg"
            plot_lines({title: tuple(zip(*points, strict=True))}, path, title=title)  # type: ignore[dict-item]
            yield html.figure(path)


def _replies(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    """What was replied in the exam, before and after."""
    path = run.path / stage / "replies.json"
    return read_json(path, list) if path.exists() else []


def _failures(run: RunFolder, stage: str) -> Iterator[str]:
    """The replies that are worth least after training."""
    worst = sorted(_replies(run, stage), key=lambda record: record["after_reward"])[:FAILURES]
    if worst:
        rows = [
            [record["prompt"], f"{record['after']} (reward {format_number(record['after_reward'])})"]
            for record in worst
        ]
        yield html.folded("Examples of failures: the replies of least worth", html.table(rows))


def _same_prompts(run: RunFolder, stages: list[str]) -> Iterator[str]:
    """Replies to the same held-out prompts, after each stage; the prompts that all of the stages were asked."""
    by_prompt = {stage: {record["prompt"]: record for record in _replies(run, stage)} for stage in stages}
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
    yield html.paragraph("Sampled with the same dice; the reward stands behind each reply.", "soft")
    for prompt in shown:
        rows = [["sft", _with_reward(first[prompt], "before")]]
        rows += [[stage, _with_reward(records[prompt], "after")] for stage, records in by_prompt.items()]
        yield html.quote("", prompt) + html.table(rows)


def _with_reward(record: dict[str, Any], moment: str) -> str:
    return f"{record[moment]} ({format_number(record[f'{moment}_reward'])})"
