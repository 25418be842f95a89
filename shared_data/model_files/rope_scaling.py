"""Which ways of scaling rotary positions are supported, and what the `rope_scaling` of a config.json must and may say for each.

The formulas stand in rope.py. What nothing here knows is refused by name; transformers would only warn.

    uv run python -c "from shared_data.model_files.rope_scaling import *; check_rope_scaling({'rope_type': 'linear', 'factor': 2.0}, 64)"
"""

from typing import Any, NamedTuple

from shared_data.errors import UserError
from shared_data.files import is_number


class RopeType(NamedTuple):
    """The numbers that a kind of scaling must have (positive ones), those that it may have (from 0), and its flags."""

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


ROPE_TYPES: dict[str, RopeType] = {
    "default": RopeType(),
    "linear": RopeType(("factor",)),
    "dynamic": RopeType(("factor",)),
    "yarn": RopeType(
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        ("truncate",),
    ),
    "llama3": RopeType(("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")),
}
ORIGINAL = "original_max_position_embeddings"
# Types that need to know the length the model was first trained on.
WITH_ORIGINAL_LENGTH = ("yarn", "llama3")
_NEUTRAL = frozenset({"rope_type", "finetuned"})  # the second says that training has followed


def with_original_length(scaling: dict[str, Any], positions: int) -> dict[str, Any]:
    """The same scaling; where it names no original length and needs one, that is the number of positions of the model."""
    if scaling.get("rope_type") in WITH_ORIGINAL_LENGTH:
        return scaling | {ORIGINAL: scaling.get(ORIGINAL, positions)}
    return scaling


def check_rope_scaling(scaling: dict[str, Any], head_dim: int) -> None:
    """Raise `UserError` for an unknown kind, a number that is missing or makes no sense, and an entry that is not computed."""
    kind = scaling.get("rope_type")
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise UserError(f"rope_scaling {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
    entries = ROPE_TYPES[kind]
    for name in entries.needed:
        if not _is_moderate(scaling.get(name)):
            raise _bad(kind, name, scaling.get(name), "a positive number")
    for name in entries.optional:
        value = scaling.get(name)
        if value is not None and not (is_number(value) and value == 0) and not _is_moderate(value):
            raise _bad(kind, name, value, "a number from 0")
    for name in entries.flags:
        if not isinstance(scaling.get(name), bool | None):
            raise _bad(kind, name, scaling[name], "true or false")
    for name, value in scaling.items():
        if name not in {*_NEUTRAL, *entries.needed, *entries.optional, *entries.flags} and value is not None:
            raise UserError(
                f"rope_scaling of the type {kind} has {name} = {value!r:.60}, which is not supported; remove it if the model "
                "computes the same without it"
            )
    if scaling.get("factor", 1) < 1:
        raise _bad(kind, "factor", scaling["factor"], "1 or more")
    if kind == "yarn" and (scaling.get("beta_fast") or 32) < (scaling.get("beta_slow") or 1):
        raise _bad(kind, "beta_fast", scaling.get("beta_fast"), "at least beta_slow")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise _bad(kind, "high_freq_factor", scaling["high_freq_factor"], "more than low_freq_factor")
    if kind == "dynamic" and head_dim == 2:  # its exponent is D / (D - 2)
        raise UserError("rope_scaling of the type dynamic needs a head_dim above 2; use the type linear")


def _is_moderate(value: Any) -> bool:
    """Whether a value is a positive number whose powers and quotients fit into a float."""
    return is_number(value) and 1e-9 <= value < 2**31


def _bad(kind: str, name: str, value: Any, wanted: str) -> UserError:
    return UserError(f"rope_scaling of the type {kind} has {name} {value!r:.60}, not {wanted}; correct it")
