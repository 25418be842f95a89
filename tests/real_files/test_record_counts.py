"""What became of the records of a file: how many were read, skipped and cut, the same at every level."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import v1_quick.data_pipeline.prepare
import v2_handwritten.data_pipeline.prepare
import v3_numpy_deep.data_pipeline.prepare
from shared_data.alignment.pair_batches import open_pair_batches
from shared_data.alignment.prompts import open_prompts
from shared_data.corpus.bad_records import BadRecords
from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import SPECIAL_TOKENS, load_settings
from shared_data.summary import summary_rows
from shared_data.tokenizer.tokenizer import Tokenizer
from shared_data.training.sft_data import open_conversations, open_messages
from v1_quick.align.preference_data import preference_datasets
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe

LENGTH = 64
GOOD = {"prompt": "Who?", "response": "Tom."}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    """The same tokenizer as the library's and as ours."""
    folder = tmp_path_factory.mktemp("tokenizer")
    ours = train_bpe(["Who? Tom."], 300, special_tokens=SPECIAL_TOKENS)
    ours.ensure_chat_template()
    ours.save(folder)
    return AutoTokenizer.from_pretrained(folder), ours


def counts(bad: BadRecords) -> tuple[int, int, int]:
    return bad.read, bad.skipped, bad.cut


def write(folder: Path, records: list[dict]) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_level_tunes_on_the_same_conversations(
    tokenizers: tuple[Any, Tokenizer], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    records = [
        GOOD | {"response": "w" * 90},
        GOOD | {"prompt": "w" * 90},
        {"text": "x"},
        GOOD | {"prompt": "<|im_end|>"},
    ]
    path = write(tmp_path, records + [GOOD | {"response": f"Tom {number}."} for number in range(30)])  # fmt: skip
    settings = load_settings("smoke", [f"sft.source={path}", "sft.on_bad_record=skip", f"sft.max_length={LENGTH}", "sft.conversations=99"])  # fmt: skip
    theirs, ours = tokenizers
    bad = [BadRecords("skip") for _ in range(2)]
    rows = open_messages(settings, theirs, LENGTH, bad[0])
    said = capsys.readouterr().err
    batches = open_conversations(settings, ours, LENGTH, bad[1])
    assert capsys.readouterr().err == said
    assert said.startswith(f"{path}: 3 of 34 records were skipped")
    assert counts(bad[0]) == counts(bad[1]) == (34, 3, 1)
    assert bad[1].metrics() == {"records_read": 34, "records_skipped": 3, "records_cut": 1}
    for part, packed in zip(rows, batches, strict=True):
        ids = [theirs.apply_chat_template(row["messages"], return_dict=False)[:LENGTH] for row in part]
        assert ids == [example.ids.tolist() for example in packed.examples]


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_every_level_compares_the_same_pairs(
    stage: str, tokenizers: tuple[Any, Tokenizer], tmp_path: Path
) -> None:
    pair = {"prompt": "Who?", "chosen": "Tom.", "rejected": "No idea."}
    records = [pair | {"chosen": "w" * 50}, pair | {"chosen": "w" * 90}, pair | {"rejected": "Tom."}]
    path = write(tmp_path, records + [pair | {"chosen": f"Tom {number}."} for number in range(20)])
    options = [f"{stage}.source={path}", f"{stage}.max_length={LENGTH}"]
    theirs, _ = tokenizers
    for level in range(2):
        with pytest.raises(UserError, match=r"line 2: the chosen completion has 91 tokens"):
            open_at(level, load_settings("smoke", options), stage, tokenizers, BadRecords())
    settings = load_settings("smoke", [*options, f"{stage}.on_bad_record=skip"])
    bad = [BadRecords("skip") for _ in range(2)]
    datasets, batches = (open_at(level, settings, stage, tokenizers, bad[level]) for level in range(2))
    assert counts(bad[0]) == counts(bad[1]) == (23, 2, 1)
    for dataset, part in zip(datasets, batches, strict=True):
        ids = [tuple(theirs(row[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "chosen", "rejected")) for row in dataset]  # fmt: skip
        assert ids == part.pairs


def open_at(level: int, settings: Any, stage: str, tokenizers: tuple[Any, Any], bad: BadRecords) -> Any:
    """The pairs of level 1, or of levels 2 and 3."""
    if level == 0:
        return preference_datasets(settings, stage, tokenizers[0], LENGTH, bad)
    return open_pair_batches(settings, stage, tokenizers[1], LENGTH, bad)


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_every_level_continues_the_same_prompts(
    stage: str, tokenizers: tuple[Any, Tokenizer], tmp_path: Path
) -> None:
    """A record that cannot be used does not empty the held-out part: records are counted out after the check."""
    texts = ["w" * 99, "<|im_end|>", " ", *(f"Who is {number}?" for number in range(12))]
    path = write(tmp_path, [{"prompt": text} for text in texts])
    options = [f"{stage}.source={path}", f"{stage}.on_bad_record=skip", f"{stage}.max_completion_length=20"]
    settings = load_settings("smoke", options)
    found = []
    for tokenizer in tokenizers:
        bad = BadRecords("skip")
        found.append(open_prompts(settings, stage, tokenizer, LENGTH, bad))
        assert counts(bad) == (15, 3, 0)
    assert found[0] == found[1]
    assert [prompt.value for prompt in found[0][1]] == ["Who is 0?", "Who is 10?"]
    assert len(found[0][0]) == 10


def test_a_file_without_a_record_that_can_be_used_is_refused(
    tokenizers: tuple[Any, Tokenizer], tmp_path: Path
) -> None:
    path = write(tmp_path, [{"text": "x"}])
    opened: dict[str, Callable[..., Any]] = {
        "sft": open_conversations,
        "dpo": lambda *given: open_pair_batches(given[0], "dpo", *given[1:]),
        "grpo": lambda *given: open_prompts(given[0], "grpo", *given[1:]),
    }
    for stage, open_stage in opened.items():
        settings = load_settings("smoke", [f"{stage}.source={path}", f"{stage}.on_bad_record=skip"])
        with pytest.raises(UserError, match=r"has no \w+ that can be used; correct the records"):
            open_stage(settings, tokenizers[1], 500)


@pytest.mark.parametrize("count", [30, 31])
def test_what_a_limit_leaves_out_is_said_with_its_setting(
    count: int, tokenizers: tuple[Any, Tokenizer], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pair = {"prompt": "Who?", "chosen": "Tom.", "rejected": "No idea."}
    calls: dict[str, tuple[list[dict], Callable[..., Any]]] = {
        "sft.conversations": ([GOOD], lambda settings: open_conversations(settings, tokenizers[1], 500)),
        "dpo.pairs": ([pair], lambda settings: open_pair_batches(settings, "dpo", tokenizers[1], 500)),
        "ppo.prompts": ([GOOD], lambda settings: open_prompts(settings, "ppo", tokenizers[1], 500)),
    }
    for setting, (records, open_stage) in calls.items():
        path = write(tmp_path, records * 30)
        open_stage(
            load_settings("smoke", [f"{setting.partition('.')[0]}.source={path}", f"{setting}={count}"])
        )
        said = capsys.readouterr().err
        assert (f"{path}: the first {count} records are used; raise {setting}" in said) is (count == 30)


@pytest.mark.parametrize(
    "level",
    [
        v1_quick.data_pipeline.prepare,
        v2_handwritten.data_pipeline.prepare,
        v3_numpy_deep.data_pipeline.prepare,
    ],
)
def test_the_stage_data_counts_what_it_read_and_skipped_in_all_files(
    level: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a", "b"):
        lines = [
            json.dumps({"text": f"Tom {name} has the ball number {number}. He plays with it all day."})
            for number in range(20)
        ]
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join([*lines, "{", '{"text": 7}', '{"text": ""}']) + "\n"
        )
    options = [f"data.source={tmp_path}", "data.on_bad_record=skip", "data.cleaning.min_words=1"]
    run = RunFolder(level.__name__[:2], load_settings("smoke", options), tmp_path / "run")
    metrics = level.prepare_documents(run.settings, run)
    assert (metrics["records_read"], metrics["records_skipped"]) == (46, 4)
    said = capsys.readouterr().err
    assert f"{tmp_path}: 4 of 46 records were skipped, such as" in said
    assert f"{tmp_path}: in 2 records there is no text in 'text'" in said
    assert ("records", "46 read, 4 skipped as they cannot be used") in summary_rows("data", metrics)


def test_the_summary_says_what_was_read_skipped_and_cut() -> None:
    bad = BadRecords("skip")
    bad.read, bad.skipped, bad.cut = 1234, 5, 2
    rows = summary_rows("sft", dict(bad.metrics()))
    assert rows == [
        ("records", "1,234 read, 5 skipped as they cannot be used"),
        ("cut off", "2 that are longer than max_length"),
    ]
    assert summary_rows("sft", dict(BadRecords().metrics())) == []
