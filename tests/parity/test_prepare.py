"""The stages `data` and `tokenizer`: the same documents and tokens at every level, scored against the truth."""

import importlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from transformers import AutoTokenizer

from shared_data.corpus.splits import SPLITS, read_documents
from shared_data.corpus.token_files import encode_split
from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import Settings, load_settings
from shared_data.story_world import StoryWorld

LEVELS = ["v1_quick", "v2_handwritten", "v3_numpy_deep"]
BY_HAND = LEVELS[1:]


def prepare(level: str) -> ModuleType:
    return importlib.import_module(f"{level}.data_pipeline.prepare")


def new_run(level: str, folder: Path, *overrides: str) -> tuple[Settings, RunFolder]:
    settings = load_settings("smoke", list(overrides))
    return settings, RunFolder(level[:2], settings, folder)


def records(run: RunFolder, split: str) -> list[dict]:
    return [json.loads(line) for line in run.documents(split).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[RunFolder, dict, dict]]:
    """Both stages of the smoke configuration at a level, done once."""
    done: dict[str, tuple[RunFolder, dict, dict]] = {}

    def finish(level: str) -> tuple[RunFolder, dict, dict]:
        if level not in done:
            settings, run = new_run(level, tmp_path_factory.mktemp(level))
            module = prepare(level)
            done[level] = (run, module.prepare_documents(settings, run), module.prepare_tokens(settings, run))
        return done[level]

    return finish


def test_every_level_writes_the_same_documents_and_tokens(finished, parity) -> None:
    run_v2, documents_v2, tokens_v2 = finished("v2_handwritten")
    for level in ("v1_quick", "v3_numpy_deep"):
        run, documents, tokens = finished(level)
        for split in SPLITS:
            assert run.documents(split).read_bytes() == run_v2.documents(split).read_bytes()
            sidecars = [json.loads(r.tokens(split).with_suffix(".json").read_text()) for r in (run, run_v2)]
            assert sidecars[0] == sidecars[1]
            parity(
                component="prepare",
                quantity=f"token file, {split}",
                levels=f"{level[:2]}-v2",
                actual=np.fromfile(run.tokens(split), np.uint16),
                expected=np.fromfile(run_v2.tokens(split), np.uint16),
                tolerance=0.0,
            )
        assert tokens == tokens_v2
        counted = [
            {k: v for k, v in m.items() if not k.startswith(("repaired_", "zipf"))}
            for m in (documents, documents_v2)
        ]
        assert counted[0] == counted[1]


@pytest.mark.parametrize("level", LEVELS)
def test_cleaning_and_deduplication_are_right_on_99_percent(level: str, finished, tmp_path: Path) -> None:
    settings, run = new_run(level, tmp_path, "data.max_megabytes=1", "data.dirt_fraction=0.5", "data.seed=3")
    metrics = prepare(level).prepare_documents(settings, run)
    for name in ("cleaning", "deduplication"):
        assert metrics[f"{name}_precision"] >= 0.99
        assert metrics[f"{name}_recall"] >= 0.99
    assert metrics["dropped_by_cleaning"] > 300
    assert metrics["documents_repaired"] > 300
    assert min(metrics["dropped_exact_duplicates"], metrics["dropped_near_duplicates"]) > 60
    report = json.loads((run.stage("data") / "report.json").read_text())
    assert sum(report["cleaning"]["dropped"].values()) == metrics["dropped_by_cleaning"]
    for plot in ("lengths", "zipf", "dropped", "repairs"):
        assert (run.stage("data") / f"{plot}.svg").read_text().startswith("<?xml")


def test_the_score_notices_what_was_done_wrong(tmp_path: Path) -> None:
    """With repairs and rules switched off, precision or recall fall: the measure measures."""
    settings, run = new_run(
        "v3_numpy_deep", tmp_path / "a", "data.cleaning.enabled=false", "data.deduplication.near=false"
    )
    blind = prepare("v3_numpy_deep").prepare_documents(settings, run)
    assert blind["cleaning_recall"] == 0
    assert 0.2 < blind["deduplication_recall"] < 0.8
    settings, run = new_run(
        "v3_numpy_deep", tmp_path / "b", "data.cleaning.min_words=100", "data.deduplication.threshold=0.05"
    )
    harsh = prepare("v3_numpy_deep").prepare_documents(settings, run)
    assert harsh["cleaning_precision"] < 0.8
    assert harsh["deduplication_precision"] < 0.8


@pytest.mark.parametrize("level", BY_HAND)
def test_held_out_stories_are_clean_and_carry_their_exact_probability(level: str, finished) -> None:
    run, _, tokens = finished(level)
    world = StoryWorld()
    for split in ("validation", "test"):
        kept = records(run, split)
        for record in kept[:5]:
            assert world.log2_probability(record["text"], split) == pytest.approx(
                record["log2_probability"], abs=1e-6
            )
        total_bytes = sum(len(record["text"].encode()) for record in kept)
        total_bits = -sum(record["log2_probability"] for record in kept)
        assert tokens[f"{split}_floor_bits_per_byte"] == pytest.approx(total_bits / total_bytes)
    texts = {record["text"] for record in records(run, "train")}
    assert not texts & {record["text"] for split in ("validation", "test") for record in records(run, split)}


@pytest.mark.parametrize("level", LEVELS)
def test_token_files_hold_every_document_and_end_each(level: str, finished) -> None:
    run, _, _ = finished(level)
    tokenizer = AutoTokenizer.from_pretrained(run.stage("tokenizer"))
    for split in SPLITS:
        described = json.loads(run.tokens(split).with_suffix(".json").read_text())
        ids = np.fromfile(run.tokens(split), described["dtype"])
        texts = [record["text"] for record in records(run, split)]
        assert described["tokens"] == len(ids)
        assert described["documents"] == len(texts) == (ids == described["end_of_text_id"]).sum()
        assert described["bytes"] == sum(len(text.encode()) for text in texts)
        assert tokenizer.decode(ids.tolist()) == "".join(text + "<|endoftext|>" for text in texts)


@pytest.mark.parametrize("level", BY_HAND)
def test_the_same_settings_give_the_same_files_and_another_seed_others(
    level: str, finished, tmp_path: Path
) -> None:
    run, _, _ = finished(level)
    settings, again = new_run(level, tmp_path / "again")
    prepare(level).prepare_documents(settings, again)
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "report.json", "lengths.svg"):
        assert (again.stage("data") / name).read_bytes() == (run.stage("data") / name).read_bytes()
    settings, other = new_run(level, tmp_path / "other", "data.seed=1", "data.max_megabytes=0.05")
    prepare(level).prepare_documents(settings, other)
    assert not {r["text"] for r in records(other, "train")} & {r["text"] for r in records(run, "train")}


def write_user_corpus(path: Path, count: int, shuffle: int | None = None) -> Path:
    """Stories as a user's JSON lines, some of them twice."""
    texts = [story.text for _, story in zip(range(count), StoryWorld().stories(9), strict=False)]
    texts += texts[: count // 10]
    if shuffle is not None:
        random.Random(shuffle).shuffle(texts)
    path.write_text("".join(json.dumps({"story": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def test_a_users_documents_are_split_by_their_text_alike_in_any_order(tmp_path: Path) -> None:
    splits = []
    for number, level in enumerate([*LEVELS, "v3_numpy_deep"]):
        source = write_user_corpus(tmp_path / f"{number}.jsonl", 200, shuffle=number)
        fractions = ("data.validation_fraction=0.1", "data.test_fraction=0.2")
        settings, run = new_run(
            level, tmp_path / str(number), f"data.source={source}", "data.text_field=story", *fractions
        )
        metrics = prepare(level).prepare_documents(settings, run)
        assert "cleaning_precision" not in metrics
        assert metrics["dropped_exact_duplicates"] == 20
        splits.append([frozenset(record["text"] for record in records(run, split)) for split in SPLITS])
    assert all(split == splits[0] for split in splits)
    train, validation, test = splits[0]
    assert len(train | validation | test) == 200 == len(train) + len(validation) + len(test)
    assert 8 <= len(validation) <= 35
    assert 22 <= len(test) <= 60


@pytest.mark.parametrize("level", LEVELS)
def test_a_special_token_typed_in_a_document_stays_text(level: str, tmp_path: Path, finished) -> None:
    settings, run = new_run(level, tmp_path, f"tokenizer.load={finished(level)[0].stage('tokenizer')}")
    shutil.copytree(finished(level)[0].stage("data"), run.path / "data")
    text = "He typed <|endoftext|> twice: <|endoftext|>. "
    run.documents("train").write_text(json.dumps({"id": "0", "text": text * 50}) + "\n")
    prepare(level).prepare_tokens(settings, run)
    ids = np.fromfile(run.tokens("train"), np.uint16)
    end = json.loads(run.tokens("train").with_suffix(".json").read_text())["end_of_text_id"]
    assert (ids == end).sum() == 1
    assert ids[-1] == end


def test_a_large_vocabulary_is_written_in_32_bits(tmp_path: Path, finished) -> None:
    documents = finished("v3_numpy_deep")[0].documents("test")
    for vocab_size, dtype in ((65_536, "uint16"), (65_537, "uint32")):
        described = encode_split(
            documents, tmp_path / "test.bin", lambda texts: np.arange(len(texts)) + 60_000, vocab_size, 0
        )
        assert described["dtype"] == dtype
        ids = np.fromfile(tmp_path / "test.bin", dtype)
        assert np.array_equal(ids, np.arange(described["documents"]) + 60_000)


def test_a_damaged_document_is_named_by_its_line(tmp_path: Path) -> None:
    for line in (b'{"id": "1"}', b'{"id": "1", "text": 3}', b"[1]", b'{"id": "1", "te', b'"\xff"'):
        (tmp_path / "train.jsonl").write_bytes(b'{"id": "0", "text": "fine"}\n' + line)
        with pytest.raises(UserError, match=r"train\.jsonl, line 2, is no document"):
            list(read_documents(tmp_path / "train.jsonl"))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, r"tokenizer\.json of .* cannot be read"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json is not valid JSON .*; it is damaged"),
        ({"tokenizer.json": None}, "names no token that ends a document"),
    ],
)
def test_level_1_refuses_a_tokenizer_that_transformers_cannot_use(
    tmp_path: Path, finished, files: dict, expected: str
) -> None:
    first = finished("v1_quick")[0]
    settings, run = new_run("v1_quick", tmp_path / "run", f"tokenizer.load={tmp_path}/tokenizer.json")
    shutil.copytree(first.stage("data"), run.path / "data")
    for name, content in files.items():
        (tmp_path / name).write_text(content or (first.stage("tokenizer") / name).read_text())
    with pytest.raises(UserError, match=expected):
        prepare("v1_quick").prepare_tokens(settings, run)


@pytest.mark.parametrize("level", LEVELS)
def test_a_trained_tokenizer_can_be_loaded_instead(level: str, tmp_path: Path, finished) -> None:
    first, _, _ = finished(level)
    load = f"tokenizer.load={first.stage('tokenizer')}"
    settings, run = new_run(level, tmp_path, load, "tokenizer.vocab_size=300")  # which training would obey
    shutil.copytree(first.stage("data"), run.path / "data")
    prepare(level).prepare_tokens(settings, run)
    assert run.tokens("train").read_bytes() == first.tokens("train").read_bytes()


@pytest.mark.parametrize("level", BY_HAND)
def test_a_corpus_that_is_too_small_says_what_to_do(level: str, tmp_path: Path, finished) -> None:
    module = prepare(level)
    few = write_user_corpus(tmp_path / "few.jsonl", 2)
    lists = tmp_path / "lists.txt"
    lists.write_text("\n\n".join(f"# {number} #" for number in range(3000)))
    cases = [
        (few, [], "2 documents after cleaning .* too few for 3 splits"),
        (lists, [], r"cleaning dropped all \d+ documents"),
    ]
    for number, (source, overrides, expected) in enumerate(cases):
        settings, run = new_run(
            level, tmp_path / str(number), f"data.source={source}", "data.text_field=story", *overrides
        )
        with pytest.raises(UserError, match=expected):
            module.prepare_documents(settings, run)
        assert not list(run.stage("data").iterdir()), "half a result was left behind"
    long = ("model.max_position_embeddings=65536", "pretrain.sequence_length=65536")
    settings, run = new_run(level, tmp_path / "long", *long)
    shutil.copytree(finished(level)[0].stage("data"), run.path / "data")
    with pytest.raises(UserError, match=r"validation split has [\d,]+ tokens, fewer than one sequence"):
        module.prepare_tokens(settings, run)


MEMORY_PROBE = """
import sys
from pathlib import Path
from shared_data.runs import RunFolder
from shared_data.settings import load_settings
from shared_data.corpus import splits
from v3_numpy_deep.data_pipeline import prepare

splits._draw = lambda *_: None  # plots are as large as the page, whatever the corpus
settings = load_settings("smoke", [f"data.max_megabytes={sys.argv[2]}", "tokenizer.train_megabytes=0.1"])
run = RunFolder("v3", settings, Path(sys.argv[1]))
prepare.prepare_documents(settings, run)
prepare.prepare_tokens(settings, run)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Four megabytes more of text may raise the peak by less than half of that: what deduplication remembers, and noise."""
    peaks = []
    for megabytes in ("0.5", "4.5"):
        command = [sys.executable, "-c", MEMORY_PROBE, str(tmp_path / megabytes), megabytes]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(finished.stdout.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 2.0, f"peaks of {peaks} MB"
