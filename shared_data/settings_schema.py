"""Every setting of every stage: its type, its bounds, its default and one line of documentation.

`shared_data/settings.py` reads configuration files into these classes; `v2 settings` prints them all. Model fields carry
the names of Hugging Face configurations. Sizes that cannot work together are refused here.

    python -c "from shared_data.settings_schema import ModelSettings; print(ModelSettings(hidden_size=64))"
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SPECIAL_TOKENS = [
    "<|endoftext|>",  # ends a document; the id that packing and generation stop at
    "<|pad|>",
    "<|im_start|>",  # opens a turn of the chat template (ChatML)
    "<|im_end|>",
]


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values are never silently converted between kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class CleaningSettings(Section):
    """Which documents are repaired, and which are dropped (after Gopher, Rae et al. 2021, and C4, Raffel et al. 2020)."""

    enabled: bool = Field(True, description="repair and filter documents before deduplication")
    min_words: int = Field(15, ge=0, description="drop documents of fewer words")
    max_words: int = Field(100_000, ge=1, description="drop documents of more words")
    min_mean_word_length: float = Field(
        2.5, ge=0, description="drop documents whose words are shorter on average, in characters"
    )
    max_mean_word_length: float = Field(
        10.0, ge=0, description="drop documents whose words are longer on average, in characters"
    )
    max_symbol_ratio: float = Field(
        0.1, ge=0, le=1, description="drop documents with more '#' and '…' per word"
    )
    min_alphabetic_ratio: float = Field(
        0.7, ge=0, le=1, description="drop documents where fewer words hold a letter"
    )
    max_bullet_line_ratio: float = Field(
        0.9, ge=0, le=1, description="drop documents where more lines start with a bullet"
    )
    max_ellipsis_line_ratio: float = Field(
        0.3, ge=0, le=1, description="drop documents where more lines end with an ellipsis"
    )
    max_duplicate_line_ratio: float = Field(
        0.3, ge=0, le=1, description="drop documents where more lines repeat an earlier line"
    )
    max_top_ngram_ratio: float = Field(
        0.25, ge=0, le=1, description="drop documents where the commonest 2- to 4-gram covers more characters"
    )
    max_duplicate_ngram_ratio: float = Field(
        0.6, ge=0, le=1, description="drop documents where repeated 5- to 10-grams cover more characters"
    )
    min_stop_words: int = Field(
        2, ge=0, description="drop documents with fewer distinct English stop words (Gopher: 2)"
    )
    min_language_ratio: float = Field(
        0.1,
        ge=0,
        le=1,
        description="drop documents where English function words are a smaller part of all words",
    )
    boilerplate_phrases: list[str] = Field(
        default=[
            "javascript",
            "lorem ipsum",
            "terms of use",
            "terms of service",
            "privacy policy",
            "cookie policy",
            "uses cookies",
            "use of cookies",
            "accept cookies",
            "click here",
            "subscribe",
            "all rights reserved",
        ],
        description="drop the lines that hold one of these (C4), and the document when too little remains",
    )


class DeduplicationSettings(Section):
    """Exact and near-duplicate removal: MinHash (Broder 1997) with banded locality-sensitive hashing."""

    exact: bool = Field(True, description="drop documents whose normalised text was seen before")
    near: bool = Field(
        True,
        description="drop documents whose estimated Jaccard similarity to a kept one reaches the threshold",
    )
    threshold: float = Field(
        0.7,
        gt=0,
        lt=1,
        description="Jaccard similarity of shingle sets from which documents count as duplicates",
    )
    permutations: int = Field(128, ge=8, description="hash functions in a MinHash signature")
    shingle_words: int = Field(5, ge=1, description="words in a shingle")
    seed: int = Field(1, ge=0, description="seed of the hash functions")


class DataSettings(Section):
    """The corpus: where it comes from, how much of it, how it is cleaned."""

    source: str = Field(
        "story_world",
        description="'story_world', a file, folder or glob (.txt .jsonl .json .csv .parquet, .gz), or a hub dataset such as roneneldan/TinyStories",
    )
    text_field: str = Field(
        "text", description="the field of a record (JSON, CSV, parquet, hub) that holds the text"
    )
    hub_split: str = Field("train", description="split of a hub dataset")
    hub_config: str | None = Field(None, description="configuration (subset) of a hub dataset")
    hub_endpoint: str = Field(
        "https://huggingface.co", description="address of the hub, or of a mirror (levels 2 and 3)"
    )
    hub_cache: str = Field(
        "~/.cache/llm-from-scratch", description="folder that keeps downloaded hub files (levels 2 and 3)"
    )
    text_unit: Literal["auto", "file", "paragraphs", "line"] = Field(
        "auto",
        description="what a document of a .txt file is; auto: the parts between <|endoftext|>, else the file, or groups of paragraphs if it is large or the only one",
    )
    encoding: str = Field("utf-8", description="encoding of local text files")
    max_megabytes: float = Field(
        8.0, gt=0, description="read at most this much text, in millions of bytes of UTF-8"
    )
    validation_fraction: float = Field(
        0.03, gt=0, lt=0.5, description="part of a user's corpus held out for validation, by document"
    )
    test_fraction: float = Field(
        0.03, ge=0, lt=0.5, description="part of a user's corpus held out for testing, by document"
    )
    validation_megabytes: float = Field(
        0.4,
        gt=0,
        description="story world: text of the validation split, in millions of bytes; the test split is as large",
    )
    dirt_fraction: float = Field(
        0.2, ge=0, lt=1, description="story world: part of the training documents that is dirt or a duplicate"
    )
    seed: int = Field(0, ge=0, description="seed of the story world and of the split")
    cleaning: CleaningSettings = CleaningSettings()
    deduplication: DeduplicationSettings = DeduplicationSettings()


class TokenizerSettings(Section):
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019)."""

    load: str | None = Field(
        None,
        description="use this tokenizer.json (or a folder with one, or vocab.json and merges.txt) instead of training",
    )
    vocab_size: int = Field(1024, ge=256, description="tokens, with the 256 bytes and the special tokens")
    pattern: Literal["gpt2", "gpt4"] = Field(
        "gpt4", description="the regular expression that splits text into pre-tokens"
    )
    min_frequency: int = Field(2, ge=1, description="merge only pairs at least this frequent")
    special_tokens: list[str] = Field(
        default=SPECIAL_TOKENS, description="tokens outside of BPE; the first ends a document"
    )
    train_megabytes: float = Field(
        8.0, gt=0, description="train on at most this much text, in millions of bytes"
    )

    @model_validator(mode="after")
    def _room_for_bytes_and_special_tokens(self) -> Self:
        least = 256 + len(self.special_tokens)
        if self.load is None and self.vocab_size < least:
            raise ValueError(
                f"vocab_size {self.vocab_size} is below {least} (256 bytes and {len(self.special_tokens)} special tokens); raise it"
            )
        return self


class ModelSettings(Section):
    """The architecture; names as in Hugging Face configurations. The vocabulary size comes from the tokenizer."""

    model_type: Literal["gpt2", "llama"] = Field("llama", description="the family: GPT-2 or Llama")
    hidden_size: int = Field(128, ge=1, description="C, the width of the residual stream")
    intermediate_size: int | None = Field(
        None,
        ge=1,
        description="F, width of the feed-forward layer; default 4 C (gpt2), 8/3 C rounded up to 32 (llama)",
    )
    num_hidden_layers: int = Field(4, ge=1, description="number of blocks")
    num_attention_heads: int = Field(4, ge=1, description="H, query heads")
    num_key_value_heads: int | None = Field(
        None, ge=1, description="K, key and value heads: H is MHA, 1 is MQA, between is GQA; default H"
    )
    head_dim: int | None = Field(None, ge=1, description="D, size of a head; default C / H")
    max_position_embeddings: int = Field(256, ge=2, description="the longest sequence")
    rope_theta: float = Field(10_000.0, gt=0, description="base of the rotary frequencies (llama)")
    rms_norm_eps: float = Field(1e-5, gt=0, description="added to the mean square (llama)")
    layer_norm_epsilon: float = Field(1e-5, gt=0, description="added to the variance (gpt2)")
    tie_word_embeddings: bool = Field(True, description="the output matrix is the token embedding")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="probability for embeddings, attention weights and residual branches (llama: attention only, as HF)",
    )
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of the initial weights")

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


class PretrainSettings(Section):
    """The training run."""

    steps: int = Field(600, ge=1, description="optimizer steps")
    batch_size: int = Field(16, ge=1, description="B, sequences in one forward and backward pass")
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="passes whose gradients add up to one optimizer step"
    )
    sequence_length: int = Field(256, ge=2, description="T, tokens in a packed sequence")
    document_masks: bool = Field(
        True, description="attention stays inside a document, and positions restart with it"
    )
    learning_rate: float = Field(3e-3, gt=0, description="the peak")
    min_learning_rate_ratio: float = Field(
        0.1, ge=0, le=1, description="last learning rate as a part of the peak (cosine and linear)"
    )
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up from zero")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="shape of the learning rate after the warm-up"
    )
    weight_decay: float = Field(
        0.1, ge=0, description="decoupled decay of matrices; norms and biases are not decayed"
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean of gradients")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="decay of the mean of squared gradients")
    adam_epsilon: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    max_grad_norm: float = Field(
        1.0, ge=0, description="largest global norm of the gradient; 0 turns clipping off"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="type of the matrix products (mixed precision; levels 1 and 2)"
    )
    activation_checkpointing: bool = Field(
        False,
        description="recompute blocks in the backward pass instead of keeping their activations (level 2)",
    )
    attention_kernel: Literal["handwritten", "library"] = Field(
        "handwritten", description="level 2: our attention, or torch's scaled_dot_product_attention beside it"
    )
    compile: bool = Field(False, description="level 2: torch.compile the model (needs a C++ compiler on CPU)")
    log_every: int = Field(10, ge=1, description="steps between rows of the metrics log")
    eval_every: int = Field(
        100, ge=0, description="steps between evaluations on the validation split; 0 is only at the end"
    )
    eval_batches: int = Field(8, ge=1, description="batches of an evaluation during training")
    sample_every: int = Field(200, ge=0, description="steps between samples of text; 0 is never")
    sample_prompt: str = Field("Once", description="the beginning that samples continue; may be empty")
    sample_tokens: int = Field(60, ge=1, description="tokens of a sample")
    checkpoint_every: int = Field(
        100, ge=0, description="steps between resumable checkpoints; 0 is only at the end"
    )
    keep_checkpoints: int = Field(2, ge=1, description="checkpoints kept on disk, the newest")
    init_from: str | None = Field(None, description="start from the weights of this Hugging Face folder")
    resume: bool = Field(True, description="continue from the newest checkpoint of the same settings")
    seed: int = Field(0, ge=0, description="seed of the weights, of dropout and of the order of the data")


class EvaluateSettings(Section):
    """Perplexity and bits per byte on held-out text."""

    split: Literal["validation", "test"] = Field("test", description="which held-out split")
    stride: int | None = Field(
        None, ge=1, description="tokens a sliding window moves on; default half of the context"
    )
    batch_size: int = Field(16, ge=1, description="windows in one forward pass")
    max_tokens: int | None = Field(None, ge=2, description="evaluate on at most this many tokens")


class GenerateSettings(Section):
    """Sampling."""

    max_new_tokens: int = Field(200, ge=1, description="tokens to generate at most")
    temperature: float = Field(0.8, ge=0, description="divides the logits; 0 is greedy")
    top_k: int | None = Field(None, ge=1, description="keep the k most probable tokens")
    top_p: float | None = Field(
        0.95, gt=0, le=1, description="keep the smallest set of tokens with this much probability"
    )
    seed: int = Field(0, ge=0, description="seed of the sampler")
    prompts: list[str] = Field(
        default=["Once upon a time", "One day,", ""], description="prompts of the stage `generate` in `run`"
    )


class Settings(Section):
    """One experiment."""

    name: str = Field("custom", description="names the run folder runs/<level>/<name>")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N (levels 1 and 2)")
    threads: int = Field(0, ge=0, description="CPU threads of the mathematics; 0 leaves the library's choice")
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    model: ModelSettings = ModelSettings()
    pretrain: PretrainSettings = PretrainSettings()
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
