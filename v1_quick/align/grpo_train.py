"""GRPO: `trl.GRPOTrainer` (Shao et al. 2024).

The trainer samples, scores and updates by itself; what we add is the names that all levels share, and the reference model, which it
would otherwise fetch from the hub. Levels 2 and 3 write out one update, `grpo_step`. Theory: v2_handwritten/align/algorithms/grpo.md.

    train_grpo(model, tokenizer, prompts, reward, GrpoOptions(max_new_tokens=64), steps=100)
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shared_data.errors import UserError
from shared_data.reward_functions import RewardFunction, score_replies
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.finetune.chat_data import _library_tokenizer
from v1_quick.models.transformer import Transformer

Metrics = dict[str, float]


@dataclass(frozen=True)
class GrpoOptions:
    """The numbers of an update, with TRL's defaults; in brackets TRL's name where it is another."""

    max_new_tokens: int  # a reply may have [max_completion_length]
    group_size: int = 8  # replies to each prompt [num_generations]
    temperature: float = 1.0
    scale_rewards: Literal["group", "batch", "none"] = "group"
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    beta: float = 0.0  # weight of the KL to the reference
    unbiased_kl: bool = True  # [use_bias_correction_kl]
    epsilon_low: float = 0.2  # [epsilon]
    epsilon_high: float = 0.2
    epochs: int = 1  # over the same replies [num_iterations]
    minibatches: int = 1  # optimizer steps an epoch
    gradient_clip: float = 1.0  # 0 for none [max_grad_norm]


def train_grpo(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    reward: RewardFunction,
    options: GrpoOptions,
    *,
    steps: int,
    prompts_per_step: int = 8,
    learning_rate: float = 1e-6,
    seed: int = 0,
    after_step: Callable[[int, Metrics], None] | None = None,
) -> None:
    """`steps` updates on the prompts, scored by a function of texts; the model as it comes in is the reference.

    The trainer of TRL 1.12 passes no position ids, so a GPT-2 needs prompts of one length; Llama's positions are relative.
    Raises `UserError` where the replies of an update are not `options.minibatches` equal parts.
    """
    replies = prompts_per_step * options.group_size
    if replies % options.minibatches:
        raise UserError(
            f"{replies} replies are not {options.minibatches} equal parts; choose a number of minibatches that divides them"
        )
    import datasets
    import transformers
    from trl import GRPOConfig, GRPOTrainer

    def library_reward(prompts: list, completions: list, **_: Any) -> list[float]:
        asked, answers = ([turns[-1]["content"] for turns in side] for side in (prompts, completions))
        return score_replies(reward, asked, answers)

    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model.library,
            reward_funcs=library_reward,
            args=GRPOConfig(
                output_dir=folder,
                max_steps=steps * options.epochs * options.minibatches,
                per_device_train_batch_size=replies // options.minibatches,
                steps_per_generation=options.minibatches,
                num_iterations=options.epochs,
                num_generations=options.group_size,
                max_completion_length=options.max_new_tokens,
                temperature=options.temperature,
                scale_rewards=options.scale_rewards,
                loss_type=options.loss_type,
                beta=0.0,  # see below
                use_bias_correction_kl=options.unbiased_kl,
                epsilon=options.epsilon_low,
                epsilon_high=options.epsilon_high,
                max_grad_norm=options.gradient_clip,
                learning_rate=learning_rate,
                lr_scheduler_type="constant",
                seed=seed,
                use_cpu=next(model.parameters()).device.type == "cpu",
                bf16=False,
                logging_steps=options.epochs * options.minibatches,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": conversations}),
            processing_class=_library_tokenizer(tokenizer),
        )
        # Given a beta, the trainer would load its reference by the model's name.
        trainer.beta = options.beta
        if options.beta:
            trainer.ref_model = copy.deepcopy(model.library).eval().requires_grad_(False)
        trainer.remove_callback(transformers.PrinterCallback)
        if after_step is not None:
            trainer.add_callback(_listener(after_step, options.epochs * options.minibatches))
        trainer.train()


def _listener(after_step: Callable[[int, Metrics], None], steps_per_update: int) -> Any:
    """A callback that hands on the trainer's numbers."""
    from transformers import TrainerCallback

    class Listener(TrainerCallback):
        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **__: Any) -> None:
            if logs and "reward" in logs:
                after_step(state.global_step // steps_per_update, logs)

    return Listener()
