"""The command `v2 look` on a small model: what it prints, the picture it draws, and what it says of a mistake."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shared_data.settings import SPECIAL_TOKENS
from v2_handwritten.cli import app
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.data_pipeline.tokenizer.tokenizer import load_tokenizer
from v2_handwritten.inference.inspection import selected_rows
from v2_handwritten.models.blocks import sparse_indexer
from v2_handwritten.models.blocks.sparse_indexer import selected_keys
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.transformer import ModelConfig, Transformer, new_model

Look = Callable[..., int]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Run `v2 look` in an empty folder beside the folder `model`; the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    tokenizer = train_bpe(["Once there was a fox. Once there was a cat."], 280, special_tokens=SPECIAL_TOKENS)
    tokenizer.save(tmp_path / "model")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=tokenizer.end_of_text_id,
        eos_token_id=tokenizer.end_of_text_id,
    )
    save_model(new_model(config), tmp_path / "model")

    def run(*words: str) -> int:
        try:
            app(["look", *words])
        except SystemExit as leave:
            return int(leave.code or 0)
        return 0

    return run


def test_tokens_predictions_and_every_map_are_shown_and_drawn(
    look: Look, capsys: pytest.CaptureFixture[str]
) -> None:
    assert look("Once there was 狐", "--model", "model") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "<|endoftext|>│Once│ there│ was│ │<0xE7>│<0x8B>│<0x90>" in out
    assert re.search(r"^  3 ␣was +<1%( +\S+ +(<?\d+)%){5}$", out, re.MULTILINE)
    assert len(re.findall(r"^layer \d +head 0 +head 1$", out, re.MULTILINE)) == 2
    assert not re.search("[ĠĊçĭĲ]", out), "no letters of bytes"
    (picture,) = Path("runs/v2/tiny/look").iterdir()
    assert out.splitlines()[-1].split() == ["picture:", str(picture)]
    text = picture.read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    for name in ("layer 0, head 0", "layer 1, head 1", "␣there", "&lt;0xE7&gt;"):
        assert f">{name}</text>" in text


def test_one_layer_and_head_go_into_the_file_that_was_named(
    look: Look, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--layer", "1", "--head", "0", "--svg", "maps/one.svg"]
    assert look("Once there", "--model", "./model", *options) == 0
    out = capsys.readouterr().out
    assert re.findall(r"layer \d +head \d.*", out) == ["layer 1            head 0"]
    assert re.findall(r">(layer .*)</text>", Path("maps/one.svg").read_text()) == ["layer 1, head 0"]
    assert not Path("runs/v2/tiny/look").exists()


def test_texts_layers_and_models_have_pictures_of_their_own(look: Look) -> None:
    for words in (["Once"], ["Once", "--layer", "1"], ["a fox, a fox!"]):
        assert look(*words, "--model", "model", "--out", "run") == 0
    names = {path.name for path in Path("run/look").iterdir()}
    assert names == {"model-Once.svg", "model-Once-layer-1.svg", "model-a-fox-a-fox.svg"}


def test_patterns_of_a_model_and_others_of_equal_cost_are_a_table(
    look: Look, capsys: pytest.CaptureFixture[str]
) -> None:
    assert look("--patterns", "--model", "model") == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert re.fullmatch(
        r"\d+ held-out questions that their story answers; a prompt has \d+ tokens .*", lines[0]
    )
    assert "full_attention, layers 0, 1 100.0% 100.0% 100.0% 100.0%" in lines
    windows = [line.split() for line in lines if line.startswith("sliding_attention")]
    kept = [[float(share.rstrip("%")) for share in shares] for _, _, *shares in windows]
    assert [pairs for pairs, *_ in kept] == pytest.approx([50, 25, 12.5], abs=0.3)
    assert kept == sorted(kept, reverse=True), "a smaller window keeps less"
    assert not [path for path in Path("runs").rglob("*") if path.is_file()]


def selected_by_the_layer(model: Transformer, ids: list[int]) -> list[bool]:
    """Which keys the attention of the last layer gets from its indexer for the last token."""
    with pytest.MonkeyPatch.context() as patch:
        found = []

        def record(*arguments: Any) -> torch.Tensor:
            found.append(selected_keys(*arguments))
            return found[-1]

        patch.setattr(sparse_indexer, "selected_keys", record)
        model.eval()(torch.tensor([ids]))
    return [place in found[0][0, -1] for place in range(len(ids))]


def test_what_an_indexer_selects_is_measured_beside_the_patterns(
    look: Look, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(Path("model"))
    config = ModelConfig(
        model_type="sparse_llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        layer_types=["full_attention", "indexed_attention"],
        index_topk=8,
        index_n_heads=2,
        index_head_dim=8,
        initializer_range=0.2,
        eos_token_id=tokenizer.end_of_text_id,
    )
    model = new_model(config)
    ids = tokenizer.encode("Once there was a fox. Once there was a cat.")
    (row,) = selected_rows(model, ids).values()
    assert (len(row), row.sum()) == (len(ids), 8)
    assert row.tolist() == selected_by_the_layer(model, ids)
    save_model(model, Path("indexed"), Path("model"))
    assert look("--patterns", "--model", "indexed") == 0
    out = capsys.readouterr().out
    learned = re.search(r"indexer 8, layer 1 +(\S+)% +(\S+)% +(\S+)% +(\S+)%", out)
    window = re.search(r"sliding_attention 8 +(\S+)% +(\S+)%", out)
    assert learned is not None
    assert window is not None
    assert learned.groups()[:2] == window.groups(), "as many pairs, and as many keys"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["", "--model", "model"], "the text is empty; pass a sentence in quotes"),
        (["a", "--model", "model", "--layer", "2"], "the model has no layer 2; choose one of 0 to 1"),
        (["a", "--model", "model", "--head", "-1"], "the model has no head -1; choose one of 0 to 1"),
        (
            ["fox " * 40, "--model", "model"],
            r"\d+ tokens are more than the model's 32 positions; shorten the text",
        ),
        (
            ["a"],
            r"no model in runs/v2/tiny/pretrain; run `uv run v2 run` first, or name a folder with --model",
        ),
        (["a", "--model", "nowhere"], "there is no model 'nowhere'; name a stage"),
        (["a", "--model", "model", "--svg", "a.txt"], "a.txt is no name of an SVG file; let it end in .svg"),
        (["a", "--model", "model", "--svg", "model/config.json/a.svg"], r"File exists; .*another folder"),
        ([], "Missing argument 'TEXT'; see `.* --help`"),
        (["a", "--patterns"], "--patterns takes no text; its questions are those of the story world"),
        (["--patterns"], r"tokenizer.json is missing; run the stage that writes it"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str], line: str, look: Look, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert look(*words) == 2
    err = capsys.readouterr().err
    assert re.match(f"error: .*{line}", err)
    assert err.count("\n") == 1
    assert [path for path in sorted(Path().rglob("*")) if path.is_file()] == [
        path for path in before if path.is_file()
    ]
