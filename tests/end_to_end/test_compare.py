"""`v2 compare` with real trainings: its numbers are those of the models, its folders are runs, and kills change nothing."""

import json
import re
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.size import count_active_parameters, count_parameters
from tests.end_to_end.conftest import Commands
from tests.faults import kill_at, result, run
from v2_handwritten.inference.kv_cache import bytes_per_token

CHOICES = ("--choice", "dense:", "--choice", "MoE: model.model_type=mixtral model.num_local_experts=4")
HEADS = ("--vary", "model.num_key_value_heads=2,1")
# After so many writes and renames, each time from where the last kill left it: in `data`, in `tokenizer`, then in each training.
KILLS = (100, 250, 120)


def test_choices_of_families_heads_and_optimizers_are_trained_and_compared(
    config: Path, commands: Commands, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    words = ("compare", "--config", config, "--out", root, *CHOICES, "--vary", "pretrain.optim=adamw,muon")
    done = commands("v2", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    names = ["dense, optim=adamw", "dense, optim=muon", "MoE, optim=adamw", "MoE, optim=muon"]
    numbers = {
        choice["name"]: choice["runs"][0]
        for choice in json.loads((root / "compare.json").read_text())["choices"]
    }
    assert list(numbers) == names
    for name, found in numbers.items():
        folder = root / found["folder"]
        model = ModelConfig.from_hf(json.loads((folder / "pretrain" / "config.json").read_text()))
        metrics = json.loads((folder / "metrics.json").read_text())["pretrain"]
        assert found["parameters"] == count_parameters(model) == metrics["parameters"]
        assert found["active_parameters"] == count_active_parameters(model)
        assert (found["active_parameters"] < found["parameters"]) == name.startswith("MoE")
        assert found["cache_bytes_per_token"] == bytes_per_token(model)
        above = metrics["bits_per_byte"] - metrics["floor_bits_per_byte"]
        assert found["bits_per_byte_above_floor"] == above > 0
        assert f"{name.ljust(max(map(len, names)))}  " in done.stdout
    assert len({found["bits_per_byte"] for found in numbers.values()}) == 4, (
        "each choice has its own training"
    )
    assert len({found["tokens"] for found in numbers.values()}) == 1

    again = commands("v2", *words, cwd=tmp_path)
    assert (again.returncode, again.stdout.count("nothing changed")) == (0, 4)
    # The hint it printed, and two other commands, in the folder of a choice.
    hint = next(line for line in done.stdout.splitlines() if "look inside one" in line)
    assert re.search(r"uv run v2 look Once --out \S+/root/dense-optim=adamw$", hint)
    folder = root / "MoE-optim=muon"
    for command in (["look", "Once"], ["generate", "--prompt", "Once"], ["report"]):
        used = commands("v2", *command, "--out", folder, cwd=tmp_path)
        note = "[stopped after 5 tokens; --max-new-tokens raises the limit]\n"
        assert (used.returncode, used.stderr.replace(note, "")) == (0, "")


def test_a_killed_comparison_ends_as_one_that_never_was(tmp_path: Path) -> None:
    """In a new process, because `run` forks: the thread pools of earlier tests would be dead in the fork."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as new_process:
        new_process.submit(killed_and_continued, tmp_path).result()


def killed_and_continued(scratch: Path) -> None:
    words = [*HEADS, "--set", "pretrain.save_steps=1", "--set", "pretrain.logging_steps=1"]
    for name in ("undisturbed", "killed"):
        (scratch / name).mkdir()
    undisturbed, killed = scratch / "undisturbed" / "root", scratch / "killed" / "root"
    assert run("v2", "compare", undisturbed, *words) == 0, (undisturbed.parent / "output.txt").read_text()
    said = ""
    for kill in KILLS:
        assert run("v2", "compare", killed, *words, trap=kill_at(kill)) == -signal.SIGKILL
        said += (killed.parent / "output.txt").read_text()
    assert run("v2", "compare", killed, *words) == 0, (killed.parent / "output.txt").read_text()
    said += (killed.parent / "output.txt").read_text()
    assert said.count("continuing where it was interrupted") == 2, "once in each choice"
    for folder in ("num_key_value_heads=2", "num_key_value_heads=1"):
        assert result(killed / folder, "pretrain") == result(undisturbed / folder, "pretrain")
    tables = [
        (root / "compare.md").read_text().replace(str(root.parent), "") for root in (undisturbed, killed)
    ]
    without_clock = [re.sub(r"(\| [\d.]+ )\| [\d,]+ \|", r"\1|", table) for table in tables]
    assert without_clock[0] == without_clock[1]
    assert not list(killed.rglob("*.tmp"))
