"""What surrounds generation: the stage and the command `generate` at levels 2 and 3, prompts as ids, and the stream of text."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from shared_data.errors import UserError
from shared_data.inference import commands
from shared_data.inference.options import chosen_settings
from shared_data.inference.prompts import encode_prompt
from shared_data.inference.sample_prompts import STORY_PROMPTS
from shared_data.inference.streaming import TextStream
from shared_data.runs import RunFolder
from shared_data.settings import Settings, load_settings
from tests.parity.inference_cases import small_run
from v2_handwritten.data_pipeline.tokenizer.tokenizer import load_tokenizer
from v2_handwritten.inference import generate as v2
from v2_handwritten.models.checkpoint import load_model
from v3_numpy_deep.inference import generate as v3

LEVELS = pytest.mark.parametrize("level", [v2, v3], ids=["v2", "v3"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def tokenizers(run: RunFolder) -> list[Any]:
    """Ours, and the library's of the same file."""
    return [load_tokenizer(run.tokenizer), AutoTokenizer.from_pretrained(run.tokenizer.parent)]


@LEVELS
def test_the_stage_keeps_its_samples_and_measures_them(
    level: Any, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "STORIES", 3)
    metrics = level.generate_samples(run.settings, run)
    samples = json.loads((run.stage("generate") / "samples.json").read_text())
    assert [sample["prompt"] for sample in samples] == STORY_PROMPTS
    assert metrics["samples"] == len(samples) == 3
    assert metrics["tokens"] == sum(sample["tokens"] for sample in samples)
    assert metrics["consistent_story_ratio"] == 0, "an untrained model writes no story"
    assert metrics["tokens_per_second"] > 0
    if level is v2:
        assert ">layer 0, head 1</text>" in (run.stage("generate") / "attention.svg").read_text()


@LEVELS
def test_the_command_writes_prompt_and_continuation_piece_by_piece(level: Any, run: RunFolder) -> None:
    written: list[str] = []
    level.generate_command(run.settings, run, ["Once upon", ""], "pretrain", True, written.append)
    again: list[str] = []
    level.generate_command(run.settings, run, ["Once upon", ""], run.model("pretrain"), False, again.append)
    assert "".join(written) == "".join(again), "with and without cache, from the run and from its folder"
    assert written[0] == "Once upon"
    assert len(written) > 16, "a piece for each token"
    assert written.count("\n") <= sum(piece.endswith("\n") for piece in written)


def test_the_command_says_when_the_positions_are_full(run: RunFolder) -> None:
    section = run.settings.generate.model_copy(update={"max_new_tokens": 200, "temperature": 0.0})
    settings, written = run.settings.model_copy(update={"generate": section}), list[str]()
    v2.generate_command(settings, run, ["Once"], "pretrain", True, written.append)
    assert written[-1] == "[stopped: the text fills all 64 positions of the model]\n"


@LEVELS
def test_the_command_stops_before_a_stop_string(
    level: Any, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is written is the text without one, up to it; where the limit ended a text, a line on stderr says so."""
    command = partial(
        level.generate_command, run=run, prompts=["Once"], model_name="pretrain", use_cache=True
    )
    free: list[str] = []
    command(with_generate(run.settings), write=free.append)
    assert capsys.readouterr().err == "[stopped after 8 tokens; --max-new-tokens raises the limit]\n"
    text = "".join(free).removeprefix("Once")
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    cut: list[str] = []
    command(with_generate(run.settings, stop_strings=[stop]), write=cut.append)
    assert "".join(cut) == "Once" + text.partition(stop)[0] + "\n"
    assert capsys.readouterr().err == ""
    model, tokenizer = level.load_with_tokenizer(run.settings, run, "pretrain")
    prompt = encode_prompt(model, tokenizer, "Once")
    (ids,) = level.generate(model, [prompt], max_new_tokens=8, stop_strings=[stop], tokenizer=tokenizer)
    command(with_generate(run.settings, stop_strings=[stop], max_new_tokens=len(ids)), write=cut.append)
    assert capsys.readouterr().err == "", "it ended by itself, with the last token allowed"


@LEVELS
def test_the_command_writes_what_a_beam_search_has_found(level: Any, run: RunFolder) -> None:
    written: list[str] = []
    settings = with_generate(run.settings, num_beams=3)
    level.generate_command(settings, run, ["Once"], "pretrain", True, written.append)
    model, tokenizer = level.load_with_tokenizer(settings, run, "pretrain")
    ids = encode_prompt(model, tokenizer, "Once")
    (new_ids,) = level.generate(model, [ids], max_new_tokens=8, num_beams=3)
    assert "".join(written) == "Once" + tokenizer.decode(new_ids, skip_special_tokens=True) + "\n"


def with_generate(settings: Settings, **values: Any) -> Settings:
    """Greedy, but for these settings."""
    section = settings.generate.model_copy(update={"temperature": 0.0} | values)
    return settings.model_copy(update={"generate": section})


def test_samples_end_before_a_stop_string_and_are_finished(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "STORIES", 3)
    samples = run.stage("generate") / "samples.json"
    v2.generate_samples(with_generate(run.settings, temperature=1.0, seed=2), run)
    free = json.loads(samples.read_text())[1]
    stop = free["text"][2:4]
    stopping = RunFolder(
        "v2", with_generate(run.settings, temperature=1.0, seed=2, stop_strings=[stop]), run.path
    )
    v2.generate_samples(stopping.settings, stopping)
    cut = json.loads(samples.read_text())[1]
    assert cut["text"] == free["text"].partition(stop)[0]
    assert cut["finished"]
    assert cut["tokens"] < free["tokens"]


@pytest.mark.parametrize(
    ("overrides", "options", "assignments"),
    [
        ([], {"min_p": 0.1, "seed": None}, ["generate.min_p=0.1"]),
        ([], {"stop_strings": ["\n\n", 'a "b"']}, [r'generate.stop_strings=["\n\n", "a \"b\""]']),
        ([], {"num_beams": 4}, ["generate.temperature=0", "generate.num_beams=4"]),
        ([], {"num_beams": 4, "temperature": 0.5}, ["generate.temperature=0.5", "generate.num_beams=4"]),
        (["generate.temperature=1"], {"num_beams": 4}, ["generate.temperature=1", "generate.num_beams=4"]),
        ([], {"num_beams": 1}, ["generate.num_beams=1"]),
    ],
)
def test_options_are_settings_and_beams_are_greedy(
    overrides: list[str], options: dict[str, Any], assignments: list[str]
) -> None:
    assert chosen_settings(overrides, **options) == assignments
    if "stop_strings" in options:
        assert load_settings("smoke", assignments).generate.stop_strings == options["stop_strings"]


@LEVELS
def test_what_cannot_be_continued_is_named(level: Any, run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leaves no room in the model's 64 positions; shorten it"):
        level.generate_command(run.settings, run, ["zebra " * 40], "pretrain", True, print)
    with pytest.raises(UserError, match="config"):
        level.generate_command(run.settings, run, ["Once"], tmp_path, True, print)


def test_a_prompt_begins_as_a_document_does(run: RunFolder, tokenizers: list[Any]) -> None:
    model = load_model(run.model("pretrain"))
    for tokenizer in tokenizers:
        words = tokenizer.encode("Once", add_special_tokens=False)
        assert encode_prompt(model, tokenizer, "") == [0]
        assert encode_prompt(model, tokenizer, "Once") == [0, *words]
        chatting = SimpleNamespace(
            config=SimpleNamespace(bos_token_id=2)
        )  # <|im_start|> begins a turn, no document
        assert encode_prompt(chatting, tokenizer, "Once") == words
        for typed in ("<|endoftext|>Once", "Once<|im_end|>"):  # what a user types is text
            ids = encode_prompt(model, tokenizer, typed)
            assert ids.count(0) == 1
            assert tokenizer.decode(ids[1:]) == typed


def test_a_stream_holds_back_half_characters_and_loses_nothing(tokenizers: list[Any]) -> None:
    text = "Zoë ate 三 crêpes 🙂👩‍🚀 and <|endoftext|> left."
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text)
        assert any("\ufffd" in tokenizer.decode([id]) for id in ids), "some tokens end inside a character"
        stream = TextStream(tokenizer)
        pieces = [stream.add(id) for id in ids]
        assert "".join(pieces) + stream.finish() == text.replace("<|endoftext|>", "")
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_stream_that_ends_inside_a_character_shows_that(tokenizers: list[Any]) -> None:
    for tokenizer in tokenizers:
        ids = tokenizer.encode("on 🙂")[:-1]
        stream = TextStream(tokenizer)
        assert "".join(stream.add(id) for id in ids) == "on "
        assert stream.finish() == "\ufffd" == tokenizer.decode(ids)[-1]
