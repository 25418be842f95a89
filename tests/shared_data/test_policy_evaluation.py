"""The evaluation of a policy before and after alignment, with policies whose completions are known."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from shared_data.alignment.policy_evaluation import Completion, evaluate_policy
from shared_data.runs import RunFolder
from shared_data.settings import load_settings

PROMPTS = ["one?", "two?", "three?"]


class Parrot:
    """Repeats the prompt and adds an ending; finishes unless the prompt is the longest; gives each letter the same probability."""

    def __init__(self, ending: str, nats_per_letter: float) -> None:
        self.ending, self.nats_per_letter = ending, nats_per_letter
        self.seeds: list[int] = []

    def complete(
        self, prompts: Sequence[str], max_completion_length: int, temperature: float, seed: int
    ) -> list[Completion]:
        self.seeds.append(seed)
        return [Completion([1], [2], prompt + self.ending, len(prompt) < 6) for prompt in prompts]

    def log_probs(self, completions: Sequence[Completion], temperature: float) -> list[float]:
        return [-self.nats_per_letter * len(completion.text) for completion in completions]

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        return self.nats_per_letter * len(texts)


def test_rewards_kl_and_language_before_and_after(tmp_path: Path) -> None:
    settings = load_settings("smoke")
    run = RunFolder("v2", settings, tmp_path)
    run.documents("validation").write_text('{"id": "1", "text": "a"}\n{"id": "2", "text": "b"}\n')
    policy, reference = Parrot("!!", 0.5), Parrot("", 2.0)

    def length(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(completion)) for completion in completions]

    metrics = evaluate_policy(settings, run, "grpo", policy, reference, PROMPTS, length, batch_size=2)
    assert metrics == {
        "before": pytest.approx((4 + 4 + 6) / 3),
        "after": pytest.approx((6 + 6 + 8) / 3),
        "kl": pytest.approx((6 + 6 + 8) * 1.5 / 3),  # nats a completion, of the policy's own completions
        "finished_before": pytest.approx(2 / 3),
        "finished": pytest.approx(2 / 3),
        "bits_per_byte_before": 4.0,
        "bits_per_byte": 1.0,
    }
    assert policy.seeds == reference.seeds == [0, 2], "the same random numbers for both"
    completions = json.loads((run.stage("grpo") / "completions.json").read_text())
    assert completions[2] == {
        "prompt": "three?", "before": "three?", "before_reward": 6.0, "after": "three?!!", "after_reward": 8.0
    }  # fmt: skip


def test_a_reward_counts_where_it_applies(tmp_path: Path) -> None:
    run = RunFolder("v2", load_settings("smoke"), tmp_path)

    def of_short_ones(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [len(text) if len(text) < 5 else None for text in completions]

    metrics = evaluate_policy(
        run.settings, run, "grpo", Parrot("!!", 0.5), Parrot("", 2.0), PROMPTS, of_short_ones
    )
    assert metrics["before"] == 4
    assert metrics["unscored"] == 1 + 3
    assert "after" not in metrics, "it applies to none of them"
