"""Open a corpus: the story world, local files or a hub dataset, as one stream of documents.

Nothing here holds more than a few documents in memory, so a corpus may be larger than the machine. `data.max_megabytes`
ends the stream, whatever the source. What a document of a file is, `shared_data/text_units.py` and `readers.py` say; how a dataset
comes from the hub, `hub.py`.

Level 1 leaves files and hub to `datasets.load_dataset(..., streaming=True)`; levels 2 and 3 read them by hand.

    python -c "from shared_data.corpus.open_corpus import open_corpus; \
from shared_data.settings import DataSettings; print(next(open_corpus(DataSettings())).text)"
"""

import glob
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from shared_data.corpus.documents import Document
from shared_data.corpus.hub import hub_documents
from shared_data.corpus.readers import SUFFIXES, has_known_suffix, read_documents
from shared_data.errors import UserError
from shared_data.settings import DataSettings

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/dataset


def open_corpus(settings: DataSettings, split: str = "train") -> Iterator[Document]:
    """Stream the documents of a corpus.

    The story world has the splits "train" (dirty: the truth stands in each document's `label` and `duplicate_of`),
    "validation" and "test" (clean, with their exact probability). Another source is one stream, "train"; `prepare.py`
    holds documents out of it. Raises `UserError` for whatever keeps the corpus from being read.
    """
    if settings.source == "story_world":
        megabytes = settings.max_megabytes if split == "train" else settings.validation_megabytes
        return _limited(_story_world_documents(settings, split), megabytes, settings.source)
    assert split == "train", f"a corpus of the user's is split by prepare.py, not opened as {split!r}"
    paths = find_files(settings.source)
    documents: Iterator[Document]
    if paths:
        documents = chain.from_iterable(read_documents(path, settings, len(paths) == 1) for path in paths)
    else:
        documents = hub_documents(settings)
    return _limited(documents, settings.max_megabytes, settings.source)


def find_files(source: str, setting: str = "data.source") -> list[Path]:
    """The files a source names, in order: a file, all known files in a folder, or a glob; none for a hub dataset."""
    path = Path(source).expanduser()
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
    elif _HUB_NAME.fullmatch(source) and not has_known_suffix(path):
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


def _story_world_documents(settings: DataSettings, split: str) -> Iterator[Document]:
    """Stories with dirt for training; clean stories of known probability, with held-out combinations, otherwise."""
    from shared_data.story_world import StoryWorld
    from shared_data.story_world.dirt import dirty_documents

    if split == "train":
        for dirty in dirty_documents(settings.seed, split, settings.dirt_fraction):
            yield Document(dirty.text, dirty.id, dirty.label, dirty.duplicate_of, dirty.expected_text)
    for number, story in enumerate(StoryWorld().stories(settings.seed, split)):
        yield Document(story.text, f"{split}-{number}", log2_probability=story.log2_probability)


def _limited(documents: Iterator[Document], megabytes: float, source: str) -> Iterator[Document]:
    """The stream up to so many millions of bytes of UTF-8; an empty corpus is the user's mistake."""
    left = megabytes * 1e6
    empty = True
    for document in documents:
        empty = False
        yield document
        # Lone surrogates (a broken JSON escape) have no UTF-8; cleaning removes them, here they only count.
        left -= len(document.text.encode("utf-8", "surrogatepass"))
        if left <= 0:
            return
    if empty:
        raise UserError(f"data.source {source!r} holds no text; check the file and data.text_field")
