"""Every mistake of a user's is one line that names cause and remedy, exit code 2, and nothing overwritten.

Each row of the table is a command on a copy of a run that has finished before; the whole folder is compared before and
after, at level 2 and level 3. What needs more than a bad argument or file (a full disk, a read-only folder, Ctrl-C, a
reader that goes away) stands below the table.
"""

import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Commands, command, console_script, environment, snapshot
from tests.end_to_end.faults import FAULTS, Arguments
from tests.end_to_end.faults_alignment import ALIGNMENT_FAULTS


def assert_one_line(done: subprocess.CompletedProcess[str], says: str) -> None:
    """Exit code 2, and on stderr one line with cause and remedy."""
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert re.search(says, lines[0]), lines[0]
    assert re.search(r"\S; \S", lines[0]), f"no remedy: {lines[0]}"
    assert "Traceback" not in done.stdout


def with_run(words: Arguments, config: Path, run: Path) -> Arguments:
    """The command on a run; where the mistake is in these options, the later ones count."""
    first, *others = words
    options: Arguments = ["--out", run] if first != "trane" else []
    return [first, *(["--config", config] if options else []), *options, *others]


# The trainers of level 1 cut these off or learn nothing from them, without an error.
NOT_SEEN_BY_LEVEL_1 = {"reply beyond the context", "identical completions", "prompt beyond the context"}


def cases(faults: Iterable[str]) -> list[tuple[str, str]]:
    """Every fault at every level that notices it."""
    every = itertools.product(faults, ("v1", "v2", "v3"))
    return [(name, level) for name, level in every if level != "v1" or name not in NOT_SEEN_BY_LEVEL_1]


@pytest.mark.parametrize(("name", "level"), cases(FAULTS))
def test_one_line_exit_code_2_and_nothing_overwritten(
    name: str,
    level: str,
    config: Path,
    commands: Commands,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    fault, says = FAULTS[name]
    run, scratch = Path(shutil.copytree(finished_runs(level), tmp_path / "run")), tmp_path / "scratch"
    scratch.mkdir()
    words = with_run(fault(scratch, run), config, run)
    before = snapshot(run)
    assert_one_line(commands(level, *words, cwd=scratch), says)
    assert snapshot(run) == before


@pytest.mark.parametrize(("name", "level"), cases(ALIGNMENT_FAULTS))
def test_a_mistake_in_aligning_is_one_line_and_nothing_is_overwritten(
    name: str,
    level: str,
    config: Path,
    commands: Commands,
    aligned_runs: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    fault, says = ALIGNMENT_FAULTS[name]
    run, scratch = Path(shutil.copytree(aligned_runs(level), tmp_path / "run")), tmp_path / "scratch"
    scratch.mkdir()
    words = with_run(fault(scratch, run), config, run)
    before = snapshot(run)
    assert_one_line(commands(level, *words, cwd=scratch), says)
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("level", "name"),
    [
        ("v1", "unknown setting"),
        ("v1", "malformed JSONL line"),
        ("v2", "malformed JSONL line"),
        ("v2", "generate: corrupted tokenizer.json"),
        ("v3", "malformed JSONL line"),
    ],
)
def test_the_console_script_says_what_the_command_server_says(
    name: str,
    level: str,
    config: Path,
    commands: Commands,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    fault, says = FAULTS[name]
    words = with_run(fault(tmp_path, finished_runs("v2")), config, tmp_path / "run")
    done = command(level, *words, cwd=tmp_path)
    assert_one_line(done, says)
    assert done.stderr == commands(level, *words, cwd=tmp_path).stderr


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """A file system of that size at the folder, where mounting is allowed (as root, in some containers); else False."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount") is not None
        and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


def leave_kilobytes(room: int, disk: Path) -> None:
    """Fill a disk up, but for a little room."""
    with open(disk / "filler", "wb", buffering=0) as filler:
        with suppress(OSError):
            while filler.write(bytes(4096)) == 4096:
                pass
        filler.truncate(filler.tell() - room * 1024)


@pytest.mark.parametrize("level", ["v2", "v3"])
@pytest.mark.parametrize("stage", ["data", "tokenizer", "pretrain"])
def test_a_full_disk_is_one_line_and_keeps_the_last_result(
    stage: str,
    level: str,
    config: Path,
    commands: Commands,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """On a disk that is really full, where the test may mount one; else with a limit on the size of files."""
    with small_disk(tmp_path / "disk", 4096) as mounted:
        run = Path(shutil.copytree(finished_runs(level), tmp_path / "disk" / "run"))
        if mounted:
            leave_kilobytes(12, tmp_path / "disk")
        before = snapshot(run)
        words = [stage, "--force", "--config", config, "--out", run]
        done = commands(level, *words, cwd=tmp_path, file_size_limit=None if mounted else 1000)
        after = snapshot(run)
    assert_one_line(done, r"(No space left on device; free|File too large; raise)")
    if stage == "pretrain":  # works in place: its old training states and log are gone, the model is not
        before = {
            name: content for name, content in before.items() if not re.search("state|jsonl|finished", name)
        }
        assert before.items() <= after.items()
    else:
        assert after == before


def test_a_read_only_output_is_one_line(config: Path, commands: Commands, tmp_path: Path) -> None:
    """Permissions bind a user; root is bound by a file system mounted read-only."""
    folder = tmp_path / "read_only"
    with small_disk(folder, 64) as mounted:
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        elif os.geteuid() == 0:
            pytest.skip("root writes anywhere, and may not mount a read-only file system here")
        else:
            folder.chmod(0o555)
        done = commands("v2", "data", "--config", config, "--out", folder / "run", cwd=tmp_path)
    assert_one_line(done, r"read_only.*(Read-only file system; choose|Permission denied; check)")


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_ctrl_c_leaves_a_resumable_run(
    level: str, config: Path, commands: Commands, finished_runs: Callable[[str], Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_runs(level), tmp_path / "run"))
    options = ["--config", str(config), "--out", str(run), "--set", "pretrain.max_steps=600", "--force"]
    for name in ("eval_steps", "sample_steps", "save_steps"):
        options += ["--set", f"pretrain.{name}=0"]
    log, state = run / "pretrain" / "metrics_log.jsonl", run / "pretrain" / "state"
    log.unlink()
    shutil.rmtree(state)
    with subprocess.Popen(
        [console_script(level), "pretrain", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as training:
        deadline = time.monotonic() + 300  # only a machine that is busy elsewhere needs so long
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        training.send_signal(signal.SIGINT)
        _, err = training.communicate(timeout=60)
    assert training.returncode == 2, err
    assert re.fullmatch(rf"interrupted: .*`uv run {level} pretrain --out .*run` continues from there\n", err)
    reached = len(log.read_bytes().splitlines())
    assert 0 < reached < 600
    assert len(list(state.glob("step-*"))) == 1

    done = commands(level, "pretrain", "--out", run, cwd=tmp_path)  # the settings are remembered
    assert done.returncode == 0, done.stderr
    assert "continuing where it was interrupted" in done.stdout
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 601))


@pytest.mark.parametrize("level", ["v1", "v2", "v3"])
def test_a_reader_that_goes_away_is_no_error(level: str) -> None:
    script = f"{console_script(level)} settings | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_limit_on_file_sizes_fails_as_a_full_disk_does(
    config: Path, commands: Commands, tmp_path: Path
) -> None:
    """What the test of the full disk falls back to where it may not mount one."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    words = ["data", "--config", config, "--out", tmp_path / "run"]
    done = commands("v3", *words, cwd=tmp_path, file_size_limit=1000)
    assert_one_line(done, "File too large; raise")
