"""What the tests of PPO and GRPO share: log-probabilities on padded completions, a tiny tokenizer for trl, updates of a real model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared_data.alignment.prompts import PromptBatches
from shared_data.settings import PpoSettings
from tests.parity.arrays import array
from tests.parity.recorder import as_array
from tests.parity.training_cases import level_module
from v3_numpy_deep.autograd import Tensor as ArrayTensor

B, T = 4, 7
LENGTHS = (7, 3, 5, 1)  # the first completion fills its row, the last is one token


def completion_mask(lengths: tuple[int, ...] = LENGTHS, width: int = T) -> np.ndarray:
    """1 on the first `length` tokens of each row."""
    return (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)


def log_probs(seed: int, near: np.ndarray | None = None, scale: float = 0.3) -> np.ndarray:
    """Log-probabilities of B × T tokens; `near`: a policy that moved a little from that one. Padding holds numbers too."""
    if near is not None:
        return near + array(seed, B, T, scale=scale)
    return -np.abs(array(seed, B, T)) - 0.1


def both_levels(
    function2: Any, function3: Any, learned: dict[str, np.ndarray], constant: dict[str, Any], **options: Any
) -> list[tuple[float, dict[str, float], dict[str, np.ndarray]]]:
    """Loss, metrics and gradients of `learned`, by a function of level 2 and its twin of level 3."""
    inputs2 = {name: torch.from_numpy(value).clone().requires_grad_() for name, value in learned.items()}
    arrays2 = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in constant.items()}
    loss2, metrics2 = function2(**inputs2, **arrays2, **options)
    loss2.backward()
    inputs3 = {name: ArrayTensor(value.copy(), requires_grad=True) for name, value in learned.items()}
    loss3, metrics3 = function3(**inputs3, **constant, **options)
    loss3.backward()
    gradients2 = {name: tensor.grad.numpy() for name, tensor in inputs2.items()}
    gradients3 = {name: tensor.grad for name, tensor in inputs3.items()}
    return [(loss2.item(), metrics2, gradients2), (loss3.item(), metrics3, gradients3)]


def tiny_tokenizer(vocab_size: int = 96) -> Any:
    """A word is an id: "t5 t7" is [5, 7]; padding is 0, the end of a completion is 3."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"t{id}": id for id in range(vocab_size)}, unk_token="t1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="t0", eos_token="t3", padding_side="left"
    )


def vowels(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that is easy to learn: the share of vowels."""
    return [sum(letter in "aeiou" for letter in text) / (1 + len(text)) for text in completions]


class Updates:
    """A policy of a level, made from a prepared run (`stage_cases.py`), that is updated again and again."""

    def __init__(self, level: str, prepared: Path, section: Any, reward: Callable = vowels) -> None:
        self.level, self.section = level, section
        checkpoint = level_module(level, "models.checkpoint")
        self.policy = checkpoint.load_model(prepared / "sft")
        self.reference = level_module(level, "models.transformer").frozen_copy(self.policy)
        self.tokenizer = level_module(level, "data_pipeline.tokenizer.tokenizer").load_tokenizer(
            prepared / "tokenizer"
        )
        self.value_model = checkpoint.load_reward_model(prepared / "reward")
        self.reward = reward
        count = 4 if hasattr(section, "num_generations") else 16
        self.batches = PromptBatches([f"Question {n}?" for n in range(count)], self.tokenizer, count, seed=0)

    def losses(self) -> Any:
        """The losses and metrics of the next update, one for each optimizer step."""
        batch = self.batches.next_batch()
        if isinstance(self.section, PpoSettings):
            train = level_module(self.level, "align.ppo_train")
            score = lambda *given: train.text_scores(self.reward, self.tokenizer, *given)  # noqa: E731
            return train.ppo_update(self.policy, self.value_model, self.reference, score, self.section, batch)
        update = level_module(self.level, "align.grpo_train").grpo_update
        return update(self.policy, self.reference, self.tokenizer, self.reward, self.section, batch)

    def learn(self, updates: int) -> list[dict[str, float]]:
        """The metrics of each optimizer step."""
        models = [
            self.policy,
            *([self.value_model] if isinstance(self.section, PpoSettings) else []),
        ]
        optimizers = [
            level_module(self.level, "pretrain.components.muon").make_optimizer(m, self.section)
            for m in models
        ]
        logs = []
        for _ in range(updates):
            for loss, metrics in self.losses():
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                logs.append(metrics)
        return logs

    def learn_and_compare(self) -> tuple[np.ndarray, np.ndarray, list[dict[str, float]]]:
        """An update: by how much the log-probability of each completion rose, its reward, and the logs."""
        place = self.batches.order.state_dict()
        batch, section = self.batches.next_batch(), self.section
        self.batches.order.load_state_dict(place)
        count, stages = getattr(section, "num_generations", 1), level_module(self.level, "align.grpo_train")
        options = {"num_generations": count, "temperature": section.temperature, "seed": batch.seed}
        rollout = stages.collect(self.policy, batch.ids, section.max_completion_length, **options)
        texts = stages.decode_completions(self.tokenizer, rollout.completions())
        rewards = self.reward([prompt for prompt in batch.prompts for _ in range(count)], texts)

        def found() -> np.ndarray:
            return as_array(stages.rollout_log_probs(self.policy, rollout, section.temperature)).sum(1)

        before = found()
        logs = self.learn(1)
        return found() - before, np.array(rewards), logs

    def weights(self, model: Any = None) -> np.ndarray:
        state = (model or self.policy).state_dict()
        return np.concatenate([np.ravel(state[name]) for name in sorted(state)])
