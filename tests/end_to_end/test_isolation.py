"""Each level runs with what it may use and nothing more, and `--help` imports none of it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import command, environment

HUGGING_FACE = (
    "transformers",
    "tokenizers",
    "datasets",
    "datasketch",
    "peft",
    "trl",
    "accelerate",
    "huggingface_hub",
)
LEVEL_2 = (*HUGGING_FACE, "ftfy")
LEVEL_3 = (*LEVEL_2, "torch", "tinygrad", "autograd", "jax", "scipy")

# An import of a blocked package fails as if it were not installed; the commands then run as the console script does.
PROGRAM = """
import sys

blocked = set(sys.argv[1].split(","))


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)


sys.meta_path.insert(0, Blocker())
for name in blocked:
    assert name not in sys.modules, name
module = __import__(sys.argv[2] + ".cli", fromlist=["app"])
sys.argv = [sys.argv[2], *sys.argv[3:]]
module.app()
"""


def run_without(
    blocked: tuple[str, ...], package: str, *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(blocked), package, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )


@pytest.mark.parametrize(("package", "blocked"), [("v2_handwritten", LEVEL_2), ("v3_numpy_deep", LEVEL_3)])
def test_the_whole_pipeline_runs_without_the_libraries_of_other_levels(
    package: str, blocked: tuple[str, ...], config: Path, tmp_path: Path
) -> None:
    done = run_without(blocked, package, "run", "--config", config, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    done = run_without(
        blocked, package, "generate", "--config", config, "--out", tmp_path / "run", "-p", "Once"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_blocker_blocks() -> None:
    done = run_without(("torch",), "v2_handwritten", "pretrain", "--help")
    assert done.returncode == 0
    done = run_without(("typer",), "v2_handwritten", "--help")
    assert done.returncode == 1
    assert "No module named 'typer' (blocked)" in done.stderr


def test_every_module_of_level_3_and_of_the_shared_parts_imports_without_torch() -> None:
    root = Path(__file__).parents[2]
    files = [*root.glob("v3_numpy_deep/**/*.py"), *root.glob("shared_data/**/*.py")]
    modules = [
        ".".join(file.relative_to(root).with_suffix("").parts) for file in files if file.name != "__init__.py"
    ]
    code = (
        PROGRAM.partition("module =")[0]
        + "import importlib\nfor name in sys.argv[2:]: importlib.import_module(name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join(LEVEL_3), *modules],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("level", ["v1", "v2", "v3"])
def test_help_answers_in_under_a_second(level: str) -> None:
    command(level, "--help")  # the first call may read the disk
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = command(level, "--help")
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0
        assert "pretrain" in done.stdout
    assert min(seconds) < 1.0, seconds


@pytest.mark.parametrize("level", ["v1", "v2", "v3"])
def test_help_imports_nothing_heavy(level: str) -> None:
    package = {"v1": "v1_quick", "v2": "v2_handwritten", "v3": "v3_numpy_deep"}[level]
    heavy = ("numpy", "torch", "matplotlib", "pyarrow", "jaxtyping", "regex", *HUGGING_FACE)
    for arguments in (["--help"], ["pretrain", "--help"], ["generate", "--help"]):
        done = run_without(heavy, package, *arguments)
        assert done.returncode == 0, done.stderr
