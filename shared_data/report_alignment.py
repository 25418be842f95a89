"""The sections of the report about alignment: the reward model, DPO, PPO and GRPO, and completions of the same prompts after each.

from shared_data.report_alignment import alignment
"""

from collections.abc import Iterator
from typing import Any

from shared_data import report_html as html
from shared_data.metrics_log import MetricsLog
from shared_data.plots import FEWEST_POINTS, plot_lines
from shared_data.report_curves import curves, kl_per_completion
from shared_data.report_examples import example, rewarded
from shared_data.runs import RunFolder
from shared_data.state_schema import Accuracy, Completions, read_state
from shared_data.story_world.questions import split_prompt
from shared_data.summary import summary_rows

_HEAD = ("after", "completion", "reward")  # of a table of completions
EXAMPLES = 6  # prompts whose completions are shown side by side
FAILURES = 4  # completions with the lowest reward, for each stage

POLICIES = {
    "dpo": "DPO raises the probability of the better completion of each pair and lowers that of the worse one, relative to the fine-tuned model.",
    "ppo": "PPO samples completions, scores them, and makes those that are better than expected more probable.",
    "grpo": "GRPO compares several completions of the same prompt: those above the group's mean become more probable.",
}
_CURVES = (
    ("loss", "Loss", False),
    ("reward", "Reward of the sampled completions", False),
    ("kl_per_completion", "KL to the reference, nats per completion", False),
    ("eval_accuracy", "Held-out pairs in the right order", False),
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
        yield _curves(run, stage)
        yield from _failures(run, stage)
    yield from _same_prompts(run, finished)


def _reward_model(run: RunFolder, metrics: dict[str, float]) -> Iterator[str]:
    """Its accuracy on held-out pairs, by the flaw of the rejected completion."""
    yield html.heading("The reward model")
    yield html.paragraph("It reads a prompt and a completion and returns a score.")
    yield html.table(summary_rows("reward", metrics))
    yield _curves(run, "reward")
    path = run.path / "reward" / "accuracy.json"
    if path.exists():
        counts = read_state(path, Accuracy, "reward")
        yield "<h3>Held-out pairs in the right order, by the flaw of the rejected completion</h3>"
        yield html.bars(
            [
                (reason, right / max(count, 1), f"{right} of {count}")
                for reason, (right, count) in counts.items()
            ]
        )


def _curves(run: RunFolder, stage: str) -> str:
    """Small plots of the stage's metrics log, every KL in the unit of the table above."""
    rows = MetricsLog(run.path / stage / "metrics_log.jsonl").rows()
    rows = [row | {"kl_per_completion": kl_per_completion(row)} for row in rows]
    return curves(run, stage, rows, _CURVES) + _reward_against_kl(run, stage, rows)


def _reward_against_kl(run: RunFolder, stage: str, rows: list[dict[str, Any]]) -> str:
    """What each nat of distance from the reference was worth, in PPO and GRPO."""
    names = ("kl_per_completion", "reward")
    points = [
        tuple(row[name] for name in names) for row in rows if all(row.get(name) is not None for name in names)
    ]
    if len(points) < FEWEST_POINTS:
        return ""
    path = run.path / "report" / f"{stage}_reward_against_kl.svg"
    distances, rewards = zip(*points, strict=True)
    label = "KL to the reference, nats per completion"
    plot_lines(
        {"": (distances, rewards)},
        path,
        title="Reward against KL, a point a step",
        x_label=label,
        joined=False,
    )
    caption = "Where the reward no longer rises and the KL does, training should stop."
    return html.side_by_side([html.figure(path, caption)])


def _completions(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    """The completions of held-out prompts, before and after."""
    path = run.path / stage / "completions.json"
    return read_state(path, Completions, stage) if path.exists() else []


def _failures(run: RunFolder, stage: str) -> Iterator[str]:
    """The completions with the lowest reward after training."""
    scored = [record for record in _completions(run, stage) if record["after_reward"] is not None]
    worst = sorted(scored, key=lambda record: record["after_reward"])[:FAILURES]
    if worst:
        examples = [example(record["prompt"], [rewarded(stage, record, "after")], _HEAD) for record in worst]
        yield html.folded("Examples of failures: the completions with the lowest reward", "".join(examples))


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
    yield html.paragraph("All are sampled with the same random numbers.", "soft")
    for prompt in shown:
        rows = [rewarded("sft", first[prompt], "before")]
        rows += [rewarded(stage, records[prompt], "after") for stage, records in by_prompt.items()]
        yield example(prompt, rows, _HEAD)
