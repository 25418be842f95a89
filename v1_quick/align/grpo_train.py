"""The stage `grpo`: `trl.GRPOTrainer` (Shao et al. 2024) with a reward function.

TRL 1.12 passes no positions for left-padded prompts: with GPT-2 the padding counts, with Llama's relative positions it does not
matter. Its steps are the optimizer's, of which an update has `num_iterations`.

    uv run v1 grpo --config tiny
"""

from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from shared_data.alignment.policy_evaluation import evaluate_policy
from shared_data.alignment.prompts import open_prompts, score_prompts
from shared_data.alignment.reward_values import Rewards
from shared_data.alignment.rewards import open_reward
from shared_data.corpus.bad_records import BadRecords
from shared_data.errors import UserError
from shared_data.model_names import starting_model
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.training_run import Metrics
from v1_quick.align.policy import as_policy
from v1_quick.inference.loading import load_for_inference, load_to_train
from v1_quick.pretrain.components.muon import make_optimizer
from v1_quick.pretrain.components.training import last_checkpoint, logged_metrics, trainer_arguments


def grpo(settings: Settings, run: RunFolder) -> Metrics:
    """Improve the tuned model of the run by comparing its own completions; returns the metrics of the stage."""
    section, folder = settings.grpo, run.stage("grpo")
    model, tokenizer = load_to_train(settings, run, "grpo")
    reward = open_reward(section.reward)
    positions, bad = model.config.max_position_embeddings, BadRecords(section.on_bad_record)
    prompts, held_out = open_prompts(settings, "grpo", tokenizer, positions, bad)
    if len(prompts) * section.num_generations < section.per_device_train_batch_size:
        raise UserError(
            f"{len(prompts)} prompts are too few for a batch; lower grpo.per_device_train_batch_size"
        )

    def reward_function(place: list, completions: list, completion_ids: list, **_: Any) -> Rewards:
        texts = [turns[-1]["content"] for turns in completions]
        return score_prompts(reward, [prompts[number] for number in place], texts, completion_ids)

    steps = {name: getattr(section, name) * section.num_iterations for name in ("max_steps", "warmup_steps")}
    arguments = GRPOConfig(
        **trainer_arguments(settings, "grpo", run) | steps,
        num_generations=section.num_generations,
        max_completion_length=section.max_completion_length,
        temperature=section.temperature,
        scale_rewards=section.scale_rewards,
        loss_type=section.loss_type,
        beta=section.beta,
        router_aux_loss_coef=0.0,
        use_bias_correction_kl=section.use_bias_correction_kl,
        epsilon=section.epsilon,
        epsilon_high=section.epsilon_high,
        num_iterations=section.num_iterations,
        top_k=0,
    )
    trainer = GRPOTrainer(
        model,
        reward_function,
        arguments,
        train_dataset=Dataset.from_list(
            [{"prompt": prompt.messages, "place": number} for number, prompt in enumerate(prompts)]
        ),
        processing_class=tokenizer,
        optimizers=(make_optimizer(model, section), None),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(arguments))
    metrics = logged_metrics(trainer, folder) | {"prompts": len(prompts)} | bad.metrics()
    trainer.save_model(folder)
    folders = (folder, starting_model(run, "grpo").folder)
    policy, reference = (as_policy(load_for_inference(settings, each), tokenizer) for each in folders)
    return metrics | evaluate_policy(settings, run, "grpo", policy, reference, held_out, reward)
