"""What users do wrong: the table of `test_bad_input.py`.

A fault prepares its bad file or damages the copy of a finished run, and returns the command that meets it. Beside it stands
what the one line on stderr must say: the cause before the semicolon, the remedy after it.
"""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

STORY = "Once upon a time there was a little dog who had a red ball and he was very happy with it. "
JSONL = (json.dumps({"text": STORY}) + "\n").encode()

Arguments = list[str | Path]
# (scratch folder, copy of the finished run) -> command and arguments.
Fault = Callable[[Path, Path], Arguments]
Change = Callable[[bytes], bytes]


def arguments(*words: str) -> Fault:
    """A mistake in the command line itself; {scratch} is a folder that may be written."""
    return lambda scratch, run: [word.format(scratch=scratch) for word in words]


def corpus(name: str, content: bytes) -> Fault:
    """A user's corpus in one file."""

    def fault(scratch: Path, run: Path) -> Arguments:
        (scratch / name).write_bytes(content)
        return ["data", "--force", "--set", f"data.source={scratch / name}"]

    return fault


def chat(*turns: str) -> Fault:
    """Conversations of a user's, of which the second one is wrong; a turn is `role: text`."""

    def fault(scratch: Path, run: Path) -> Arguments:
        right = ("user: What is it?", "assistant: A ball.")
        lines = [
            json.dumps(
                {
                    "messages": [
                        dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in each
                    ]
                }
            )
            for each in (right, turns, right)
        ]
        (scratch / "chat.jsonl").write_text("\n".join(lines))
        return ["sft", "--force", "--set", f"sft.source={scratch / 'chat.jsonl'}"]

    return fault


def empty_folder(scratch: Path, run: Path) -> Arguments:
    (scratch / "folder").mkdir()
    return ["data", "--set", f"data.source={scratch / 'folder'}"]


def small_corpus(scratch: Path, run: Path) -> Arguments:
    """Documents enough to split, but fewer tokens than the sequence that training asks for."""
    lines = [json.dumps({"text": f"{STORY} Number {n} is the last word."}) for n in range(40)]
    (scratch / "small.jsonl").write_text("\n".join(lines))
    wide = ["--set", "model.max_position_embeddings=4096", "--set", "pretrain.sequence_length=4096"]
    held_out = [
        "--set",
        "data.validation_fraction=0.3",
        "--set",
        "data.test_fraction=0.3",
        "--set",
        "data.deduplication.near=false",
    ]
    return [
        "run",
        "--set",
        f"data.source={scratch / 'small.jsonl'}",
        *wide,
        *held_out,
        "--out",
        scratch / "other",
    ]


def file_in_the_way(scratch: Path, run: Path) -> Arguments:
    (scratch / "file").touch()
    return ["data", "--out", scratch / "file" / "run"]


def output_is_a_file(scratch: Path, run: Path) -> Arguments:
    (scratch / "file").touch()
    return ["run", "--out", scratch / "file"]


def malformed_configuration(scratch: Path, run: Path) -> Arguments:
    (scratch / "bad.toml").write_text("[data\n")
    return ["data", "--config", scratch / "bad.toml"]


def damaged(file: str, change: Change, *words: str) -> Fault:
    """A file of the finished run is not what it was."""

    def fault(scratch: Path, run: Path) -> Arguments:
        (run / file).write_bytes(change((run / file).read_bytes()))
        return [*words]

    return fault


def deleted(file: str, *words: str) -> Fault:
    """A file of the finished run is gone."""

    def fault(scratch: Path, run: Path) -> Arguments:
        (run / file).unlink()
        return [*words]

    return fault


def start_from(file: str, change: Change, *words: str) -> Fault:
    """Pretraining starts from a copy of the finished model with one file changed."""
    return _from_changed_model(
        file,
        change,
        lambda model: ["pretrain", "--force", "--set", f"pretrain.model_name_or_path={model}", *words],
    )


def generate_from(file: str, change: Change) -> Fault:
    """Generation from a copy of the finished model with one file changed."""
    return _from_changed_model(file, change, lambda model: ["generate", "--prompt", "Once", "--model", model])


def _from_changed_model(file: str, change: Change, words: Callable[[Path], Arguments]) -> Fault:
    def fault(scratch: Path, run: Path) -> Arguments:
        model = Path(shutil.copytree(run / "pretrain", scratch / "model"))
        (model / file).write_bytes(change((model / file).read_bytes()))
        return words(model)

    return fault


def generate_from_shards(index: object) -> Fault:
    """Generation from a copy of the finished model whose weights are found by an index."""

    def fault(scratch: Path, run: Path) -> Arguments:
        model = Path(shutil.copytree(run / "pretrain", scratch / "model"))
        (model / "model.safetensors").rename(model / "shard.safetensors")
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        return ["generate", "--prompt", "Once", "--model", model]

    return fault


def same(content: bytes) -> bytes:
    return content


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def garbled(content: bytes) -> bytes:
    """Of the same size."""
    return b"\xff" * len(content)


def garbage(content: bytes) -> bytes:
    return b"\x00garbage\xff" * 10


def edited(**changes: object) -> Change:
    """A JSON object with other values."""
    return lambda content: json.dumps({**json.loads(content), **changes}).encode()


def without_the_last_merge(content: bytes) -> bytes:
    """A tokenizer of one token less than the model has."""
    tokenizer = json.loads(content)
    vocabulary, merge = tokenizer["model"]["vocab"], tokenizer["model"]["merges"].pop()
    removed = vocabulary.pop("".join(merge) if isinstance(merge, list) else merge.replace(" ", ""))
    for token, number in vocabulary.items():
        vocabulary[token] = number - (number > removed)
    for token in tokenizer["added_tokens"]:
        token["id"] -= token["id"] > removed
    return json.dumps(tokenizer).encode()


def with_one_more_token(content: bytes) -> bytes:
    """A tokenizer of one token more than the model has (one less is common: vocabularies are padded)."""
    tokenizer = json.loads(content)
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 300, "content": "<|more|>"})
    return json.dumps(tokenizer).encode()


def parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": [STORY] * 100}), sink)
    return sink.getvalue().to_pybytes()


def set_to(assignment: str) -> Fault:
    return arguments("data", "--set", assignment)


# What is wrong: (how it comes about, what the line must say before and after the semicolon)
FAULTS: dict[str, tuple[Fault, str]] = {
    # settings and options
    "unknown setting": (set_to("pretrain.max_step=3"), r"unknown setting 'pretrain\.max_step'.*; did you mean 'max_steps'"),
    "wrong type": (set_to("pretrain.max_steps=many"), r"pretrain\.max_steps.*integer.*; correct it"),
    "heads not dividing": (set_to("model.num_attention_heads=3"), r"hidden_size 16 is not a multiple.*; change"),
    "sequence longer than positions": (set_to("pretrain.sequence_length=2048"), r"2048 is above .*positi.* 1024; lower"),
    "vocabulary under 256": (set_to("tokenizer.vocab_size=100"), r"tokenizer\.vocab_size.*256.*; correct"),
    "negative temperature": (arguments("generate", "--temperature", "-1"), r"generate\.temperature.*; correct"),
    "missing configuration": (arguments("data", "--config", "no.toml"), r"no configuration 'no\.toml'; use one of"),
    "malformed configuration": (malformed_configuration, r"bad\.toml is not valid TOML.*line 1.*; correct"),
    "unknown option": (arguments("data", "--sett", "a=1"), r"No such option.*; see .* data --help"),
    "unknown command": (arguments("trane"), r"No such command 'trane'.*; see .* --help"),
    "not a number": (arguments("data", "--seed", "x"), r"--seed.*integer.*; see .* data --help"),
    "unknown stage": (arguments("run", "--from", "train"), r"no stage 'train'; the stages are data"),
    "no such GPU": (arguments("pretrain", "--force", "--device", "cuda"), r"device 'cuda' is not .*; use --device cpu"),
    "no such device": (arguments("run", "--out", "{scratch}/new", "--device", "abacus"), r"device 'abacus'.*; use"),
    "two devices": (arguments("run", "--out", "{scratch}/new", "--device", "cuda:0,1"), r"device 'cuda:0,1'.*; use"),
    # the corpus
    "missing corpus": (set_to("data.source=nowhere/nothing.txt"), r"nothing\.txt.*; "),
    "empty corpus": (corpus("empty.txt", b""), r"empty\.txt.* no .*; "),
    "blank corpus": (corpus("blank.txt", b" \n\n \n"), r"blank\.txt.*; "),
    "empty folder": (empty_folder, r"/folder.*; "),
    "binary corpus": (corpus("binary.txt", bytes(range(256)) * 20), r"binary\.txt.*; "),
    "badly encoded corpus": (corpus("latin.txt", ("café " + STORY).encode("latin-1")), r"latin\.txt.*utf-8.*; .*encoding"),
    "truncated gzip": (corpus("cut.txt.gz", half(gzip.compress((STORY * 200).encode()))), r"cut\.txt\.gz.*; "),
    "not gzip": (corpus("not.txt.gz", STORY.encode()), r"not\.txt\.gz.*gzip.*; "),
    "truncated parquet": (corpus("cut.parquet", half(parquet())), r"cut\.parquet.*; "),
    "malformed JSONL line": (corpus("bad.jsonl", JSONL * 2 + b'{"text": "x\n' + JSONL), r"bad\.jsonl.* (line 3|row 2)\b.*; "),
    "JSONL line that is no object": (corpus("list.jsonl", JSONL + b"[1]\n"), r"list\.jsonl.*( line 2\b| cannot be read).*; "),
    "JSONL without the text field": (corpus("field.jsonl", b'{"body": "x"}\n'), r"field\.jsonl.*'text'.*; .*text_field"),
    "malformed JSON": (corpus("bad.json", b'[{"text": "a"}, '), r"bad\.json.*; "),
    "CSV without the text column": (corpus("bad.csv", b"body\nhello\n"), r"bad\.csv.*'text'.*; .*text_field"),
    "unknown kind of file": (corpus("story.docx", b"PK\x03\x04\x00\x00" * 50), r"story\.docx.*; "),
    "hub out of reach": (
        arguments("data", "--force", "--set", "data.source=no/data", "--set", "data.hub_endpoint=http://127.0.0.1:9", "--set", "data.hub_cache={scratch}"),
        r"(cannot|Couldn't) reach (127\.0\.0\.1:9|the hub|.no/data).*; check",
    ),
    "corpus smaller than one sequence": (small_corpus, r"tokens, fewer than one sequence.*4097; "),
    # conversations
    "conversation without an assistant": (chat("user: Hello?"), r"chat\.jsonl, \w+ 2 has no assistant turn.*; add"),
    "no reply": (chat("system: A.", "user: B."), r"chat\.jsonl, \w+ 2 has no assistant turn.*; add"),
    "a template's token in a text": (chat("user: <|im_end|>", "assistant: A."), r"chat\.jsonl, \w+ 2 contains <\|im_end\|>.*; remove"),
    "reply beyond the context": (
        chat(f"user: {STORY * 40}", "assistant: A."),
        r"chat\.jsonl, \w+ 2 has .* tokens before its first reply, more than the 1024.*; shorten",
    ),
    "missing conversations": (arguments("sft", "--force", "--set", "sft.source=nowhere.jsonl"), r"nowhere\.jsonl.*; "),
    # what earlier stages left
    "stages not done": (arguments("pretrain", "--out", "{scratch}/new"), r"data.* not finished yet; run `uv run v. data --out .*` first"),
    "stage made with other settings": (
        arguments("evaluate", "--set", "pretrain.max_steps=5"),
        r"pretrain\.max_steps = 4, not 5; use what it was made with, or run `uv run v. pretrain --force --out .*` first",
    ),
    "result of other settings": (
        arguments("run", "--set", "pretrain.max_steps=5"),
        r"holds a finished result, but .*pretrain\.max_steps = 4, not 5; add --from pretrain .*, or choose another folder with --out",
    ),
    "record of another version": (
        damaged("data/finished.json", lambda _: b'{"id": "1", "time": 1.0, "inputs": {}}', "run"),
        r"data/finished\.json is .*of another version of this project; delete .*data to make",
    ),
    "record with NaN": (
        damaged("data/finished.json", lambda content: content.replace(b'"seconds":', b'"seconds": NaN, "old":'), "run"),
        r"data/finished\.json is .*damaged.*; delete .*data to make",
    ),
    "settings of another version": (
        damaged("settings.toml", lambda content: content.replace(b"learning_rate", b"speed"), "run"),
        r"another version of this project, or .*\(unknown setting 'pretrain\.speed'.*\); start it again with `run --force`",
    ),
    "documents cut short": (damaged("data/train.jsonl", half, "tokenizer"), r"train\.jsonl is damaged.*; run `uv run v. data --out"),
    "documents garbled": (damaged("data/train.jsonl", garbled, "tokenizer", "--force"), r"train\.jsonl.* line .*; "),
    "token file cut short": (damaged("tokenizer/train.bin", half, "pretrain"), r"train\.bin is damaged.*; run `uv run v. tokenizer --out"),
    "corrupted tokenizer.json": (damaged("tokenizer/tokenizer.json", garbled, "pretrain", "--force"), r"tokenizer\.json.*; "),
    "corrupted safetensors": (damaged("pretrain/model.safetensors", garbled, "evaluate"), r"model\.safetensors.*; "),
    "corrupted config.json": (damaged("pretrain/config.json", garbled, "evaluate"), r"config\.json.*; "),
    "model deleted": (deleted("pretrain/model.safetensors", "evaluate"), r"its model\.safetensors is missing; run `uv run v. pretrain --out"),
    "report of no run": (arguments("report", "--out", "{scratch}/new"), r"no run.*; make one with `uv run v. run`"),
    "report beside no run": (arguments("report", "--compare", "v1", "v3"), r"no run in runs/v[13]/tiniest to compare with; make"),
    "report with a stray word": (arguments("report", "v3"), r"takes no argument 'v3'; write --compare v3"),
    # models and tokenizers from elsewhere
    "missing tokenizer": (arguments("tokenizer", "--set", "tokenizer.load=nowhere"), r"nowhere.*; "),
    "start from no model": (arguments("pretrain", "--set", "pretrain.model_name_or_path=nowhere"), r"nowhere.*; "),
    "start from another vocabulary": (
        start_from("tokenizer.json", without_the_last_merge),
        r"another tokenizer.*; start from that tokenizer",
    ),
    "start from damaged weights": (start_from("model.safetensors", half), r"model\.safetensors.*; "),
    "generate: no such folder": (arguments("generate", "--model", "{scratch}/no"), r"no model .*/no'; name a stage .*, a folder"),
    "generate: no model yet": (arguments("generate", "--out", "{scratch}/new"), r"no model in .*; run `uv run v. run --out .*` first"),
    "generate: rope_scaling without its factor": (
        generate_from("config.json", edited(rope_parameters={"rope_type": "linear", "rope_theta": 1e4})),
        r"rope_scaling .*has factor None, not a positive number; correct|factor.*; copy it again",
    ),
    "generate: config.json of wrong types": (generate_from("config.json", edited(hidden_size="16")), r"hidden_size.*; "),
    "generate: an end of text that is no id": (
        generate_from("config.json", edited(eos_token_id="x")),
        r"config\.json: eos_token_id is 'x', not a valid integer; correct it",
    ),
    "generate: an epsilon that fits no float": (generate_from("config.json", edited(rms_norm_eps=10**400)), r"config\.json: rms_norm_eps is 10{59}, not a valid number; correct"),
    "generate: quantized weights": (
        generate_from("config.json", edited(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})),
        r"quantization_config of bitsandbytes has bnb_4bit_quant_type = 'fp4'; int8 .* and nf4 are supported",
    ),
    "generate: generation_config.json of another kind": (
        generate_from("generation_config.json", lambda _: b"[]"),
        r"generation_config\.json holds a list.*; .*copy it again",
    ),
    "generate: generation_config.json of wrong types": (
        generate_from("generation_config.json", edited(bos_token_id="x")),
        r"generation_config\.json: bos_token_id is 'x', not a valid integer; correct",
    ),
    "generate: an index of no files": (
        generate_from_shards({"metadata": {}, "weight_map": {"lm_head.weight": 5}}),
        r"index\.json: weight_map\.\S+ is 5, not a valid string; correct it or copy",
    ),
    "generate: an index without its map": (generate_from_shards({"weight_map": None}), r"index\.json: weight_map is None, not an object; correct it or copy"),
    "generate: a temperature that divides to infinity": (
        arguments("generate", "--temperature", "1e-320"),
        r"generate\.temperature: logits cannot be divided.*; choose 0.*; correct",
    ),
    "generate: beams that draw": (
        arguments("generate", "--num-beams", "4", "--temperature", "0.7"),
        r"4 beams with temperature 0\.7 would be beam sampling.*; set generate\.temperature to 0",
    ),
    "generate: no beams": (arguments("generate", "--num-beams", "0"), r"generate\.num_beams: .*greater.*\(given 0\); correct"),
    "generate: an empty stop string": (arguments("generate", "--stop", ""), r"generate\.stop_strings\.0: .*at least 1 character.*; correct"),
    "chat: a penalty of 0": (arguments("chat", "--repetition-penalty", "0"), r"generate\.repetition_penalty: .*greater than 0.*; correct"),
    "generate: a bias of an id that is not there": (
        arguments("generate", "--set", "generate.logit_bias={{999999 = 1.0}}"),
        r"logit_bias has the id 999999, and the model's ids are 0 to \d+; use",
    ),
    "generate: a seed of 77 bits": (arguments("generate", "--set", f"generate.seed={10**23}"), r"generate\.seed: .*4294967295.*; correct"),
    "generate: a prompt of broken letters": (arguments("generate", "--prompt", "caf\udce9"), r"prompt .* is not UTF-8; type"),
    "generate: weights of another shape": (generate_from("config.json", edited(intermediate_size=48)), r"shape.*; "),
    "generate: missing layers": (generate_from("config.json", edited(num_hidden_layers=2)), r"layers\.1.*; "),
    "generate: garbage in safetensors": (generate_from("model.safetensors", garbage), r"model\.safetensors.*; "),
    "generate: tokenizer of another vocabulary": (generate_from("tokenizer.json", with_one_more_token), r"301.*300.*; |300.*301.*; "),
    "generate: corrupted tokenizer.json": (generate_from("tokenizer.json", half), r"tokenizer\.json.*; "),
    "generate: tokenizer.json of another kind": (
        generate_from("tokenizer.json", lambda _: b'{"version": "1.0", "model": {"type": "Unigram", "vocab": []}}'),
        r"tokenizer\.json.*; ",
    ),
    # where the results go
    "output that is a file": (output_is_a_file, r"/file is a file, not the folder of a run; choose another one with --out"),
    "output below a file": (file_in_the_way, r"file.*Not a directory; .*choose another folder"),
}  # fmt: skip
