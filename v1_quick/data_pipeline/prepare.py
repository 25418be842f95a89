"""The stages `data` and `tokenizer`: a corpus goes in, clean documents and then token files come out.

open → clean → deduplicate → split → train.jsonl, validation.jsonl, test.jsonl   (`shared_data/corpus/splits.py`)
train the tokenizer → encode → train.bin, validation.bin, test.bin               (`shared_data/corpus/token_files.py`)

v1 data --config smoke && v1 tokenizer --config smoke
"""

from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shared_data.cleaning.cleaning import Cleaner
from shared_data.corpus.open_corpus import open_corpus
from shared_data.corpus.splits import Metrics, report_documents, with_progress, write_splits
from shared_data.corpus.token_files import tokenizer_texts, write_tokens
from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v1_quick.data_pipeline.analysis.statistics import zipf_exponent
from v1_quick.data_pipeline.download.readers import hub_documents, read_documents
from v1_quick.data_pipeline.processing.deduplication import new_deduplicator
from v1_quick.data_pipeline.processing.repair import REPAIRS
from v1_quick.data_pipeline.tokenizer.bpe_train import train_bpe


def prepare_documents(settings: Settings, run: RunFolder) -> Metrics:
    """Stage `data`: write the clean documents of each split, report.json and plots; returns what was counted."""
    data = settings.data
    cleaner, deduplicator = Cleaner(data.cleaning, REPAIRS), new_deduplicator(data.deduplication)
    with write_splits(data, run, cleaner.report) as splits:
        for document in with_progress(open_corpus(data, read_documents, hub_documents), data.max_megabytes):
            cleaned = cleaner.clean(document)
            original = deduplicator.find_original(cleaned) if cleaned is not None else None
            splits.add(document, cleaned, original)
    return report_documents(run, splits, cleaner.report, deduplicator.report, zipf_exponent)


def prepare_tokens(settings: Settings, run: RunFolder) -> Metrics:
    """Stage `tokenizer`: train or load the tokenizer, save it, encode every split; returns what was counted."""
    section = settings.tokenizer
    if section.load is not None:
        tokenizer = _load_tokenizer(Path(section.load).expanduser())
    else:
        tokenizer = train_bpe(
            tokenizer_texts(settings, run),
            section.vocab_size,
            pattern=section.pattern,
            special_tokens=section.special_tokens,
            min_frequency=section.min_frequency,
            show_progress=True,
        )
    tokenizer.save_pretrained(run.stage("tokenizer"))
    end_of_text = tokenizer.eos_token_id

    def encode(texts: list[str]) -> np.ndarray:
        # A special token spelled out in a document stays ordinary text: only the end of a document is a special id.
        return np.concatenate(
            [[*ids, end_of_text] for ids in tokenizer(texts, split_special_tokens=True).input_ids]
        )

    vocab_size = max(tokenizer.get_vocab().values()) + 1
    return write_tokens(settings, run, encode, vocab_size, end_of_text)


def _load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, or of the folder of a tokenizer.json; the library needs its `eos_token` beside it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path if path.is_dir() else path.parent)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds no tokenizer ({reason}); correct tokenizer.load") from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{path} has no tokenizer_config.json that names an eos_token, which ends a document; add one"
        )
    return tokenizer
