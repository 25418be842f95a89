"""The stages `data` and `tokenizer`: a corpus goes in, clean documents and then token files come out.

    open → clean → deduplicate → split → train.jsonl, validation.jsonl, test.jsonl   ({"id", "text"} a line)
    train the tokenizer → encode → train.bin, … (16- or 32-bit ids, <|endoftext|> after every document) and train.json, …

Everything streams: memory grows by some two hundred bytes a kept document (what deduplication must remember), not by its
text. On the story world the truth is known, so the stage reports precision and recall of its own work
(`shared_data/truth.py`), and the entropy floor of the held-out stories.

    v3 data --config smoke && v3 tokenizer --config smoke
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from shared_data.cleaning.cleaning import Cleaner
from shared_data.corpus.conversations import read_conversations
from shared_data.corpus.documents import Document
from shared_data.corpus.open_corpus import open_corpus
from shared_data.errors import UserError
from shared_data.files import atomic_write, write_json
from shared_data.plots import plot_bars, plot_histogram, plot_zipf
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import DataSettings, Settings
from shared_data.truth import TruthScore
from v3_numpy_deep.data_pipeline.analysis.statistics import analyse
from v3_numpy_deep.data_pipeline.processing.deduplication import Deduplicator
from v3_numpy_deep.data_pipeline.tokenizer.bpe_train import train_bpe
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer

SPLITS = ("train", "validation", "test")
_BATCH = 256  # documents between two updates of the progress bar, and encoded at a time
_COMMONEST = 50  # words listed in the report


def prepare_documents(settings: Settings, run: RunFolder) -> dict[str, int | float]:
    """Stage `data`: write the clean documents of each split, report.json and plots; returns what was counted.

    Raises `UserError` for a corpus that cannot be read, or of which nothing or too little to hold out remains.
    """
    data = settings.data
    cleaner, deduplicator, truth = Cleaner(data.cleaning), Deduplicator(data.deduplication), TruthScore()
    with ExitStack() as files:
        writers = {
            split: _DocumentWriter(files.enter_context(atomic_write(run.documents(split), "w")))
            for split in SPLITS
        }
        for document in _with_progress(open_corpus(data), data.max_megabytes, "data"):
            cleaned = cleaner.clean(document)
            original = deduplicator.is_duplicate(cleaned) if cleaned is not None else None
            truth.add(document, cleaned, original)
            if cleaned is not None and original is None:
                writers[choose_split(cleaned.text, data)].write(cleaned)
        if data.source == "story_world":
            for split in ("validation", "test"):
                for document in open_corpus(data, split):
                    writers[split].write(document)
        _require_documents(writers, data, cleaner)
    statistics = analyse(document.text for document in read_documents(run.documents("train")))
    report = {
        "cleaning": cleaner.report.as_dict(),
        "deduplication": deduplicator.report.as_dict(),
        "truth": truth.as_dict(),
        "train": {**statistics, "word_counts": dict(list(statistics["word_counts"].items())[:_COMMONEST])},
    }
    write_json(run.stage("data") / "report.json", report)
    _draw(run, statistics, report)
    return _document_metrics(writers, statistics, report)


def choose_split(text: str, data: DataSettings) -> str:
    """The split of a document of the user's, from a hash of its text: the same in any order, and in every level.

    The story world has its own held-out stories, so all of its training documents are for training.
    """
    if data.source == "story_world":
        return "train"
    digest = hashlib.sha1(f"{data.seed}:{text}".encode()).digest()
    place = int.from_bytes(digest[:8], "little") / 2**64  # uniform in [0, 1)
    if place < data.test_fraction:
        return "test"
    return "validation" if place < data.test_fraction + data.validation_fraction else "train"


def read_documents(path: Path) -> Iterator[Document]:
    """Stream the documents of a split that `prepare_documents` wrote. Raises `UserError` for a damaged file."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                document = Document(
                    record["text"], record["id"], log2_probability=record.get("log2_probability")
                )
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number}, is no document; make it again with the stage `data` and --force"
                ) from error
            yield document


class _DocumentWriter:
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
        self.documents += 1
        self.bytes += len(document.text.encode("utf-8"))


def _with_progress(documents: Iterable[Document], megabytes: float, description: str) -> Iterator[Document]:
    """The same documents, with a bar in millions of bytes."""
    with progress(megabytes, description, "MB") as bar:
        for batch in _batches(documents):
            yield from batch
            bar.update(sum(len(document.text) for document in batch) / 1e6)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The stream in lists of `_BATCH` documents."""
    documents = iter(documents)
    while batch := list(islice(documents, _BATCH)):
        yield batch


def _require_documents(writers: dict[str, _DocumentWriter], data: DataSettings, cleaner: Cleaner) -> None:
    """Refuse a corpus of which nothing remains to train on, or nothing to hold out."""
    read = cleaner.report.documents
    if not any(writer.documents for writer in writers.values()):
        reason, count = cleaner.report.dropped.most_common(1)[0]
        raise UserError(
            f"cleaning dropped all {read:,} documents of {data.source!r} ({count:,} for {reason}); loosen data.cleaning, or set data.cleaning.enabled=false"
        )
    required = ["train", "validation", *(["test"] if data.test_fraction > 0 else [])]
    for split in required:
        if not writers[split].documents:
            kept = sum(writer.documents for writer in writers.values())
            raise UserError(
                f"{data.source!r} holds {kept:,} documents after cleaning ({read:,} before), too few for a {split} split; bring more text or raise data.validation_fraction and data.test_fraction"
            )


def _draw(run: RunFolder, statistics: dict[str, Any], report: dict[str, Any]) -> None:
    """The plots of the report page."""
    folder = run.stage("data")
    plot_histogram(
        statistics["lengths"], folder / "lengths.svg", title="Length of documents", x_label="words"
    )
    exponent = f"Words by rank: Zipf exponent {statistics['zipf_exponent']:.2f}"
    plot_zipf(statistics["word_counts"], folder / "zipf.svg", title=exponent)
    dropped = {
        **report["cleaning"]["dropped"],
        **{f"{k} duplicate": n for k, n in report["deduplication"]["dropped"].items()},
    }
    if dropped:
        plot_bars(dropped, folder / "dropped.svg", title="Dropped documents, by reason")
    if report["cleaning"]["repairs"]:
        plot_bars(
            report["cleaning"]["repairs"], folder / "repairs.svg", title="Repaired documents, by repair"
        )


def _document_metrics(
    writers: dict[str, _DocumentWriter], statistics: dict[str, Any], report: dict[str, Any]
) -> dict[str, int | float]:
    """Flat numbers for metrics.json."""
    cleaning, deduplication = report["cleaning"], report["deduplication"]
    names = (
        "documents",
        "bytes",
        "words",
        "distinct_words",
        "median_words",
        "compression_ratio",
        "zipf_exponent",
    )
    metrics: dict[str, int | float] = {"documents_read": cleaning["documents"]}
    metrics |= {name: statistics[name] for name in names}
    for split in ("validation", "test"):
        metrics |= {f"{split}_documents": writers[split].documents, f"{split}_bytes": writers[split].bytes}
        if writers[split].log2_probability:
            bits = -writers[split].log2_probability / writers[split].bytes
            metrics[f"{split}_floor_bits_per_byte"] = bits
    metrics["documents_repaired"] = cleaning["repaired"]
    metrics |= {f"repaired_{name}": count for name, count in cleaning["repairs"].items()}
    metrics["dropped_by_cleaning"] = sum(cleaning["dropped"].values())
    metrics |= {f"dropped_{name}": count for name, count in cleaning["dropped"].items()}
    metrics |= {
        f"dropped_{name}_duplicates": deduplication["dropped"].get(name, 0) for name in ("exact", "near")
    }
    return metrics | report["truth"]


def prepare_tokens(settings: Settings, run: RunFolder) -> dict[str, int | float]:
    """Stage `tokenizer`: train or load the tokenizer, save it, encode every split; returns what was counted.

    Raises `UserError` where the tokenizer cannot be loaded or has no token that ends a document, or where a split is
    shorter than a sequence.
    """
    tokenizer = _tokenizer(settings, run)
    tokenizer.save(run.stage("tokenizer"))
    metrics: dict[str, int | float] = {"vocab_size": tokenizer.vocab_size}
    for split in SPLITS:
        described = encode_split(run.documents(split), run.tokens(split), tokenizer)
        least = settings.pretrain.sequence_length + 1
        if split != "test" and described["tokens"] < least:
            raise UserError(
                f"the {split} split has {described['tokens']:,} tokens, fewer than one sequence of pretrain.sequence_length + 1 = {least}; bring more text, or lower pretrain.sequence_length"
            )
        prefix = "" if split == "train" else f"{split}_"
        metrics[f"{prefix}tokens"] = described["tokens"]
        metrics[f"{prefix}bytes_per_token"] = described["bytes"] / max(1, described["tokens"])
        if described["log2_probability"] is not None:
            metrics[f"{prefix}floor_bits_per_byte"] = -described["log2_probability"] / described["bytes"]
    return metrics


def _tokenizer(settings: Settings, run: RunFolder) -> Tokenizer:
    """The tokenizer of the settings: loaded, or trained on the beginning of the training split and on conversations."""
    section = settings.tokenizer
    if section.load is not None:
        return Tokenizer.load(section.load)
    texts = _first_megabytes(run.documents("train"), section.train_megabytes)
    return train_bpe(
        chain(texts, _turns(settings)),
        section.vocab_size,
        pattern=section.pattern,
        special_tokens=section.special_tokens,
        min_frequency=section.min_frequency,
        show_progress=True,
    )


def _turns(settings: Settings) -> Iterator[str]:
    """What is said in the conversations of the settings, after the role as the chat template writes it."""
    section = settings.tokenizer
    if section.chat_source is not None:
        told = read_conversations(settings.data, section.chat_source)
        for _, messages in islice(told, section.chat_conversations):
            yield from (f"{message['role']}\n{message['content']}" for message in messages)


def _first_megabytes(path: Path, megabytes: float) -> Iterator[str]:
    left = megabytes * 1e6
    for document in read_documents(path):
        yield document.text
        left -= len(document.text.encode("utf-8"))
        if left <= 0:
            return


def encode_split(documents: Path, target: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Encode documents into a flat file of ids, and describe it in a .json beside it; returns the description.

    A special token spelled out in a document stays ordinary text: only the end of a document is a special id.
    """
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    tokens = count = size = 0
    bits: float | None = None
    with atomic_write(target) as file:
        for batch in _batches(read_documents(documents)):
            ids = tokenizer.encode_to_array([document.text for document in batch], end_of_text=True)
            file.write(ids.astype(dtype).tobytes())
            tokens += len(ids)
            count += len(batch)
            size += sum(len(document.text.encode("utf-8")) for document in batch)
            for document in batch:
                if document.log2_probability is not None:
                    bits = (bits or 0.0) + document.log2_probability
    description = {
        "dtype": dtype,
        "tokens": tokens,
        "documents": count,
        "bytes": size,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text_id": tokenizer.end_of_text_id,
        "log2_probability": bits,
    }
    write_json(target.with_suffix(".json"), description)
    return description
