"""How text is cut and normalized before byte-level BPE: llama.cpp's names for it (`tokenizer.ggml.pre`), as steps of a `tokenizer.json`.

A GGUF file has no pattern, only a name; the patterns stand in llama.cpp's code. A name that is not in the table is refused: with another cut
the same text has other ids, and no error would show it. `default` is refused, too: it is what llama.cpp guesses for files without a name.

    uv run python -c "from shared_data.model_files.gguf_pre_tokenizers import *; print(*PRE_TOKENIZERS)"
"""

from typing import NamedTuple

from shared_data.tokenizer.split_patterns import GPT2_PATTERN, GPT4_PATTERN
from shared_data.tokenizer.tokenizer_file import Definition

_DIGIT = r"\p{N}"  # each digit by itself
QWEN_PATTERN = GPT4_PATTERN.replace(r"\p{N}{1,3}", _DIGIT)


class PreTokenizing(NamedTuple):
    """What happens to text before BPE: the patterns cut one after the other; whether a word that is a token is not merged."""

    patterns: tuple[str, ...]
    normalizers: tuple[str, ...] = ()
    ignore_merges: bool = False


# The first name of each kind is the one that is written.
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizing((GPT2_PATTERN,)),
    "smollm": PreTokenizing((_DIGIT, GPT2_PATTERN)),
    "starcoder": PreTokenizing((_DIGIT, GPT2_PATTERN)),
    "refact": PreTokenizing((_DIGIT, GPT2_PATTERN)),
    "dbrx": PreTokenizing((GPT4_PATTERN,)),
    "smaug-bpe": PreTokenizing((GPT4_PATTERN,)),
    "llama-bpe": PreTokenizing((GPT4_PATTERN,), ignore_merges=True),
    "llama3": PreTokenizing((GPT4_PATTERN,), ignore_merges=True),
    "llama-v3": PreTokenizing((GPT4_PATTERN,), ignore_merges=True),
    "qwen2": PreTokenizing((QWEN_PATTERN,), normalizers=("NFC",)),
}


def with_pre_tokenizing(definition: Definition, kind: PreTokenizing) -> Definition:
    """A new definition of ours, changed to this kind."""
    patterns, normalizers, ignore_merges = kind
    definition["model"]["ignore_merges"] = ignore_merges
    # ByteLevel has GPT-2's pattern in itself.
    *splits, byte_level = definition["pre_tokenizer"]["pretokenizers"]
    steps = [
        {"type": "Digits", "individual_digits": True}
        if pattern == _DIGIT
        else splits[0] | {"pattern": {"Regex": pattern}}
        for pattern in patterns
        if pattern != GPT2_PATTERN
    ]
    steps.append(byte_level | {"use_regex": GPT2_PATTERN in patterns})
    definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    definition["normalizer"] = {"type": normalizers[0]} if normalizers else None
    return definition


def pre_tokenizing_of(definition: Definition) -> PreTokenizing | None:
    """What happens to text before BPE; None where that is more than the table has."""
    patterns: list[str] = []
    for step in _steps(definition.get("pre_tokenizer"), "pretokenizers"):
        kind = step.get("type")
        if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            patterns.append(step["pattern"].get("Regex", ""))
        elif kind == "Digits" and step.get("individual_digits"):
            patterns.append(_DIGIT)
        elif kind == "ByteLevel" and not step.get("add_prefix_space", True):
            patterns += [GPT2_PATTERN] if step.get("use_regex", True) else []
        else:
            return None
    normalizers = tuple(step["type"] for step in _steps(definition.get("normalizer"), "normalizers"))
    ignore_merges = bool(definition["model"].get("ignore_merges"))
    return PreTokenizing(tuple(patterns), normalizers, ignore_merges)


def _steps(definition: Definition | None, key: str) -> list[Definition]:
    if definition is None:
        return []
    return definition[key] if definition.get("type") == "Sequence" else [definition]
