"""A file from elsewhere that is wrong is one line that names it, at once: no traceback, nothing written, no long work before.

Level 1 has a file of its own (test_hostile_files_level_1.py), since its libraries take long to import.
"""

import re
import shutil
import time
from pathlib import Path

import pytest

from shared_data.errors import UserError
from shared_data.tokenizer.chat_template import ChatTemplate
from tests.end_to_end.conftest import TINIEST, Commands, snapshot
from tests.real_files.hostile_files import CASES, FOLDERS, Case, make_folders


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sound folders; tests damage copies."""
    root = tmp_path_factory.mktemp("folders")
    make_folders(root)
    (root / "tiniest.toml").write_text(TINIEST)
    return root


@pytest.fixture(scope="module")
def commands():
    """Run commands of the levels."""
    running = Commands()
    yield running
    running.stop()


def generate(commands: Commands, level: str, model: Path, folders: Path, cwd: Path):
    words = [
        "--prompt",
        "Once",
        "--max-new-tokens",
        "2",
        "--no-stream",
        "--model",
        model,
        "--out",
        cwd / "run",
    ]
    return commands(level, "generate", "--config", folders / "tiniest.toml", *words, cwd=cwd)


def assert_sound(level: str, names: list[str], folders: Path, commands: Commands, cwd: Path) -> None:
    """Else the table would prove nothing."""
    for name in names:
        done = generate(commands, level, folders / name, folders, cwd)
        assert done.returncode == 0, f"{name}: {done.stderr}"


def assert_refused(case: Case, level: str, folders: Path, commands: Commands, cwd: Path) -> None:
    """Exit code 2 and one line on stderr, within seconds, with nothing written."""
    model = Path(shutil.copytree(folders / case.folder, cwd / "model"))
    file = model / case.file
    file.write_bytes(case.change(file.read_bytes() if file.is_file() else b"{}"))
    before, begun = snapshot(cwd), time.monotonic()
    done = generate(commands, level, model, folders, cwd)
    assert time.monotonic() - begun < 8
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = filter(None, done.stderr.splitlines())
    assert re.fullmatch(r"error: .{1,700}; .{1,300}", line), line
    assert re.search(case.says, line), line
    assert snapshot(cwd) == before


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_the_folders_before_the_damage_are_read(
    level: str, folders: Path, commands: Commands, tmp_path: Path
) -> None:
    assert_sound(level, FOLDERS, folders, commands, tmp_path)


@pytest.mark.parametrize("level", ["v2", "v3"])
@pytest.mark.parametrize("name", CASES)
def test_a_wrong_file_is_one_line(
    name: str, level: str, folders: Path, commands: Commands, tmp_path: Path
) -> None:
    assert_refused(CASES[name], level, folders, commands, tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}",
        "{% for a in messages %}" * 30 + "{% endfor %}" * 30,
        "{% if a %}" * 200 + "{% endif %}" * 200,
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% for a in range(10 ** 12) %}{{ a }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{% for %}",
        "{{ messages[5].content + 1 }}",
        "{{ messages | map(attribute='__class__') | list }}{{ ''.__class__.__mro__ }}{{ x.y.z }}",
    ],
)
def test_a_chat_template_that_cannot_be_is_one_line(source: str) -> None:
    with pytest.raises(UserError, match="the chat template ") as refused:
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}])
    assert "\n" not in str(refused.value)
