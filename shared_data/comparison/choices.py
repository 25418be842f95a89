"""Which choices a comparison trains: every combination of the values of each `--vary`, and of the named choices of `--choice`.

    --vary model.num_key_value_heads=1,2,4 --vary pretrain.optim=adamw,muon                    six choices
    --vary 'model.layer_types=["full_attention"],["sliding_attention"]'                        a comma inside brackets or quotes is a value's
    --choice "dense:" --choice "MoE: model.model_type=mixtral model.num_local_experts=8"       several settings that change together

uv run python -c "from shared_data.comparison.choices import *; print(read_choices(['pretrain.optim=adamw,muon'], []))"
"""

import itertools
import re
from collections import Counter
from dataclasses import dataclass

from shared_data.errors import UserError
from shared_data.settings import Settings, load_settings, parse_override
from shared_data.stages import STAGES, WITHOUT_EFFECT, upstream

TRAINED = "pretrain"  # the stage that a comparison trains
NEEDED = tuple(upstream(TRAINED))  # those before it
LONGEST_NAME = 120  # of a choice; it is a folder, and in bytes three times as long in Chinese
# Sections, and settings outside of sections, that change a pretraining or its speed.
_COMPARABLE = {section for stage in (*NEEDED, TRAINED) for section in STAGES[stage].sections} | {
    "kernels",
    "device",
}


@dataclass(frozen=True)
class Choice:
    """One alternative: a name for the table, and what it sets."""

    name: str
    assignments: tuple[str, ...]  # as of `--set`

    @property
    def keys(self) -> list[str]:
        """The dotted names of the settings that it sets."""
        return [".".join(parse_override(assignment)[0]) for assignment in self.assignments]

    def settings(self, config: str, assignments: list[str]) -> Settings:
        """The settings of a configuration, changed by `--set` and then by this choice. Raises `UserError` for what is not valid."""
        try:
            settings = load_settings(config, [*assignments, *self.assignments])
            for key in self.keys:  # else its rows would differ by chance only
                if key.partition(".")[0] not in _COMPARABLE or key in WITHOUT_EFFECT:
                    raise UserError(
                        f"{key} changes nothing in pretraining, which is what `compare` trains; vary a setting of data, tokenizer, "
                        "model or pretrain, or kernels"
                    )
        except UserError as error:
            raise UserError(f"choice {self.name!r}: {error}") from error
        return settings


def folder_of(name: str) -> str:
    """A name as that of a folder: `num_key_value_heads=1, optim=muon` is `num_key_value_heads=1-optim=muon`."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.")


def read_choices(varied: list[str], named: list[str]) -> list[Choice]:
    """Every combination, in the order of the options, the last one changing fastest. All `--choice` together count as one option.

    Raises `UserError` where there are not two choices, or two of them have the same name or set the same setting.
    """
    settings = [_read_varied(text) for text in varied]
    short = Counter(key.rpartition(".")[2] for key, _ in settings)
    factors = [[_read_named(text) for text in named]] if named else []
    for key, values in settings:
        label = key.rpartition(".")[2] if short[key.rpartition(".")[2]] == 1 else key
        factors.append([Choice(f"{label}={_label(value)}", (f"{key}={value}",)) for value in values])
    choices = [_combine(parts) for parts in itertools.product(*factors)]
    if len(choices) < 2:
        raise UserError(
            "there is nothing to compare; add for example --vary pretrain.optim=adamw,muon, or two --choice (see `compare --help`)"
        )
    _check_keys_differ(choices)
    _check_names(choices)
    return choices


def _combine(parts: tuple[Choice, ...]) -> Choice:
    return Choice(
        ", ".join(part.name for part in parts),
        tuple(assignment for part in parts for assignment in part.assignments),
    )


def _read_varied(text: str) -> tuple[str, list[str]]:
    """A setting and its values."""
    key, equals, values = text.partition("=")
    found = [value.strip() for value in _split(values, ",")]
    if not equals or not key.strip() or not all(found):
        raise UserError(
            f"--vary {text!r} is not KEY=VALUE,VALUE,…; write for example --vary model.num_key_value_heads=1,2,4"
        )
    if len(found) < 2:
        raise UserError(
            f"--vary {text!r} has one value; give two or more with commas between them, or use --set {text}"
        )
    return key.strip(), found


def _read_named(text: str) -> Choice:
    """`NAME: KEY=VALUE KEY=VALUE`; a name alone, with its colon, changes nothing."""
    name, colon, rest = text.partition(":")
    assignments = [part for part in _split(rest, " \t\n") if part]
    if not colon or not folder_of(name) or "=" in name:
        raise UserError(
            f'--choice {text!r} has no name; write for example --choice "MQA: model.num_key_value_heads=1"'
        )
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not key or not equals or not value:
            raise UserError(
                f"--choice {text!r}: {assignment!r} is not KEY=VALUE; put a value that holds spaces in quotes"
            )
    return Choice(name.strip(), tuple(assignments))


def _split(text: str, separators: str) -> list[str]:
    """The parts of a text between separators that stand outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character in separators and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if quote or depth:
        raise UserError(f"{text.strip()!r} has a quote or bracket without its other half; add that")
    return parts


def _label(value: str) -> str:
    """A value as it stands in a name: without quotes, the entries of a list with a plus between them."""
    _, parsed = parse_override(f"value={value}")
    return "+".join(map(str, parsed)) if isinstance(parsed, list) else value.strip("\"'")


def _check_keys_differ(choices: list[Choice]) -> None:
    """A choice that sets a setting twice, perhaps by two options, contradicts itself."""
    for choice in choices:
        for key, count in Counter(choice.keys).items():
            if count > 1:
                raise UserError(f"the choice {choice.name!r} sets {key} twice; name it in one place")


def _check_names(choices: list[Choice]) -> None:
    """Each choice needs a row and a folder of its own, on disks that do not tell capitals apart, too."""
    seen: dict[str, str] = {}
    for choice in choices:
        folder = folder_of(choice.name)
        if len(folder) > LONGEST_NAME:
            raise UserError(
                f'the name {choice.name[:40]!r}… is longer than {LONGEST_NAME} characters; give the choice a short one: --choice "NAME: KEY=VALUE"'
            )
        if folder.casefold().startswith("compare.") or "|" in choice.name:
            raise UserError(
                f"a choice cannot be called {choice.name!r}: tables and files of the comparison need that; give it another name"
            )
        other = seen.setdefault(folder.casefold(), choice.name)
        if other != choice.name:
            raise UserError(
                f"the choices {other!r} and {choice.name!r} would have the same folder; give one another name"
            )
    (name, count), *_ = Counter(choice.name for choice in choices).most_common(1)
    if count > 1:
        raise UserError(f"the choice {name!r} is there twice; take one away or give it another name")
