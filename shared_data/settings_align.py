"""Settings of the stages that align a tuned model: reward model, DPO, PPO, GRPO.

Names and defaults are TRL's where it has the setting; learning rates and sizes are for large models, the small
configurations change them.

    python -c "from shared_data.settings_align import DpoSettings; print(DpoSettings(beta=0.2))"
"""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from shared_data.settings_data import Section
from shared_data.settings_training import ChosenOptimizerSettings, OptimizerSettings


class ExamSettings(Section):
    """The exam before and after: replies to prompts that no training saw, and what they are worth."""

    test_prompts: int = Field(
        default=200, ge=1, description="held-out prompts that measure reward and KL before and after"
    )
    question_fraction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="story world: share of prompts (of DPO, and of pairs) that are questions, not requests",
    )
    max_new_tokens: int = Field(default=256, ge=1, description="tokens of a reply at most")
    temperature: float = Field(default=1.0, gt=0, description="of the sampled replies")


class PreferenceSettings(OptimizerSettings):
    """What the stages have that learn from pairs of replies."""

    source: str = Field(
        default="story_world",
        description="preference pairs: story_world, a file, folder or glob (.jsonl .json .parquet, .gz) of records with `prompt`, "
        "`chosen` and `rejected`, each a text or messages; or a hub dataset",
    )
    pairs: int = Field(
        default=6000, ge=1, description="at most so many are read, or drawn from the story world"
    )
    test_pairs: int = Field(
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
        description="story world: share of the pairs that are about a few sentences, not about a whole story",
    )
    batch_size: int = Field(default=16, ge=1, description="pairs in one forward and backward pass")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="passes whose gradients add up to one optimizer step"
    )
    max_length: int = Field(
        default=1024,
        ge=8,
        description="tokens of prompt and reply at most; what is longer is cut off at the end",
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled decay of matrices; norms and biases are not decayed"
    )

    @property
    def lessons(self) -> dict[str, Any]:
        """What the story world is asked for (`story_world.preferences`)."""
        names = ("question_fraction", "passage_fraction")
        return {name: getattr(self, name) for name in names}


class RewardSettings(PreferenceSettings, ChosenOptimizerSettings):
    """The reward model: a score for a reply, learned from pairs."""

    stage: ClassVar[str] = "reward"

    steps: int = Field(default=400, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=1e-4, gt=0, description="the peak")
    warmup_steps: int = Field(default=10, ge=0, description="steps of linear warm-up from zero")
    center_coefficient: float = Field(
        default=0.0,
        ge=0,
        description="pull of the mean score of a pair towards zero (TRL: center_rewards_coefficient)",
    )


class DpoSettings(ExamSettings, PreferenceSettings):
    """Direct preference optimization (Rafailov et al. 2023)."""

    stage: ClassVar[str] = "dpo"

    steps: int = Field(default=300, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=1e-6, gt=0, description="the peak")
    warmup_steps: int = Field(default=10, ge=0, description="steps of linear warm-up from zero")
    beta: float = Field(default=0.1, gt=0, description="how strongly the policy is held to the reference")
    loss_type: Literal["sigmoid", "hinge", "ipo"] = Field(default="sigmoid", description="the loss of a pair")
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="share of pairs that are taken to be labelled the wrong way round (sigmoid)",
    )
    precompute_reference: bool = Field(
        default=True,
        description="ask the reference once for each pair before training, not again in every batch",
    )

    @model_validator(mode="after")
    def _smoothing_is_of_the_sigmoid(self) -> Self:
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError(
                f"label_smoothing belongs to the sigmoid loss, not to {self.loss_type}; leave it out or use sigmoid"
            )
        return self


class PolicySettings(ExamSettings, OptimizerSettings):
    """What the stages have that learn from replies of their own."""

    source: str = Field(
        default="story_world",
        description="prompts: story_world, a file, folder or glob (.jsonl .json .parquet, .gz) of records with a text `prompt`; or a "
        "hub dataset",
    )
    prompts: int = Field(
        default=4000, ge=1, description="at most so many are read, or drawn from the story world"
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled decay of matrices; norms and biases are not decayed"
    )
    minibatches: int = Field(default=1, ge=1, description="optimizer steps in one pass over the replies")


class PpoSettings(PolicySettings):
    """Proximal policy optimization (Schulman et al. 2017) as for language models by Ziegler et al. 2019."""

    stage: ClassVar[str] = "ppo"

    steps: int = Field(default=100, ge=1, description="updates: each samples replies and learns from them")
    prompts_per_step: int = Field(default=64, ge=1, description="prompts of an update, with one reply each")
    learning_rate: float = Field(default=3e-6, gt=0, description="the peak")
    warmup_steps: int = Field(default=5, ge=0, description="updates of linear warm-up from zero")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="constant", description="shape of the learning rate after the warm-up"
    )
    reward: str = Field(
        default="reward_model",
        description="what scores a reply: reward_model (of the stage `reward`), story_world, or FILE.py:FUNCTION of prompts and replies",
    )
    kl_coefficient: float = Field(
        default=0.05, ge=0, description="price of a nat of KL to the reference, per token"
    )
    kl_estimator: Literal["k1", "k3"] = Field(
        default="k1", description="how KL is estimated from the sampled tokens (Schulman 2020)"
    )
    missing_end_penalty: float | None = Field(
        default=1.0, ge=0, description="off the score of a reply that was cut off; none for no penalty"
    )
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount of later rewards")
    lam: float = Field(default=0.95, ge=0, le=1, description="λ of generalized advantage estimation")
    whiten_rewards: bool = Field(default=False, description="scale the rewards of tokens to variance one")
    clip_range: float = Field(default=0.2, gt=0, description="how far an update may move a probability ratio")
    clip_range_value: float = Field(default=0.2, gt=0, description="how far an update may move a value")
    value_coefficient: float = Field(default=0.1, ge=0, description="weight of the value loss")
    epochs: int = Field(default=4, ge=1, description="passes over the replies of an update")


class GrpoSettings(PolicySettings):
    """Group relative policy optimization (Shao et al. 2024)."""

    stage: ClassVar[str] = "grpo"

    steps: int = Field(
        default=100, ge=1, description="updates: each samples groups of replies and learns from them"
    )
    prompts_per_step: int = Field(default=8, ge=1, description="prompts of an update")
    group_size: int = Field(default=8, ge=2, description="replies to each prompt, compared with one another")
    learning_rate: float = Field(default=1e-6, gt=0, description="the peak")
    warmup_steps: int = Field(default=5, ge=0, description="updates of linear warm-up from zero")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="constant", description="shape of the learning rate after the warm-up"
    )
    reward: str = Field(
        default="story_world",
        description="what scores a reply: story_world, or FILE.py:FUNCTION of prompts and replies",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        default="group", description="whose standard deviation advantages are divided by"
    )
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = Field(
        default="dapo", description="how the loss of tokens is averaged"
    )
    beta: float = Field(default=0.0, ge=0, description="weight of the KL to the reference in the loss")
    unbiased_kl: bool = Field(
        default=True,
        description="weigh the KL of a token by its probability ratio (TRL: use_bias_correction_kl)",
    )
    epsilon_low: float = Field(default=0.2, gt=0, description="how far a probability ratio may fall")
    epsilon_high: float = Field(default=0.2, gt=0, description="how far a probability ratio may rise")
    epochs: int = Field(default=1, ge=1, description="passes over the replies of an update")
