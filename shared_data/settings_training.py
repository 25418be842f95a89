"""Settings of the stages `pretrain` and `sft`, and what all stages share that take optimizer steps.

python -c "from shared_data.settings_training import SftSettings; print(SftSettings(steps=10))"
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from shared_data.settings_data import Section


class OptimizerSettings(Section):
    """What every stage has that takes optimizer steps; a stage changes the defaults it must."""

    stage: ClassVar[str] = "pretrain"  # the section's name, for messages

    steps: int = Field(default=600, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=3e-3, gt=0, description="the peak")
    min_learning_rate_ratio: float = Field(
        default=0.1, ge=0, le=1, description="last learning rate as a part of the peak (all but constant)"
    )
    warmup_steps: int = Field(default=50, ge=0, description="steps of linear warm-up from zero")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="cosine",
        description="shape of the learning rate after the warm-up; wsd (warm-up, stable, decay) stays at the peak and then falls",
    )
    decay_fraction: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="wsd: the last part of the steps, in which the learning rate falls",
    )
    weight_decay: float = Field(
        default=0.1, ge=0, description="decoupled decay of matrices; norms and biases are not decayed"
    )
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the mean of gradients")
    adam_beta2: float = Field(default=0.95, ge=0, lt=1, description="decay of the mean of squared gradients")
    adam_epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="largest global norm of the gradient; 0 turns clipping off"
    )
    log_every: int = Field(default=10, ge=1, description="steps between rows of the metrics log")
    eval_every: int = Field(
        default=100,
        ge=0,
        description="steps between evaluations on held-out data; 0 is only at the end",
    )
    checkpoint_every: int = Field(
        default=100, ge=0, description="steps between resumable checkpoints; 0 is only at the end"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="checkpoints kept on disk, the newest")
    resume: bool = Field(default=True, description="continue from the newest checkpoint of the same settings")
    seed: int = Field(
        default=0, ge=0, description="seed of the weights, of dropout and of the order of the data"
    )


class ChosenOptimizerSettings(OptimizerSettings):
    """What the stages have that may be trained with Muon."""

    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="adamw for all parameters; or muon for the matrices between hidden states, and adamw for the rest",
    )
    muon_momentum: float = Field(default=0.95, ge=0, lt=1, description="muon: decay of the mean of gradients")


class TrainingSettings(ChosenOptimizerSettings):
    """What the stages have that train on packed sequences."""

    batch_size: int = Field(default=16, ge=1, description="B, sequences in one forward and backward pass")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="passes whose gradients add up to one optimizer step"
    )
    sequence_length: int = Field(default=256, ge=2, description="T, tokens in a packed sequence")
    document_masks: bool = Field(
        default=True, description="attention stays inside a document, and positions restart with it"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="type of the matrix products (mixed precision; levels 1 and 2)"
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="recompute blocks in the backward pass instead of keeping their activations (level 2)",
    )
    attention_kernel: Literal["handwritten", "library"] = Field(
        default="handwritten",
        description="level 2: our attention, or torch's scaled_dot_product_attention beside it",
    )
    compile: bool = Field(
        default=False, description="level 2: torch.compile the model (needs a C++ compiler on CPU)"
    )
    eval_batches: int = Field(default=8, ge=1, description="batches of an evaluation during training")


class PretrainSettings(TrainingSettings):
    """The training run."""

    sample_every: int = Field(default=200, ge=0, description="steps between samples of text; 0 is never")
    sample_prompt: str = Field(
        default="Once", description="the beginning that samples continue; may be empty"
    )
    sample_tokens: int = Field(default=60, ge=1, description="tokens of a sample")
    init_from: str | None = Field(
        default=None, description="start from the weights of this Hugging Face folder"
    )


class AdapterSettings(Section):
    """Low-rank adapters on a frozen model (LoRA, Hu et al. 2021; QLoRA, Dettmers et al. 2023)."""

    method: Literal["none", "lora", "qlora"] = Field(
        default="none",
        description="none tunes all weights; lora adapters only; qlora adapters on a 4-bit base",
    )
    rank: int = Field(default=8, ge=1, description="columns of B and rows of A")
    alpha: float = Field(
        default=16.0, gt=0, description="strength of the update, before the division by the rank"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapter's input, in training only")
    target_modules: list[str] | Literal["all-linear"] = Field(
        default="all-linear",
        description='which layers are adapted: names such as ["q_proj", "v_proj"], or all-linear',
    )
    use_rslora: bool = Field(
        default=False, description="divide alpha by the root of the rank, not by the rank"
    )
    use_dora: bool = Field(
        default=False, description="learn the length of each row of a weight apart from its direction"
    )
    modules_to_save: list[str] = Field(
        default=[],
        description='whole modules that train and are saved beside the adapters, such as ["embed_tokens"], for words that the base has never met',
    )
    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field(
        default=64, description="qlora: weights that share a scale"
    )
    double_quantization: bool = Field(
        default=True, description="qlora: store the scales themselves in 8 bits"
    )


class SftSettings(TrainingSettings):
    """Instruction tuning on conversations; the loss counts the assistant's tokens only."""

    stage: ClassVar[str] = "sft"

    source: str = Field(
        default="story_world",
        description="conversations: story_world, a file, folder or glob (.jsonl .json .parquet, .gz) of records with `messages`, "
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
        description="story world: share of the conversations that are about one to six sentences, not about a whole story",
    )
    wordy_fraction: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="story world: share of replies about whole stories that go on with a phrase nobody asked for, which alignment is to "
        "take away",
    )
    sequence_length: int = Field(
        default=2048, ge=8, description="T, tokens in a packed sequence; at most the model's positions"
    )
    batch_size: int = Field(
        default=1, ge=1, description="B, packed sequences in one forward and backward pass"
    )
    test_questions: int = Field(default=300, ge=1, description="held-out questions that measure the accuracy")
    steps: int = Field(default=900, ge=1, description="optimizer steps")
    learning_rate: float = Field(default=2e-5, gt=0, description="the peak")
    warmup_steps: int = Field(default=20, ge=0, description="steps of linear warm-up from zero")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled decay of matrices; norms and biases are not decayed"
    )
    adapter: AdapterSettings = AdapterSettings()

    @property
    def lessons(self) -> dict[str, Any]:
        """What the story world is asked for (`story_world.conversations`)."""
        names = ("questions_per_story", "request_fraction", "passage_fraction", "wordy_fraction")
        return {name: getattr(self, name) for name in names}
