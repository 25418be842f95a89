"""Every setting of every stage: its type, its bounds, its default and one line of documentation.

The sections of the stages that train stand in `settings_training.py` and `settings_align.py`, of the data in `settings_data.py`.

`shared_data/settings.py` reads configuration files into these classes; `v2 settings` prints them all. Model fields carry
the names of Hugging Face configurations. Sizes that cannot work together are refused here.

    uv run python -c "from shared_data.settings_schema import ModelSettings; print(ModelSettings(hidden_size=64))"
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from shared_data.inference.arguments import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE
from shared_data.inference.sampling_parameters import LARGEST_LENGTH_PENALTY, MOST_BEAMS
from shared_data.model_files.families import FAMILIES
from shared_data.seeds import LARGEST_SEED
from shared_data.settings_align import DpoSettings, GrpoSettings, PpoSettings, RewardSettings
from shared_data.settings_data import DataSettings, Section, TokenizerSettings
from shared_data.settings_training import PretrainSettings, SftSettings


class ModelSettings(Section):
    """The architecture; names as in Hugging Face configurations. The vocabulary size comes from the tokenizer."""

    model_type: str = Field(default="llama", description=f"the family: {', '.join(FAMILIES)}")
    hidden_size: int = Field(default=128, ge=1, description="C, the width of the residual stream")
    intermediate_size: int | None = Field(
        default=None,
        ge=1,
        description="F, width of the feed-forward layer; default 4 C (gpt2), 8/3 C rounded up to 32 (the others)",
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
    rope_theta: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: dict[str, Any] | None = Field(
        default=None,
        description='longer texts than trained on, as in config.json: {rope_type = "yarn", factor = 4.0}; also linear, dynamic, llama3',
    )
    no_rope_layers: list[Literal[0, 1]] | None = Field(
        default=None,
        min_length=1,
        description="smollm3: 1 where a layer rotates queries and keys, 0 where not, repeated; default [1, 1, 1, 0]",
    )
    rms_norm_eps: float = Field(default=1e-5, gt=0, description="added to the mean square of an RMSNorm")
    layer_norm_epsilon: float = Field(
        default=1e-5, gt=0, description="added to the variance of a LayerNorm (gpt2)"
    )
    tie_word_embeddings: bool = Field(default=True, description="the output matrix is the token embedding")
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability for embeddings, attention weights and residual branches (gpt2; of the others attention only, as HF)",
    )
    initializer_range: float = Field(
        default=0.02, gt=0, description="standard deviation of the initial weights"
    )
    attention_bias: bool | None = Field(
        default=None, description="biases of q, k, v and o; default false, but for gpt2 and qwen2"
    )
    mlp_bias: bool | None = Field(
        default=None, description="biases of gate, up and down; default false, but for gpt2"
    )
    query_pre_attn_scalar: int | None = Field(
        default=None, ge=1, description="gemma2: scores are divided by its root; default head_dim"
    )
    attn_logit_softcapping: float | None = Field(
        default=None, ge=0, description="gemma2: scores s become c tanh(s/c); 0 is no cap; default 50"
    )
    final_logit_softcapping: float | None = Field(
        default=None, ge=0, description="gemma2: logits z become c tanh(z/c); 0 is no cap; default 30"
    )
    layer_types: list[str] | None = Field(
        default=None,
        min_length=1,
        description="the attention of each layer, repeated until all have one: full_attention, sliding_attention; sparse_llama also "
        "chunked_attention, strided_attention, indexed_attention",
    )
    sliding_window: int | None = Field(
        default=None, ge=1, description="sliding_attention: a token sees so many, itself among them"
    )
    attention_chunk_size: int | None = Field(
        default=None, ge=1, description="chunked_attention: blocks of so many tokens"
    )
    attention_stride: int | None = Field(
        default=None,
        ge=1,
        description="strided_attention: the last n tokens, and every n-th before them",
    )
    num_sink_tokens: int | None = Field(
        default=None, ge=0, description="the first tokens of a text, which its sparse layers see besides"
    )
    index_topk: int | None = Field(
        default=None, ge=1, description="indexed_attention: keys that the indexer selects for a token"
    )
    index_n_heads: int | None = Field(default=None, ge=1, description="heads of the indexer")
    index_head_dim: int | None = Field(default=None, ge=1, description="size of a head of the indexer")
    num_local_experts: int | None = Field(
        default=None, ge=1, description="E, experts of a layer (mixtral, qwen3_moe, deepseek_v3); default 8"
    )
    num_experts_per_tok: int | None = Field(
        default=None, ge=1, description="experts that a token is sent to; default 2"
    )
    moe_intermediate_size: int | None = Field(
        default=None, ge=1, description="F of an expert; default intermediate_size"
    )
    mlp_only_layers: list[int] | None = Field(
        default=None, description="layers without experts, counted from 0"
    )
    norm_topk_prob: bool | None = Field(
        default=None, description="the weights of a token's experts sum to 1; default true"
    )
    router_aux_loss_coef: float | None = Field(
        default=None, ge=0, description="weight of the load-balancing loss; default 0.001"
    )
    n_shared_experts: int | None = Field(
        default=None, ge=1, description="deepseek_v3: experts that every token passes; default 1"
    )
    routed_scaling_factor: float | None = Field(
        default=None, gt=0, description="deepseek_v3: factor of the weights of the experts"
    )
    n_group: int | None = Field(default=None, ge=1, description="deepseek_v3: groups of experts")
    topk_group: int | None = Field(
        default=None, ge=1, description="deepseek_v3: groups that a token may choose from"
    )
    kv_lora_rank: int | None = Field(
        default=None,
        ge=1,
        description="deepseek_v3: width of the compressed keys and values; default 4 C / H",
    )
    q_lora_rank: int | None = Field(
        default=None, ge=1, description="deepseek_v3: width of the compressed queries; default none"
    )
    qk_nope_head_dim: int | None = Field(
        default=None, ge=1, description="deepseek_v3: the part of a head that is not rotated; default C / H"
    )
    qk_rope_head_dim: int | None = Field(
        default=None,
        ge=2,
        description="deepseek_v3: the part of a head that is rotated; default half of C / H",
    )
    v_head_dim: int | None = Field(
        default=None, ge=1, description="deepseek_v3: size of a value; default C / H"
    )

    @field_validator("model_type")
    @classmethod
    def _family_exists(cls, value: str) -> str:
        if value not in FAMILIES:
            raise ValueError(f"{value!r} is not supported; choose one of {', '.join(FAMILIES)}")
        return value

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
        if self.model_type != "gpt2" and head_dim % 2:
            raise ValueError(
                f"rotary positions turn pairs, but the head size is {head_dim}, an odd number; change hidden_size or head_dim"
            )
        return self


class EvaluateSettings(Section):
    """Perplexity and bits per byte on held-out text."""

    split: Literal["validation", "test"] = Field(default="test", description="which held-out split")
    stride: int | None = Field(
        default=None, ge=1, description="tokens a sliding window moves on; default half of the context"
    )
    batch_size: int = Field(default=16, ge=1, description="windows in one forward pass")
    max_tokens: int | None = Field(default=None, ge=2, description="evaluate on at most this many tokens")


class BenchmarkSettings(Section):
    """Benchmarks, scored as lm-evaluation-harness scores them (stage and command `benchmark`)."""

    tasks: list[str] = Field(
        default=["story_world", "story_world_questions"],
        min_length=1,
        description="what the stage evaluates; those of the story world only where data.source is",
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, description="examples before each item; default the task's own number"
    )
    limit: int | None = Field(default=100, ge=1, description="items of each task at most; none for all")
    batch_size: int = Field(default=16, ge=1, description="rows in one forward pass")
    seed: int = Field(default=1234, ge=0, le=LARGEST_SEED, description="seed of the choice of examples")
    apply_chat_template: bool = Field(
        default=True, description="put each item to the model as a conversation in its chat template"
    )


class GenerateSettings(Section):
    """Sampling."""

    max_new_tokens: int = Field(default=200, ge=1, description="tokens to generate at most")
    temperature: float = Field(
        default=0.8, ge=0, le=HIGHEST_TEMPERATURE, description="divides the logits; 0 is greedy"
    )
    top_k: int | None = Field(default=None, ge=1, description="keep the k most probable tokens")
    top_p: float | None = Field(
        default=0.95, gt=0, le=1, description="keep the smallest set of tokens with this much probability"
    )
    min_p: float | None = Field(
        default=None, ge=0, le=1, description="keep tokens with this fraction of the largest probability"
    )
    typical_p: float | None = Field(
        default=None, gt=0, le=1, description="keep tokens of typical surprise with this much probability"
    )
    repetition_penalty: float = Field(
        default=1.0,
        gt=0,
        description="divides positive logits of the tokens so far, multiplies negative ones",
    )
    presence_penalty: float = Field(
        default=0.0, description="subtracted from the logits of generated tokens (levels 2 and 3)"
    )
    frequency_penalty: float = Field(
        default=0.0, description="the same, times how often each was generated (levels 2 and 3)"
    )
    no_repeat_ngram_size: int = Field(
        default=0, ge=0, description="no so many tokens in a row come twice; 0 allows it"
    )
    logit_bias: dict[int, float] = Field(default={}, description="id = what is added to its logit")
    num_beams: int = Field(
        default=1, ge=1, le=MOST_BEAMS, description="width of the beam search; needs temperature 0"
    )
    length_penalty: float = Field(
        default=1.0,
        ge=-LARGEST_LENGTH_PENALTY,
        le=LARGEST_LENGTH_PENALTY,
        description="power of its length that divides the log-probability of a beam",
    )
    early_stopping: bool | Literal["never"] = Field(
        default=False,
        description="true: stop at num_beams finished beams; never: only when none can become better",
    )
    stop_strings: list[Annotated[str, Field(min_length=1)]] = Field(
        default=[], description="texts that end what is written; they are not printed"
    )
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="seed of the sampler")
    prompts: list[str] | None = Field(
        default=None,
        description="prompts of the stage `generate` in `run`; none: those of the story world, or the beginnings of held-out documents",
    )

    @field_validator("temperature")
    @classmethod
    def _logits_can_be_divided(cls, temperature: float) -> float:
        if 0 < temperature < LOWEST_TEMPERATURE:
            raise ValueError(
                f"logits cannot be divided by {temperature}; choose 0, which is greedy, or at least {LOWEST_TEMPERATURE:g}"
            )
        return temperature

    @model_validator(mode="after")
    def _beams_do_not_draw(self) -> Self:
        if self.num_beams > 1 and self.temperature != 0:
            raise ValueError(
                f"{self.num_beams} beams with temperature {self.temperature} would be beam sampling, which is not computed; "
                "set generate.temperature to 0, or generate.num_beams to 1"
            )
        return self


class Settings(Section):
    """One experiment."""

    name: str = Field(default="custom", description="names the run folder runs/<level>/<name>")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps (levels 1 and 2)")
    kernels: Literal["plain", "fused", "library"] = Field(
        default="fused",
        description="plain: the formulas; fused: faster versions by hand; library: torch's own (levels 1 and 2)",
    )
    threads: int = Field(
        default=0, ge=0, description="CPU threads of the mathematics; 0 leaves the library's choice"
    )
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    pretrain: PretrainSettings = PretrainSettings()
    sft: SftSettings = SftSettings()
    reward: RewardSettings = RewardSettings()
    dpo: DpoSettings = DpoSettings()
    ppo: PpoSettings = PpoSettings()
    grpo: GrpoSettings = GrpoSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
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
