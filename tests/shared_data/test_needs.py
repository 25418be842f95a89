"""What a run needs at its end is checked before its first step."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from shared_data.errors import UserError
from shared_data.needs import check_needs
from shared_data.runs import RunFolder
from shared_data.settings import SPECIAL_TOKENS, available_configs, load_settings
from shared_data.stages import STAGES, left_out
from v2_handwritten import load_tokenizer
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
PAIR = {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}


def check(folder: Path, *overrides: str, level: str = "v2", stages: list[str] | None = None) -> None:
    run = RunFolder(level, load_settings("smoke", list(overrides)), folder / "run")
    check_needs(run, list(STAGES) if stages is None else stages)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a user's in the working folder, of which some are wrong."""
    monkeypatch.chdir(tmp_path)
    lines = {"chat": CHAT, "pairs": PAIR, "bad_chat": {"text": "Hi"}, "bad_pairs": PAIR | {"rejected": None}}
    token = "a <|im_end|>"
    lines["token_chat"] = {"messages": [{"role": "user", "content": token}, CHAT["messages"][1]]}
    lines |= {
        "token_pairs": PAIR | {"prompt": token},
        "prompts": {"prompt": "Hi"},
        "token_prompts": {"prompt": token},
    }
    for name, second in lines.items():
        first = CHAT if "chat" in name else PAIR
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, (first, second))))
    Path("text.txt").write_text("no records")
    Path("rewards.py").write_text("def brevity(prompts, replies):\n    return [0.0 for _ in replies]\n")
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    for name, tokens in (
        ("gpt2", ["<|endoftext|>"]),
        ("none", []),
        ("chatml", ["<|endoftext|>", "<|im_end|>"]),
    ):
        added = [{"id": 1 + i, "content": token, "special": True} for i, token in enumerate(tokens)]
        Path(f"{name}.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    return tmp_path


LEFT_OUT = {"sft", "reward", "dpo", "ppo", "grpo", "benchmark"}  # by tiny-zh


@pytest.mark.parametrize("name", available_configs())
def test_every_configuration_has_what_it_needs(name: str, tmp_path: Path) -> None:
    settings = load_settings(name, ["data.source=story_world", "pretrain.torch_compile=false"])
    without = left_out(settings)
    assert set(without) == (LEFT_OUT if name == "tiny-zh" else set())
    check_needs(RunFolder("v2", settings, tmp_path), [stage for stage in STAGES if stage not in without])


def test_a_stage_without_data_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    run = RunFolder("v2", load_settings("tiny-zh", ["sft.source=chat.jsonl"]), tmp_path)
    assert set(left_out(run.settings)) == {"reward", "dpo", "ppo", "grpo"}
    with pytest.raises(UserError, match=r"^dpo.source is 'none'; name the data with --set dpo.source=FILE$"):
        check_needs(run, ["dpo"])


def test_good_files_of_a_user_are_accepted(files: Path) -> None:
    for assignment in (
        "tokenizer.load=chatml.json",
        "tokenizer.chat_source=chat.jsonl",
        "sft.source=chat.jsonl",
        "reward.source=pairs.jsonl",
        "grpo.source=pairs.jsonl",
        "ppo.reward=rewards.py:brevity",
    ):
        check(files, assignment)
    check(files, "tokenizer.load=gpt2.json", stages=["data", "tokenizer", "pretrain", "evaluate", "generate"])


MISSING = {
    "device=abacus": "device 'abacus' is not one device; use auto, cpu, mps, cuda or cuda:N",
    "device=cuda:0,1": "device 'cuda:0,1' is not one device; use",
    "device=cuda:99": r"device 'cuda:99' is not there \(\d+ CUDA devices found\); use",
    "tokenizer.load=gpt2.json": r"gpt2.json has no special token <\|im_end\|>, with which the chat template of sft ends a turn; add it, or",
    'tokenizer.special_tokens=["<|endoftext|>"]': r"special_tokens has no special token <\|im_end\|>.*; add",
    "tokenizer.load=none.json": "none.json has no special token to end a document; add",
    "tokenizer.load=nowhere.json": "nowhere.json is missing; ",
    "tokenizer.chat_source=bad_chat.jsonl": "bad_chat.jsonl, line 2 is no conversation.*; ",
    "pretrain.model_name_or_path=nowhere": "there is no model 'nowhere'; name",
    "dpo.model_name_or_path=nowhere": "there is no model 'nowhere'; name",
    "sft.source=nowhere.jsonl": "sft.source 'nowhere.jsonl' does not exist; correct",
    "sft.source=text.txt": "text.txt holds no records; give",
    "sft.source=bad_chat.jsonl": "bad_chat.jsonl, line 2 is no conversation.*; ",
    "reward.source=bad_pairs.jsonl": "bad_pairs.jsonl, line 2 has no text or turns in 'rejected'; ",
    "dpo.source=nowhere.jsonl": "dpo.source 'nowhere.jsonl' does not exist; correct",
    "dpo.max_completion_length=1024": "dpo.max_completion_length 1024 leaves no room for a prompt .*; lower",
    "ppo.source=nowhere/*.jsonl": r"ppo.source 'nowhere/\*.jsonl' holds no file.*; ",
    "ppo.reward=rewards.py:beauty": "rewards.py has no function beauty; it has brevity",
    "grpo.reward=nowhere.py:brevity": "there is no file nowhere.py; write",
    "sft.source=token_chat.jsonl": r"token_chat.jsonl, line 2 contains <\|im_end\|>, which .*; remove",
    "reward.source=token_pairs.jsonl": r"token_pairs.jsonl, line 2 contains <\|im_end\|>, which .*; remove",
    "dpo.source=token_pairs.jsonl": r"token_pairs.jsonl, line 2 contains <\|im_end\|>, which .*; remove",
    "ppo.source=token_prompts.jsonl": r"token_prompts.jsonl, line 2 contains <\|im_end\|>, which .*; remove",
    "grpo.source=token_prompts.jsonl": r"token_prompts.jsonl, line 2 contains <\|im_end\|>, which .*; remove",
    "evaluate.stride=65": "evaluate.stride 65 would skip text between windows of 64 tokens; choose",
}


@pytest.mark.parametrize("assignment", MISSING)
def test_what_will_be_missing_is_one_line_before_the_first_step(files: Path, assignment: str) -> None:
    with pytest.raises(UserError, match=MISSING[assignment]):
        check(files, assignment)


def test_the_special_tokens_are_those_of_the_tokenizer_that_is_loaded(files: Path) -> None:
    Path("names.jsonl").write_text(json.dumps({"prompt": "a <|pad|>"}))
    check(files, "tokenizer.load=chatml.json", "grpo.source=names.jsonl")
    with pytest.raises(UserError, match=r"names.jsonl, line 1 contains <\|pad\|>"):
        check(files, "grpo.source=names.jsonl")


LONG = "word " * 300
TOO_LONG = {
    "sft": (
        {"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "Yes"}]},
        "first reply",
    ),
    "reward": (PAIR | {"chosen": LONG}, "the chosen completion has"),
    "dpo": (PAIR | {"prompt": LONG}, "the prompt has"),
    "ppo": ({"prompt": LONG}, "the prompt of"),
    "grpo": ({"prompt": LONG}, "the prompt of"),
}


@pytest.mark.parametrize("stage", TOO_LONG)
def test_with_a_finished_tokenizer_records_are_measured_before_the_first_stage(
    tmp_path: Path, stage: str
) -> None:
    record, message = TOO_LONG[stage]
    good = CHAT if stage == "sft" else PAIR
    source = tmp_path / "records.jsonl"
    source.write_text("\n".join(map(json.dumps, (good, record))))
    run = RunFolder("v2", load_settings("smoke", [f"{stage}.source={source}"]), tmp_path / "run")
    train_bpe(["a word"], 280, special_tokens=SPECIAL_TOKENS).save(run.path / "tokenizer")
    stages = list(STAGES)[list(STAGES).index("pretrain") :]
    with pytest.raises(UserError, match=rf"records.jsonl, line 2\b.*{message}.*; shorten"):
        check_needs(run, stages, load_tokenizer)
    # The stage itself measures what is its own, and a tokenizer that is still to be trained measures nothing.
    check_needs(run, [stage], load_tokenizer)
    check_needs(run, list(STAGES), load_tokenizer)
    source.write_text(json.dumps(good))
    check_needs(run, stages, load_tokenizer)


def test_a_setting_that_goes_with_another_is_checked_with_it(files: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate.split is test, but data.test_fraction = 0 .*; raise"):
        check(files, "data.source=text.txt", "data.test_fraction=0")
    with pytest.raises(UserError, match="no module is called 'v_prej'; correct it, for example to v_proj"):
        check(files, "sft.adapter.method=lora", 'sft.adapter.target_modules=["q_proj", "v_prej"]')
    check(files, "sft.adapter.method=lora", 'sft.adapter.target_modules=["q_proj", "self_attn.v_proj"]')
    for assignment in ("device=cuda", "device=mps"):
        with pytest.raises(UserError, match="is not for level 3, which is NumPy on the CPU; use"):
            check(files, assignment, level="v3")
    with pytest.raises(UserError, match=r"in 32 bits only; use --set sft.bf16=false"):
        check(files, "sft.bf16=true", level="v3")


def test_nothing_is_checked_for_stages_that_are_not_done(files: Path) -> None:
    check(files, *MISSING, stages=[])
    check(files, "sft.source=nowhere.jsonl", stages=["data", "tokenizer", "pretrain"])


def test_the_apple_gpu_is_a_device_like_others(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for level in ("v1", "v2"):
        run = RunFolder(level, load_settings("smoke", ["device=mps"]), files)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        check_needs(run, ["data"])
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(UserError, match=r"device 'mps' is not there .*Apple.*; use --device cpu"):
            check_needs(run, ["data"])


def test_a_library_or_compiler_that_is_not_installed_is_named(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        UserError, match=r"pretrain.torch_compile needs a C\+\+ compiler, and there is none; install"
    ):
        check(files, "pretrain.torch_compile=true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="v2 needs torch, which is not installed; run `uv sync --extra v2`"):
        check(files)
