"""What an `adapter_config.json` of PEFT may say, and which modules its `target_modules` mean.

A text there is a regular expression, and some expressions take longer than the age of the universe on a name of forty letters: `(a+)+b`. So
matching has a time limit, which `regex` knows and `re` does not.

    uv run python -c "from shared_data.peft.adapter_schema import *; print(chosen_modules('.*q_proj', ['h.q_proj', 'h.k_proj'], 'a.json'))"
"""

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import regex
from pydantic import Field

from shared_data.errors import UserError
from shared_data.foreign_json import ForeignJson, Size
from shared_data.slow_patterns import is_large

MATCHING_SECONDS = 1.0  # of all names together; patterns in use take a millisecond


class AdapterOfBase(ForeignJson):
    """What every adapter's file says."""

    base_model_name_or_path: str | None = None


class LoraAdapter(AdapterOfBase):
    """PEFT's `LoraConfig`: the entries that are computed. null is as if there were none."""

    peft_type: Literal["LORA"]
    r: Size
    lora_alpha: float
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    target_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    ensure_weight_tying: bool | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None


def chosen_modules(target_modules: Any, paths: Iterable[str], file: Path | str) -> list[str]:
    """PEFT's rule: a list holds paths or ends of them; a text is a regular expression for the whole path, or "all-linear".

    Raises `UserError`, with the `file`, for a text that is no regular expression or takes too long to match.
    """
    if target_modules == "all-linear":
        return list(paths)
    if not isinstance(target_modules, str):
        ends = tuple(target_modules or ())
        return [path for path in paths if any(path == end or path.endswith(f".{end}") for end in ends)]
    cause = f"{file}: target_modules is {target_modules!r:.60}, "
    deadline = time.monotonic() + MATCHING_SECONDS
    try:
        re.compile(target_modules)  # as PEFT does: some of what `regex` reads is an error there
        if is_large(target_modules):
            raise TimeoutError
        pattern = regex.compile(target_modules)
        return [
            path for path in paths if pattern.fullmatch(path, timeout=max(deadline - time.monotonic(), 1e-3))
        ]
    except TimeoutError as error:
        raise UserError(
            f"{cause}which takes too long to match a name; write the names of the modules as a list"
        ) from error
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise UserError(f"{cause}not a regular expression ({error!s:.80}); correct it") from error
