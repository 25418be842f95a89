"""Open a source of records: conversations or preferences, from local files or a hub dataset, as one stream.

What a record means, `formatting.py` decides; each comes with the words that name it in an error, such as `chat.jsonl, line 12`.

    v2 sft --set sft.source=chat.jsonl
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.hub import hub_records
from shared_data.corpus.open_corpus import find_files
from shared_data.corpus.readers import read_records
from shared_data.errors import UserError
from shared_data.settings import DataSettings


def open_records(
    data: DataSettings, source: str, bad: BadRecords | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the records of a source; `data` says how files are read. Raises `UserError` for whatever keeps it from being read, or an empty one.

    bad: what happens to a line that is no record; by default it ends the stream with an error.
    """
    paths: list[Path] = find_files(source)
    empty = True
    for path in paths:
        for where, record in read_records(path, data.encoding, bad=bad):
            empty = False
            yield where, record
    if not paths:
        hub = data.model_copy(update={"source": source, "hub_config": None, "hub_split": "train"})
        for where, record in hub_records(hub):
            empty = False
            if bad is not None:
                bad.read += 1
            yield where, record
    if empty:
        raise UserError(f"{source} holds no record; check the file")
