"""`vocab.json` and `merges.txt`: the two files in which GPT-2 published its tokenizer, and many after it.

They hold the vocabulary and the merges; all else is decided by the class that the folder names (`tokenizer_classes.py`).

Level 1: `AutoTokenizer.from_pretrained`.

    uv run python -c "from shared_data.tokenizer.vocab_and_merges import *; print(bpe_model({'a': 0}, [])['type'])"
"""

from collections.abc import Sequence
from pathlib import Path

from shared_data.errors import UserError
from shared_data.files import read_json
from shared_data.tokenizer.added_tokens import AddedToken
from shared_data.tokenizer.tokenizer_check import check_definition, check_vocabulary
from shared_data.tokenizer.tokenizer_classes import Definition, class_of_folder, named_class
from shared_data.tokenizer.tokenizer_config import special_tokens


def read_vocab_and_merges(vocab_path: Path, merges_path: Path) -> Definition:
    """GPT-2's files as a definition: a dictionary of tokens, and a text with two tokens a line after a version line."""
    vocab = read_json(vocab_path)
    check_vocabulary(vocab, vocab_path)
    try:
        lines = merges_path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{merges_path} cannot be read ({error}); put the merges.txt that belongs to {vocab_path.name} beside it"
        ) from error
    merges = [
        line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")
    ]
    definition: Definition = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    definition |= {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    definition["model"] = bpe_model(vocab, merges)
    check_definition(definition, merges_path)
    return definition


def class_of_vocab(path: Path, config: Definition, model_config: Definition) -> str:
    """The class of a folder without tokenizer.json; GPT-2's where it names none, since these files are GPT-2's."""
    known = ("GPT2Tokenizer", "Qwen2Tokenizer")
    kind = named_class(config, model_config) or model_config.get("model_type")
    built = class_of_folder(config, model_config, is_byte_level=True) if kind else known[0]
    if built not in known:
        raise UserError(
            f"{path} belongs to a {kind}, and how that cuts text stands in no file; use a folder with a tokenizer.json, or one of"
            f" {', '.join(known)}"
        )
    return built


def begin_and_end(
    config: Definition, name: str | None, added: list[AddedToken], folder: Path
) -> Definition | None:
    """The post-processor that `add_bos_token` and `add_eos_token` ask for; the other files of a folder have no place for it."""
    named, _ = special_tokens(config, name, folder)
    ids = {token.content: token.id for token in added}
    sides, used = [], {}
    for option, role in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
        side = []
        if config.get(option) and role in named:
            token = named[role].content
            used[token] = {"id": token, "ids": [ids[token]], "tokens": [token]}
            side = [{"SpecialToken": {"id": token, "type_id": 0}}]
        sides.append(side)
    if not used:
        return None
    single = [*sides[0], {"Sequence": {"id": "A", "type_id": 0}}, *sides[1]]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": used}


def bpe_model(vocab: dict[str, int], merges: Sequence[Sequence[str]]) -> Definition:
    """The model object of byte-level BPE without options."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [list(pair) for pair in merges],
    }
