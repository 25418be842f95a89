"""The command `benchmark` as a user calls it: equal scores at all levels, resumed after a kill, mistakes in one line."""

import json
import shutil
from pathlib import Path

import pytest

from shared_data.benchmarks import evaluation
from shared_data.files import read_json
from tests.end_to_end.conftest import Commands, snapshot
from tests.end_to_end.faults_benchmarks import BENCHMARK_FAULTS, ITEM
from tests.end_to_end.test_bad_input import assert_one_line, with_run
from tests.parity.inference_cases import small_run
from v2_handwritten.evaluation.benchmarks import harness
from v2_handwritten.evaluation.benchmarks.log_likelihoods import log_likelihoods

LEVELS = ("v1", "v2", "v3")


# Level 1 reads and checks its data with the same functions.
AT_LEVEL_1 = ("malformed line", "unknown task", "more shots than examples", "a model without a chat template")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small model called pretrain."""
    return small_run(tmp_path_factory.mktemp("untrained"), "model.max_position_embeddings=1024").path


@pytest.mark.parametrize(
    ("name", "level"),
    [(name, level) for name in BENCHMARK_FAULTS for level in LEVELS if level != "v1" or name in AT_LEVEL_1],
)
def test_a_mistake_is_one_line_and_nothing_is_overwritten(
    name: str, level: str, config: Path, commands: Commands, untrained: Path, tmp_path: Path
) -> None:
    fault, says = BENCHMARK_FAULTS[name]
    run, scratch = Path(shutil.copytree(untrained, tmp_path / "run")), tmp_path / "scratch"
    scratch.mkdir()
    words = with_run(fault(scratch, run), config, run)
    before = snapshot(tmp_path)
    assert_one_line(commands(level, *words, cwd=scratch), says)
    assert snapshot(tmp_path) == before


def test_a_file_gives_the_same_scores_at_all_levels(
    commands: Commands, untrained: Path, tmp_path: Path
) -> None:
    """Of one model, with shots drawn from the same file; and of the story world's."""
    lines = [
        ITEM | {"id": str(n), "question": f"Is {n} a {word}?"}
        for n, word in enumerate(["cat", "dog", "number"] * 2)
    ]
    arc = tmp_path / "arc.jsonl"
    arc.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = untrained / "pretrain"
    found = {}
    for level in LEVELS:
        scores, items = tmp_path / f"{level}.json", tmp_path / f"{level}.jsonl"
        files = ["--data", f"arc_easy={arc}", "--json", scores, "--items", items]
        tasks = ["--tasks", "arc_easy,story_world", "--limit", "4", "--num-fewshot", "2", "--seed", "7"]
        done = commands(
            level, "benchmark", "--model", model, "--out", tmp_path / "run", *tasks, *files, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert "arc_easy:" in done.stdout
        found[level] = read_json(scores)
        kept = [json.loads(line) for line in items.read_text().splitlines()]
        assert [(line["task"], line["doc_id"]) for line in kept] == [
            (task, number) for task in ("arc_easy", "story_world") for number in range(4)
        ]
        assert {"doc", "target", "arguments", "resps", "metrics", "acc", "acc_norm"} <= set(kept[0])
    assert set(found["v2"]) == {"model", "tasks"}
    assert list(found["v2"]["tasks"]["arc_easy"]) == ["acc", "acc_norm", "acc_stderr", "acc_norm_stderr", "n"]
    assert found["v1"] == found["v2"] == found["v3"]
    assert not (tmp_path / "run").exists()


def test_a_killed_evaluation_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path / "run", "model.max_position_embeddings=1024")
    section = run.settings.benchmark.model_copy(
        update={"tasks": ["story_world"], "limit": 12, "batch_size": 4, "apply_chat_template": False}
    )
    settings = run.settings.model_copy(update={"benchmark": section})
    monkeypatch.setattr(evaluation, "BATCHES_AT_ONCE", 2)
    asked: list[int] = []

    def counted(model, requests, batch_size, max_length):  # type: ignore[no-untyped-def]
        if len(asked) == kill_after:
            raise KeyboardInterrupt
        asked.append(len(requests))
        return log_likelihoods(model, requests, batch_size, max_length)

    monkeypatch.setattr(harness, "log_likelihoods", counted)
    whole = evaluation.Files(items=tmp_path / "whole.jsonl")
    kill_after = -1
    expected = harness.benchmark(settings, run, "pretrain", whole)
    assert asked == [8] * 6

    files = evaluation.Files(items=tmp_path / "items.jsonl")
    asked.clear()
    kill_after = 2
    with pytest.raises(KeyboardInterrupt):
        harness.benchmark(settings, run, "pretrain", files)
    assert len((tmp_path / "items.jsonl").read_text().splitlines()) == 4
    with open(tmp_path / "items.jsonl", "a") as file:
        file.write('{"task": "story_world", "doc_')  # what the kill cut off
    asked.clear()
    kill_after = -1
    assert harness.benchmark(settings, run, "pretrain", files) == expected
    assert asked == [8] * 4, "two thirds were left"
    assert (tmp_path / "items.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()

    changed = settings.model_copy(update={"benchmark": section.model_copy(update={"num_fewshot": 1})})
    with pytest.raises(
        ValueError, match=r"holds items of .* other settings; name another file with --items, or add --force"
    ):
        harness.benchmark(changed, run, "pretrain", files)
    forced = evaluation.Files(items=files.items, force=True)
    harness.benchmark(changed, run, "pretrain", forced)
    assert (tmp_path / "items.jsonl").read_text() != (tmp_path / "whole.jsonl").read_text()
