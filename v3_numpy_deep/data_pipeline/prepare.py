"""The stages `data` and `tokenizer`: a corpus goes in, clean documents and then token files come out.

open → clean → deduplicate → split → train.jsonl, validation.jsonl, test.jsonl   (`shared_data/corpus/splits.py`)
train the tokenizer → encode → train.bin, validation.bin, test.bin               (`shared_data/corpus/token_files.py`)

    uv run v3 data --config smoke && uv run v3 tokenizer --config smoke
"""

from functools import partial

from shared_data.cleaning.cleaning import Cleaner
from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.open_corpus import open_corpus
from shared_data.corpus.splits import Metrics, report_documents, with_progress, write_splits
from shared_data.corpus.token_files import tokenizer_texts, write_tokens
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v3_numpy_deep.data_pipeline.analysis.statistics import zipf_exponent
from v3_numpy_deep.data_pipeline.processing.deduplication import new_deduplicator
from v3_numpy_deep.data_pipeline.tokenizer.bpe_train import train_bpe
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer


def prepare_documents(settings: Settings, run: RunFolder) -> Metrics:
    """Stage `data`: write the clean documents of each split, report.json and plots; returns what was counted.

    Raises `UserError` for a corpus that cannot be read, or of which nothing or too little to hold out remains.
    """
    data = settings.data
    cleaner = Cleaner(data.cleaning, data.languages)
    deduplicator = new_deduplicator(data.deduplication)
    bad = BadRecords(data.on_bad_record)
    with write_splits(data, run, cleaner.report) as splits:
        for document in with_progress(open_corpus(data, bad), data.max_megabytes):
            cleaned = cleaner.clean(document)
            original = deduplicator.find_original(cleaned) if cleaned is not None else None
            splits.add(document, cleaned, original)
    metrics = report_documents(run, splits, cleaner.report, deduplicator.report, zipf_exponent)
    return metrics | bad.metrics()


def prepare_tokens(settings: Settings, run: RunFolder) -> Metrics:
    """Stage `tokenizer`: train or load the tokenizer, save it, encode every split; returns what was counted.

    Raises `UserError` where the tokenizer cannot be loaded or has no token that ends a document, or where a split is
    shorter than a sequence.
    """
    section = settings.tokenizer
    if section.load is not None:
        tokenizer = Tokenizer.load(section.load)
        tokenizer.ensure_chat_template()
    else:
        tokenizer = train_bpe(
            tokenizer_texts(settings, run),
            section.vocab_size,
            pattern=section.pattern,
            special_tokens=section.special_tokens,
            min_frequency=section.min_frequency,
            show_progress=True,
        )
    tokenizer.save(run.stage("tokenizer"))
    # A special token spelled out in a document stays ordinary text: only the end of a document is a special id.
    encode = partial(tokenizer.encode_to_array, end_of_text=True)
    return write_tokens(settings, run, encode, tokenizer.vocab_size, tokenizer.end_of_text_id)
