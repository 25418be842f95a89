"""Level 2: the stage and the command `generate`, and the stream of text."""

import json
from pathlib import Path

import pytest
from v2_handwritten.inference.streaming import TextStream

from shared_data.errors import UserError
from shared_data.runs import RunFolder
from tests.parity.inference_cases import small_run
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer
from v2_handwritten.inference import generate as module
from v2_handwritten.inference.generate import encode_prompt, generate_command, generate_samples


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return small_run(tmp_path_factory.mktemp("run"))


def test_the_stage_keeps_its_samples_and_measures_them(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STORIES", 3)
    metrics = generate_samples(run.settings, run)
    samples = json.loads((run.stage("generate") / "samples.json").read_text())
    assert [sample["prompt"] for sample in samples] == run.settings.generate.prompts
    assert metrics["samples"] == len(samples) == 3
    assert metrics["tokens"] == sum(sample["tokens"] for sample in samples)
    assert metrics["consistent_story_ratio"] == 0, "an untrained model tells no story"
    assert metrics["tokens_per_second"] > 0


def test_the_command_writes_prompt_and_continuation_piece_by_piece(run: RunFolder) -> None:
    written: list[str] = []
    generate_command(run.settings, run, ["Once upon", ""], None, True, written.append)
    again: list[str] = []
    generate_command(run.settings, run, ["Once upon", ""], run.model(), False, again.append)
    assert "".join(written) == "".join(again), "with and without cache, from the run and from its folder"
    assert written[0] == "Once upon"
    assert len(written) > 16, "a piece for each token"
    assert written.count("\n") <= sum(piece.endswith("\n") for piece in written)


def test_the_command_says_when_the_positions_are_full(run: RunFolder) -> None:
    section = run.settings.generate.model_copy(update={"max_new_tokens": 200, "temperature": 0.0})
    written: list[str] = []
    generate_command(
        run.settings.model_copy(update={"generate": section}), run, ["Once"], None, True, written.append
    )
    assert written[-1] == "[stopped: the text fills all 64 positions of the model]\n"


def test_a_prompt_longer_than_the_model_is_named(run: RunFolder) -> None:
    with pytest.raises(UserError, match="leaves no room in the model's 64 positions; shorten it"):
        generate_command(run.settings, run, ["zebra " * 40], None, True, print)


def test_a_checkpoint_that_is_not_there_is_named(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config"):
        generate_command(run.settings, run, ["Once"], tmp_path, True, print)


def test_a_prompt_begins_as_a_document_does(run: RunFolder) -> None:
    tokenizer = Tokenizer.load(run.tokenizer)
    end = tokenizer.end_of_text_id
    assert encode_prompt(tokenizer, "") == [end]
    assert encode_prompt(tokenizer, "Once") == [end, *tokenizer.encode("Once")]
    assert encode_prompt(tokenizer, "<|endoftext|>Once") == [end, *tokenizer.encode("Once")]


def test_a_stream_holds_back_half_characters_and_loses_nothing(run: RunFolder) -> None:
    tokenizer = Tokenizer.load(run.tokenizer)
    text = "Zoë ate 三 crêpes 🙂👩‍🚀 and <|endoftext|> left."
    ids = tokenizer.encode(text)
    assert any("\ufffd" in tokenizer.decode([id]) for id in ids), "some tokens end inside a character"
    stream = TextStream(tokenizer)
    pieces = [stream.add(id) for id in ids]
    assert "".join(pieces) + stream.finish() == text.replace("<|endoftext|>", "")
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_stream_that_ends_inside_a_character_shows_that(run: RunFolder) -> None:
    tokenizer = Tokenizer.load(run.tokenizer)
    ids = tokenizer.encode("on 🙂")[:-1]
    stream = TextStream(tokenizer)
    assert "".join(stream.add(id) for id in ids) == "on "
    assert stream.finish() == "\ufffd" == tokenizer.decode(ids)[-1]
