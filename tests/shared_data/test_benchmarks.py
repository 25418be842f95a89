"""Benchmark data as the authors and the hub publish them, few-shot examples, scores, and results on disk."""

import csv
import gzip
import json
import random
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shared_data.benchmarks import formats, prompts
from shared_data.benchmarks.batches import LogLikelihood
from shared_data.benchmarks.evaluation import Files, evaluate_tasks
from shared_data.benchmarks.few_shot import draw_shots
from shared_data.benchmarks.items import MultipleChoiceItem
from shared_data.benchmarks.readers import data_paths, read_split, split_files
from shared_data.benchmarks.results import rounded, write_results
from shared_data.benchmarks.subjects import MMLU
from shared_data.benchmarks.tasks import TASKS, find_tasks
from shared_data.benchmarks.token_requests import TokenRequest
from shared_data.errors import UserError
from shared_data.files import read_json
from shared_data.settings import BenchmarkSettings, DataSettings
from tests.parity import benchmark_cases as published

DATA = DataSettings()


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        published.write_rows(folder / name, [{"a": 1}])
    return folder


def chosen(folder: Path, task: str, split: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in split_files(folder, TASKS[task], split)]


def test_files_of_a_split_are_found_in_the_folders_of_the_authors_and_of_the_hub(tmp_path: Path) -> None:
    arc = touch(
        tmp_path / "arc",
        *(f"ARC-{kind}-{part}.jsonl" for kind in ("Easy", "Challenge") for part in ("Dev", "Test")),
    )
    assert chosen(arc, "arc_easy", "test") == ["ARC-Easy-Test.jsonl"]
    assert chosen(arc, "arc_challenge", "validation") == ["ARC-Challenge-Dev.jsonl"]
    names = (
        "test/law_test.csv",
        "test/professional_law_test.csv",
        "dev/professional_law_dev.csv",
        "test/anatomy_test.csv",
    )
    mmlu = touch(tmp_path / "mmlu", *names)
    assert chosen(mmlu, "mmlu_professional_law", "test") == ["test/professional_law_test.csv"]
    assert chosen(mmlu, "mmlu_anatomy", "test") == ["test/anatomy_test.csv"]
    with pytest.raises(UserError, match=r"no file called test that ends in .*; rename"):  # others' are none
        split_files(mmlu, TASKS["mmlu_virology"], "test")
    with pytest.raises(UserError, match=r"no file called train that ends in .*; rename"):
        split_files(mmlu, TASKS["arc_easy"], "train")
    parts = [f"anatomy/test-0000{n}-of-00002.parquet" for n in range(2)]
    hub = touch(tmp_path / "hub", *parts, "law/test-00000-of-00001.parquet")
    assert chosen(hub, "mmlu_anatomy", "test") == parts
    assert chosen(touch(tmp_path / "piqa", "valid.jsonl", "train.jsonl"), "piqa", "validation") == [
        "valid.jsonl"
    ]


def test_the_files_of_the_authors_give_the_records_of_the_hub(tmp_path: Path) -> None:
    rows = published.arc(3)
    nested = [
        {
            "id": row["id"],
            "question": {
                "stem": row["question"],
                "choices": [
                    {"text": text, "label": label}
                    for text, label in zip(row["choices"]["text"], row["choices"]["label"], strict=True)
                ],
            },
            "answerKey": row["answerKey"],
        }
        for row in rows
    ]
    assert (
        read_split(TASKS["arc_easy"], "test", published.write_rows(tmp_path / "a.jsonl", nested), DATA)
        == rows
    )

    rows = published.mmlu(3)
    path = tmp_path / "anatomy_test.csv"
    with open(path, "w", newline="") as file:  # without a header
        csv.writer(file).writerows([row["question"], *row["choices"], "ABCD"[row["answer"]]] for row in rows)
    packed = tmp_path / "packed_test.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        found = read_split(TASKS["mmlu_anatomy"], "test", file, DATA)
        assert [prompts.mmlu(doc).requests(str, " ") for doc in found] == [
            prompts.mmlu(doc).requests(str, " ") for doc in rows
        ]
        assert [doc["answer"] for doc in found] == [0, 1, 2]

    assert formats.hellaswag(published.hellaswag(1)[0] | {"label": 2})["label"] == "2"
    assert formats.winogrande(published.winogrande(1)[0] | {"answer": 2})["answer"] == "2"
    assert formats.ceval(published.chinese(1)[0] | {"A": 7})["A"] == "7"


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("hellaswag", published.hellaswag(1)[0] | {"label": "4"}, "label '4', which is none of 0, 1, 2, 3"),
        ("hellaswag", published.hellaswag(1)[0] | {"endings": ["one"]}, "1 in 'endings', and a choice needs"),
        ("mmlu_anatomy", published.mmlu(1)[0] | {"answer": 4}, "answer 4, which is none"),
        ("mmlu_anatomy", published.mmlu(1)[0] | {"choices": ["a", "b"]}, "2 choices, not four"),
        (
            "ceval-valid_law",
            published.chinese(1)[0] | {"answer": "E"},
            "answer 'E', which is none of A, B, C, D",
        ),
        ("gsm8k", {"question": "1 + 1?", "answer": "2"}, "without `#### ` before its number"),
        ("winogrande", published.winogrande(1)[0] | {"sentence": "no blank"}, "without the blank"),
        ("winogrande", published.winogrande(1)[0] | {"answer": "3"}, "answer '3', which is none of 1, 2"),
        ("piqa", published.piqa(1)[0] | {"label": -1}, "label -1, which is none of 0, 1"),
        ("lambada_openai", {"text": "  "}, "empty text"),
    ],
)
def test_a_wrong_record_is_named_with_its_file_and_line(
    task: str, row: dict[str, Any], says: str, tmp_path: Path
) -> None:
    right = published.CASES[task][0](1)
    path = published.write_rows(tmp_path / "items.jsonl", [*right, row])
    with pytest.raises(
        UserError, match=rf"items\.jsonl, line 2 has .*{says}.*; correct it, or leave the item of {task} out"
    ):
        read_split(TASKS[task], "test", path, DATA)


def test_labels_of_piqa_stand_in_a_file_beside_it_as_published(tmp_path: Path) -> None:
    rows = published.piqa(3)
    path = published.write_rows(
        tmp_path / "valid.jsonl", [{key: row[key] for key in row if key != "label"} for row in rows]
    )
    (tmp_path / "valid-labels.lst").write_text("".join(f"{row['label']}\n" for row in rows))
    assert read_split(TASKS["piqa"], "validation", tmp_path, DATA) == rows
    (tmp_path / "valid-labels.lst").write_text("1\n0\n")
    with pytest.raises(UserError, match=r"valid-labels\.lst has no label for .*line 3; copy"):
        read_split(TASKS["piqa"], "validation", path, DATA)


def test_rows_of_other_subjects_are_left_out(tmp_path: Path) -> None:
    rows = [
        row | {"subject": name} for row, name in zip(published.mmlu(2), ("anatomy", "virology"), strict=True)
    ]
    path = published.write_rows(tmp_path / "test.jsonl", rows)
    assert data_paths([f"mmlu={path}"])["mmlu_anatomy"] == path
    found = read_split(TASKS["mmlu_virology"], "test", path, DATA)
    assert [row["question"] for row in found] == [rows[1]["question"]]


def test_paths_of_a_group_count_for_its_subjects(tmp_path: Path) -> None:
    paths = data_paths([f"mmlu={tmp_path}", f"arc_easy={tmp_path}"])
    assert len(paths) == 58
    assert [task.name for task in find_tasks(["mmlu_stem", "mmlu_anatomy", "piqa"])] == [
        *(f"mmlu_{name}" for name in MMLU["mmlu_stem"]),
        "piqa",
    ]


def test_shots_are_drawn_as_the_library_draws_them() -> None:
    from lm_eval.api.samplers import ContextSampler, FirstNSampler

    docs = [{"n": n} for n in (0, 1, 2, 3, 4, 2)]
    examples = [MultipleChoiceItem(doc, "", ("a", "b"), 0) for doc in docs]
    for name, sampler, excluded in (
        ("arc_easy", ContextSampler, False),
        ("piqa", ContextSampler, True),  # 2 is there twice
        ("mmlu_anatomy", FirstNSampler, False),
    ):
        assert TASKS[name].excludes_item == excluded
        generator, library = random.Random(5), sampler(docs, rnd=5)
        for _ in range(20):
            for doc, item in zip(docs, examples, strict=True):
                drawn = draw_shots(TASKS[name], item, examples, 3, generator)
                assert [shot.doc for shot in drawn] == library.sample(3, eval_doc=doc if excluded else None)


class FakeHub(BaseHTTPRequestHandler):
    """Answers with these files."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        content = self.files.get(self.path)
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: Any) -> None:
        pass


def test_without_a_path_the_data_come_from_the_hub(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    address = f"http://127.0.0.1:{server.server_port}"
    rows, part = published.arc(3), "/parquet/ARC-Easy/test/0.parquet"
    listing = {"ARC-Challenge": {"test": []}, "ARC-Easy": {"test": [address + part]}}
    FakeHub.files = {
        "/api/datasets/allenai/ai2_arc/parquet": json.dumps(listing).encode(),
        part: published.write_rows(tmp_path / "0.parquet", rows).read_bytes(),
    }
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        data = DataSettings(hub_endpoint=address, hub_cache=str(tmp_path / "cache"))
        assert read_split(TASKS["arc_easy"], "test", None, data) == rows
        with pytest.raises(
            UserError, match="piqa has its data on the hub, but hub dataset 'baber/piqa' was not found"
        ):
            read_split(TASKS["piqa"], "validation", None, data)
    finally:
        server.shutdown()
        server.server_close()


class Letters:
    """A tokenizer of one token a character."""

    config: ClassVar[dict[str, Any]] = {}
    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


class Model:
    """No model, but what an evaluation reads of one."""

    class config:  # noqa: N801
        max_position_embeddings = 4096


def prefers_a(
    model: Any, requests: Sequence[TokenRequest], batch_size: int, max_length: int
) -> list[LogLikelihood]:
    """A model that finds A most probable."""
    return [LogLikelihood(-float(request.continuation[-1]), False) for request in requests]


def test_a_group_is_the_mean_over_the_items_of_its_subjects(tmp_path: Path) -> None:
    """MMLU in the folders of its authors: the first item of each subject has the answer A, the others other letters."""
    for number, name in enumerate(MMLU["mmlu_other"]):
        with open(
            published.write_rows(tmp_path / f"test/{name}_test.csv", [{"a": 1}]), "w", newline=""
        ) as file:
            csv.writer(file).writerows(["Which?", 1, 2, 3, 4, "ABCD"[n % 4]] for n in range(2 + number % 3))
    section = BenchmarkSettings(tasks=["mmlu_other"], limit=None, apply_chat_template=False)
    files = Files((f"mmlu={tmp_path}",))
    scores = evaluate_tasks(prefers_a, None, Model(), Letters(), section, DATA, files, "")  # type: ignore[arg-type]
    sizes = [2 + number % 3 for number in range(13)]
    assert scores["mmlu_other"]["acc"] == pytest.approx(13 / sum(sizes))
    assert scores["mmlu_other"]["n"] == sum(sizes)
    assert scores["mmlu_business_ethics"] == {"acc": 0.5, "acc_stderr": 0.5, "n": 2}
    assert list(scores) == ["mmlu_other", *(f"mmlu_{name}" for name in MMLU["mmlu_other"])]


def test_scores_are_written_with_six_digits(tmp_path: Path) -> None:
    write_results(tmp_path / "scores.json", "sft", {"piqa": {"acc": 2 / 3, "acc_stderr": None, "n": 3}})
    expected = {"model": "sft", "tasks": {"piqa": {"acc": 0.666667, "acc_stderr": None, "n": 3}}}
    assert read_json(tmp_path / "scores.json") == expected
    assert rounded(3) == 3
