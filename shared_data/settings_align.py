"""Settings of the stages that align a tuned model: reward model, DPO, PPO, GRPO.

Names and defaults are TRL's where it has the setting (`RewardConfig`, `DPOConfig`, `PPOConfig`, `GRPOConfig`).

    uv run python -c "from shared_data.settings_align import DpoSettings; print(DpoSettings(beta=0.2))"
"""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from shared_data.inference.arguments import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE
from shared_data.settings_data import RecordSettings, Section
from shared_data.settings_training import OptimizerSettings, SchedulerType

BUILT_IN_REWARDS = ("story_world", "reward_model")  # any other reward is FILE.py:FUNCTION, code that is run


class PolicyEvaluationSettings(Section):
    """The evaluation of a policy before and after training, on prompts that no training uses."""

    eval_prompts: int = Field(
        default=200, ge=1, description="held-out prompts that measure reward and KL before and after"
    )
    question_fraction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="story world: share of prompts (and of pairs) that are questions, not requests for a story",
    )
    max_completion_length: int = Field(default=256, ge=1, description="tokens of a completion at most")
    temperature: float = Field(
        default=1.0, ge=LOWEST_TEMPERATURE, le=HIGHEST_TEMPERATURE, description="of the sampled completions"
    )


class PreferenceSettings(OptimizerSettings, RecordSettings):
    """What the stages have that learn from preference pairs."""

    source: str = Field(
        default="story_world",
        description="preference pairs: none (`run` leaves the stage out), story_world, a file, folder or glob (.jsonl .json .parquet, .gz) of records with `prompt`, "
        "`chosen` and `rejected`, each a text or messages; or a hub dataset",
    )
    pairs: int = Field(
        default=6000, ge=1, description="at most so many are read, or drawn from the story world"
    )
    eval_pairs: int = Field(
        default=400, ge=1, description="held-out pairs that measure the accuracy; of records, a tenth at most"
    )
    question_fraction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="story world: share of pairs and prompts that are questions, not requests for a story",
    )
    passage_fraction: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="story world: share of the pairs that are about one to eight sentences, not about a whole story",
    )
    per_device_train_batch_size: int = Field(
        default=16, ge=1, description="pairs in one forward and backward pass"
    )
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="passes whose gradients add up to one optimizer step"
    )
    max_length: int = Field(
        default=1024,
        ge=8,
        description="tokens of prompt and completion at most; what is longer is cut off at the end",
    )

    @property
    def story_world_options(self) -> dict[str, Any]:
        """The arguments of `story_world.preferences`."""
        return {name: getattr(self, name) for name in ("question_fraction", "passage_fraction")}


class RewardSettings(PreferenceSettings):
    """The reward model: a score for a completion, learned from pairs."""

    stage: ClassVar[str] = "reward"

    max_steps: int = Field(default=400, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=1e-4, gt=0, description="the peak of the learning rate")
    warmup_steps: int = Field(default=10, ge=0, description="steps of linear warm-up from zero")
    center_rewards_coefficient: float | None = Field(
        default=None, ge=0, description="pull of the mean score of a pair towards zero"
    )


class DpoSettings(PolicyEvaluationSettings, PreferenceSettings):
    """Direct preference optimization (Rafailov et al. 2023)."""

    stage: ClassVar[str] = "dpo"

    max_steps: int = Field(default=300, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=1e-6, gt=0, description="the peak of the learning rate")
    warmup_steps: int = Field(default=10, ge=0, description="steps of linear warm-up from zero")
    beta: float = Field(default=0.1, gt=0, description="how strongly the policy is held to the reference")
    loss_type: Literal["sigmoid", "hinge", "ipo"] = Field(default="sigmoid", description="the loss of a pair")
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="share of pairs that are taken to be labelled the wrong way round (sigmoid; levels 2 and 3)",
    )
    precompute_ref_log_probs: bool = Field(
        default=False,
        description="compute the reference's log-probabilities once before training, not again in every batch",
    )

    @model_validator(mode="after")
    def _smoothing_is_of_the_sigmoid(self) -> Self:
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError(
                f"label_smoothing belongs to the sigmoid loss, not to {self.loss_type}; leave it out or use sigmoid"
            )
        return self


class OnlineSettings(PolicyEvaluationSettings, OptimizerSettings, RecordSettings):
    """What the stages have that learn from completions of the policy itself."""

    source: str = Field(
        default="story_world",
        description="prompts: none (`run` leaves the stage out), story_world, a file, folder or glob (.jsonl .json .parquet, .gz) of records with a text `prompt`; or a "
        "hub dataset",
    )
    prompts: int = Field(
        default=4000, ge=1, description="at most so many are read, or drawn from the story world"
    )
    max_steps: int = Field(
        default=100, ge=1, description="updates: each samples completions and learns from them"
    )
    warmup_steps: int = Field(default=5, ge=0, description="updates of linear warm-up from zero")
    lr_scheduler_type: SchedulerType = Field(
        default="constant_with_warmup", description="shape of the learning rate"
    )


class PpoSettings(OnlineSettings):
    """Proximal policy optimization (Schulman et al. 2017) as for language models by Ziegler et al. 2019."""

    stage: ClassVar[str] = "ppo"

    per_device_train_batch_size: int = Field(
        default=64, ge=1, description="prompts of an update, with one completion each"
    )
    learning_rate: float = Field(default=3e-6, gt=0, description="the peak of the learning rate")
    temperature: float = Field(
        default=0.7, ge=LOWEST_TEMPERATURE, le=HIGHEST_TEMPERATURE, description="of the sampled completions"
    )
    reward: str = Field(
        default="reward_model",
        description="what scores a completion: reward_model (of the stage `reward`), story_world, or FILE.py:FUNCTION, which is run "
        "(levels 2 and 3)",
    )
    kl_coef: float = Field(default=0.05, ge=0, description="price of a nat of KL to the reference, per token")
    kl_estimator: Literal["k1", "k3"] = Field(
        default="k1", description="how KL is estimated from the sampled tokens (Schulman 2020)"
    )
    missing_eos_penalty: float | None = Field(
        default=None, ge=0, description="off the score of a completion that was cut off; none for no penalty"
    )
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount of later rewards")
    lam: float = Field(default=0.95, ge=0, le=1, description="λ of generalized advantage estimation")
    whiten_rewards: bool = Field(default=False, description="scale the rewards of tokens to variance one")
    cliprange: float = Field(default=0.2, gt=0, description="how far an update may move a probability ratio")
    cliprange_value: float = Field(default=0.2, gt=0, description="how far an update may move a value")
    vf_coef: float = Field(default=0.1, ge=0, description="weight of the value loss")
    num_ppo_epochs: int = Field(default=4, ge=1, description="passes over the completions of an update")
    num_mini_batches: int = Field(default=1, ge=1, description="optimizer steps in one such pass")


class GrpoSettings(OnlineSettings):
    """Group relative policy optimization (Shao et al. 2024)."""

    stage: ClassVar[str] = "grpo"

    per_device_train_batch_size: int = Field(
        default=64, ge=2, description="completions of an update: prompts times num_generations"
    )
    num_generations: int = Field(
        default=8, ge=2, description="completions of each prompt, compared with one another"
    )
    learning_rate: float = Field(default=1e-6, gt=0, description="the peak of the learning rate")
    max_completion_length: int = Field(default=512, ge=1, description="tokens of a completion at most")
    reward: str = Field(
        default="story_world",
        description="what scores a completion: story_world, or FILE.py:FUNCTION, which is run",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        default="group", description="whose standard deviation advantages are divided by"
    )
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = Field(
        default="dapo", description="how the loss of tokens is averaged"
    )
    beta: float = Field(default=0.0, ge=0, description="weight of the KL to the reference in the loss")
    use_bias_correction_kl: bool = Field(
        default=True, description="weigh the KL of a token by its probability ratio"
    )
    epsilon: float = Field(default=0.2, gt=0, description="how far a probability ratio may fall")
    epsilon_high: float | None = Field(
        default=None, gt=0, description="how far a probability ratio may rise; default epsilon"
    )
    num_iterations: int = Field(
        default=1, ge=1, description="optimizer steps on the completions of an update"
    )

    @model_validator(mode="after")
    def _batch_is_whole_groups(self) -> Self:
        if self.per_device_train_batch_size % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size {self.per_device_train_batch_size} is not a multiple of num_generations "
                f"{self.num_generations}; change one of them"
            )
        return self
