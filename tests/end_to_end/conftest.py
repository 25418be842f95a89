"""What the end-to-end tests share: the console scripts as a user runs them, and one small finished run to damage."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
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
max_position_embeddings = 32
[pretrain]
steps = 4
batch_size = 2
sequence_length = 32
warmup_steps = 1
log_every = 1
eval_every = 2
eval_batches = 1
sample_every = 2
sample_tokens = 4
checkpoint_every = 2
[evaluate]
max_tokens = 500
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
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of these tests, as a file of the user's."""
    path = tmp_path_factory.mktemp("config") / "tiniest.toml"
    path.write_text(TINIEST)
    return path


@pytest.fixture(scope="session")
def finished_run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of level 2 up to and with pretraining; tests copy it before they damage it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    for stage in ("data", "tokenizer", "pretrain"):
        done = command("v2", stage, "--config", config, "--out", folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def a_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, for one test to damage."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


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


Prepare = Callable[[Path, Path], list[str | Path]]
