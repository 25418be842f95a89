"""Open a corpus: the story world, local files or a hub dataset, as one stream of documents.

Nothing here holds more than a few documents in memory, so a corpus may be larger than the machine. `data.max_megabytes`
ends the stream, whatever the source. What a document of a file is, `text_units.py` and `readers.py` say; how a dataset comes from the
hub, `hub.py`.

Level 1 hands in readers that call `datasets.load_dataset(..., streaming=True)`
(`v1_quick/data_pipeline/download/open_corpus.py`).

    uv run python -c "from shared_data.corpus.open_corpus import open_corpus; \
from shared_data.settings import DataSettings; print(next(open_corpus(DataSettings())).text)"
"""

import glob
import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.documents import Document
from shared_data.corpus.hub import hub_documents
from shared_data.corpus.readers import SUFFIXES, has_known_suffix, read_documents
from shared_data.errors import UserError
from shared_data.model_files.hub import is_hub_name
from shared_data.settings import DataSettings


def open_corpus(
    settings: DataSettings,
    bad: BadRecords | None = None,
    read_file: Callable[[Path, DataSettings, bool, BadRecords], Iterator[Document]] = read_documents,
    read_hub: Callable[[DataSettings, BadRecords], Iterator[Document]] = hub_documents,
) -> Iterator[Document]:
    """Stream the documents of a corpus; `read_file` and `read_hub` replace the readers of this folder.

    bad: counts the records that were read and skipped; what was skipped is reported at the end. Raises `UserError` for whatever keeps the corpus from being read.
    """
    if settings.source == "story_world":
        return story_world_documents(settings, "train")
    bad = bad or BadRecords(settings.on_bad_record)
    paths = find_files(settings.source)
    documents: Iterator[Document]
    if paths:
        documents = chain.from_iterable(read_file(path, settings, len(paths) == 1, bad) for path in paths)
    else:
        documents = read_hub(settings, bad)
    return _reported(_limited(documents, settings.max_megabytes, settings.source), bad, settings.source)


def find_files(source: str, setting: str = "data.source") -> list[Path]:
    """The files a source names, in order: a file, all known files in a folder, or a glob; none for a hub dataset."""
    path = Path(os.path.expanduser(source))  # unlike `Path.expanduser`, it raises nothing for an unknown user
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file() and has_known_suffix(file))
        paths = sorted(
            file for file in files if not any(p.startswith(".") for p in file.relative_to(path).parts)
        )
    elif path.exists():
        paths = [path]
    elif glob.has_magic(source):
        matches = glob.glob(str(path), recursive=True)
        paths = sorted(file for file in map(Path, matches) if file.is_file() and has_known_suffix(file))
    elif is_hub_name(source) and not has_known_suffix(path):
        return []
    else:
        raise UserError(
            f"{setting} {source!r} does not exist; correct the path, or name a hub dataset as owner/dataset"
        )
    if not paths:
        raise UserError(
            f"{setting} {source!r} holds no file that ends in {', '.join(SUFFIXES)} (or .gz after it); convert the files or correct the path"
        )
    return paths


def story_world_documents(settings: DataSettings, split: str) -> Iterator[Document]:
    """The stories of a split: "train" is dirty, with the truth in each document's `label` and `duplicate_of`.

    "validation" and "test" are clean, hold combinations that training does not, and carry their exact probability.
    """
    from shared_data.story_world import StoryWorld
    from shared_data.story_world.dirt import dirty_documents

    if split == "train":
        dirty = dirty_documents(settings.seed, split, settings.dirt_fraction)
        documents = (Document(d.text, d.id, d.label, d.duplicate_of, d.expected_text) for d in dirty)
        return _limited(documents, settings.max_megabytes, settings.source)
    stories = enumerate(StoryWorld().stories(settings.seed, split))
    documents = (Document(s.text, f"{split}-{n}", log2_probability=s.log2_probability) for n, s in stories)
    return _limited(documents, settings.validation_megabytes, settings.source)


def size(text: str) -> int:
    """Bytes of UTF-8. Lone surrogates (a broken JSON escape) have none; cleaning removes them, here they only count."""
    return len(text.encode("utf-8", "surrogatepass"))


def _reported(documents: Iterator[Document], bad: BadRecords, source: str) -> Iterator[Document]:
    with bad.reported(source):
        yield from documents


def _limited(documents: Iterator[Document], megabytes: float, source: str) -> Iterator[Document]:
    """The stream up to so many millions of bytes of UTF-8; an empty corpus is the user's mistake."""
    left = megabytes * 1e6
    empty = True
    for document in documents:
        empty = False
        yield document
        left -= size(document.text)
        if left <= 0:
            return
    if empty:
        raise UserError(f"data.source {source!r} holds no text; check the file and data.text_field")
