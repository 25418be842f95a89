"""Each level runs with what it may use and nothing more, and `--help` imports none of it."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import PACKAGES, command, environment

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

# An import of a blocked package fails as if it were not installed; the commands then run one after the other, as the
# console script runs one.
PROGRAM = """
import json
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
for arguments in json.loads(sys.argv[3]):
    try:
        module.app(arguments)
    except SystemExit as leave:
        if leave.code:
            raise
"""


def run_without(
    blocked: tuple[str, ...], package: str, *commands: list[str | Path]
) -> subprocess.CompletedProcess[str]:
    words = json.dumps([[str(word) for word in command] for command in commands])
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(blocked), package, words],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )


@pytest.mark.parametrize(("package", "blocked"), [("v2_handwritten", LEVEL_2), ("v3_numpy_deep", LEVEL_3)])
def test_the_whole_pipeline_runs_without_the_libraries_of_other_levels(
    package: str, blocked: tuple[str, ...], config: Path, tmp_path: Path
) -> None:
    options = ["--config", config, "--out", tmp_path / "run"]
    done = run_without(blocked, package, ["run", *options], ["generate", *options, "--prompt", "Once upon"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    assert "\nOnce upon" in done.stdout


def test_the_blocker_blocks() -> None:
    done = run_without(("typer",), "v2_handwritten", ["--help"])
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


@pytest.mark.parametrize("level", PACKAGES)
def test_help_answers_in_under_a_second(level: str) -> None:
    """In time of the processor, so that a busy machine does not fail it; the benchmarks measure the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command(level, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "pretrain" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize("level", PACKAGES)
def test_help_imports_nothing_heavy(level: str) -> None:
    heavy = ("numpy", "torch", "matplotlib", "pyarrow", "jaxtyping", "regex", *HUGGING_FACE)
    done = run_without(heavy, PACKAGES[level], ["--help"], ["pretrain", "--help"], ["generate", "--help"])
    assert done.returncode == 0, done.stderr
