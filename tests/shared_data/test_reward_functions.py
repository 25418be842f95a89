"""A user's reward function: loaded from a file, and every way it can go wrong named with the reply it went wrong on."""

import math
from pathlib import Path

import numpy as np
import pytest

from shared_data.errors import UserError
from shared_data.reward_functions import load_reward_function, score_replies

FILE = """
import math

def brevity(prompts, replies):
    return [1 / (1 + len(reply)) for reply in replies]

def nan_on_empty(prompts, replies):
    return [1.0 if reply else math.nan for reply in replies]

def raises_on_digits(prompts, replies):
    return [1 / (0 if any(c.isdigit() for c in reply) else 1) for reply in replies]

def one_short(prompts, replies):
    return [1.0] * (len(replies) - 1)

def words(prompts, replies):
    return ["good" for _ in replies]

def nothing(prompts, replies):
    return None
"""
PROMPTS, REPLIES = ["Who?", "Where?", "When?"], ["Lily.", "", "At 5."]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_function_of_a_file_scores_replies(file: Path) -> None:
    assert load_reward_function(f"{file}:brevity")(PROMPTS, REPLIES) == [1 / 6, 1.0, 1 / 6]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan_on_empty", r"nan_on_empty gave nan for reply 2, '' to the prompt 'Where\?'"),
        (
            "raises_on_digits",
            r"raises_on_digits raised ZeroDivisionError: .* for reply 3, 'At 5\.' to the prompt 'When\?'",
        ),
        ("one_short", "gave 2 rewards for 3 replies"),
        ("words", r"gave 'good' for reply 1, 'Lily\.'"),
        ("nothing", "raised TypeError"),
        ("lenght", "has no function lenght; it has brevity, nan_on_empty"),
    ],
)
def test_what_is_wrong_is_named_with_its_record(file: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_reward_function(f"{file}:{name}")(PROMPTS, REPLIES)


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


def test_numbers_of_numpy_and_torch_are_numbers_and_infinite_ones_are_not() -> None:
    assert score_replies(lambda p, r: np.array([0.5, 1.0, 2.0], np.float32), PROMPTS, REPLIES) == [0.5, 1, 2]
    with pytest.raises(UserError, match="gave inf for reply 3"):
        score_replies(lambda p, r: [0, 1, math.inf], PROMPTS, REPLIES)


def test_a_long_reply_is_shortened_in_the_message() -> None:
    with pytest.raises(UserError) as caught:
        score_replies(lambda p, r: [math.nan], ["q" * 1000], ["r" * 1000])
    assert len(str(caught.value)) < 300


def test_what_is_wrong_is_named_once_where_a_checked_function_is_checked_again(file: Path) -> None:
    for name in ("nan_on_empty", "raises_on_digits"):
        messages = []
        function = load_reward_function(f"{file}:{name}")
        for call in (function, lambda p, r, function=function: score_replies(function, p, r)):
            with pytest.raises(UserError) as caught:
                call(PROMPTS, REPLIES)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
