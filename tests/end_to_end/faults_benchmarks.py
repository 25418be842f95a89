"""What users do wrong with benchmarks: the table of `test_benchmarks.py`, in the form of `faults.py`."""

import json
from pathlib import Path

from tests.end_to_end.faults import Arguments, Fault

ITEM = {
    "id": "1",
    "question": "Is ice cold?",
    "choices": {"text": ["no", "yes", "never"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}


def items(*changes: dict | None, options: tuple[str, ...] = ()) -> Fault:
    """A file of ARC items, each changed in something; None is a line that is no JSON."""

    def fault(scratch: Path, run: Path) -> Arguments:
        lines = ["{" if change is None else json.dumps(ITEM | change) for change in changes]
        path = scratch / "arc.jsonl"
        path.write_text("".join(line + "\n" for line in lines))
        data = ["--data", f"arc_easy={path}", *(option.format(scratch=scratch) for option in options)]
        return ["benchmark", "--model", "pretrain", "--tasks", "arc_easy", *data]

    return fault


def blocked(name: str, content: str, option: str) -> Fault:
    """A file of the user's in the way of a result."""

    def fault(scratch: Path, run: Path) -> Arguments:
        (scratch / name).write_text(content)
        return items({}, {}, options=(option, f"{{scratch}}/{name}"))(scratch, run)

    return fault


def options(*words: str) -> Fault:
    """A mistake in the options alone."""
    return lambda scratch, run: [
        "benchmark",
        "--model",
        "pretrain",
        *(w.format(scratch=scratch) for w in words),
    ]


def folder_without_a_split(scratch: Path, run: Path) -> Arguments:
    items({})(scratch, run)
    return ["benchmark", "--model", "pretrain", "--tasks", "arc_easy", "--data", f"arc_easy={scratch}"]


def without_template(scratch: Path, run: Path) -> Arguments:
    """A base model, which has never seen a conversation."""
    path = run / "pretrain" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    path.write_text(json.dumps(config))
    return items({}, {}, options=("--apply-chat-template",))(scratch, run)


ONE = {"choices": {"text": ["yes"], "label": ["A"]}, "answerKey": "A"}
# fmt: off
BENCHMARK_FAULTS: dict[str, tuple[Fault, str]] = {
    "malformed line": (items({}, None), r"arc\.jsonl, line 2 is not valid JSON.*; correct"),
    "an item without its question": (items({}, {}, {"question": None}), r"arc\.jsonl, line 3 has no 'question'; correct it, or leave the item"),
    "a question that is no text": (items({"question": 5}), r"arc\.jsonl, line 1 has 'question' of type int, not str; correct"),
    "gold out of range": (items({}, {"answerKey": "E"}), r"arc\.jsonl, line 2 has answerKey 'E', which is none of A, B, C; correct"),
    "one choice only": (items(ONE), r"arc\.jsonl, line 1 has 1 in 'text', and a choice needs at least two; correct"),
    "empty file": (items(), r"arc\.jsonl holds no item of arc_easy; check the file"),
    "no such file": (options("--tasks", "arc_easy", "--data", "arc_easy={scratch}/no.jsonl"), r"arc_easy: .*no\.jsonl does not exist; correct"),
    "no split in a folder": (folder_without_a_split, r"holds no file called test that ends in .*; rename"),
    "one file for a group": (items({}, options=("--data", "mmlu={scratch}/arc.jsonl", "--tasks", "mmlu")), r"--data mmlu: .*arc\.jsonl is one file and has no column 'subject', but mmlu has 57 subjects; name the one"),
    "data that no task uses": (items({}, options=("--data", "piqa={scratch}/arc.jsonl")), r"--data piqa names data of a task that is not evaluated; add it to --tasks"),
    "hub out of reach": (
        options("--tasks", "arc_easy", "--set", "data.hub_endpoint=http://127.0.0.1:9", "--set", "data.hub_cache={scratch}"),
        r"arc_easy has its data on the hub, but cannot reach 127\.0\.0\.1:9.*; connect, or .* --data arc_easy=PATH",
    ),
    "data without a task": (options("--data", "arc.jsonl"), r"'arc\.jsonl' is no TASK=PATH; write for example"),
    "data of an unknown task": (options("--data", "arc=x.jsonl"), r"no benchmark 'arc'; choose of .*arc_easy"),
    "unknown task": (options("--tasks", "story_world,arc_esy"), r"no benchmark 'arc_esy'; choose of arc_easy, .*hellaswag.*, or a subject"),
    "more shots than examples": (items({}, {"id": "2"}, options=("--num-fewshot", "2")), r"arc_easy has 2 examples, too few for 2 shots and the item itself; lower"),
    "more shots than different examples": (items({}, {}, {"id": "2"}, options=("--num-fewshot", "2")), r"arc_easy has 3 examples, too few for 2 shots and an item that is there 2 times; lower"),
    "shots for whole texts": (options("--tasks", "story_world_stories", "--num-fewshot", "1"), r"story_world_stories scores whole texts, without shots; leave"),
    "limit of zero": (options("--limit", "0"), r"--limit.*greater than or equal to 1; see"),
    "a model without a chat template": (without_template, r"no chat template.*; use"),
    "no such model": (options("--model", "{scratch}/no", "--tasks", "story_world"), r"no model .*/no'; name a stage"),
    "items file of something else": (blocked("notes.txt", "notes\n", "--items"), r"notes\.txt.* (is no item of a benchmark|is there already); name another file with --items"),
    "items file of half a line": (blocked("notes.txt", "notes", "--items"), r"notes\.txt.* (is no item of a benchmark|is there already); name another file with --items"),
    "items file with a list for a task": (blocked("i.jsonl", '{"task": [1], "doc_id": 0, "inputs": ""}\n', "--items"), r"i\.jsonl.* (is no item of a benchmark|is there already); name another"),
    "items and scores in one file": (items({}, {}, options=("--items", "{scratch}/a.json", "--json", "{scratch}/a.json")), r"--json and --items are the same file, .*a\.json; name another"),
    "items in the data": (items({}, {}, options=("--items", "{scratch}/arc.jsonl")), r"--items and --data arc_easy are the same file, .*; name another"),
    "result file of something else": (blocked("notes.json", '{"a": 1}', "--json"), r"notes\.json is no earlier result.*; name another file with --json"),
}
# fmt: on
