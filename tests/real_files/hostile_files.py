"""JSON files from elsewhere that are wrong: the table of `test_hostile_files.py`.

A case names the folder that it damages a copy of (`FOLDERS` below), the file, what becomes of its content, and what the one line on stderr must
say. All files are small and made here.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load, save

from shared_data.model_files.config import ModelConfig
from shared_data.peft.config import LoraConfig
from v3_numpy_deep.data_pipeline.tokenizer.bpe_train import train_bpe
from v3_numpy_deep.models.checkpoint import save_model
from v3_numpy_deep.models.peft.adapters import save_adapter
from v3_numpy_deep.models.peft.lora import inject_lora
from v3_numpy_deep.models.quantization.quantize import quantize_model
from v3_numpy_deep.models.transformer import new_model

STORY = "Once upon a time there was a little dog who had a red ball."
FOLDERS = ["model", "shards", "vocab", "adapter", "int8", "nf4", "int4", "pattern"]
Change = Callable[[bytes], bytes]


DOUBLE = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}


class Case(NamedTuple):
    """A damaged file. `says`: a regular expression."""

    folder: str
    file: str
    change: Change
    says: str


def make_folders(root: Path) -> None:
    """A small Llama: in one file, in shards, with an adapter, quantized, with GPT-2's form of the tokenizer's files."""
    config = ModelConfig(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_key_value_heads=2
    )
    tokenizer = train_bpe([STORY] * 9, 300, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.save(root / "tokenizer")
    model = new_model(config)
    for name in ("model", "shards", "vocab"):
        save_model(model, root / name, root / "tokenizer")
    for scheme in ("int8", "nf4", "int4"):
        save_model(quantize_model(new_model(config), scheme), root / scheme, root / "tokenizer")
    weights = root / "shards/model.safetensors"
    weights.rename(root / "shards/a.safetensors")
    names = load((root / "shards/a.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "a.safetensors")}
    (root / "shards/model.safetensors.index.json").write_text(json.dumps(index))
    (root / "vocab/tokenizer.json").unlink()
    (root / "vocab/tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    definition = tokenizer.definition["model"]
    (root / "vocab/vocab.json").write_text(json.dumps(definition["vocab"] | {"<|endoftext|>": 0}))
    merges = "\n".join(" ".join(pair) for pair in definition["merges"])
    (root / "vocab/merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    inject_lora(model, LoraConfig(r=2), seed=0)
    for name in ("adapter", "pattern"):
        save_adapter(model, root / name, str(root / "model"))
    file = root / "pattern/adapter_config.json"
    file.write_bytes(setting("target_modules", r".*\.self_attn\.(q|v)_proj")(file.read_bytes()))


def raw(content: bytes) -> Change:
    """Another content altogether."""
    return lambda _: content


def setting(place: str, value: Any) -> Change:
    """A JSON file with another value at a place: `model.vocab.a`."""

    def change(content: bytes) -> bytes:
        root = json.loads(content)
        *path, last = place.split("/")
        target = root
        for name in path:
            target = target[name]
        target[last] = value
        return json.dumps(root).encode()

    return change


def number(name: str, text: str) -> Change:
    """A JSON file in which a number is written as `text`, which `json` might not write."""
    return lambda content: setting(name, "@")(content).replace(b'"@"', text.encode())


def tensor(end: str, values: Callable[[Any], Any]) -> Change:
    """A safetensors file in which the tensors whose names end so have other numbers."""

    def change(content: bytes) -> bytes:
        tensors = load(content)
        changed = {name: values(array) if name.endswith(end) else array for name, array in tensors.items()}
        return save(changed, metadata={"format": "pt"})

    return change


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """A safetensors file with another header in front of the same numbers."""

    def damage(content: bytes) -> bytes:
        size = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + size])
        change(entries)
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    return damage


def place(offsets: list[int]) -> Change:
    """A tensor that lies elsewhere in the file."""
    return header(lambda entries: entries["model.norm.weight"].update(data_offsets=offsets))


def split(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that cuts at a pattern."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


DEEP = b"[" * 100_000 + b"]" * 100_000
NOT_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not valid JSON"),
    "a byte-order mark": (b"\xef\xbb\xbf{}", "is not valid JSON .*BOM"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not valid JSON"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "is not valid JSON"),
    "100,000 levels": (b'{"a": ' + DEEP + b"}", "is not valid JSON"),
    "500 levels": (
        b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
        "is not valid JSON .more than 100 levels of nesting",
    ),
    "5,000 digits": (b'{"a": 1' + b"0" * 5000 + b"}", "is not valid JSON .*digits"),
    "a name twice": (b'{"a": 1, "b": 2, "a": 3}', "is not valid JSON .'a' stands twice"),
    "NaN": (b'{"a": NaN}', "is not valid JSON .NaN is no number of JSON"),
    "a list": (b"[]", "holds a list, not a dict"),
    "null": (b"null", "holds a NoneType, not a dict"),
    "a text": (b'"a"', "holds a str, not a dict"),
}
OF_EVERY_FILE = ("100,000 levels", "a name twice", "a list")
FILES = {
    "config.json": "model",
    "generation_config.json": "model",
    "tokenizer.json": "model",
    "tokenizer_config.json": "model",
    "special_tokens_map.json": "model",
    "vocab.json": "vocab",
    "added_tokens.json": "vocab",
    "adapter_config.json": "adapter",
    "model.safetensors.index.json": "shards",
}
# file/place, value, what the line says after the name
VALUES: list[tuple[str, str, Any, str]] = [
    ("config.json", "num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, not less than or equal to 1000"),
    ("config.json", "num_hidden_layers", 0, "num_hidden_layers is 0, not"),
    ("config.json", "num_hidden_layers", True, "num_hidden_layers is True, not a valid integer"),
    ("config.json", "num_hidden_layers", 1.0, "num_hidden_layers is 1.0, not a valid integer"),
    ("config.json", "hidden_size", "64", "hidden_size is '64', not a valid integer"),
    ("config.json", "hidden_size", -64, "hidden_size is -64, not"),
    ("config.json", "hidden_size", 10**400, "hidden_size is 10*, not"),
    ("config.json", "hidden_size", [64], r"hidden_size is \[64\], not"),
    ("config.json", "intermediate_size", 0, "intermediate_size is 0, not"),
    ("config.json", "num_attention_heads", 0, "num_attention_heads is 0, not"),
    ("config.json", "num_attention_heads", 5, "64 is not a multiple of num_attention_heads 5"),
    ("config.json", "num_key_value_heads", 0, "num_key_value_heads is 0, not"),
    ("config.json", "head_dim", 0, "head_dim is 0, not"),
    ("config.json", "vocab_size", 10**12, "vocab_size is 1000000000000, not"),
    ("config.json", "vocab_size", 200, "shape|vocabulary of 200"),
    ("config.json", "max_position_embeddings", 0, "max_position_embeddings is 0, not"),
    ("config.json", "max_position_embeddings", 2**40, "max_position_embeddings is 1099511627776, not"),
    ("config.json", "rms_norm_eps", "small", "rms_norm_eps is 'small', not a valid number"),
    ("config.json", "rms_norm_eps", True, "rms_norm_eps is True, not a valid number"),
    ("config.json", "tie_word_embeddings", 1, "tie_word_embeddings is 1, not a valid boolean"),
    ("config.json", "attention_dropout", 7, "attention_dropout is 7, not"),
    ("config.json", "eos_token_id", 10**12, "eos_token_id is 1000000000000, not"),
    ("config.json", "eos_token_id", {"id": 1}, "eos_token_id is .*, not"),
    ("config.json", "model_type", None, "model_type is None, not a valid string"),
    ("config.json", "model_type", "../llama", "model of type '../llama'; supported are"),
    ("config.json", "rope_theta", 0, "rope_theta is 0, not greater than 0"),
    ("config.json", "rope_theta", "1e4", "rope_theta is '1e4', not a valid number"),
    ("config.json", "rope_scaling", [1], r"rope_scaling is \[1\], not an object"),
    ("config.json", "rope_scaling", {"rope_type": "linear", "factor": "2"}, "factor '2', not a positive number"),
    ("config.json", "rope_scaling", {"rope_type": "linear", "factor": 1e300}, r"factor 1e\+300, not a positive number"),
    ("config.json", "rope_scaling", {"rope_type": ["yarn"]}, r"\['yarn'\] is not supported"),
    ("config.json", "rope_scaling", {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}, "rope_theta is 1, by whose logarithm"),
    ("config.json", "rope_scaling", {"rope_type": "yarn", "factor": 2.0, "beta_slow": 1e-320}, "beta_slow"),
    ("config.json", "rope_scaling", {"rope_type": "yarn", "factor": 2.0, "truncate": "no"}, "truncate 'no', not"),
    ("config.json", "quantization_config", 7, "quantization_config is 7, not an object"),
    ("config.json", "quantization_config", {"quant_method": ["gptq"]}, r"quant_method \['gptq'\], which is not supported"),
    ("generation_config.json", "eos_token_id", "x", "eos_token_id is 'x', not"),
    ("generation_config.json", "bos_token_id", -7, "bos_token_id is -7, not"),
    ("generation_config.json", "temperature", "hot", "temperature is 'hot', not a valid number"),
    ("generation_config.json", "do_sample", "yes", "do_sample is 'yes', not a valid boolean"),
    ("generation_config.json", "top_k", 0.5, "top_k is 0.5, not a valid integer"),
    ("generation_config.json", "sequence_bias", [[[1], "2"]], "sequence_bias.*is '2', not a valid number"),
    ("generation_config.json", "stop_strings", [7], r"stop_strings is \[7\], not"),
    ("tokenizer.json", "model", None, "model is None, not"),
    ("tokenizer.json", "model/vocab/a", 10**12, r"model\.vocab\.a is 1000000000000, not"),
    ("tokenizer.json", "model/vocab/a", -1, r"model\.vocab\.a is -1, not"),
    ("tokenizer.json", "model/vocab/a", 5, "two tokens, have the same id"),
    ("tokenizer.json", "model/vocab/a", True, r"model\.vocab\.a is True, not a valid integer"),
    ("tokenizer.json", "model/vocab/a", 2000, "one of 2001|adds the token"),
    ("tokenizer.json", "model/vocab", {}, r"model\.vocab is \{\} .*at least 1 item"),
    ("tokenizer.json", "model/merges", [["a"]], r"model\.merges\.0 is \['a'\], not"),
    ("tokenizer.json", "model/merges", [["zz", "qq"]], "'zz', which is not in the vocabulary"),
    ("tokenizer.json", "model/merges", {"a": "b"}, r"model\.merges is .*, not a valid list"),
    ("tokenizer.json", "added_tokens", [{"id": -1, "content": "<x>"}], r"added_tokens\.0\.id is -1, not"),
    ("tokenizer.json", "added_tokens", [{"id": 1}], r"added_tokens\.0\.content is missing"),
    ("tokenizer.json", "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}, "split pattern.*is malformed"),
    ("tokenizer.json", "pre_tokenizer", split("(a|a)*[bc]"), "split pattern '.a.a..*' takes too long"),
    ("tokenizer.json", "pre_tokenizer", split("((a{9999}){9999}){9999}"), "split pattern .* takes too long"),
    ("tokenizer.json", "normalizer", {"type": "Replace", "pattern": {"Regex": "(a|a)*[bc]"}, "content": ""}, "pattern of a Replace step .* takes too long"),
    ("tokenizer.json", "pre_tokenizer", [1], "pre_tokenizer is .*, not an object"),
    ("tokenizer.json", "normalizer", {"type": "Sequence", "normalizers": 5}, "tokenizer.json"),
    ("tokenizer_config.json", "chat_template", 7, "chat_template is 7, not"),
    ("tokenizer_config.json", "eos_token", ["x"], r"eos_token is \['x'\], not"),
    ("tokenizer_config.json", "added_tokens_decoder", {"x": {"content": "a"}}, "added_tokens_decoder"),
    ("tokenizer_config.json", "added_tokens_decoder", {"1": {"content": None}}, r"added_tokens_decoder\.1\.content is None, not"),
    ("tokenizer_config.json", "tokenizer_class", 7, "tokenizer_class is 7, not"),
    ("special_tokens_map.json", "eos_token", {"content": 5}, "eos_token.*5.*, not"),
    ("special_tokens_map.json", "additional_special_tokens", 5, "additional_special_tokens is 5, not"),
    ("vocab.json", "a", -1, r"tokens\.a is -1, not"),
    ("vocab.json", "a", "7", r"tokens\.a is '7', not a valid integer"),
    ("added_tokens.json", "<x>", 10**12, r"tokens\.<x> is 1000000000000, not"),
    ("adapter_config.json", "r", 0, "r is 0, not"),
    ("adapter_config.json", "r", True, "r is True, not a valid integer"),
    ("adapter_config.json", "r", 10**12, "r is 1000000000000, not"),
    ("adapter_config.json", "lora_alpha", "16", "lora_alpha is '16', not a valid number"),
    ("adapter_config.json", "lora_dropout", 2, "lora_dropout is 2, not"),
    ("adapter_config.json", "target_modules", 7, "target_modules is 7, not"),
    ("adapter_config.json", "target_modules", [["q_proj"]], "target_modules is .*, not"),
    ("adapter_config.json", "target_modules", "(", "target_modules is '.', not a regular expression"),
    ("adapter_config.json", "target_modules", "(?:(?:.?){30}){33}[pz]", "target_modules is .*, which takes too long"),
    ("adapter_config.json", "target_modules", "((a{60000}){60000}){60000}", "target_modules is .*, which takes too long"),
    ("adapter_config.json", "modules_to_save", "lm_head", "modules_to_save is 'lm_head', not a valid list"),
    ("adapter_config.json", "base_model_name_or_path", 7, "base_model_name_or_path is 7, not"),
    ("model.safetensors.index.json", "weight_map", [], r"weight_map is \[\], not an object"),
    ("model.safetensors.index.json", "weight_map", {}, r"weight_map is \{\} .*at least 1 item"),
    ("model.safetensors.index.json", "weight_map", {"a": "../model/model.safetensors"}, "leads out of the folder"),
    ("model.safetensors.index.json", "weight_map", {"a": "/etc/passwd"}, "leads out of the folder"),
    ("model.safetensors.index.json", "weight_map", {"a": "C:\\a.safetensors"}, "leads out of the folder"),
    ("model.safetensors.index.json", "weight_map", {"a": "b.safetensors"}, "b.safetensors is missing, but"),
    ("model.safetensors.index.json", "weight_map", {"a": 5}, "weight_map.a is 5, not a valid string"),
    ("int8/config.json", "quantization_config/llm_int8_skip_modules", 7, "llm_int8_skip_modules is 7, not"),
    ("int8/config.json", "quantization_config/llm_int8_skip_modules", [["a"]], r"llm_int8_skip_modules\.0 is \['a'\], not"),
    ("int8/config.json", "quantization_config/llm_int8_threshold", 10**400, "llm_int8_threshold is 10*, not"),
    ("int8/config.json", "quantization_config/llm_int8_threshold", -1, "llm_int8_threshold is -1, not"),
    ("int8/config.json", "quantization_config/load_in_8bit", "yes", "load_in_8bit is 'yes', not a valid boolean"),
    ("nf4/config.json", "quantization_config/bnb_4bit_quant_type", ["nf4"], r"bnb_4bit_quant_type is \['nf4'\], not"),
    ("int4/config.json", "quantization_config/group_size", 0, "group_size is 0, not"),
    ("int4/config.json", "quantization_config/group_size", 7, "shape"),
    ("int4/config.json", "quantization_config/bits", "4", "bits is '4', not a valid integer"),
]  # fmt: skip
# Numbers that Python's `json` does not write.
NUMBERS = [
    ("config.json", "hidden_size", "1e400", "hidden_size is inf, not"),
    ("config.json", "rms_norm_eps", "1e400", "rms_norm_eps is inf, not"),
    ("config.json", "rms_norm_eps", "-Infinity", "-Infinity is no number of JSON"),
    ("generation_config.json", "repetition_penalty", "1e400", "repetition_penalty is inf, not"),
    ("adapter_config.json", "lora_alpha", "1e400", "lora_alpha is inf, not"),
]


def _state(content: bytes) -> bytes:
    """A quantized matrix's state as a text of many levels."""
    return tensor("quant_state.bitsandbytes__nf4", lambda _: np.frombuffer(b"[" * 100_000, np.uint8))(content)


def _huge(content: bytes) -> bytes:
    return json.dumps(json.loads(content) | {"hidden_size": 2**20, "intermediate_size": 2**24}).encode()


OTHERS: dict[str, Case] = {
    "config.json of 10¹⁴ numbers": Case("model", "config.json", _huge, "GB of memory, and this machine has .*; choose a smaller model"),
    "merges.txt of three": Case("vocab", "merges.txt", raw(b"#version: 0.2\na b c\n"), "merges.0 is .*, not"),
    "merges.txt of unknown tokens": Case("vocab", "merges.txt", raw(b"zz qq\n"), "not in the vocabulary"),
    "merges.txt in Latin-1": Case("vocab", "merges.txt", raw(b"\xe9 a\n"), "merges.txt cannot be read"),
    "header of 2⁶³ bytes": Case("model", "model.safetensors", raw(b"\xff" * 8 + b"{}"), "is not a readable safetensors file"),
    "header of no JSON": Case("model", "model.safetensors", raw(b"\x04" + bytes(7) + b"[[[["), "is not a readable safetensors file"),
    "tensor out of the file": Case("model", "model.safetensors", place([0, 10**12]), "is not a readable safetensors file"),
    "tensors that overlap": Case("model", "model.safetensors", place([0, 256]), "is not a readable safetensors file"),
    "tensor that ends before it begins": Case("model", "model.safetensors", place([256, 0]), "is not a readable safetensors file"),
    "tensor of a negative place": Case("model", "model.safetensors", place([-256, 0]), "is not a readable safetensors file"),
    "tensor of 10³⁶ numbers": Case(
        "model", "model.safetensors",
        header(lambda entries: entries["model.norm.weight"].update(shape=[10**18, 10**18])),
        "is not a readable safetensors file",
    ),
    "SCB of NaN": Case("int8", "model.safetensors", tensor("SCB", lambda a: a * np.float32("nan")), "SCB holds NaN or infinity"),
    "absmax of infinity": Case("nf4", "model.safetensors", tensor("absmax", lambda a: a + np.float32("inf")), "absmax holds NaN or infinity"),
    "quant_map of zeros": Case("nf4", "model.safetensors", tensor("quant_map", lambda a: 0 * a), "quant_map does not hold the levels"),
    "quant_state of 100,000 levels": Case("nf4", "model.safetensors", _state, "quant_state is damaged"),
    "a weight of NaN": Case("model", "model.safetensors", tensor("model.norm.weight", lambda a: a * np.float32("nan")), "no finite numbers for the next token"),
    "a weight of infinity": Case("model", "model.safetensors", tensor("model.norm.weight", lambda a: a + np.float32("inf")), "no finite numbers for the next token"),
    "a bias beyond floats": Case("model", "generation_config.json", setting("sequence_bias", [[[5], 1e308]]), "no finite numbers for the next token"),
    "a normalizer that doubles a text 40 times": Case("model", "tokenizer.json", setting("normalizer", {"type": "Sequence", "normalizers": [DOUBLE] * 40}), "makes a text of .* characters"),
    "a decoder that doubles a text 40 times": Case("model", "tokenizer.json", setting("decoder", {"type": "Sequence", "decoders": [DOUBLE] * 40}), "makes a text of .* characters"),
    "a normalizer that doubles by a pattern": Case("model", "tokenizer.json", setting("normalizer", {"type": "Sequence", "normalizers": [DOUBLE | {"pattern": {"Regex": "e"}}] * 40}), "to a text"),
    "scales of NaN": Case("int4", "model.safetensors", tensor("scales", lambda a: a * np.float32("nan")), "scales holds NaN or infinity"),
    "a pattern of an adapter in a list": Case("adapter", "adapter_config.json", setting("target_modules", ["q_proj(a+)+"]), "none of its target modules"),
}  # fmt: skip


def _cases() -> Iterator[tuple[str, Case]]:
    for file, folder in FILES.items():
        for name, (content, says) in NOT_JSON.items():
            if file in ("config.json", "tokenizer.json") or name in OF_EVERY_FILE:
                yield f"{file}: {name}", Case(folder, file, raw(content), f"{file} {says}")
    for path, where, value, says in VALUES:
        folder, file = path.split("/") if "/" in path else (FILES[path], path)
        name = f"{path}: {where} = {value!s:.40}"
        yield name, Case(folder, file, setting(where, value), says)
    for path, where, text, says in NUMBERS:
        yield f"{path}: {where} = {text}", Case(FILES[path], path, number(where, text), says)
    yield from OTHERS.items()


CASES = dict(_cases())
# What the libraries of level 1 take, or say otherwise than in one line that names the file and the entry.
AT_LEVEL_1 = [
    "config.json: num_hidden_layers = 1000000000",
    "config.json: num_attention_heads = 0",
    "config.json: hidden_size = 64",
    "config.json: eos_token_id = 1000000000000",
    "config.json: 500 levels",
    "config.json of 10¹⁴ numbers",
    "config.json: rms_norm_eps = 1e400",
    "generation_config.json: temperature = hot",
    "tokenizer.json: 500 levels",
    "tokenizer.json: a name twice",
    "tokenizer.json: model/vocab/a = 1000000000000",
    "tokenizer.json: model/vocab/a = -1",
    "tokenizer.json: model/vocab/a = 5",
    "tokenizer.json: model/vocab/a = 2000",
    "tokenizer_config.json: chat_template = 7",
    "tokenizer_config.json: added_tokens_decoder = {'1': {'content': None}}",
    "tokenizer_config.json: a name twice",
    "special_tokens_map.json: a name twice",
    "special_tokens_map.json: additional_special_tokens = 5",
    "vocab.json: a = -1",
    "added_tokens.json: a name twice",
    "added_tokens.json: <x> = 1000000000000",
    "adapter_config.json: lora_alpha = 1e400",
    "adapter_config.json: r = 1000000000000",
    "adapter_config.json: target_modules = ((a{60000}){60000}){60000}",
    "adapter_config.json: target_modules = (?:(?:.?){30}){33}[pz]",
    "model.safetensors.index.json: weight_map = {'a': '../model/model.safetensors'}",
    "int8/config.json: quantization_config/llm_int8_skip_modules = 7",
    "tensors that overlap",
    "SCB of NaN",
    "quant_map of zeros",
]
