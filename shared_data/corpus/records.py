"""Open a source of records: conversations or preferences, from local files or a hub dataset, as one stream.

What a record means, `formatting.py` decides; each comes with the words that name it in an error, such as `chat.jsonl, line 12`.

    v2 sft --set sft.source=chat.jsonl
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared_data.corpus.hub import hub_records
from shared_data.corpus.open_corpus import find_files
from shared_data.corpus.readers import read_records
from shared_data.errors import UserError
from shared_data.settings import DataSettings


def open_records(settings: DataSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the records of `settings.source`. Raises `UserError` for whatever keeps it from being read, or an empty one."""
    paths: list[Path] = find_files(settings.source)
    empty = True
    for path in paths:
        for where, record in read_records(path, settings.encoding):
            empty = False
            yield where, record
    if not paths:
        for where, record in hub_records(settings):
            empty = False
            yield where, record
    if empty:
        raise UserError(f"{settings.source} holds no record; check the file")
