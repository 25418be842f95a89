"""What the end-to-end tests share: the console scripts as a user runs them, and one small finished run to damage."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Far smaller than `smoke`: these tests are about what happens around the model, not about what it learns.
TINIEST = """
name = "tiniest"
[data]
max_megabytes = 0.06
validation_megabytes = 0.02
[tokenizer]
vocab_size = 300
[model]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 1024
[pretrain]
max_steps = 4
per_device_train_batch_size = 2
sequence_length = 32
warmup_steps = 1
logging_steps = 1
eval_steps = 2
eval_batches = 1
sample_steps = 2
sample_tokens = 4
save_steps = 2
[sft]
conversations = 12
questions_per_story = 1
eval_questions = 2
max_length = 1024
max_steps = 2
learning_rate = 1e-3
eval_batches = 1
[reward]
pairs = 12
eval_pairs = 4
per_device_train_batch_size = 2
max_steps = 2
[dpo]
pairs = 12
eval_pairs = 4
per_device_train_batch_size = 2
max_steps = 2
eval_prompts = 2
max_completion_length = 4
[ppo]
prompts = 8
per_device_train_batch_size = 2
max_steps = 2
num_ppo_epochs = 1
eval_prompts = 2
max_completion_length = 4
[grpo]
prompts = 8
per_device_train_batch_size = 2
num_generations = 2
max_steps = 2
eval_prompts = 2
max_completion_length = 4
[evaluate]
max_tokens = 500
[benchmark]
limit = 3
[generate]
max_new_tokens = 5
prompts = ["Once", ""]
"""


def environment(**extra: str) -> dict[str, str]:
    """What a user's shell would hand on, without a GPU, offline, on one thread."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def console_script(level: str) -> str:
    """The installed command of a level."""
    return str(Path(sys.executable).with_name(level))


def command(
    level: str, *arguments: str | Path, cwd: Path | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run the console script of a level to its end."""
    return subprocess.run(
        [console_script(level), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**extra),
        timeout=300,
        check=False,
    )


PACKAGES = {"v1": "v1_quick", "v2": "v2_handwritten", "v3": "v3_numpy_deep"}


class Commands:
    """Commands of the three levels, each in a process of its own (`command_server.py`)."""

    def __init__(self) -> None:
        self._servers: dict[str, subprocess.Popen[str]] = {}

    def __call__(
        self, level: str, *arguments: str | Path, cwd: Path, file_size_limit: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command of a level to its end."""
        server = self._servers.get(level) or self._start(level)
        assert server.stdin is not None
        assert server.stdout is not None
        words = [str(argument) for argument in arguments]
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "stdout"), Path(folder, "stderr")
            request = {"arguments": words, "cwd": str(cwd), "file_size_limit": file_size_limit}
            server.stdin.write(json.dumps({**request, "stdout": str(out), "stderr": str(err)}) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
            return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

    def _start(self, level: str) -> subprocess.Popen[str]:
        server = self._servers[level] = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.command_server", PACKAGES[level]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=Path(__file__).parents[2],
        )
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        return server

    def stop(self) -> None:
        """End the servers: they leave when nobody can ask them any more."""
        for server in self._servers.values():
            server.communicate()


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Run commands of the levels."""
    running = Commands()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of these tests, as a file of the user's."""
    path = tmp_path_factory.mktemp("config") / "tiniest.toml"
    path.write_text(TINIEST)
    return path


@pytest.fixture(scope="session")
def finished_runs(
    commands: Commands, config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A run of a level up to and with pretraining; tests copy it before they damage it."""
    folder = tmp_path_factory.mktemp("finished")

    @functools.cache
    def finished(level: str) -> Path:
        for stage in ("data", "tokenizer", "pretrain"):
            done = commands(level, stage, "--config", config, "--out", folder / level, cwd=folder)
            assert done.returncode == 0, done.stderr
        return folder / level

    return finished


@pytest.fixture(scope="session")
def aligned_runs(
    commands: Commands,
    config: Path,
    finished_runs: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """A run of a level up to and with the tuned model and the reward model, from which alignment starts."""
    folder = tmp_path_factory.mktemp("aligned")

    @functools.cache
    def aligned(level: str) -> Path:
        run = Path(shutil.copytree(finished_runs(level), folder / level))
        for stage in ("sft", "reward"):
            done = commands(level, stage, "--config", config, "--out", run, cwd=folder)
            assert done.returncode == 0, done.stderr
        return run

    return aligned


Snapshot = dict[str, bytes | None]


def snapshot(folder: Path) -> Snapshot:
    """Every file under a folder with its content, and every folder; the lock of the run aside."""
    if not folder.is_dir():
        return {}
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }
