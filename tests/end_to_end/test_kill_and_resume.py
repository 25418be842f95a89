"""A run killed at random moments and started again ends with the weights, bit for bit, and the log of one never killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared_data.stages import upstream

PACKAGES = {"v2": "v2_handwritten", "v3": "v3_numpy_deep"}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
STEPS = 60
SETTINGS = {
    "data.max_megabytes": 0.06,
    "data.validation_megabytes": 0.006,
    "tokenizer.vocab_size": 300,
    "model.dropout": 0.1,  # so that the random numbers of dropout must continue too
    "pretrain.max_steps": STEPS,
    "pretrain.gradient_accumulation_steps": 2,
    "pretrain.logging_steps": 1,
    "pretrain.eval_steps": 10,
    "pretrain.sample_steps": 20,
    "pretrain.sample_tokens": 4,
    "pretrain.save_steps": 7,
}
# Tuning starts from a model that was hardly trained.
TUNING = {
    "pretrain.max_steps": 2,
    "sft.max_steps": STEPS,
    "sft.conversations": 40,
    "sft.max_length": 600,
    "sft.eval_questions": 2,
    "sft.logging_steps": 1,
    "sft.eval_steps": 10,
    "sft.eval_batches": 1,
    "sft.save_steps": 7,
    "sft.optim": "muon",
}
ADAPTERS = {
    "sft.optim": "adamw",
    "sft.adapter.method": "qlora",
    "sft.adapter.bnb_4bit_blocksize": 32,
    "sft.adapter.lora_dropout": 0.1,
    "sft.adapter.modules_to_save": ["embed_tokens"],
}


def of(stage: str, values: dict[str, object]) -> dict[str, object]:
    """Settings of one section."""
    return {f"{stage}.{name}": value for name, value in values.items()}


# Short pairs of a user's: those of the story world would take the test minutes.
PAIRS_FILE = Path(tempfile.mkdtemp()) / "pairs.jsonl"
PAIRS_FILE.write_text(
    "".join(
        json.dumps({"prompt": f"What is {n}?", "chosen": "It" + " is" * (n % 5 + 1), "rejected": f"No {n}."})
        + "\n"
        for n in range(20)
    )
)
# Alignment starts from a model that was hardly tuned. A step of PPO or GRPO samples replies, so there are fewer of them.
ALIGNMENT = TUNING | {"sft.max_steps": 2}
PAIRS = {
    "steps": STEPS, "source": PAIRS_FILE, "test_pairs": 2, "batch_size": 2, "gradient_accumulation_steps": 2, "max_length": 800,
    "log_every": 1, "eval_every": 10, "checkpoint_every": 7,
}  # fmt: skip
REPLIES = {
    "steps": STEPS, "prompts": 10, "question_fraction": 0.0, "max_new_tokens": 4, "log_every": 1, "checkpoint_every": 7,
    "test_prompts": 2, "epochs": 2, "minibatches": 2,
}  # fmt: skip
REWARD = of("reward", {"steps": 2, "source": PAIRS_FILE, "test_pairs": 2})


# What is killed: the settings it runs with. What stands before the colon is the stage.
OVERRIDES = {
    "pretrain": SETTINGS,
    "sft": SETTINGS | TUNING,
    "sft: adapters": SETTINGS | TUNING | ADAPTERS,
    "reward": SETTINGS | ALIGNMENT | of("reward", PAIRS),
    "dpo": SETTINGS | ALIGNMENT | of("dpo", PAIRS),
    "ppo": SETTINGS | ALIGNMENT | REWARD | of("ppo", REPLIES | {"prompts_per_step": 2}),
    "grpo": SETTINGS | ALIGNMENT | of("grpo", REPLIES | {"prompts_per_step": 1, "group_size": 2}),
}

# The import of torch takes longer than these trainings. So one process imports the level and each run is a fork of it,
# which calls what the console script calls, with the same arguments.
FORKS = """
import importlib, json, os, sys
app = importlib.import_module(sys.argv[1] + ".cli").app
for module in ("finetune.sft_train", "align.rm_train", "align.dpo_train", "align.ppo_train", "align.grpo_train"):
    importlib.import_module(f"{sys.argv[1]}.{module}")
for line in sys.stdin:
    arguments, errors = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        try:
            app(arguments)
        except SystemExit as leave:
            sys.stderr.flush()
            os._exit(leave.code or 0)
        finally:
            os._exit(99)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def arguments(stage: str, out: Path, trained: str) -> list[str]:
    """The command line of a stage: the smoke configuration, made smaller; `trained` is the stage that will be killed."""
    overrides = OVERRIDES[trained].items()
    options = [option for key, value in overrides for option in ("--set", f"{key}={value}")]
    return [stage, "--config", "smoke", "--out", str(out), *options]


def stage_of(trained: str) -> str:
    """The stage that a name of `OVERRIDES` stands for."""
    return trained.partition(":")[0]


class Training:
    """Starts `vN pretrain` (or another stage that trains) again and again, and ends it at chosen steps."""

    def __init__(self, level: str, trained: str, folder: Path) -> None:
        self.trained, self.stage = trained, stage_of(trained)
        command = [sys.executable, "-c", FORKS, PACKAGES[level]]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.forks = subprocess.Popen(command, env=ENVIRONMENT, **pipes)  # type: ignore[call-overload]
        self.stderr = folder / "stderr.txt"

    def run(self, out: Path, until: int | None = None, end: signal.Signals = signal.SIGKILL) -> int:
        """Run to the end, or send a signal as soon as this run has logged a step; the exit code (-9: killed)."""
        log = out / self.stage / "metrics_log.jsonl"
        before = last_step(log)
        self.forks.stdin.write(
            json.dumps([arguments(self.stage, out, self.trained), str(self.stderr)]) + "\n"
        )
        self.forks.stdin.flush()
        process = int(self.forks.stdout.readline())
        if until is not None:
            deadline = time.monotonic() + 60
            cut_back = before < until  # else first wait until the log is cut back to the last checkpoint
            while time.monotonic() < deadline:
                step = last_step(log)
                cut_back = cut_back or step < until
                if cut_back and step >= until:
                    break
                time.sleep(0.0005)
            os.kill(process, end)
        return int(self.forks.stdout.readline())

    def close(self) -> None:
        self.forks.stdin.close()
        self.forks.wait(timeout=60)


def last_step(log: Path) -> int:
    """The last step in a metrics log; 0 where there is none."""
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def results(folder: Path) -> dict[str, bytes]:
    """Everything of a finished stage that must not depend on how often it was killed."""
    last = folder / "state" / f"step-{STEPS:06d}"
    weights = [path for path in (folder, folder / "adapter", last / "value_model") if path.is_dir()]
    files = [path for each in weights for path in sorted(each.glob("*.safetensors"))]
    files += [folder / "metrics_log.jsonl", last / "optimizer.safetensors"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@contextmanager
def training(level: str, trained: str, folder: Path) -> Iterator[tuple[Training, Path]]:
    """A run folder with all that the stage reads, made by the console script, and what trains on it."""
    prepared = folder / "prepared"
    for earlier in upstream(stage_of(trained)):
        command = [str(Path(sys.executable).parent / level), *arguments(earlier, prepared, trained)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    each = Training(level, trained, folder)
    try:
        yield each, prepared
    finally:
        each.close()


def check_killed_and_resumed(level: str, trained: str, tmp_path: Path) -> None:
    """Train once without a break, and once killed, stopped and started again and again; everything that is left is equal."""
    stage = stage_of(trained)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with training(level, trained, tmp_path) as (each, prepared):
        shutil.copytree(prepared, whole)
        shutil.copytree(prepared, killed)
        assert each.run(whole) == 0, each.stderr.read_text()

        for moment in sorted(random.Random(2).sample(range(1, STEPS - 8), 6)):
            assert each.run(killed, until=moment) == -signal.SIGKILL, (
                "it must be killed before it has finished"
            )
        for number in (signal.SIGINT, signal.SIGTERM):  # these save and leave
            assert (
                each.run(killed, until=last_step(killed / stage / "metrics_log.jsonl") + 1, end=number) == 2
            )
            message = each.stderr.read_text()
            assert "interrupted" in message
            assert "Traceback" not in message
            step = last_step(killed / stage / "metrics_log.jsonl")
            assert (killed / stage / "state" / f"step-{step:06d}").is_dir()

        assert each.run(killed) == 0, each.stderr.read_text()
    assert results(killed / stage) == results(whole / stage)
    assert last_step(whole / stage / "metrics_log.jsonl") == STEPS
    assert not list((killed / stage).rglob(".*.tmp")), "something unfinished is left"
    assert len(list((killed / stage / "state").iterdir())) == 2, "the last K checkpoints are kept"


@pytest.mark.parametrize("trained", [name for name in OVERRIDES if stage_of(name) in ("pretrain", "sft")])
@pytest.mark.parametrize("level", ["v2", "v3"])
def test_killed_at_random_moments_a_run_ends_as_if_it_never_was(
    level: str, trained: str, tmp_path: Path
) -> None:
    check_killed_and_resumed(level, trained, tmp_path)
