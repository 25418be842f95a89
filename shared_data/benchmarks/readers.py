"""The data of a task: local files in any published format, the hub's copy, or the story world's own.

`--data TASK=PATH` names a file or a folder. A file holds the items to score, and shots are drawn from it too (never the item itself). In a
folder the names say which split a file is, as the authors and the hub call them: `train.jsonl`, `ARC-Easy-Test.jsonl`,
`abstract_algebra/test-00000-of-00001.parquet`, `val/law_val.csv`.

    read_split(TASKS["arc_easy"], "test", Path("arc.jsonl"), DataSettings())
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from shared_data.benchmarks.few_shot import check_shots
from shared_data.benchmarks.formats import FormatError
from shared_data.benchmarks.tasks import GROUPS, TASKS, Task, check_task
from shared_data.corpus.hub import hub_records
from shared_data.corpus.readers import SUFFIXES, format_of, has_known_suffix, read_records
from shared_data.errors import UserError
from shared_data.settings import BenchmarkSettings, DataSettings
from shared_data.story_world.tasks import multiple_choice, questions
from shared_data.story_world.world import StoryWorld

Record = dict[str, Any]
STORY_WORLD_ITEMS = {"test": 1000, "train": 100}  # of each of its tasks; shots come from the second
# What a split is called in the names of files, if not only as itself.
_NAMES = {"validation": {"validation", "valid", "val", "dev"}, "val": {"val", "valid", "validation"}}
# Words in the names of files that hold all subjects.
_NO_SUBJECT = {"all", "data", "default", "of", "jsonl", "json", "csv", "parquet", "gz"}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")  # of the authors' CSV, which has no header


def data_paths(assignments: Iterable[str]) -> dict[str, Path]:
    """The paths of `--data TASK=PATH`, by task; that of a group counts for each of its subjects."""
    paths: dict[str, Path] = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        path = Path(value).expanduser()
        if not separator or not value:
            raise UserError(
                f"--data {assignment!r} is no TASK=PATH; write for example --data arc_easy=arc.jsonl"
            )
        check_task(name)
        if not path.exists():
            raise UserError(f"--data {name}: {path} does not exist; correct the path")
        if name in GROUPS and path.is_file() and "subject" not in _first_record(path):
            raise UserError(
                f"--data {name}: {path} is one file and has no column 'subject', but {name} has {len(GROUPS[name])} subjects; name the one that it "
                f"holds, as in --tasks {GROUPS[name][0]} --data {GROUPS[name][0]}={value}, or a folder with files of all"
            )
        paths |= dict.fromkeys(GROUPS.get(name, [name]), path)
    return paths


def _first_record(path: Path) -> Record:
    """Of a file; empty where there is none."""
    found: tuple[str, Record] | None = next(read_records(path), None)
    return found[1] if found else {}


def check_data_is_used(paths: Mapping[str, Path], tasks: Iterable[Task]) -> None:
    """Raise `UserError` for data of a task that is not evaluated."""
    names = {task.name for task in tasks}
    for name in paths:
        if not names & {name, *(task for group in GROUPS.values() if name in group for task in group)}:
            raise UserError(
                f"--data {name} names data of a task that is not evaluated; add it to --tasks, or leave it out"
            )


class Splits(NamedTuple):
    """The records that a task needs, by split; `task` is the task with these splits only."""

    records: dict[str, list[Record]]
    task: Task


def read_splits(task: Task, section: BenchmarkSettings, path: Path | None, data: DataSettings) -> Splits:
    """The items to score and, for shots, the examples. Raises `UserError` for malformed ones, and for fewer examples than shots."""
    shots = num_fewshot(task, section)
    if path is not None and path.is_file():  # items and examples are the same
        own: dict[str, Any] = {
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "fewshot_split": "test",
        }
        task = replace(task, **own)
    records = {task.evaluation_split: read_split(task, task.evaluation_split, path, data)}
    if shots:
        if task.shots_split not in records:
            records[task.shots_split] = read_split(task, task.shots_split, path, data)
        check_shots(task, records[task.shots_split], shots)
    splits = {field: getattr(task, field) for field in SPLITS}
    known: dict[str, Any] = {field: split if split in records else None for field, split in splits.items()}
    return Splits(records, replace(task, **known))


def num_fewshot(task: Task, section: BenchmarkSettings) -> int:
    """The number of shots: that of the settings, else the task's own."""
    shots = task.num_fewshot if section.num_fewshot is None else section.num_fewshot
    if shots and task.generation is None and not {"acc", "perplexity"} & set(task.metrics):
        raise UserError(f"{task.name} scores whole texts, without shots; leave --num-fewshot out")
    return shots


def read_split(
    task: Task, split: str, path: Path | None, settings: DataSettings, seed: int = 0
) -> list[Record]:
    """The records of a split, checked. Raises `UserError` for whatever keeps them from being read, with file and line."""
    records = []
    for where, record in _open_split(task, split, path, settings, seed):
        try:
            records.append(task.format(record))
        except FormatError as error:
            raise UserError(f"{where} {error}; correct it, or leave the item of {task.name} out") from error
    if not records:
        raise UserError(f"{path or task.dataset} holds no item of {task.name}; check the file")
    return records


def _open_split(
    task: Task, split: str, path: Path | None, settings: DataSettings, seed: int
) -> Iterator[tuple[str, Record]]:
    """The records of a split as they are published, each with the words that name it in an error."""
    if path is not None:
        files = [path] if path.is_file() else split_files(path, task, split)
        for file in files:
            for where, record in _read_file(file, task):
                if task.config is None or record.get("subject") in (None, task.config):
                    yield where, record
    elif task.is_story_world:
        yield from enumerate_records(task, islice(_story_world(task, split, seed), STORY_WORLD_ITEMS[split]))
    else:
        yield from _hub_split(task, split, settings)


def split_files(folder: Path, task: Task, split: str) -> list[Path]:
    """The files of a folder that hold a split of a task: of its subject or configuration where some are called so."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and has_known_suffix(file))
    names = _NAMES.get(split, {split})
    of_split = [file for file in files if names & _words(file.relative_to(folder))]
    own = [file for file in of_split if _is_called(file.relative_to(folder), task.config)]
    found = own or of_split
    has_subjects = sum(each.dataset == task.dataset for each in TASKS.values()) > 1
    if has_subjects and not own:  # a file that is called like something else may be of another subject
        found = [file for file in of_split if _words(file.relative_to(folder)) <= names | _NO_SUBJECT]
    if len({re.sub(r"\d+", "", str(file)) for file in found}) > 1:  # parts of one file differ in numbers only
        raise UserError(
            f"--data {task.name}: {folder} holds several files of the split {split}, such as {found[0].name} and {found[-1].name}; "
            "name a folder with one, or the file"
        )
    if found:
        return found
    raise UserError(
        f"--data {task.name}: {folder} holds no file called {' or '.join(sorted(names))} that ends in {', '.join(SUFFIXES)}; "
        "rename the file of that split, or name a file"
    )


def _words(path: Path) -> set[str]:
    """The words of a path in lower case, without numbers."""
    return {word for word in re.split(r"[^a-z0-9]+", str(path).lower()) if not word.isdigit()}


def _is_called(path: Path, config: str | None) -> bool:
    """Whether a folder of the path is called like the configuration, or the file begins with its name."""
    name = path.name.lower()
    own = (config or "").lower()
    return bool(own) and (
        own in map(str.lower, path.parts[:-1])
        or re.match(rf"{re.escape(own)}(?![a-z]|_(?!test|val|dev))", name) is not None
    )


def _read_file(file: Path, task: Task) -> Iterator[tuple[str, Record]]:
    """The records of a file. A CSV of MMLU may come without a header."""
    records = read_records(file)
    if task.dataset == "cais/mmlu" and format_of(file) == ".csv":
        first = next(read_records(file), None)
        if first is None or "question" not in first[1]:
            records = read_records(file, csv_columns=_MMLU_COLUMNS)
    labels = file.with_name(f"{file.name.partition('.')[0]}-labels.lst")
    if task.name == "piqa" and labels.is_file():  # as the authors publish it
        return _with_labels(records, labels)
    return records


def _with_labels(records: Iterator[tuple[str, Record]], labels: Path) -> Iterator[tuple[str, Record]]:
    """The records with the labels of another file, a line each."""
    lines = labels.read_text(encoding="utf-8").split()
    for number, (where, record) in enumerate(records):
        if number >= len(lines) or not lines[number].isdigit():
            raise UserError(f"{labels} has no label for {where}; copy both files again")
        yield where, {**record, "label": int(lines[number])}


def _hub_split(task: Task, split: str, settings: DataSettings) -> Iterator[tuple[str, Record]]:
    """The records of the hub's parquet copy, downloaded once into `data.hub_cache`."""
    wanted = {"source": task.dataset, "hub_config": task.config, "hub_split": split}
    try:
        yield from hub_records(settings.model_copy(update=wanted))
    except UserError as error:
        cause = str(error).partition(";")[0]
        raise UserError(
            f"{task.name} has its data on the hub, but {cause}; connect, or download {task.dataset} elsewhere and use --data {task.name}=PATH"
        ) from error


def enumerate_records(task: Task, records: Iterable[Record]) -> Iterator[tuple[str, Record]]:
    """Records that no file holds, by their number."""
    return ((f"{task.name}, item {number}", record) for number, record in enumerate(records))


def _story_world(task: Task, split: str, seed: int) -> Iterator[Record]:
    """Items without end, from stories of their split."""
    match task.name:
        case "story_world":
            for choice in multiple_choice(seed, split):
                kept = {"kind": choice.kind, "prompt": choice.prompt, "reply": choice.reply}
                yield {**kept, "choices": list(choice.choices), "answer": choice.answer}
        case "story_world_questions":
            for question in questions(seed, split):
                yield {"kind": question.kind, "prompt": question.prompt, "reply": question.reply}
        case _:
            for story in StoryWorld().stories(seed, split):
                yield {"text": story.text}
