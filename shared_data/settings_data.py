"""Settings of the stages `data` and `tokenizer`, and the base class of all sections (see `settings_schema.py`)."""

from types import NoneType
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shared_data.cleaning.word_lists import LANGUAGES
from shared_data.seeds import LARGEST_SEED

SPECIAL_TOKENS = [
    "<|endoftext|>",  # ends a document; the id that packing and generation stop at
    "<|pad|>",
    "<|im_start|>",  # opens a turn of the chat template (ChatML)
    "<|im_end|>",
]


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values are converted only where nothing is lost."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _none_switches_off(cls, values: Any) -> Any:
        """TOML has no null: "none" is the absence of a value, where a setting may be absent."""
        if not isinstance(values, dict):
            return values
        optional = {
            name for name, field in cls.model_fields.items() if NoneType in get_args(field.annotation)
        }
        return {key: None if key in optional and value == "none" else value for key, value in values.items()}

    @field_validator("*")
    @classmethod
    def _integers_fit(cls, value: Any) -> Any:
        """An integer that the libraries' arrays cannot hold would be an OverflowError in the middle of a run."""
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"{value!s:.20}… is no integer of 64 bits")
        return value


class RecordSettings(Section):
    """What a stage does with the records of its source."""

    on_bad_record: Literal["stop", "skip"] = Field(
        default="stop",
        description="stop: a record that cannot be used ends the stage; skip: it is counted and named, and the stage goes on",
    )
    columns: dict[str, str] = Field(
        default={},
        description='what our fields are called in the file, as {prompt = "Frage", response = "Antwort"}',
    )


class CleaningSettings(Section):
    """Which documents are repaired, and which are dropped (after Gopher, Rae et al. 2021, and C4, Raffel et al. 2020)."""

    enabled: bool = Field(default=True, description="repair and filter documents before deduplication")
    min_words: int = Field(
        default=15,
        ge=0,
        description="drop documents of fewer words, or characters where a script has no spaces (Chinese, Japanese, Thai …)",
    )
    max_words: int = Field(
        default=100_000, ge=1, description="drop documents of more words or such characters"
    )
    min_mean_word_length: float = Field(
        default=2.5, ge=0, description="drop documents whose words are shorter on average, in characters"
    )
    max_mean_word_length: float = Field(
        default=10.0, ge=0, description="drop documents whose words are longer on average, in characters"
    )
    max_symbol_ratio: float = Field(
        default=0.1, ge=0, le=1, description="drop documents with more '#' and '…' per word"
    )
    min_alphabetic_ratio: float = Field(
        default=0.7, ge=0, le=1, description="drop documents where fewer words hold a letter"
    )
    max_bullet_line_ratio: float = Field(
        default=0.9, ge=0, le=1, description="drop documents where more lines start with a bullet"
    )
    max_ellipsis_line_ratio: float = Field(
        default=0.3, ge=0, le=1, description="drop documents where more lines end with an ellipsis"
    )
    max_duplicate_line_ratio: float = Field(
        default=0.3, ge=0, le=1, description="drop documents where more lines repeat an earlier line"
    )
    max_top_ngram_ratio: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="drop documents where the commonest 2- to 4-gram covers more characters",
    )
    max_duplicate_ngram_ratio: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="drop documents where repeated 5- to 10-grams cover more characters",
    )
    min_stop_words: int = Field(
        default=2, ge=0, description="drop English documents with fewer distinct stop words (Gopher: 2)"
    )
    min_language_ratio: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="drop English documents where function words are a smaller part of all words",
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
            "use cookies",
            "accept cookies",
            "all rights reserved",
            "click here",
            "subscribe",
            "sitemap",
            "skip to content",
            "skip to main content",
            "share this page",
            "leave a comment",
            "read more >>",
            "read more »",
        ],
        description="drop the lines that hold one of these (C4), and the document when too little remains",
    )


class DeduplicationSettings(Section):
    """Exact and near-duplicate removal: MinHash (Broder 1997) with banded locality-sensitive hashing."""

    exact: bool = Field(default=True, description="drop documents whose normalized text was seen before")
    near: bool = Field(
        default=True,
        description="drop documents whose estimated Jaccard similarity to a kept one reaches the threshold",
    )
    threshold: float = Field(
        default=0.7,
        gt=0,
        lt=1,
        description="Jaccard similarity of shingle sets from which documents count as duplicates",
    )
    permutations: int = Field(default=128, ge=8, description="hash functions in a MinHash signature")
    shingle_words: int = Field(
        default=5, ge=1, description="words in a shingle, or characters where a script has no spaces"
    )
    seed: int = Field(default=1, ge=0, le=LARGEST_SEED, description="seed of the hash functions")


class DataSettings(Section):
    """The corpus: where it comes from, how much of it, how it is cleaned."""

    source: str = Field(
        default="story_world",
        description="'story_world', a file, folder or glob (.txt .jsonl .json .csv .parquet, .gz), or a hub dataset such as roneneldan/TinyStories",
    )
    text_field: str = Field(
        default="text", description="the field of a record (JSON, CSV, parquet, hub) that holds the text"
    )
    hub_split: str = Field(default="train", description="split of a hub dataset")
    hub_config: str | None = Field(default=None, description="configuration (subset) of a hub dataset")
    hub_endpoint: str = Field(
        default="https://huggingface.co", description="address of the hub, or of a mirror (levels 2 and 3)"
    )
    hub_cache: str = Field(
        default="~/.cache/llm-from-scratch",
        description="folder that keeps downloaded hub files (levels 2 and 3)",
    )
    text_unit: Literal["auto", "file", "paragraphs", "line"] = Field(
        default="auto",
        description="what a document of a .txt file is; auto: the parts between <|endoftext|>, else the file, or groups of paragraphs if it is large or the only one",
    )
    on_bad_record: Literal["stop", "skip"] = Field(
        default="stop",
        description="stop: a record that cannot be read ends the stage; skip: it is counted and named, and the stage goes on",
    )
    encoding: str = Field(default="utf-8", description="encoding of local text files")
    language: str | list[str] = Field(
        default="auto",
        description="auto keeps every language and judges each document by the rules of its own (the story world is English); a code "
        "(en, zh, ja, ko, th, de …) or a list of them keeps the documents in these languages only",
    )
    max_megabytes: float = Field(
        default=8.0, gt=0, description="read at most this much text, in millions of bytes of UTF-8"
    )
    validation_fraction: float = Field(
        default=0.03, gt=0, lt=0.5, description="part of a user's corpus held out for validation, by document"
    )
    test_fraction: float = Field(
        default=0.03, ge=0, lt=0.5, description="part of a user's corpus held out for testing, by document"
    )
    validation_megabytes: float = Field(
        default=0.4,
        gt=0,
        description="story world: text of the validation split, in millions of bytes; the test split is as large",
    )
    dirt_fraction: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="story world: part of the training documents that is dirt or a duplicate",
    )
    seed: int = Field(
        default=0, ge=0, le=LARGEST_SEED, description="seed of the story world and of the split"
    )
    cleaning: CleaningSettings = CleaningSettings()
    deduplication: DeduplicationSettings = DeduplicationSettings()

    @property
    def languages(self) -> frozenset[str] | None:
        """The codes of the languages to keep, None for all; the stories are English, and their dirt holds other languages."""
        if self.language == "auto":
            return frozenset({"en"}) if self.source == "story_world" else None
        return frozenset([self.language] if isinstance(self.language, str) else self.language)

    @field_validator("language")
    @classmethod
    def _languages_are_known(cls, language: str | list[str]) -> str | list[str]:
        codes = [language] if isinstance(language, str) else language
        unknown = [code for code in codes if code not in LANGUAGES]
        if language != "auto" and (unknown or not codes):
            raise ValueError(
                f"unknown language {unknown[0] if unknown else '[]'!r}, use auto, or one or more of {' '.join(LANGUAGES)}"
            )
        return language

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str) -> str:
        try:
            " ".encode(encoding)  # refuses "hex" and the like, which encode no text
        except (LookupError, UnicodeError) as error:
            raise ValueError(
                f"unknown encoding {encoding!r}, use for example utf-8, latin-1 or cp1252"
            ) from error
        return encoding


class TokenizerSettings(Section):
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019)."""

    load: str | None = Field(
        default=None,
        description="use this tokenizer.json (or a folder with one, a GGUF file, or vocab.json and merges.txt) instead of training",
    )
    vocab_size: int = Field(
        default=1024, ge=256, description="tokens, with the 256 bytes and the special tokens"
    )
    pattern: Literal["gpt2", "gpt4"] = Field(
        default="gpt4", description="the regular expression that splits text into pre-tokens"
    )
    min_frequency: int = Field(default=2, ge=1, description="merge only pairs at least this frequent")
    special_tokens: list[str] = Field(
        default=SPECIAL_TOKENS, min_length=1, description="tokens outside of BPE; the first ends a document"
    )
    train_megabytes: float = Field(
        default=8.0, gt=0, description="train on at most this much text, in millions of bytes"
    )
    chat_source: str | None = Field(
        default=None,
        description="train on conversations too: story_world, or whatever sft.source may be; without them their words fall into "
        "letters",
    )
    chat_conversations: int = Field(default=6000, ge=1, description="at most so many conversations")

    @model_validator(mode="after")
    def _room_for_bytes_and_special_tokens(self) -> Self:
        if "" in self.special_tokens or len(set(self.special_tokens)) < len(self.special_tokens):
            raise ValueError("special_tokens holds an empty token, or one twice; remove it")
        least = 256 + len(self.special_tokens)
        if self.load is None and self.vocab_size < least:
            raise ValueError(
                f"vocab_size {self.vocab_size} is below {least} (256 bytes and {len(self.special_tokens)} special tokens); raise it"
            )
        return self
