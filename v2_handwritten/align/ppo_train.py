"""The stage `ppo`: sample completions, score them, improve policy and value model (Ziegler et al. 2019; Stiennon et al. 2020).

Scores come from the reward model of the stage `reward`, or from a function of prompts and completions: the story world's reward, or a
user's own (`shared_data/alignment/rewards.py`).

Level 1: `trl.experimental.ppo.PPOTrainer`. Level 3: the same over its own autograd; from the same weights it samples the same
completions and ends with the same weights. Theory: algorithms/ppo.md.

    uv run v2 ppo --config tiny
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared_data.alignment.policy_evaluation import evaluate_policy
from shared_data.alignment.prompts import (
    Prompt,
    PromptBatch,
    PromptBatches,
    encode_prompts,
    open_prompts,
    score_prompts,
)
from shared_data.alignment.reward_values import Rewards, check_rewards
from shared_data.alignment.rewards import RewardFunction, open_reward
from shared_data.alignment.token_policy import decode_completions, pad_completions
from shared_data.corpus.bad_records import BadRecords
from shared_data.device import resolve_device
from shared_data.evaluation.held_out import check_vocabulary
from shared_data.model_names import tokenizer_of
from shared_data.runs import RunFolder
from shared_data.settings import PpoSettings, Settings
from shared_data.training.training_run import Metrics
from v2_handwritten.align.algorithms.ppo import make_experience, penalize_missing_eos, ppo_loss, value_mask
from v2_handwritten.align.algorithms.rollout import Rollout, collect
from v2_handwritten.align.grpo_train import rollout_log_probs
from v2_handwritten.align.policy import as_policy
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer
from v2_handwritten.inference.loading import load_to_train
from v2_handwritten.models.checkpoint import load_reward_model, load_weights, save_model
from v2_handwritten.models.reward_model import RewardModel
from v2_handwritten.models.transformer import Transformer, frozen_copy
from v2_handwritten.pretrain.components.training import Training

Score = Callable[[PromptBatch, Rollout], Rewards]


def ppo(settings: Settings, run: RunFolder) -> Metrics:
    """Improve the tuned model of the run by the scores of its own completions; returns the metrics of the stage.

    Raises `UserError` for a wrong prompt, a reward function that cannot be used, a missing checkpoint, a diverged update.
    """
    section, device = settings.ppo, resolve_device(settings.device)
    policy, tokenizer = load_to_train(settings, run, "ppo")
    reference = frozen_copy(policy)
    reward_model = load_reward_model(run.model("reward"), kernels=settings.kernels).to(device).eval()
    check_vocabulary(
        run.model("reward"), reward_model.config.vocab_size, tokenizer_of(run, "ppo"), tokenizer.vocab_size
    )
    # What a whole completion is worth is a good guess for its beginning.
    value_model = copy.deepcopy(reward_model)
    positions = policy.config.max_position_embeddings
    bad = BadRecords(section.on_bad_record)
    train, held_out = open_prompts(settings, "ppo", tokenizer, positions, bad)
    prompts = PromptBatches(train, tokenizer, section.per_device_train_batch_size, section.seed)
    if section.reward == "reward_model":
        score: Score = partial(model_scores, reward_model)
        on_stories = section.source == "story_world"
        reward = open_reward("story_world") if on_stories else model_reward(reward_model, tokenizer)
    else:
        reward = open_reward(section.reward)
        score = partial(text_scores, reward, tokenizer)
        # Values of another scale than the rewards would drown the gradient of the policy: only the body is of use then.
        nn.init.zeros_(value_model.score.weight)

    def save(folder: Path) -> None:
        save_model(policy, folder, tokenizer_of(run, "ppo"))
        save_model(value_model, folder / "value_model", tokenizer_of(run, "ppo"))

    def load(folder: Path) -> None:
        load_weights(policy, folder)
        load_weights(value_model, folder / "value_model")

    models = nn.ModuleDict({"policy": policy, "value": value_model})
    step = partial(ppo_update, policy, value_model, reference, score, section)
    metrics = Training("ppo", settings, run).fit(
        models, prompts, step, save=save, load=load, shown=("reward", "objective/kl"), dropout=False
    )
    save_model(policy, run.stage("ppo"), tokenizer_of(run, "ppo"))
    policies = as_policy(policy, tokenizer), as_policy(reference, tokenizer)
    metrics |= {"prompts": len(train)} | bad.metrics()
    return metrics | evaluate_policy(settings, run, "ppo", *policies, held_out, reward)


def ppo_update(
    policy: Transformer,
    value_model: RewardModel,
    reference: Transformer,
    score: Score,
    section: PpoSettings,
    batch: PromptBatch,
) -> Iterator[tuple[Tensor, Metrics]]:
    """Sample a completion of each prompt; yield a loss on them, with its metrics, for each optimizer step on both models.

    Dropout must be off: with it, old and new log-probabilities would differ before anything is learned. Raises `UserError` for a
    score that is no finite number.
    """
    temperature = section.temperature
    rollout = collect(policy, batch.ids, section.max_completion_length, temperature, batch.seed)
    given = check_rewards(score(batch, rollout), len(batch.prompts))
    scores = policy.lm_head.weight.new_tensor(given)
    with torch.no_grad():
        experience, metrics = make_experience(
            rollout_log_probs(policy, rollout, temperature),
            rollout_log_probs(reference, rollout, temperature),
            penalize_missing_eos(scores, rollout.finished, section.missing_eos_penalty),
            rollout_values(value_model, rollout),
            rollout.mask,
            section.kl_coef,
            section.kl_estimator,
            section.gamma,
            section.lam,
            section.whiten_rewards,
        )
    metrics |= {
        "reward": scores.mean().item(),  # without the penalty
        "completion_length": rollout.mask.sum().item() / len(scores),
        "finished": rollout.finished.sum().item() / len(scores),
        "tokens": int(rollout.attention_mask.sum()),
    }
    generator = np.random.default_rng([batch.seed, len(scores)])
    for _ in range(section.num_ppo_epochs):
        for part in np.array_split(generator.permutation(len(scores)), section.num_mini_batches):
            rows = torch.from_numpy(part).to(scores.device)
            minibatch = rollout.rows(rows)
            loss, log = ppo_loss(
                rollout_log_probs(policy, minibatch, temperature),
                rollout_values(value_model, minibatch),
                experience.rows(rows),
                section.cliprange,
                section.cliprange_value,
                section.vf_coef,
            )
            yield loss, metrics | log


def rollout_values(value_model: RewardModel, rollout: Rollout) -> Float[Tensor, "B T"]:
    """Values of the states that count: before each of the completions' tokens, and after the last one."""
    first = rollout.prompt_length
    counted = torch.zeros_like(rollout.completion_mask, dtype=torch.bool)
    counted[:, first - 1 : -1] = value_mask(rollout.mask).bool()
    values = value_model.scores(rollout.input_ids, rollout.attention_mask, counted)
    return rollout.of_completions(values[:, :-1])


def text_scores(
    reward: RewardFunction, tokenizer: Tokenizer, batch: PromptBatch, rollout: Rollout
) -> Rewards:
    """Scores by a function of texts."""
    ids = rollout.completions()
    return score_prompts(reward, batch.prompts, decode_completions(tokenizer, ids), ids)


def model_scores(reward_model: RewardModel, batch: PromptBatch, rollout: Rollout) -> Rewards:
    """Scores by a reward model, read at the last token of prompt and completion."""
    return _row_scores(reward_model, list(zip(batch.ids, rollout.completions(), strict=True)))


def model_reward(reward_model: RewardModel, tokenizer: Tokenizer) -> RewardFunction:
    """A reward model as a function of texts, for the evaluation on prompts whose true reward is not known."""

    def reward(prompts: list, completions: list, **_: list) -> list[float]:
        end = [tokenizer.special_tokens["<|im_end|>"]]
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        prompt_ids = encode_prompts(tokenizer, list(map(Prompt, prompts)))
        ids = [tokenizer.encode(text) + end for text in texts]
        return _row_scores(reward_model, list(zip(prompt_ids, ids, strict=True)))

    return reward


@torch.no_grad()
def _row_scores(reward_model: RewardModel, rows: list[tuple[list[int], list[int]]]) -> list[float]:
    input_ids, _, attention_mask = pad_completions(rows)
    device = reward_model.score.weight.device
    return reward_model(*(torch.from_numpy(a).to(device) for a in (input_ids, attention_mask))).tolist()
