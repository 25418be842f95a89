"""The stage `grpo`: sample groups of completions, score them, learn from what was better than the rest (Shao et al. 2024, algorithm 1).

Scores come from a function of prompts and completions: a verifier, the story world's reward, or a user's own
(`shared_data/alignment/rewards.py`).

Level 1: `trl.GRPOTrainer`. Level 2: the same over torch; from the same weights it samples the same completions and ends
with the same weights. Theory: v2_handwritten/align/algorithms/grpo.md.

    uv run v3 grpo --config tiny
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from jaxtyping import Float

from shared_data.alignment.policy_evaluation import evaluate_policy
from shared_data.alignment.prompts import PromptBatch, PromptBatches, open_prompts, score_prompts
from shared_data.alignment.reward_values import as_floats, reward_metrics
from shared_data.alignment.rewards import RewardFunction, open_reward
from shared_data.alignment.token_policy import decode_completions
from shared_data.corpus.bad_records import BadRecords
from shared_data.model_names import tokenizer_of
from shared_data.runs import RunFolder
from shared_data.settings import GrpoSettings, Settings
from shared_data.training.training_run import Metrics
from v3_numpy_deep.align.algorithms.grpo import group_advantages, grpo_loss
from v3_numpy_deep.align.algorithms.rollout import Rollout, collect
from v3_numpy_deep.align.policy import as_policy
from v3_numpy_deep.autograd import Tensor, no_grad
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer
from v3_numpy_deep.inference.loading import load_to_train
from v3_numpy_deep.models.checkpoint import save_model
from v3_numpy_deep.models.log_probs import completion_log_probs
from v3_numpy_deep.models.transformer import Transformer, frozen_copy
from v3_numpy_deep.pretrain.components.training import Training


def grpo(settings: Settings, run: RunFolder) -> Metrics:
    """Improve the tuned model of the run by comparing its own completions; returns the metrics of the stage.

    Raises `UserError` for a wrong prompt, a reward function that cannot be used, a missing checkpoint, a diverged update.
    """
    section = settings.grpo
    policy, tokenizer = load_to_train(settings, run, "grpo")
    reference = frozen_copy(policy)
    positions = policy.config.max_position_embeddings
    bad = BadRecords(section.on_bad_record)
    train, held_out = open_prompts(settings, "grpo", tokenizer, positions, bad)
    reward = open_reward(section.reward)
    prompts = PromptBatches(
        train, tokenizer, section.per_device_train_batch_size // section.num_generations, section.seed
    )
    step = partial(grpo_update, policy, reference, tokenizer, reward, section)
    metrics = Training("grpo", settings, run).fit(
        policy, prompts, step, shown=("reward", "kl"), dropout=False
    )
    save_model(policy, run.stage("grpo"), tokenizer_of(run, "grpo"))
    policies = as_policy(policy, tokenizer), as_policy(reference, tokenizer)
    metrics |= {"prompts": len(train)} | bad.metrics()
    return metrics | evaluate_policy(settings, run, "grpo", *policies, held_out, reward)


def grpo_update(
    policy: Transformer,
    reference: Transformer,
    tokenizer: Tokenizer,
    reward: RewardFunction,
    section: GrpoSettings,
    batch: PromptBatch,
) -> Iterator[tuple[Tensor, Metrics]]:
    """Sample `num_generations` completions of each prompt; yield a loss on them, with its metrics, for each optimizer step.

    Dropout must be off: with it, old and new log-probabilities would differ before anything is learned. Raises `UserError` for a
    reward that is no finite number.
    """
    group = section.num_generations
    rollout = collect(
        policy,
        batch.ids,
        section.max_completion_length,
        section.temperature,
        batch.seed,
        num_generations=group,
    )
    prompts = [prompt for prompt in batch.prompts for _ in range(group)]
    completion_ids = rollout.completions()
    texts = decode_completions(tokenizer, completion_ids)
    rewards = score_prompts(reward, prompts, texts, completion_ids)
    advantages = group_advantages(
        np.array(as_floats(rewards), policy.lm_head.weight.dtype), group, section.scale_rewards
    )
    mask = rollout.mask
    with no_grad():
        reference_log_probs = rollout_log_probs(reference, rollout, section.temperature).data
    old_log_probs = None  # before the first step the policy is still the one that sampled
    for _ in range(section.num_iterations):
        log_probs = rollout_log_probs(policy, rollout, section.temperature)
        old_log_probs = log_probs.data if old_log_probs is None else old_log_probs
        loss, metrics = grpo_loss(
            log_probs,
            old_log_probs,
            reference_log_probs,
            advantages,
            mask,
            beta=section.beta,
            epsilon=section.epsilon,
            epsilon_high=section.epsilon_high,
            loss_type=section.loss_type,
            max_completion_length=section.max_completion_length,
            use_bias_correction_kl=section.use_bias_correction_kl,
        )
        metrics |= reward_metrics(rewards)
        metrics |= {
            # Nats a token, as the samples estimate them; the estimator of the KL is k1, penalized or not.
            "kl": (log_probs.data - reference_log_probs)[mask == 1].mean().item(),
            "entropy": -log_probs.data[mask == 1].mean().item(),
            "completion_length": mask.sum().item() / len(mask),
            "finished": rollout.finished.sum().item() / len(mask),
            "tokens": int(rollout.attention_mask.sum()),
        }
        yield loss, metrics


def rollout_log_probs(model: Transformer, rollout: Rollout, temperature: float) -> Float[Tensor, "B T"]:
    """Log-probabilities of the completions' tokens in the distribution that they were sampled from."""
    found = completion_log_probs(
        model, rollout.input_ids, rollout.completion_mask, rollout.attention_mask, temperature
    )
    return rollout.of_completions(found)
