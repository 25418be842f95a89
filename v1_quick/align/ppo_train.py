"""The stage `ppo`: `trl.experimental.ppo.PPOTrainer` (Ziegler et al. 2019), scored by the reward model of the stage `reward`.

The trainer cannot resume: a run that was killed starts again. It clips no gradients, whatever `max_grad_norm` is. It takes a reward
model only; levels 2 and 3 take reward functions too.

    uv run v1 ppo --config tiny
"""

from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer

from shared_data.alignment.policy_evaluation import evaluate_policy
from shared_data.alignment.prompts import encode_prompts, open_prompts
from shared_data.alignment.rewards import open_reward
from shared_data.corpus.bad_records import BadRecords
from shared_data.errors import UserError
from shared_data.evaluation.held_out import check_vocabulary
from shared_data.model_names import starting_model, tokenizer_of
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.training_run import Metrics
from v1_quick.align.policy import as_policy
from v1_quick.inference.loading import load_for_inference, load_to_train
from v1_quick.models.checkpoint import model_options
from v1_quick.pretrain.components.training import logged_metrics, trainer_arguments


def ppo(settings: Settings, run: RunFolder) -> Metrics:
    """Improve the tuned model of the run by the scores of its own completions; returns the metrics of the stage."""
    section, folder = settings.ppo, run.stage("ppo")
    if section.reward != "reward_model":
        raise UserError("PPO of level 1 takes the reward model only; leave ppo.reward out, or use level 2")
    (model, tokenizer), (ref_model, _) = (load_to_train(settings, run, "ppo") for _ in range(2))
    tokenizer.padding_side = "left"
    reward_model, value_model = (
        AutoModelForSequenceClassification.from_pretrained(run.model("reward"), **model_options(settings))
        for _ in range(2)
    )
    check_vocabulary(
        run.model("reward"), reward_model.config.vocab_size, tokenizer_of(run, "ppo"), len(tokenizer)
    )
    positions, batch_size = model.config.max_position_embeddings, section.per_device_train_batch_size
    bad = BadRecords(section.on_bad_record)
    prompts, held_out = open_prompts(settings, "ppo", tokenizer, positions, bad)
    ids = encode_prompts(tokenizer, prompts)
    if len(ids) < batch_size:
        raise UserError(
            f"{len(ids)} prompts are less than one batch of {batch_size}; lower ppo.per_device_train_batch_size"
        )
    arguments = PPOConfig(
        **trainer_arguments(settings, "ppo", run) | {"save_strategy": "no"},
        total_episodes=section.max_steps * batch_size,
        response_length=section.max_completion_length,
        stop_token="eos",
        temperature=section.temperature,
        kl_coef=section.kl_coef,
        kl_estimator=section.kl_estimator,
        missing_eos_penalty=section.missing_eos_penalty,
        gamma=section.gamma,
        lam=section.lam,
        whiten_rewards=section.whiten_rewards,
        cliprange=section.cliprange,
        cliprange_value=section.cliprange_value,
        vf_coef=section.vf_coef,
        num_ppo_epochs=section.num_ppo_epochs,
        num_mini_batches=section.num_mini_batches,
        num_sample_generations=0,
    )
    dataset = Dataset.from_dict({"input_ids": ids})
    trainer = PPOTrainer(
        arguments,
        tokenizer,
        model,
        ref_model,
        reward_model,
        train_dataset=dataset,
        eval_dataset=dataset,
        value_model=value_model,
    )
    trainer.train()
    metrics = logged_metrics(trainer, folder) | {"prompts": len(prompts)} | bad.metrics()
    trainer.save_model(str(folder))
    if section.source != "story_world":  # what a completion of a user's own prompt is worth is not known
        return metrics
    folders = (folder, starting_model(run, "ppo").folder)
    policy, reference = (as_policy(load_for_inference(settings, each), tokenizer) for each in folders)
    return metrics | evaluate_policy(
        settings, run, "ppo", policy, reference, held_out, open_reward("story_world")
    )
