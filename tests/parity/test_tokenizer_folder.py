"""Every file of a tokenizer's folder counts as it counts in transformers, also where the files contradict each other.

The folders are made here; `AutoTokenizer` reads them, and so do levels 2 and 3.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

import v2_handwritten.data_pipeline.tokenizer.tokenizer as v2
import v3_numpy_deep.data_pipeline.tokenizer.tokenizer as v3
from shared_data.errors import UserError
from shared_data.tokenizer.byte_level import ALPHABET
from v1_quick.data_pipeline.tokenizer.tokenizer import load_tokenizer
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe

LEVELS = {"v2": v2.Tokenizer, "v3": v3.Tokenizer}
Files = dict[str, Any]

END = "<|endoftext|>"
MERGES = [("1", "2"), ("Ġ", "h"), ("H", "i"), ("Ġ", "1"), ("Ã", "©")]
VOCAB = {token: id for id, token in enumerate([*ALPHABET, *map("".join, MERGES), END])}
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
PIECES = {
    token: id
    for id, token in enumerate([*BYTES, *"▁Hiae12<|>usr", "▁H", "Hi", "▁Hi", "<unk>", "<s>", "</s>"])
}
PIECE_MERGES = [("▁", "H"), ("H", "i"), ("▁H", "i"), ("▁", "Hi")]


def token(content: str, **flags: bool) -> dict[str, Any]:
    """A token as tokenizer.json and added_tokens_decoder have it."""
    return (
        {"content": content}
        | {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
        | flags
    )


def named(content: str, **flags: bool) -> dict[str, Any]:
    """A token as special_tokens_map.json has it."""
    return {
        "content": content,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
    } | flags


def tokenizer_json(added: list[dict[str, Any]] | None = None, digits: bool = True) -> dict[str, Any]:
    """A byte-level file whose pre-tokenizer no class has: it cuts digits."""
    backend = Tokenizer(models.BPE(vocab=VOCAB, merges=MERGES))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level]) if digits else byte_level
    )
    backend.decoder = decoders.ByteLevel()
    return json.loads(backend.to_str()) | {"added_tokens": added or []}


def piece_json() -> dict[str, Any]:
    """A file of characters and byte tokens that says nothing about spaces."""
    backend = Tokenizer(models.BPE(vocab=PIECES, merges=PIECE_MERGES, byte_fallback=True))
    return json.loads(backend.to_str())


GPT2 = {"vocab.json": VOCAB, "merges.txt": MERGES, "config.json": {"model_type": "gpt2"}}
USER = {"<|pad|>": len(VOCAB), "<|user|>": len(VOCAB) + 1}
DECODER = {
    str(len(VOCAB)): token("<|user|>", lstrip=True),
    str(len(VOCAB) + 1): token("<|pad|>", rstrip=True, special=False),
}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}


def settings(**config: Any) -> Files:
    return {"tokenizer_config.json": config}


FOLDERS: dict[str, Files] = {
    # vocab.json and merges.txt
    "GPT-2's files": GPT2,
    "added_tokens.json": GPT2 | {"added_tokens.json": USER},
    "added_tokens.json, another order": GPT2 | {"added_tokens.json": {"<|user|>": 999, "<|pad|>": 500}},
    "added_tokens.json, an id that is taken": GPT2 | {"added_tokens.json": {"<|pad|>": 5, "<|user|>": 7}},
    "added_tokens.json, a token of the vocabulary": GPT2 | {"added_tokens.json": {"Hi": 3, "<|user|>": 4}},
    "added_tokens.json, one of them special": GPT2 | {"added_tokens.json": USER} | settings(pad_token="<|pad|>"),
    "added_tokens_decoder": GPT2 | settings(added_tokens_decoder=DECODER),
    "added_tokens_decoder, not added_tokens.json": GPT2 | settings(added_tokens_decoder=DECODER) | {"added_tokens.json": {"Hi": 3}},
    "added_tokens_decoder, other ids": GPT2 | settings(added_tokens_decoder={"9": token("<|pad|>"), "3": token("<|user|>")}),
    "added_tokens_decoder, not special but named": GPT2 | settings(added_tokens_decoder=DECODER, pad_token="<|pad|>"),
    "special_tokens_map.json": GPT2 | {"special_tokens_map.json": {"pad_token": "<|pad|>", "additional_special_tokens": ["<|user|>"]}},
    "special_tokens_map.json, objects": GPT2 | {"special_tokens_map.json": {"pad_token": named("<|pad|>", lstrip=True), "eos_token": named("<|user|>", rstrip=True)}},
    "special_tokens_map.json against the configuration": GPT2
    | settings(eos_token="<|pad|>", additional_special_tokens=["<|a|>"])
    | {"special_tokens_map.json": {"eos_token": "<|user|>", "additional_special_tokens": ["<|b|>"]}},
    "special_tokens_map.json beside added_tokens_decoder": GPT2 | settings(added_tokens_decoder=DECODER) | {"special_tokens_map.json": {"eos_token": "<|b|>"}},
    "special_tokens_map.json and added_tokens.json": GPT2 | {"special_tokens_map.json": {"pad_token": "<|pad|>"}, "added_tokens.json": USER},
    "add_bos_token": GPT2 | settings(add_bos_token=True),
    "add_eos_token": GPT2 | settings(add_bos_token=True, add_eos_token=True, eos_token="<|user|>"),
    "add_prefix_space": GPT2 | settings(add_prefix_space=True),
    "no eos_token": GPT2 | settings(eos_token=None, bos_token=None, unk_token=None),
    "an object": GPT2 | settings(pad_token=token("<|pad|>", rstrip=True) | {"__type": "AddedToken"}),
    "additional_special_tokens": GPT2 | settings(additional_special_tokens=["<|user|>", "<|a|>"]),
    "extra_special_tokens by name": GPT2 | settings(extra_special_tokens={"user_token": "<|user|>"}),
    "a name of the model's own": GPT2 | settings(image_token="<|user|>", pad_token="<|pad|>"),
    "Qwen2Tokenizer": GPT2 | settings(tokenizer_class="Qwen2Tokenizer"),
    "Qwen2TokenizerFast": GPT2 | settings(tokenizer_class="Qwen2TokenizerFast", added_tokens_decoder=DECODER, eos_token="<|user|>"),
    "a model of Qwen2": GPT2 | {"config.json": {"model_type": "qwen2"}} | {"added_tokens.json": USER | {"ne\u0301": 999}},
    "a model of Qwen3": GPT2 | {"config.json": {"model_type": "qwen3"}} | settings(errors="replace"),
    "GPT2Tokenizer, a model of Llama": GPT2 | {"config.json": {"model_type": "llama"}} | settings(tokenizer_class="GPT2Tokenizer"),
    # tokenizer.json
    "tokenizer.json": {"tokenizer.json": tokenizer_json([token(END) | {"id": VOCAB[END]}])},
    "tokenizer.json, ids that it cannot have": {"tokenizer.json": tokenizer_json([token("<|pad|>") | {"id": 7}, token("<|user|>") | {"id": 7}, token("Hi") | {"id": 900}])},
    "tokenizer.json and added_tokens.json": {"tokenizer.json": tokenizer_json(), "added_tokens.json": USER},
    "tokenizer.json and added_tokens_decoder": {"tokenizer.json": tokenizer_json([token("<|user|>") | {"id": len(VOCAB)}])} | settings(added_tokens_decoder=DECODER, **FAST),
    "tokenizer.json, special there only": {"tokenizer.json": tokenizer_json([token("<|user|>") | {"id": len(VOCAB)}])}
    | settings(added_tokens_decoder={"1": token("<|user|>", special=False)}, **FAST),
    "tokenizer.json and special_tokens_map.json": {"tokenizer.json": tokenizer_json([token("<|pad|>", special=False) | {"id": len(VOCAB)}])}
    | {"special_tokens_map.json": {"pad_token": "<|pad|>", "eos_token": named("<|user|>", lstrip=True)}},
    "tokenizer.json and names": {"tokenizer.json": tokenizer_json()} | settings(eos_token=END, pad_token="<|pad|>", **FAST),
    "tokenizer.json, add_bos_token is not read": {"tokenizer.json": tokenizer_json()} | settings(add_bos_token=True, bos_token=END, **FAST),
    "tokenizer.json, add_prefix_space is not read": {"tokenizer.json": tokenizer_json()} | settings(add_prefix_space=True, **FAST),
    "tokenizer.json and vocab.json": GPT2 | {"tokenizer.json": tokenizer_json(), "vocab.json": {"a": 0}} | settings(**FAST),
    "tokenizer.json of a class": {"tokenizer.json": tokenizer_json([token("<|user|>") | {"id": len(VOCAB)}])} | settings(tokenizer_class="GPT2Tokenizer", add_prefix_space=True),
    "tokenizer.json of Qwen2": {"tokenizer.json": tokenizer_json([token("<|user|>", lstrip=True) | {"id": len(VOCAB)}])} | settings(tokenizer_class="Qwen2Tokenizer", eos_token="<|user|>"),
    "tokenizer.json of a model of GPT-2": {"tokenizer.json": tokenizer_json(), "config.json": {"model_type": "gpt2"}},
    "tokenizer.json of a class that is not there": {"tokenizer.json": tokenizer_json()} | settings(tokenizer_class="NewTokenizer"),
    "tokenizer.json of Llama-3": {"tokenizer.json": tokenizer_json()} | settings(tokenizer_class="LlamaTokenizer", bos_token="<s>"),
    "tokenizer.json of Llama-2": {"tokenizer.json": piece_json()} | settings(tokenizer_class="LlamaTokenizer"),
    "tokenizer.json of Llama-2, legacy": {"tokenizer.json": piece_json()} | settings(tokenizer_class="LlamaTokenizerFast", legacy=True, pad_token="<|user|>"),
    "tokenizer.json of Llama-2, no space": {"tokenizer.json": piece_json()} | settings(tokenizer_class="LlamaTokenizer", add_prefix_space=False),
    "tokenizer.json of Mistral": {"tokenizer.json": piece_json(), "config.json": {"model_type": "mistral"}} | settings(tokenizer_class="LlamaTokenizer"),
    "tokenizer.json of Gemma": {"tokenizer.json": piece_json()} | settings(tokenizer_class="GemmaTokenizer", additional_special_tokens=["<|user|>"]),
    "tokenizer.json of a model of Gemma": {"tokenizer.json": piece_json(), "config.json": {"model_type": "gemma2"}},
}  # fmt: skip

TEXTS = [
    "<|user|>Hi<|pad|>", "a 12 x12", " Hi  <|user|>  Hi <|pad|>  12", "Hi", "", "  ", "e\u0301é 日本né ne\u0301\n", f"a{END} <|a|><|b|>",
    "<s>Hi</s> Hi<unk> <mask>a", "HiHi 1 2 12", "<|user|> Hi <pad> <eos>",
]  # fmt: skip


def write(folder: Path, files: Files) -> Path:
    """Write the files of a folder; a list of merges as GPT-2 has it, texts as they are, all else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "merges.txt":
            content = "\n".join(["#version: 0.2", *map(" ".join, content), ""])
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def check(folder: Path) -> None:
    """Levels 2 and 3 read from a folder what transformers reads from it."""
    library = AutoTokenizer.from_pretrained(folder)
    for level in LEVELS.values():
        tokens = level.load(folder)
        for text in TEXTS:
            ids = library(text, add_special_tokens=False).input_ids
            assert tokens.encode(text) == ids, text
            assert tokens.encode(text, add_special_tokens=True) == library(text).input_ids, text
            plain = library(text, add_special_tokens=False, split_special_tokens=True).input_ids
            assert tokens.encode(text, allow_special=False) == plain, text
            for skip in (False, True):
                assert tokens.decode(ids, skip) == library.decode(ids, skip_special_tokens=skip), text
        assert tokens.vocab_size == max(library.get_vocab().values()) + 1
        for id, added in library.added_tokens_decoder.items():
            assert (tokens.token_to_id(added.content), tokens.id_to_token(id)) == (
                id,
                library.convert_ids_to_tokens(id),
            )
        assert tokens.config.get("chat_template") == library.chat_template


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_the_ids_and_texts_of_transformers(name, tmp_path):
    check(write(tmp_path, FOLDERS[name]))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_transformers_or_we_saved_is_the_same_tokenizer(name, tmp_path):
    folder = write(tmp_path / "source", FOLDERS[name])
    library = AutoTokenizer.from_pretrained(folder)
    library.save_pretrained(tmp_path / "library")
    check(tmp_path / "library")
    for level, loaded in LEVELS.items():
        loaded.load(folder).save(tmp_path / level)
        check(tmp_path / level)
        again = AutoTokenizer.from_pretrained(tmp_path / level)
        assert again(TEXTS).input_ids == library(TEXTS).input_ids


def test_the_example_that_was_cut_into_eleven_pieces(tmp_path):
    for level in LEVELS.values():
        tokens = level.load(write(tmp_path, FOLDERS["added_tokens.json"]))
        assert tokens.encode("<|user|>Hi<|pad|>") == [USER["<|user|>"], VOCAB["Hi"], USER["<|pad|>"]]


JINJA = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
TEMPLATES: dict[str, Files] = {
    "a text": settings(chat_template=JINJA, **FAST),
    "a list of names": settings(chat_template=[{"name": "default", "template": JINJA}, {"name": "tool_use", "template": "t"}], **FAST),
    "a file": {"chat_template.jinja": JINJA} | settings(chat_template="not this", **FAST),
    "files": {"chat_template.jinja": JINJA, "additional_chat_templates/tool_use.jinja": "t"},
    "a file with a name": {"additional_chat_templates/rag.jinja": "r"},
    "none": settings(**FAST),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_are_found_where_transformers_finds_them(name, tmp_path):
    folder = write(tmp_path / "source", {"tokenizer.json": tokenizer_json()} | TEMPLATES[name])
    check(folder)
    for level, loaded in LEVELS.items():
        tokens = loaded.load(folder)
        tokens.save(tmp_path / level)
        check(tmp_path / level)
        assert loaded.load(tmp_path / level).config == tokens.config


REFUSED: dict[str, tuple[Files, str]] = {
    "unknown class": (GPT2 | settings(tokenizer_class="BloomTokenizer"), "BloomTokenizer.*GPT2Tokenizer, Qwen2Tokenizer"),
    "unknown model": (GPT2 | {"config.json": {"model_type": "llama"}}, "belongs to a llama"),
    "generic class": (GPT2 | settings(**FAST), "belongs to a PreTrainedTokenizer"),
    "huge id": (GPT2 | {"added_tokens.json": {"<x>": 10**12}}, r"added_tokens\.json: tokens\.<x> is 1000000000000, not"),
    "negative id": (GPT2 | {"added_tokens.json": {"<x>": -3}}, r"added_tokens\.json: tokens\.<x> is "),
    "id that is a text": (GPT2 | {"added_tokens.json": {"<x>": "3"}}, r"added_tokens\.json: tokens\.<x> is "),
    "added_tokens.json a list": (GPT2 | {"added_tokens.json": []}, r"added_tokens\.json holds a list"),
    "configuration a list": (GPT2 | {"tokenizer_config.json": []}, r"tokenizer_config\.json holds a list"),
    "decoder without content": (GPT2 | settings(added_tokens_decoder={"7": {"special": True}}), r"decoder\.7\.content is missing"),
    "decoder of a huge id": (GPT2 | settings(added_tokens_decoder={str(2**31): token("<x>")}), "added_tokens_decoder"),
    "decoder a list": (GPT2 | settings(added_tokens_decoder=[token("<x>")]), "added_tokens_decoder"),
    "special tokens a text": (GPT2 | settings(additional_special_tokens="<x>"), "additional_special_tokens is '<x>', not"),
    "special token a number": (GPT2 | settings(additional_special_tokens=[7]), r"additional_special_tokens is \[7\], not"),
    "templates without names": (GPT2 | settings(chat_template=[{"template": "x"}]), r"chat_template is \[.*, not"),
    "template a number": (GPT2 | settings(chat_template=7), "chat_template"),
    "vocabulary of huge ids": (GPT2 | {"vocab.json": {"a": 10**12}}, r"tokens\.a is 10{12}, not"),
    "vocabulary with a hole": (
        GPT2 | {"vocab.json": {"a": 0, "b": 2}, "merges.txt": [], "added_tokens.json": {"<x>": 7}},
        r"adds the token .*, whose id 2 is that of 'b'; number",
    ),
    "vocabulary of one id": (GPT2 | {"vocab.json": {"a": 1, "b": 1}}, "the same id"),
    "merges of unknown tokens": (GPT2 | {"merges.txt": [("x", "y")]}, "not in the vocabulary"),
    "merges of three": (GPT2 | {"merges.txt": [("x", "y", "z")]}, r"model\.merges\.0 is \[.x., .y., .z.\], not"),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_a_bad_file_is_refused_in_one_line(reason, tmp_path):
    files, message = REFUSED[reason]
    write(tmp_path, files)
    for level in LEVELS.values():
        with pytest.raises(UserError, match=message) as caught:
            level.load(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_that_names_no_class_is_right_also_in_a_folder_of_qwen2(tmp_path):
    """transformers builds its Qwen2Tokenizer there all the same; what we train for a Qwen2 model is cut as it was in training."""
    files = {"tokenizer.json": tokenizer_json(), "config.json": {"model_type": "qwen2"}} | settings(**FAST)
    for level in LEVELS.values():
        assert (
            level.load(write(tmp_path, files)).definition["pre_tokenizer"]
            == tokenizer_json()["pre_tokenizer"]
        )


def test_level_1_cuts_text_by_the_file_beside_a_qwen2_model(tmp_path):
    """The library's automatic class would cut by Qwen2's own pattern, with digits one by one."""
    train_bpe(["numbers 12345 here"] * 9, 300, pattern="gpt2", special_tokens=["<|endoftext|>"]).save(
        tmp_path
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    text = "numbers 12345 here"
    ids = v2.Tokenizer.load(tmp_path).encode(text)
    assert load_tokenizer(tmp_path).encode(text) == ids
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) != ids
