"""Open a source of records: conversations or preferences, with `datasets.load_dataset(..., streaming=True)`.

What a record means is decided by `processing/formatting.py`; each comes with the words that name it in an error.

    python -c "from v1_quick.data_pipeline.download.records import open_records; \
from shared_data.settings import DataSettings; print(next(open_records(DataSettings(source='chat.jsonl'))))"
"""

from collections.abc import Iterator
from typing import Any

from shared_data.errors import UserError
from shared_data.settings import DataSettings
from v1_quick.data_pipeline.download.hub import hub_records
from v1_quick.data_pipeline.download.open_corpus import find_files
from v1_quick.data_pipeline.download.readers import read_records


def open_records(settings: DataSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the records of `settings.source`. Raises `UserError` for whatever keeps it from being read, or an empty one."""
    paths = find_files(settings.source)
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
