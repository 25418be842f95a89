"""As test_kill_and_resume.py, for the stages that align; a file of its own, so that two workers share the time."""

from pathlib import Path

import pytest

from tests.end_to_end.test_kill_and_resume import check_killed_and_resumed


@pytest.mark.parametrize("stage", ["reward", "dpo", "ppo", "grpo"])
@pytest.mark.parametrize("level", ["v2", "v3"])
def test_alignment_killed_at_random_moments_ends_as_if_it_never_was(
    level: str, stage: str, tmp_path: Path
) -> None:
    check_killed_and_resumed(level, stage, tmp_path)
