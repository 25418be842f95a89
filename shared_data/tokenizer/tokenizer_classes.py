"""Tokenizers that a folder names by their class: what it does with text stands in code, not in a file.

Older folders hold a vocabulary and its merges only, and `tokenizer_class` in tokenizer_config.json (or `model_type` in config.json) says
how text is cut. transformers 5 builds these classes anew even where a tokenizer.json stands beside them, and takes only vocabulary,
merges and post-processor from it; so do we. A folder that names no class, or `PreTrainedTokenizerFast`, is its tokenizer.json.

Level 1: the classes of transformers themselves (`GPT2Tokenizer`, `Qwen2Tokenizer`, `LlamaTokenizer`, `GemmaTokenizer`).

    uv run python -c "from shared_data.tokenizer.tokenizer_classes import *; print(steps_of_class('GPT2Tokenizer', {})['pre_tokenizer'])"
"""

from collections.abc import Callable
from typing import Any

from shared_data.tokenizer.split_patterns import QWEN2_PATTERN

Definition = dict[str, Any]

# model_type → the class that transformers takes where tokenizer_config.json names none; "" where it takes the file as it is, whatever
# class is named.
_CLASS_OF_MODEL = (
    dict.fromkeys(("gpt2", "gpt_neo", "codegen", "opt", "phi", "starcoder2"), "GPT2Tokenizer")
    | dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer")
    | dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer")
    | dict.fromkeys(
        ("mistral", "mixtral", "phi3", "olmo2", "olmo3", "granite", "glm", "glm4", "gpt_bigcode"), ""
    )
)


def class_of_folder(config: Definition, model_config: Definition, is_byte_level: bool) -> str | None:
    """The class whose steps a folder has; None where its tokenizer.json has them.

    config, model_config: the contents of tokenizer_config.json and config.json. is_byte_level: whether the tokenizer.json is.
    """
    model_type = model_config.get("model_type")
    of_model = _CLASS_OF_MODEL.get(model_type) if isinstance(model_type, str) else None
    named = named_class(config, model_config)
    if not named or of_model == "":
        return of_model or None
    if named not in CLASSES or (named == "LlamaTokenizer" and is_byte_level):
        return None  # Llama-3's folders name Llama-2's class
    # Many folders of Qwen2 models name a wrong class.
    return of_model if model_type == "qwen2" else named


def named_class(config: Definition, model_config: Definition) -> str:
    """The class that a folder names, without the "Fast" of older files; empty where it names none."""
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class") or ""
    return str(name).removesuffix("Fast")


def byte_level(add_prefix_space: bool = True, use_regex: bool = True) -> Definition:
    """A ByteLevel step; as a decoder it has the same fields, though it uses none of them."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def split_then_bytes(pattern: str, add_prefix_space: bool = False) -> Definition:
    """Cut by a pattern, then bytes."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    steps = [split, byte_level(add_prefix_space, use_regex=False)]
    return {"type": "Sequence", "pretokenizers": steps}


def steps_of_class(name: str, config: Definition) -> Definition:
    """The steps of a class as a tokenizer.json has them; under "model" its options without vocabulary and merges."""
    steps, _ = CLASSES[name]
    options = {"unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    made = steps(config)
    return {"normalizer": None} | made | {"model": options | made.get("model", {})}


def special_tokens_of_class(name: str) -> dict[str, str | None]:
    """The special tokens that a class has where the folder names no others."""
    return CLASSES[name][1]


def _gpt2(config: Definition) -> Definition:
    prefix = bool(config.get("add_prefix_space"))
    return {"pre_tokenizer": byte_level(add_prefix_space=prefix), "decoder": byte_level()}


def _qwen2(config: Definition) -> Definition:
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": split_then_bytes(QWEN2_PATTERN, bool(config.get("add_prefix_space"))),
        "decoder": byte_level(),
    }


def _llama(config: Definition) -> Definition:
    """SentencePiece as Llama-2 has it: a space before the first word, written `▁` and taken away again in decoding."""
    adds = config.get("add_prefix_space")
    scheme = "never" if adds is not None and not adds else "always" if config.get("legacy") else "first"
    first_space = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": _spaces_and_bytes([] if scheme == "never" else [first_space]),
        "model": {"fuse_unk": True, "byte_fallback": True},
    }


def _gemma(config: Definition) -> Definition:
    """SentencePiece as Gemma has it: no space is added."""
    unknown = config.get("unk_token", "<unk>")
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": _spaces_and_bytes([]),
        "model": {
            "unk_token": unknown["content"] if isinstance(unknown, dict) else unknown,
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _spaces_and_bytes(last: list[Definition]) -> Definition:
    """The decoder of tokenizers that came from SentencePiece."""
    spaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *last]}


_END = "<|endoftext|>"
# Class → its steps, and the special tokens that it has by itself.
CLASSES: dict[str, tuple[Callable[[Definition], Definition], dict[str, str | None]]] = {
    "GPT2Tokenizer": (_gpt2, {"unk_token": _END, "bos_token": _END, "eos_token": _END}),
    "Qwen2Tokenizer": (_qwen2, {"unk_token": _END, "eos_token": _END, "pad_token": _END}),
    "LlamaTokenizer": (_llama, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}),
    "GemmaTokenizer": (
        _gemma,
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
}
