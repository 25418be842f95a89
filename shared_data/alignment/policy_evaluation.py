"""What a policy is worth before and after alignment: the same held-out prompts and random numbers, the tuned model and the aligned one.

Are the completions worth more, how far has the policy moved from the tuned model (KL, in nats a completion), and does it still know
the language (bits per byte on held-out text)? The three belong together: a reward alone is easily bought.

    metrics = evaluate_policy(settings, run, "dpo", policy, reference, prompts, reward)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from shared_data.alignment.prompts import Prompt, as_prompt, score_prompts
from shared_data.alignment.rewards import RewardFunction
from shared_data.corpus.splits import read_documents
from shared_data.files import write_json
from shared_data.runs import RunFolder
from shared_data.settings import PolicyEvaluationSettings, Settings
from shared_data.story_world.questions import split_prompt
from shared_data.story_world.rewards import is_right

DOCUMENTS = 100  # of the validation split, on which bits per byte are compared


@dataclass(frozen=True)
class Completion:
    """One sampled completion: ids of prompt and completion, its text, and whether it ended by itself."""

    prompt_ids: list[int]
    ids: list[int]
    text: str
    finished: bool


class Policy(Protocol):
    """What the evaluation needs of a language model, of whatever level."""

    def complete(
        self, prompts: Sequence[Prompt | str], max_completion_length: int, temperature: float, seed: int
    ) -> list[Completion]:
        """One sampled completion of each prompt, as the first turn of a conversation."""

    def log_probs(self, completions: Sequence[Completion], temperature: float) -> list[float]:
        """log p(completion | prompt) of each, in nats."""

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        """Of documents."""


def evaluate_policy(
    settings: Settings,
    run: RunFolder,
    stage: str,
    policy: Policy,
    reference: Policy,
    prompts: Sequence[Prompt | str],
    reward: RewardFunction,
    batch_size: int = 64,
) -> dict[str, float]:
    """The metrics before and after; all completions are kept in completions.json.

    `before` and `after` are the mean reward of the reference's and the policy's completions that it applies to (left out where there is
    none); `unscored` counts the others; `question_…` and `request_…` are the same for the story world's two sorts of prompts; `right_…` is
    the share of its questions that are answered right, in however many
    words. `kl` is the divergence of the policy from the reference in nats a completion.
    """
    section: PolicyEvaluationSettings = getattr(settings, stage)
    records: list[dict[str, Any]] = [{"prompt": as_prompt(prompt).text} for prompt in prompts]
    finished, kl = {"before": 0, "after": 0}, 0.0
    for moment, model in (("before", reference), ("after", policy)):
        for start in range(0, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            completions = model.complete(
                batch, section.max_completion_length, section.temperature, seed=start
            )
            texts = [completion.text for completion in completions]
            ids = [completion.ids for completion in completions]
            rewards = score_prompts(reward, batch, texts, ids)
            for record, text, value in zip(records[start:], texts, rewards, strict=False):
                record |= {moment: text, f"{moment}_reward": value}
            finished[moment] += sum(completion.finished for completion in completions)
            if moment == "after":
                log_probs = [
                    model.log_probs(completions, section.temperature) for model in (policy, reference)
                ]
                kl += sum(log_probs[0]) - sum(log_probs[1])
    write_json(run.stage(stage) / "completions.json", records)
    count = len(records)
    metrics = _mean_rewards(records) | _unscored(records)
    metrics |= {"kl": kl / count, "finished_before": finished["before"] / count}
    metrics["finished"] = finished["after"] / count
    # There is no such text where the stage began with a model from elsewhere.
    if (run.path / "data" / "validation.jsonl").is_file():
        documents = islice(read_documents(run.documents("validation")), DOCUMENTS)
        texts = [document.text for document in documents]
        metrics["bits_per_byte_before"] = reference.bits_per_byte(texts)
        metrics["bits_per_byte"] = policy.bits_per_byte(texts)
    return metrics | _by_kind_of_prompt(records)


def _mean_rewards(records: Sequence[dict], prefix: str = "") -> dict[str, float]:
    """Of the completions that the reward applies to."""
    metrics = {}
    for moment in ("before", "after"):
        rewards = [record[f"{moment}_reward"] for record in records if record[f"{moment}_reward"] is not None]
        if rewards:
            metrics[prefix + moment] = sum(rewards) / len(rewards)
    return metrics


def _unscored(records: Sequence[dict]) -> dict[str, float]:
    """How many completions the reward does not apply to, where there are any."""
    moments = ("before_reward", "after_reward")
    count = sum(record[moment] is None for record in records for moment in moments)
    return {"unscored": count} if count else {}


def _by_kind_of_prompt(records: Sequence[dict]) -> dict[str, float]:
    """Questions and requests of the story world apart, and how many questions are answered right."""
    questions = [record for record in records if split_prompt(record["prompt"])]
    requests = [record for record in records if not split_prompt(record["prompt"])]
    both = questions and requests
    metrics = _mean_rewards(questions, "question_") | _mean_rewards(requests, "request_") if both else {}
    for moment in ("before", "after"):
        right = [is_right(record["prompt"], record[moment]) for record in questions]
        if right and None not in right:
            metrics[f"right_{moment}"] = sum(map(bool, right)) / len(right)
    return metrics
