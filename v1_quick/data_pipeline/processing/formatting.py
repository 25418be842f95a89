"""The text of a record. `datasets` already yields dictionaries; only the field has to be right.

Conversations and preferences are normalised in `v2_handwritten/data_pipeline/processing/formatting.py`; at this level
trl does it inside its trainers.
"""

from collections.abc import Mapping
from typing import Any

from shared_data.errors import UserError


def format_text(record: Any, text_field: str = "text", where: str = "the record") -> str:
    """The text of a record; a null is an empty text. Raises `UserError` for a missing field or one that is no text."""
    if isinstance(record, str):
        return record
    if not isinstance(record, Mapping):
        raise UserError(
            f"{where} is a {type(record).__name__}, not an object with the field {text_field!r}; write one object a record"
        )
    if text_field not in record:
        known = ", ".join(repr(name) for name in record if isinstance(name, str)) or "none"
        raise UserError(f"{where} has no field {text_field!r}; set data.text_field to one it has: {known}")
    text = record[text_field]
    if text is not None and not isinstance(text, str):
        raise UserError(
            f"{where}: the field {text_field!r} holds a {type(text).__name__}, not text; set data.text_field"
        )
    return text or ""
