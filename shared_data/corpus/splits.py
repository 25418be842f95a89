"""The clean documents of a corpus, one file a split, and the report about them: what the stage `data` of all levels shares.

    open → clean → deduplicate → split → train.jsonl, validation.jsonl, test.jsonl   ({"id", "text"} a line)

The steps themselves stand in each level's `data_pipeline/prepare.py`. Everything streams: memory grows by some two hundred bytes
a kept document (what deduplication must remember), not by its text. On the story world the truth is known, so the stage
reports precision and recall of its own work (`shared_data/truth.py`), and the entropy floor of the held-out stories.

    v2 data --config smoke
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from shared_data.cleaning.cleaning import CleaningReport
from shared_data.cleaning.deduplication import DeduplicationReport
from shared_data.corpus.documents import Document
from shared_data.corpus.open_corpus import size, story_world_documents
from shared_data.corpus.small_corpus import fill_empty_splits, require_documents
from shared_data.corpus.statistics import analyse, unit_of
from shared_data.errors import UserError
from shared_data.files import atomic_write, write_json
from shared_data.plots import plot_bars, plot_histogram, plot_zipf
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import DataSettings
from shared_data.truth import TruthScore

Metrics = dict[str, int | float]
SPLITS = ("train", "validation", "test")
_BATCH = 256  # documents between two updates of the progress bar
_COMMONEST = 50  # words listed in the report


class Splits:
    """The files of the clean documents, one a split, and the score of what cleaning and deduplication did."""

    def __init__(self, data: DataSettings, files: dict[str, IO[str]]) -> None:
        self.data = data
        self.writers = {split: DocumentWriter(file) for split, file in files.items()}
        self.truth = TruthScore()
        self.bytes_read = 0

    def add(self, document: Document, cleaned: Document | None, original: str | None) -> None:
        """Write one document unless it was dropped (`cleaned` is None) or repeats an `original`."""
        self.truth.add(document, cleaned, original)
        self.bytes_read += size(document.text)
        if cleaned is not None and original is None:
            self.writers[choose_split(cleaned.text, self.data)].write(cleaned)


@contextmanager
def write_splits(data: DataSettings, run: RunFolder, cleaning: CleaningReport) -> Iterator[Splits]:
    """Files for the documents of each split, which appear only when the block ends well.

    The story world adds its own held-out stories. Raises `UserError` where nothing, or too little to hold out, remains.
    """
    with ExitStack() as stack:
        files = {split: stack.enter_context(atomic_write(run.documents(split), "w+")) for split in SPLITS}
        splits = Splits(data, files)
        yield splits
        if data.source == "story_world":
            for split in ("validation", "test"):
                for document in story_world_documents(data, split):
                    splits.writers[split].write(document)
        else:
            fill_empty_splits(splits.writers, data, place_of)
        require_documents(splits.writers, data, cleaning)


def choose_split(text: str, data: DataSettings) -> str:
    """The split of a user's document, from a hash of its text: the same in any order, and in every level.

    The story world has its own held-out stories, so all of its training documents are for training.
    """
    if data.source == "story_world":
        return "train"
    place = place_of(text, data)
    if place < data.test_fraction:
        return "test"
    return "validation" if place < data.test_fraction + data.validation_fraction else "train"


def place_of(text: str, data: DataSettings) -> float:
    """A number in [0, 1) that a hash of the text gives, uniform over the documents."""
    digest = hashlib.sha1(f"{data.seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


def read_documents(path: Path) -> Iterator[Document]:
    """Stream the documents of a split that the stage `data` wrote. Raises `UserError` for a damaged file."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                if not isinstance(record["text"], str):
                    raise TypeError("the text is none")
                bits = record.get("log2_probability")
                document = Document(record["text"], record["id"], log2_probability=bits)
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number}, is no document; make it again with the stage `data` and --force"
                ) from error
            yield document


def with_progress(documents: Iterable[Document], megabytes: float) -> Iterator[Document]:
    """The same documents, with a bar in millions of bytes."""
    with progress(megabytes, "data", "MB") as bar:
        for batch in in_batches(documents):
            yield from batch
            bar.update(sum(size(document.text) for document in batch) / 1e6)


def in_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The stream in lists of `_BATCH` documents."""
    documents = iter(documents)
    while batch := list(islice(documents, _BATCH)):
        yield batch


def report_documents(
    run: RunFolder,
    splits: Splits,
    cleaning: CleaningReport,
    deduplication: DeduplicationReport,
    zipf_exponent: Callable[[Sequence[int]], float],
) -> Metrics:
    """Analyse the training documents, write report.json and the plots; returns the numbers for metrics.json."""
    statistics = analyse(
        (document.text for document in read_documents(run.documents("train"))), zipf_exponent
    )
    commonest = dict(islice(statistics["word_counts"].items(), _COMMONEST))
    report = {
        "cleaning": cleaning.as_dict(),
        "deduplication": deduplication.as_dict(),
        "truth": splits.truth.as_dict(),
        "train": {**statistics, "word_counts": commonest},
    }
    write_json(run.stage("data") / "report.json", report)
    _draw(run, statistics, report)
    return _document_metrics(splits, statistics, report)


class DocumentWriter:
    """Writes documents as JSON lines and counts them."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.documents = self.bytes = 0
        self.log2_probability = 0.0

    def write(self, document: Document) -> None:
        record: dict[str, Any] = {"id": document.id, "text": document.text}
        if document.log2_probability is not None:
            record["log2_probability"] = document.log2_probability
            self.log2_probability += document.log2_probability
        self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.count(document.text)

    def count(self, text: str, change: int = 1) -> None:
        """Count a document, or take one off."""
        self.documents += change
        self.bytes += change * size(text)


def _draw(run: RunFolder, statistics: dict[str, Any], report: dict[str, Any]) -> None:
    """The plots of the report page."""
    folder = run.stage("data")
    unit = unit_of(statistics)
    plot_histogram(statistics["lengths"], folder / "lengths.svg", title="Length of documents", x_label=unit)
    exponent = f"{unit.capitalize()} by rank: Zipf exponent {statistics['zipf_exponent']:.2f}"
    plot_zipf(statistics["word_counts"], folder / "zipf.svg", title=exponent)
    duplicates = {f"{kind} duplicate": n for kind, n in report["deduplication"]["dropped"].items()}
    if dropped := report["cleaning"]["dropped"] | duplicates:
        plot_bars(dropped, folder / "dropped.svg", title="Dropped documents, by reason")
    if repairs := report["cleaning"]["repairs"]:
        plot_bars(repairs, folder / "repairs.svg", title="Repaired documents, by repair")


_STATISTICS = (
    "documents",
    "bytes",
    "words",
    "characters",
    "distinct_words",
    "median_words",
    "compression_ratio",
    "zipf_exponent",
)


def _document_metrics(splits: Splits, statistics: dict[str, Any], report: dict[str, Any]) -> Metrics:
    """Flat numbers for metrics.json."""
    cleaning, deduplication = report["cleaning"], report["deduplication"]
    metrics: Metrics = {"documents_read": cleaning["documents"], "bytes_read": splits.bytes_read}
    if splits.data.source != "story_world" and splits.bytes_read >= splits.data.max_megabytes * 1e6:
        metrics["stopped_at_megabytes"] = splits.data.max_megabytes
    metrics |= {name: statistics[name] for name in _STATISTICS}
    for split in ("validation", "test"):
        writer = splits.writers[split]
        metrics |= {f"{split}_documents": writer.documents, f"{split}_bytes": writer.bytes}
        if writer.log2_probability:
            metrics[f"{split}_floor_bits_per_byte"] = -writer.log2_probability / writer.bytes
    metrics["documents_repaired"] = cleaning["repaired"]
    metrics |= {f"repaired_{name}": count for name, count in cleaning["repairs"].items()}
    metrics["dropped_by_cleaning"] = sum(cleaning["dropped"].values())
    metrics |= {f"dropped_{name}": count for name, count in cleaning["dropped"].items()}
    for kind in ("exact", "near"):
        metrics[f"dropped_{kind}_duplicates"] = deduplication["dropped"].get(kind, 0)
    return metrics | report["truth"]
