"""A user's reward function: loaded from a file, and every way it can go wrong named with the completion it went wrong on."""

import gc
import math
from pathlib import Path

import numpy as np
import pytest

from shared_data.alignment.rewards import load_reward_function, open_reward, score_completions
from shared_data.errors import UserError

FILE = """
import math
import sys

import numpy

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

def leaves(prompts, completions):
    sys.exit(0)

def leaves_on_digits(prompts, completions):
    return [sys.exit("no digits") if "5" in completion else 1.0 for completion in completions]

def clears(prompts, completions):
    completions.clear()
    prompts.clear()
    return []

def by_number(prompts, completions):
    return {index: 1.0 for index, _ in enumerate(completions)}

def unordered(prompts, completions):
    return {0.5, 1.0, 1.5}

def in_bytes(prompts, completions):
    return b"123"

async def waits(prompts, completions):
    return [1.0 for _ in completions]

def forgets_to_wait(prompts, completions):
    return waits(prompts, completions)

def forgets_to_wait_for_each(prompts, completions):
    return [waits(prompts, completions) for _ in completions]

def huge(prompts, completions):
    return [0.0, 1e300, 0.0]

def beyond_floats(prompts, completions):
    return [10**5000 for _ in completions]

def two_in_one(prompts, completions):
    return [numpy.zeros(2) for _ in completions]
"""
FORMS = {
    "def f(completions, **kwargs): return [len(c) for c in completions]": [5, 0, 5],
    "def f(completions, answer, **kwargs): return [float(c == a) for c, a in zip(completions, answer)]": [
        1,
        0,
        0,
    ],
    "def f(answer, completions): return [float(c == a) for c, a in zip(completions, answer)]": [1, 0, 0],
    "def f(*, prompts, level=1): return [len(p) * level for p in prompts]": [4, 6, 5],
    "def f(completion_ids, **kwargs): return [sum(ids) for ids in completion_ids]": [3, 0, 7],
    "def f(**kwargs): return [len(kwargs) + len(p) for p in kwargs['prompts']]": [8, 10, 9],
    "def f(completions, prompts): return [len(p) - len(c) for p, c in zip(prompts, completions)]": [-1, 6, 0],
    "def f(completions, **kwargs): return [None if not c else 1.0 for c in completions]": [1, None, 1],
    "def f(p, c): return [len(a) - len(b) for a, b in zip(p, c)]": [-1, 6, 0],
    "def f(prompts, replies): return [len(a) - len(b) for a, b in zip(prompts, replies)]": [-1, 6, 0],
    "f = lambda x, y: [len(a) - len(b) for a, b in zip(x, y)]": [-1, 6, 0],
    "def f(x, y, /): return [len(a) - len(b) for a, b in zip(x, y)]": [-1, 6, 0],
    "def f(*args): return [len(a) - len(b) for a, b in zip(*args)]": [-1, 6, 0],
    "class F:\n    def __call__(self, completions, **_): return [len(c) for c in completions]\nf = F()": [
        5,
        0,
        5,
    ],
    "import functools\ndef g(k, completions, **_): return [k] * len(completions)\nf = functools.partial(g, 2)": [
        2,
        2,
        2,
    ],
}
COLUMNS = {"answer": ["Lily.", "x", "At 6."], "completion_ids": [[1, 2], [], [7]]}
PROMPTS, COMPLETIONS = ["Who?", "Where?", "When?"], ["Lily.", "", "At 5."]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_function_of_a_file_scores_completions(file: Path) -> None:
    assert load_reward_function(f"{file}:brevity")(PROMPTS, COMPLETIONS) == [1 / 6, 1.0, 1 / 6]


@pytest.mark.parametrize("code", FORMS)
def test_a_function_gets_by_keyword_what_it_names_as_in_trl(tmp_path: Path, code: str) -> None:
    """`def f(completions, answer, **kwargs)` was called by position, and scored prompts as completions."""
    (tmp_path / "rewards.py").write_text(code)
    function = load_reward_function(f"{tmp_path / 'rewards.py'}:f")
    assert function(PROMPTS, COMPLETIONS, **COLUMNS) == FORMS[code]


@pytest.mark.parametrize("parameters", ["completions, right", "a, b, c", "a", "answer, b"])
def test_a_parameter_that_nothing_is_given_for_is_named(tmp_path: Path, parameters: str) -> None:
    (tmp_path / "rewards.py").write_text(f"def f({parameters}): return [1.0] * 3\n")
    says = r"rewards.py:f has the parameter '(right|a|b)', which is none of prompts, completions, answer, completion_ids; rename"
    with pytest.raises(UserError, match=says):
        load_reward_function(f"{tmp_path / 'rewards.py'}:f")(PROMPTS, COMPLETIONS, **COLUMNS)


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
        ("leaves", r"^\S+rewards\.py:leaves called sys\.exit; raise an exception"),
        ("leaves_on_digits", r"rewards\.py:leaves_on_digits called sys\.exit; raise"),
        ("clears", "gave 0 rewards for 3 completions; return"),
        ("by_number", "by_number returned a dict; return a list with one number for each completion"),
        ("unordered", "returned a set; return a list"),
        ("in_bytes", "returned a bytes; return a list"),
        ("waits", r"rewards\.py:waits is an async function; write a plain one"),
        ("forgets_to_wait", "returned a coroutine; return a list"),
        ("forgets_to_wait_for_each", r"gave <coroutine object .* for completion 1, .*; return"),
        (
            "huge",
            r"rewards\.py:huge gave 1e\+300 for completion 2, .*; return a finite number .* at most 1e\+15",
        ),
        ("beyond_floats", "gave a int for completion 1"),
        ("two_in_one", r"gave array\(\[0\., 0\.\]\) for completion 1"),
        ("lenght", "has no function lenght; it has brevity, nan_on_empty"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_wrong_is_named_with_its_record(file: Path, name: str, message: str) -> None:
    prompts, completions = list(PROMPTS), list(COMPLETIONS)
    with pytest.raises(UserError, match=message) as caught:
        load_reward_function(f"{file}:{name}")(prompts, completions)
    assert "\n" not in str(caught.value)
    assert (prompts, completions) == (PROMPTS, COMPLETIONS)
    gc.collect()  # where Python warns of coroutines that nothing waited for


@pytest.mark.parametrize(
    ("content", "reference", "message"),
    [
        ("", "rewards.py", "does not name a reward function; write FILE.py:FUNCTION"),
        ("", "other.py:brevity", "there is no file"),
        ("def f(:\n", "rewards.py:f", "could not be run: SyntaxError"),
        ("import no_such_package\n", "rewards.py:f", "could not be run: ModuleNotFoundError"),
        ("import sys\nsys.exit()\n", "rewards.py:f", r"rewards\.py called sys\.exit; raise"),
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


def test_ctrl_c_in_a_users_code_still_interrupts(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "def f(prompts, completions):\n    raise KeyboardInterrupt\n", encoding="utf-8"
    )
    function = load_reward_function(f"{tmp_path / 'rewards.py'}:f")
    with pytest.raises(KeyboardInterrupt):
        function(PROMPTS, COMPLETIONS)


def test_what_a_function_does_to_its_lists_changes_no_list_of_ours(tmp_path: Path) -> None:
    """It may use them up, as here, and give the right number of rewards all the same."""
    code = "def f(prompts, completions):\n    return [float(len(completions.pop(0))) for _ in prompts]\n"
    (tmp_path / "rewards.py").write_text(code, encoding="utf-8")
    completions = list(COMPLETIONS)
    function = load_reward_function(f"{tmp_path / 'rewards.py'}:f")
    assert function(PROMPTS, completions) == [5.0, 0.0, 5.0]
    assert completions == COMPLETIONS


def test_a_file_may_have_dataclasses(tmp_path: Path) -> None:
    code = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Rule:\n    word: str\n"
    (tmp_path / "rewards.py").write_text(
        f"{code}def f(prompts, completions):\n    return [1.0] * len(prompts)\n"
    )
    assert load_reward_function(f"{tmp_path / 'rewards.py'}:f")(PROMPTS, COMPLETIONS) == [1.0, 1.0, 1.0]


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
