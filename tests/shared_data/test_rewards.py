"""A user's reward function: loaded from a file, and every way it can go wrong named with the completion it went wrong on."""

import math
from pathlib import Path

import numpy as np
import pytest

from shared_data.alignment.rewards import load_reward_function, open_reward, score_completions
from shared_data.errors import UserError

FILE = """
import math

def brevity(prompts, completions):
    return [1 / (1 + len(completion)) for completion in completions]

def nan_on_empty(prompts, completions):
    return [1.0 if completion else math.nan for completion in completions]

def raises_on_digits(prompts, completions):
    return [1 / (0 if any(c.isdigit() for c in completion) else 1) for completion in completions]

def one_short(prompts, completions):
    return [1.0] * (len(completions) - 1)

def words(prompts, completions):
    return ["good" for _ in completions]

def nothing(prompts, completions):
    return None
"""
PROMPTS, COMPLETIONS = ["Who?", "Where?", "When?"], ["Lily.", "", "At 5."]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_function_of_a_file_scores_completions(file: Path) -> None:
    assert load_reward_function(f"{file}:brevity")(PROMPTS, COMPLETIONS) == [1 / 6, 1.0, 1 / 6]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan_on_empty", r"nan_on_empty gave nan for completion 2, '' to the prompt 'Where\?'"),
        (
            "raises_on_digits",
            r"raises_on_digits raised ZeroDivisionError: .* for completion 3, 'At 5\.' to the prompt 'When\?'",
        ),
        ("one_short", "gave 2 rewards for 3 completions"),
        ("words", r"gave 'good' for completion 1, 'Lily\.'"),
        ("nothing", "raised TypeError"),
        ("lenght", "has no function lenght; it has brevity, nan_on_empty"),
    ],
)
def test_what_is_wrong_is_named_with_its_record(file: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_reward_function(f"{file}:{name}")(PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
    ("content", "reference", "message"),
    [
        ("", "rewards.py", "does not name a reward function; write FILE.py:FUNCTION"),
        ("", "other.py:brevity", "there is no file"),
        ("def f(:\n", "rewards.py:f", "could not be run: SyntaxError"),
        ("import no_such_package\n", "rewards.py:f", "could not be run: ModuleNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: str, reference: str, message: str
) -> None:
    (tmp_path / "rewards.py").write_text(content, encoding="utf-8")
    where = reference.replace("rewards.py", str(tmp_path / "rewards.py"))
    with pytest.raises(UserError, match=message) as caught:
        load_reward_function(where)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_and_torch_count_and_infinite_ones_do_not() -> None:
    assert score_completions(lambda p, r: np.array([0.5, 1.0, 2.0], np.float32), PROMPTS, COMPLETIONS) == [
        0.5,
        1,
        2,
    ]
    with pytest.raises(UserError, match="gave inf for completion 3"):
        score_completions(lambda p, r: [0, 1, math.inf], PROMPTS, COMPLETIONS)


def test_a_long_completion_is_shortened_in_the_message() -> None:
    with pytest.raises(UserError) as caught:
        score_completions(lambda p, r: [math.nan], ["q" * 1000], ["r" * 1000])
    assert len(str(caught.value)) < 300


def test_a_function_that_is_checked_twice_is_named_once(file: Path) -> None:
    for name in ("nan_on_empty", "raises_on_digits"):
        messages = []
        function = load_reward_function(f"{file}:{name}")
        for call in (function, lambda p, r, function=function: score_completions(function, p, r)):
            with pytest.raises(UserError) as caught:
                call(PROMPTS, COMPLETIONS)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_the_story_worlds_reward_is_open_by_its_name() -> None:
    (right,) = open_reward("story_world")(["Write a story."], ["Once upon a time."])
    assert 0 <= right <= 1
