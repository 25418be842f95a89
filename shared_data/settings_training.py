"""Settings of the stages `pretrain` and `sft`, and what all stages share that take optimizer steps.

Names and defaults are those of transformers' `TrainingArguments`, TRL's `SFTConfig` and PEFT's `LoraConfig` where these have the setting.

    uv run python -c "from shared_data.settings_training import SftSettings; print(SftSettings(max_steps=10))"
"""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from shared_data.seeds import LARGEST_SEED
from shared_data.settings_data import RecordSettings, Section

SchedulerType = Literal[
    "linear", "cosine", "cosine_with_min_lr", "constant", "constant_with_warmup", "warmup_stable_decay"
]
SCHEDULER_KWARGS = {
    "cosine_with_min_lr": {"min_lr_rate"},
    "warmup_stable_decay": {"num_decay_steps", "min_lr_ratio"},
}


class OptimizerSettings(Section):
    """What every stage has that takes optimizer steps; a stage changes the defaults it must."""

    stage: ClassVar[str] = "pretrain"  # the section's name, for messages

    model_name_or_path: str | None = Field(
        default=None,
        min_length=1,
        description="the model to start from, as for --model: a folder, a GGUF file, a stage, a name on the hub; default the stage before",
    )
    max_steps: int = Field(default=600, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=3e-3, gt=0, description="the peak of the learning rate")
    lr_scheduler_type: SchedulerType = Field(default="linear", description="shape of the learning rate")
    lr_scheduler_kwargs: dict[str, float] = Field(
        default={},
        description="cosine_with_min_lr: min_lr_rate; warmup_stable_decay: num_decay_steps and min_lr_ratio",
    )
    warmup_steps: int = Field(default=50, ge=0, description="steps of linear warm-up from zero")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled decay of matrices; norms and biases are not decayed"
    )
    optim: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="adamw for all parameters; or muon for the matrices between hidden states, and adamw for the rest",
    )
    muon_momentum: float = Field(default=0.95, ge=0, lt=1, description="muon: decay of the mean of gradients")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the mean of gradients")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of the mean of squared gradients")
    adam_epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="largest global norm of the gradient; 0 turns clipping off"
    )
    router_bias_update_speed: float = Field(
        default=0.001,
        ge=0,
        description="deepseek_v3: how far a step moves the biases that balance the experts (levels 2 and 3)",
    )
    bf16: bool = Field(default=False, description="matrix products in bfloat16 (levels 1 and 2)")
    fp16: bool = Field(
        default=False, description="matrix products in float16, with a loss scale (levels 1 and 2)"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute blocks in the backward pass instead of keeping their activations (levels 1 and 2)",
    )
    torch_compile: bool = Field(
        default=False, description="compile the model (levels 1 and 2; on a CPU it needs a C++ compiler)"
    )
    logging_steps: int = Field(default=10, ge=1, description="steps between rows of the metrics log")
    eval_steps: int = Field(
        default=100, ge=0, description="steps between evaluations on held-out data; 0 is only at the end"
    )
    save_steps: int = Field(
        default=100, ge=0, description="steps between resumable checkpoints; 0 is only at the end"
    )
    save_total_limit: int = Field(default=2, ge=1, description="checkpoints kept on disk, the newest")
    resume_from_checkpoint: bool = Field(
        default=True, description="continue from the newest checkpoint of the same settings"
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=LARGEST_SEED,
        description="seed of the weights, of dropout and of the order of the data",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_kwargs_are_of_the_default_schedule(cls, values: Any) -> Any:
        if isinstance(values, dict) and "lr_scheduler_type" in values:
            return {"lr_scheduler_kwargs": {}} | values
        return values

    @model_validator(mode="after")
    def _kwargs_are_of_the_schedule(self) -> Self:
        unknown = set(self.lr_scheduler_kwargs) - SCHEDULER_KWARGS.get(self.lr_scheduler_type, set())
        if unknown:
            raise ValueError(
                f"the schedule {self.lr_scheduler_type} has no {min(unknown)}; take it out of lr_scheduler_kwargs, or choose another "
                "lr_scheduler_type"
            )
        if self.lr_scheduler_type == "cosine_with_min_lr" and not self.lr_scheduler_kwargs:
            raise ValueError(
                "cosine_with_min_lr needs min_lr_rate; set lr_scheduler_kwargs={min_lr_rate = 0.1}"
            )
        return self


class PretrainSettings(OptimizerSettings):
    """The training run on packed documents."""

    lr_scheduler_type: SchedulerType = Field(
        default="cosine_with_min_lr", description="shape of the learning rate"
    )
    lr_scheduler_kwargs: dict[str, float] = Field(
        default={"min_lr_rate": 0.1},
        description="cosine_with_min_lr: min_lr_rate; warmup_stable_decay: num_decay_steps and min_lr_ratio",
    )
    weight_decay: float = Field(
        default=0.1, ge=0, description="decoupled decay of matrices; norms and biases are not decayed"
    )
    adam_beta2: float = Field(default=0.95, ge=0, lt=1, description="decay of the mean of squared gradients")
    per_device_train_batch_size: int = Field(
        default=16, ge=1, description="B, sequences in one forward and backward pass"
    )
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="passes whose gradients add up to one optimizer step"
    )
    sequence_length: int = Field(default=256, ge=2, description="T, tokens in a packed sequence")
    index_warmup_steps: int = Field(
        default=100,
        ge=0,
        description="indexed_attention: first steps in which attention reads everything, and the indexers learn from that",
    )
    document_masks: bool = Field(
        default=True, description="attention stays inside a document, and positions restart with it"
    )
    eval_batches: int = Field(default=8, ge=1, description="batches of an evaluation during training")
    sample_steps: int = Field(default=200, ge=0, description="steps between samples of text; 0 is never")
    sample_prompt: str | None = Field(
        default=None,
        description='the beginning that samples continue, may be empty; none: "Once" for the story world, else that of a held-out document',
    )
    sample_tokens: int = Field(default=60, ge=1, description="tokens of a sample")


class AdapterSettings(Section):
    """Low-rank adapters on a frozen model (LoRA, Hu et al. 2021; QLoRA, Dettmers et al. 2023)."""

    method: Literal["none", "lora", "qlora"] = Field(
        default="none",
        description="none tunes all weights; lora adapters only; qlora adapters on a 4-bit base",
    )
    r: int = Field(default=8, ge=1, description="rank: columns of B and rows of A")
    lora_alpha: float = Field(
        default=8.0, gt=0, description="strength of the update, before the division by the rank"
    )
    lora_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="of the adapter's input, in training only"
    )
    target_modules: list[str] | Literal["all-linear"] = Field(
        default="all-linear",
        description='which layers are adapted: names such as ["q_proj", "v_proj"], or all-linear',
    )
    use_rslora: bool = Field(
        default=False, description="divide lora_alpha by the root of the rank, not by the rank"
    )
    use_dora: bool = Field(
        default=False, description="learn the length of each row of a weight apart from its direction"
    )
    modules_to_save: list[str] = Field(
        default=[],
        description='whole modules that train and are saved beside the adapters, such as ["embed_tokens"], for words that are new to the base',
    )
    bnb_4bit_blocksize: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field(
        default=64, description="qlora: weights that share a scale"
    )
    bnb_4bit_use_double_quant: bool = Field(
        default=False, description="qlora: store the scales themselves in 8 bits"
    )


class SftSettings(OptimizerSettings, RecordSettings):
    """Instruction tuning on conversations; the loss counts the assistant's tokens only."""

    stage: ClassVar[str] = "sft"

    source: str = Field(
        default="story_world",
        description="conversations: none (`run` leaves the stage out), story_world, a file, folder or glob (.jsonl .json .parquet, .gz) of records with `messages`, "
        "`prompt` and `completion`, or `instruction` and `output`; or a hub dataset",
    )
    conversations: int = Field(
        default=6000, ge=1, description="at most so many are read, or drawn from the story world"
    )
    questions_per_story: int = Field(
        default=8, ge=1, description="story world: turns of a conversation about one story"
    )
    request_fraction: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="story world: share of the conversations that ask for a story instead",
    )
    passage_fraction: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="story world: share of the other conversations that are about one to six sentences, not about a whole story",
    )
    wordy_fraction: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="story world: share of answers about whole stories that end with an unwanted phrase, which alignment takes away",
    )
    max_length: int = Field(
        default=1024, ge=8, description="T, tokens in a packed sequence; at most the model's positions"
    )
    per_device_train_batch_size: int = Field(
        default=1, ge=1, description="B, packed sequences in one forward and backward pass"
    )
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="passes whose gradients add up to one optimizer step"
    )
    eval_batches: int = Field(default=8, ge=1, description="batches of an evaluation during training")
    eval_questions: int = Field(default=300, ge=1, description="held-out questions that measure the accuracy")
    max_steps: int = Field(default=900, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=2e-5, gt=0, description="the peak of the learning rate")
    warmup_steps: int = Field(default=20, ge=0, description="steps of linear warm-up from zero")
    adapter: AdapterSettings = AdapterSettings()

    @property
    def story_world_options(self) -> dict[str, Any]:
        """The arguments of `story_world.conversations`."""
        names = ("questions_per_story", "request_fraction", "passage_fraction", "wordy_fraction")
        return {name: getattr(self, name) for name in names}
