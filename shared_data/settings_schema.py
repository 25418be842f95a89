"""Every setting of every stage: its type, its bounds, its default and one line of documentation.

`shared_data/settings.py` reads configuration files into these classes; `v2 settings` prints them all. Model fields carry
the names of Hugging Face configurations. Sizes that cannot work together are refused here.

    python -c "from shared_data.settings_schema import ModelSettings; print(ModelSettings(hidden_size=64))"
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from shared_data.settings_data import DataSettings, Section, TokenizerSettings


class ModelSettings(Section):
    """The architecture; names as in Hugging Face configurations. The vocabulary size comes from the tokenizer."""

    model_type: Literal["gpt2", "llama"] = Field(default="llama", description="the family: GPT-2 or Llama")
    hidden_size: int = Field(default=128, ge=1, description="C, the width of the residual stream")
    intermediate_size: int | None = Field(
        default=None,
        ge=1,
        description="F, width of the feed-forward layer; default 4 C (gpt2), 8/3 C rounded up to 32 (llama)",
    )
    num_hidden_layers: int = Field(default=4, ge=1, description="number of blocks")
    num_attention_heads: int = Field(default=4, ge=1, description="H, query heads")
    num_key_value_heads: int | None = Field(
        default=None,
        ge=1,
        description="K, key and value heads: H is MHA, 1 is MQA, between is GQA; default H",
    )
    head_dim: int | None = Field(default=None, ge=1, description="D, size of a head; default C / H")
    max_position_embeddings: int = Field(default=256, ge=2, description="the longest sequence")
    rope_theta: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies (llama)")
    rms_norm_eps: float = Field(default=1e-5, gt=0, description="added to the mean square (llama)")
    layer_norm_epsilon: float = Field(default=1e-5, gt=0, description="added to the variance (gpt2)")
    tie_word_embeddings: bool = Field(default=True, description="the output matrix is the token embedding")
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability for embeddings, attention weights and residual branches (llama: attention only, as HF)",
    )
    initializer_range: float = Field(
        default=0.02, gt=0, description="standard deviation of the initial weights"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}; change one of them or set head_dim"
            )
        if groups is not None and heads % groups:
            raise ValueError(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}; change one of them"
            )
        if self.model_type == "gpt2" and groups not in (None, heads):
            raise ValueError(
                "gpt2 has no grouped key-value heads; leave num_key_value_heads out or use model_type llama"
            )
        if self.model_type == "gpt2" and self.head_dim not in (None, self.hidden_size // heads):
            raise ValueError(
                "gpt2 has head_dim = hidden_size / num_attention_heads; leave head_dim out or use model_type llama"
            )
        head_dim = self.head_dim or self.hidden_size // heads
        if self.model_type == "llama" and head_dim % 2:
            raise ValueError(
                f"rotary positions turn pairs, but the head size is {head_dim}, an odd number; change hidden_size or head_dim"
            )
        return self


class TrainingSettings(Section):
    """What every stage has that trains on packed sequences; a stage changes the defaults it must."""

    stage: ClassVar[str] = "pretrain"  # the section's name, for messages

    steps: int = Field(default=600, ge=1, description="optimizer steps")
    batch_size: int = Field(default=16, ge=1, description="B, sequences in one forward and backward pass")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="passes whose gradients add up to one optimizer step"
    )
    sequence_length: int = Field(default=256, ge=2, description="T, tokens in a packed sequence")
    document_masks: bool = Field(
        default=True, description="attention stays inside a document, and positions restart with it"
    )
    learning_rate: float = Field(default=3e-3, gt=0, description="the peak")
    min_learning_rate_ratio: float = Field(
        default=0.1, ge=0, le=1, description="last learning rate as a part of the peak (cosine and linear)"
    )
    warmup_steps: int = Field(default=50, ge=0, description="steps of linear warm-up from zero")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="shape of the learning rate after the warm-up"
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
    log_every: int = Field(default=10, ge=1, description="steps between rows of the metrics log")
    eval_every: int = Field(
        default=100,
        ge=0,
        description="steps between evaluations on the validation split; 0 is only at the end",
    )
    eval_batches: int = Field(default=8, ge=1, description="batches of an evaluation during training")
    checkpoint_every: int = Field(
        default=100, ge=0, description="steps between resumable checkpoints; 0 is only at the end"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="checkpoints kept on disk, the newest")
    resume: bool = Field(default=True, description="continue from the newest checkpoint of the same settings")
    seed: int = Field(
        default=0, ge=0, description="seed of the weights, of dropout and of the order of the data"
    )


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
        description="story world: share of conversations that ask for a story instead",
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


class EvaluateSettings(Section):
    """Perplexity and bits per byte on held-out text."""

    split: Literal["validation", "test"] = Field(default="test", description="which held-out split")
    stride: int | None = Field(
        default=None, ge=1, description="tokens a sliding window moves on; default half of the context"
    )
    batch_size: int = Field(default=16, ge=1, description="windows in one forward pass")
    max_tokens: int | None = Field(default=None, ge=2, description="evaluate on at most this many tokens")


class GenerateSettings(Section):
    """Sampling."""

    max_new_tokens: int = Field(default=200, ge=1, description="tokens to generate at most")
    temperature: float = Field(default=0.8, ge=0, description="divides the logits; 0 is greedy")
    top_k: int | None = Field(default=None, ge=1, description="keep the k most probable tokens")
    top_p: float | None = Field(
        default=0.95, gt=0, le=1, description="keep the smallest set of tokens with this much probability"
    )
    seed: int = Field(default=0, ge=0, description="seed of the sampler")
    prompts: list[str] = Field(
        default=["Once upon a time", "One day,", ""], description="prompts of the stage `generate` in `run`"
    )


class Settings(Section):
    """One experiment."""

    name: str = Field(default="custom", description="names the run folder runs/<level>/<name>")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N (levels 1 and 2)")
    threads: int = Field(
        default=0, ge=0, description="CPU threads of the mathematics; 0 leaves the library's choice"
    )
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    pretrain: PretrainSettings = PretrainSettings()
    sft: SftSettings = SftSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    generate: GenerateSettings = GenerateSettings()

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not name or any(c in name for c in "/\\\0") or name.startswith("."):
            raise ValueError(f"name {name!r} must be usable as a folder name")
        return name

    @model_validator(mode="after")
    def _sequence_fits_positions(self) -> Self:
        length, positions = self.pretrain.sequence_length, self.model.max_position_embeddings
        if length > positions:
            raise ValueError(
                f"pretrain.sequence_length {length} is above model.max_position_embeddings {positions}; lower the first or raise the second"
            )
        return self
