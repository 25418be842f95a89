"""Files that the libraries of level 1 take, or refuse otherwise than in one line, are refused by checks that all levels share."""

from pathlib import Path

import pytest

from tests.end_to_end.conftest import Commands
from tests.real_files.hostile_files import AT_LEVEL_1, CASES, FOLDERS
from tests.real_files.test_hostile_files import assert_refused, assert_sound, commands, folders

_fixtures = (commands, folders)


def test_the_folders_before_the_damage_are_read(folders: Path, commands: Commands, tmp_path: Path) -> None:
    assert_sound("v1", [name for name in FOLDERS if name != "int4"], folders, commands, tmp_path)


@pytest.mark.parametrize("name", AT_LEVEL_1)
def test_a_wrong_file_is_one_line(name: str, folders: Path, commands: Commands, tmp_path: Path) -> None:
    assert_refused(CASES[name], "v1", folders, commands, tmp_path)
