"""Small files in the published formats of benchmarks, and lm-evaluation-harness on them, for `test_benchmarks.py`."""

import csv
import json
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
SENTENCE = "the fox finds a red ball under an old tree and gives it to her friend who lives by the river"
WORDS = SENTENCE.split()


def text(number: int, length: int) -> str:
    """Words that differ with the number."""
    return " ".join(WORDS[(number * 7 + n * (1 + number % 3)) % len(WORDS)] for n in range(length))


def arc(count: int, first: int = 0) -> Rows:
    """Some with digits as labels, as in the original; one question longer than the model's positions; some choices of three bytes a character."""
    labels = (["A", "B", "C", "D"], ["1", "2", "3", "4"], ["A", "B", "C"])
    return [
        {
            "id": f"Mercury_{n}",
            "question": text(n, 150 if n == 3 else 6 + n) + "?",
            "choices": {
                "text": [text(n + k, 1 + k) if k % 2 else "水" * (n + k + 1) for k in range(len(names))],
                "label": names,
            },
            "answerKey": names[n % len(names)],
        }
        for n in range(first, first + count)
        for names in [labels[n % 3]]
    ]


def hellaswag(count: int, first: int = 0) -> Rows:
    return [
        {
            "ind": n,
            "activity_label": "Making tea [title]",
            "ctx_a": f"[header] How to {text(n, 4)} [title] {text(n + 1, 5)}.",
            "ctx_b": text(n + 2, 2),
            "ctx": "",
            "endings": [f"{text(n + k, 3 + k)} [substeps]  {text(k, 2)}." for k in range(4)],
            "source_id": "wikihow~1",
            "split": "val",
            "split_type": "indomain",
            "label": str(n % 4),
        }
        for n in range(first, first + count)
    ]


def mmlu(count: int, first: int = 0) -> Rows:
    return [
        {
            "question": f" {text(n, 8)}? ",
            "subject": "anatomy",
            "choices": [text(n + k, 2) for k in range(4)],
            "answer": n % 4,
        }
        for n in range(first, first + count)
    ]


def chinese(count: int, first: int = 0, capitals: bool = False) -> Rows:
    question, answer = ("Question", "Answer") if capitals else ("question", "answer")
    return [
        {
            "id": n,
            question: f"第{n}题：水在多少度结冰？",
            **{letter: f"{n * 10 + k}度" for k, letter in enumerate("ABCD")},
            answer: "ABCD"[n % 4],
        }
        for n in range(first, first + count)
    ]


def gsm8k(count: int, first: int = 0) -> Rows:
    return [
        {"question": f"{text(n, 5)}, and {n} more?", "answer": f"It is {n}+{n} = {2 * n}.\n#### {2 * n:,}"}
        for n in range(first, first + count)
    ]


def winogrande(count: int, first: int = 0) -> Rows:
    return [
        {
            "sentence": f"{text(n, 5)} because _ was {text(n, 3)}.",
            "option1": f"the {WORDS[n % 5]}",
            "option2": text(n, 2),
            "answer": str(1 + n % 2),
        }
        for n in range(first, first + count)
    ]


def piqa(count: int, first: int = 0) -> Rows:
    return [
        {"goal": text(n, 5), "sol1": text(n + 1, 6), "sol2": text(n + 2, 4), "label": n % 2}
        for n in range(first, first + count)
    ]


def lambada(count: int, first: int = 0) -> Rows:
    """Some with two spaces before the last word: their context ends in one."""
    return [
        {"text": f"{text(n, 12)}\n“{text(n, 3)}”{' ' * (1 + n % 2)}{WORDS[n % 9]}"}
        for n in range(first, first + count)
    ]


# Task: its items, and what the file of each split is called.
CASES: dict[str, tuple[Any, dict[str, str]]] = {
    "arc_easy": (arc, {"train": "ARC-Easy-Train.parquet", "test": "ARC-Easy-Test.parquet"}),
    "hellaswag": (hellaswag, {"train": "hellaswag_train.jsonl", "validation": "hellaswag_val.jsonl"}),
    "mmlu_anatomy": (
        mmlu,
        {"dev": "anatomy/dev-00000-of-00001.parquet", "test": "anatomy/test-00000-of-00001.parquet"},
    ),
    "ceval-valid_law": (chinese, {"dev": "dev/law_dev.csv", "val": "val/law_val.csv"}),
    "cmmlu_anatomy": (
        lambda count, first=0: chinese(count, first, capitals=True),
        {"dev": "dev/anatomy.csv", "test": "test/anatomy.csv"},
    ),
    "gsm8k": (gsm8k, {"train": "train.jsonl", "test": "test.jsonl"}),
    "winogrande": (winogrande, {"train": "train.jsonl", "validation": "dev.jsonl"}),
    "piqa": (piqa, {"train": "train.jsonl", "validation": "valid.json"}),
    "lambada_openai": (lambada, {"test": "lambada_test_en.jsonl"}),
}
EVALUATED = {"test", "validation", "val"}


def write_rows(path: Path, rows: Rows) -> Path:
    """Rows as a file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_cases(folder: Path) -> dict[str, Path]:
    """A folder of files for each task: five items (two, where text is generated), and four others for shots."""
    for task, (rows, names) in CASES.items():
        for split, name in names.items():
            write_rows(
                folder / task / name, rows(2 if task == "gsm8k" else 5) if split in EVALUATED else rows(4, 20)
            )
    return {task: folder / task for task in CASES}


def library_tasks(folders: dict[str, Path]) -> list[dict[str, Any]]:
    """The tasks of lm-evaluation-harness with their data from these files, which `datasets` reads."""
    tasks = []
    for task, folder in folders.items():
        files = {split: str(folder / name) for split, name in CASES[task][1].items()}
        kind = Path(next(iter(files.values()))).suffix.lstrip(".").replace("jsonl", "json")
        options = {"data_files": files}
        tasks.append({"task": task, "dataset_path": kind, "dataset_name": None, "dataset_kwargs": options})
    return tasks


def library_manager() -> Any:
    """lm-evaluation-harness's tasks in these folders only: an index of all of them takes ten seconds."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    folders = ("arc", "hellaswag", "mmlu/default", "ceval", "cmmlu", "gsm8k", "winogrande", "piqa", "lambada")
    return lm_eval.tasks.TaskManager(include_path=[root / name for name in folders], include_defaults=False)
