"""PPO: `trl.experimental.ppo.PPOTrainer` (Ziegler et al. 2019).

The trainer samples, asks the reward model, and updates policy and value model by itself. Levels 2 and 3 write out one update,
`ppo_step`. Theory: v2_handwritten/align/algorithms/ppo.md.

    train_ppo(model, value_model, reward_model, tokenizer, prompts, PpoOptions(max_new_tokens=64), steps=100)
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.finetune.chat_data import _library_tokenizer
from v1_quick.models.reward_model import RewardModel
from v1_quick.models.transformer import Transformer

Metrics = dict[str, float]


@dataclass(frozen=True)
class PpoOptions:
    """The numbers of an update, with TRL's defaults; in brackets TRL's name where it is another."""

    max_new_tokens: int  # a reply may have [response_length]
    temperature: float = 0.7
    kl_coefficient: float = 0.05  # [kl_coef]
    kl_estimator: Literal["k1", "k3"] = "k1"
    missing_end_penalty: float | None = (
        None  # off the score of a reply that was cut off [missing_eos_penalty]
    )
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    clip_range: float = 0.2  # [cliprange]
    clip_range_value: float = 0.2  # [cliprange_value]
    value_coefficient: float = 0.1  # [vf_coef]
    epochs: int = 4  # over the same replies [num_ppo_epochs]
    minibatches: int = 1  # optimizer steps an epoch [num_mini_batches]
    gradient_clip: float = 0.0  # 0 for none, as in TRL's PPO


def train_ppo(
    model: Transformer,
    value_model: RewardModel,
    reward_model: RewardModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: PpoOptions,
    *,
    steps: int,
    prompts_per_step: int = 64,
    learning_rate: float = 3e-6,
    seed: int = 0,
    after_step: Callable[[int, Metrics], None] | None = None,
) -> None:
    """`steps` updates on the prompts, scored by a reward model; the model as it comes in is the reference."""
    import datasets
    import transformers
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    library_tokenizer = _library_tokenizer(tokenizer)
    asked = [
        library_tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for prompt in prompts
    ]
    library_tokenizer.padding_side = "left"
    data = datasets.Dataset.from_dict({"input_ids": asked})
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                total_episodes=steps * prompts_per_step,
                per_device_train_batch_size=prompts_per_step,
                num_mini_batches=options.minibatches,
                num_ppo_epochs=options.epochs,
                response_length=options.max_new_tokens,
                temperature=options.temperature,
                stop_token="eos",
                missing_eos_penalty=options.missing_end_penalty,
                kl_coef=options.kl_coefficient,
                kl_estimator=options.kl_estimator,
                gamma=options.gamma,
                lam=options.lam,
                whiten_rewards=options.whiten_rewards,
                cliprange=options.clip_range,
                cliprange_value=options.clip_range_value,
                vf_coef=options.value_coefficient,
                learning_rate=learning_rate,
                lr_scheduler_type="constant",
                seed=seed,
                use_cpu=next(model.parameters()).device.type == "cpu",
                bf16=False,
                num_sample_generations=0,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            processing_class=library_tokenizer,
            model=model.library,
            ref_model=copy.deepcopy(model.library),
            reward_model=reward_model.library,
            value_model=value_model.library,
            train_dataset=data,
            eval_dataset=data,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        if after_step is not None:
            trainer.add_callback(_listener(after_step))
        trainer.train()


def _listener(after_step: Callable[[int, Metrics], None]) -> Any:
    """A callback that hands on the trainer's numbers."""
    from transformers import TrainerCallback

    class Listener(TrainerCallback):
        def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **__: Any) -> None:
            if logs and "objective/scores" in logs:
                after_step(state.global_step, logs | {"reward": logs["objective/scores"]})

    return Listener()
