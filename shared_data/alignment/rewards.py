"""A reward function of the user's own: loaded from a Python file, called as TRL calls it, with care.

It is called by keyword with the lists `prompts`, `completions`, `completion_ids` and every other column of the prompts, takes those that
it names (all of them as `**kwargs`), and returns one number a completion, or None where it does not apply: GRPO leaves such a
completion out of its group and learns nothing from it; PPO takes numbers only:

    def exact(completions, answer, **kwargs):
        return [float(text.strip() == right) for text, right in zip(completions, answer)]

A function of two parameters with other names, as `lambda p, c: …`, gets prompts and completions in that order.

A reward is the one thing that training believes without a question: a NaN would make every weight NaN within a step, and
a list that is one too short would reward the wrong completions. So all that comes back is checked, and what is wrong is
named with the completion it belongs to. What the function does to its lists stays with it: it gets copies.

    uv run python -c "from shared_data.alignment.rewards import load_reward_function; load_reward_function('rewards.py:brevity')"
"""

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared_data.alignment.reward_values import Rewards, check_count_and_numbers, shown
from shared_data.errors import UserError

RewardFunction = Callable[..., Sequence[float | None]]


def open_reward(reference: str) -> RewardFunction:
    """The reward function that a setting names: `story_world`, or a user's own as FILE.py:FUNCTION."""
    if reference != "story_world":
        return load_reward_function(reference)
    from shared_data.story_world.tasks import reward

    return lambda prompts, completions, **_: [
        reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)
    ]


def load_reward_function(reference: str) -> RewardFunction:
    """The function of "file.py:function", wrapped in `score_completions`.

    Raises `UserError` where there is no such file or function, or where the file cannot be run.
    """
    path, _, name = reference.rpartition(":")
    if not path or not name.isidentifier():
        raise UserError(
            f"{reference!r} does not name a reward function; write FILE.py:FUNCTION, as in rewards.py:brevity"
        )
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}; write FILE.py:FUNCTION with the path of a Python file")
    spec = importlib.util.spec_from_file_location("user_rewards", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; its name should end in .py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look for it there
    try:
        with _leaving_refused(path):
            spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} could not be run: {_describe(error)}; mend the file") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{path} has no function {name}; it has {_functions(module)}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise UserError(
            f"{reference} is an async function; write a plain one, with def alone (asyncio.run in it can wait for others)"
        )

    @functools.wraps(function)  # its signature says what it asks for
    def checked(prompts: list[Any], completions: list[Any], **columns: list[Any]) -> Rewards:
        return score_completions(function, prompts, completions, reference, columns)

    return checked


def score_completions(
    function: RewardFunction,
    prompts: list[Any],
    completions: list[Any],
    name: str = "the reward function",
    columns: Mapping[str, list[Any]] | None = None,
) -> Rewards:
    """The rewards of the completions. Raises `UserError`, naming the completion, where the function raises or gives no usable number.

    columns: `completion_ids`, and what the records of the prompts have beside them.
    """
    assert len(prompts) == len(completions), f"{len(prompts)} prompts and {len(completions)} completions"
    given = {"prompts": prompts, "completions": completions, **(columns or {})}
    try:
        with _leaving_refused(name):
            rewards = _in_order(_call(function, given, name), name)
    except UserError:  # also of a function that is checked already: it names the completion
        raise
    except Exception as error:
        record = _first_that_raises(function, given, name)
        raise UserError(f"{name} raised {_describe(error)}{record}; mend the function") from error
    check_count_and_numbers(
        rewards, len(completions), name, lambda index: _record(index, prompts[index], completions[index])
    )
    return [None if reward is None else float(reward) for reward in rewards]


def _call(function: RewardFunction, given: Mapping[str, list[Any]], name: str) -> Any:
    """The function's value for copies of the lists that it names."""
    lists = {key: list(values) for key, values in given.items()}
    names = check_parameters(function, lists, name)
    if names is None:
        return function(lists["prompts"], lists["completions"])
    return function(**{key: lists[key] for key in names})


def check_parameters(function: RewardFunction, given: Iterable[str], name: str) -> list[str] | None:
    """Which of the given lists the function names; None where it takes prompts and completions by position.

    Raises `UserError` where it needs one that is not given.
    """
    given = list(given)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a function in C
        return None
    if _is_of_two_lists(parameters, given):
        return None
    for parameter in parameters:
        is_named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if is_named and parameter.name not in given and parameter.default is parameter.empty:
            raise UserError(
                f"{name} has the parameter {parameter.name!r}, which is none of {', '.join(given)}; rename it, or give the prompts such a column"
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return given
    return [each for each in given if each in {parameter.name for parameter in parameters}]


def _is_of_two_lists(parameters: Iterable[inspect.Parameter], given: Sequence[str]) -> bool:
    """Whether a function takes prompts and completions by position: `*args`, or two parameters that are called something else."""
    needed = [each for each in parameters if each.default is each.empty]
    if any(each.kind is each.VAR_POSITIONAL for each in needed):
        return all(each.name not in given for each in parameters)
    if len(needed) != 2 or any(
        each.kind not in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in needed
    ):
        return False
    first, second = (each.name for each in needed)
    return second not in given and (first not in given or first == "prompts")


@contextmanager
def _leaving_refused(name: str) -> Iterator[None]:
    """A user's code may not end the command: it would look like success, with nothing trained. Ctrl-C may."""
    try:
        yield
    except SystemExit as leave:
        raise UserError(
            f"{name} called sys.exit; raise an exception where it cannot go on, and take the call out"
        ) from leave


def _in_order(rewards: Any, name: str) -> list[Any]:
    """What a function returned as a list. Raises `UserError` for what has no order, or other things in it than rewards."""
    if isinstance(rewards, Mapping | Set | str | bytes | bytearray) or inspect.isawaitable(rewards):
        _close([rewards])
        raise UserError(
            f"{name} returned a {type(rewards).__name__}; return a list with one number for each completion, in order"
        )
    listed = list(rewards)
    _close(listed)
    return listed


def _close(values: list[Any]) -> None:
    """Python would complain on stderr that nothing waited for a coroutine."""
    for value in values:
        if inspect.iscoroutine(value):
            value.close()


def _first_that_raises(function: RewardFunction, given: Mapping[str, list[Any]], name: str) -> str:
    """Ask for each completion alone, to find the one the function cannot bear; empty where each of them goes well."""
    for index, (prompt, completion) in enumerate(zip(given["prompts"], given["completions"], strict=True)):
        try:
            _call(function, {key: values[index : index + 1] for key, values in given.items()}, name)
        except (Exception, SystemExit):
            return _record(index, prompt, completion)
    return ""


def _record(index: int, prompt: Any, completion: Any) -> str:
    return f" for completion {index + 1}, {shown(completion)} to the prompt {shown(prompt)}"


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _functions(module: Any) -> str:
    """What the file offers instead."""
    names = [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]
    return ", ".join(names) or "none"
