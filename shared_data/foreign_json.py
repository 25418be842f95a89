"""What JSON files from elsewhere may say: one pydantic model for each kind of file, the base of which stands here.

A model lists the entries that we read, each with its type and its bounds, and stands beside the code that reads the file. All other entries
may hold anything. A value is never converted: a flag is no number, a text is no number, NaN and infinity are none.

    uv run python -c "from shared_data.tokenizer.tokenizer_check import *; print(Vocabulary.read({'tokens': {'a': 0}}, 'vocab.json'))"
"""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared_data.errors import UserError

# The largest vocabularies have some 300,000 tokens; arrays of this length still fit into memory.
LARGEST_ID = 2**24 - 1
TokenId = Annotated[int, Field(ge=0, le=LARGEST_ID)]
Size = Annotated[int, Field(ge=1, le=2**24)]  # of a vector, a vocabulary, a number of heads or experts
Length = Annotated[int, Field(ge=1, lt=2**31)]  # of a text
Number = Annotated[float, Field(ge=0)]


_SHOULD = "Input should be "


class ForeignJson(BaseModel):
    """The entries of a file that we read."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", protected_namespaces=())

    @classmethod
    def read(
        cls, values: Any, source: Path | str | None = None, remedy: str = "correct it or copy the file again"
    ) -> Self:
        """The entries of a file's content; raises a `UserError` of one line, after its `source`, that names the first one that cannot be."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            where = f"{source}: " if source else ""
            raise UserError(f"{where}{explain(error, values)}; {remedy}") from error


def explain(error: ValidationError, values: Any) -> str:
    """The first thing that is wrong, as `name is value, not what it must be`."""
    first = error.errors(include_url=False, include_context=False)[0]
    names: list[str] = []
    # Names, places in lists, and at last pydantic's own name for one of several types.
    for part in first["loc"]:
        try:
            values = values[part]
        except (LookupError, TypeError):
            break
        names.append(str(part))
    name = f"{'.'.join(names)!s:.80}"
    if first["type"] == "missing":
        return ".".join([*names, str(first["loc"][-1])]) + " is missing"
    reason = first["msg"].removeprefix("Value error, ").replace("a valid dictionary", "an object")
    expected = f", not {reason.removeprefix(_SHOULD)}" if reason.startswith(_SHOULD) else f" ({reason})"
    return f"{name or 'the content'} is {values!r:.60}{expected}"
