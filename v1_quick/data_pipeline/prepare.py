"""The stages `data` and `tokenizer`: a corpus goes in, clean documents and then token files come out.

    open → clean → deduplicate → split → train.jsonl, validation.jsonl, test.jsonl   (`shared_data/corpus/splits.py`)
    train the tokenizer → encode → train.bin, validation.bin, test.bin               (`shared_data/corpus/token_files.py`)

Raises `UserError` where a corpus or a tokenizer cannot be read, or where too little text remains.

    v1 data --config smoke && v1 tokenizer --config smoke
"""

from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.splits import Metrics, report_documents, with_progress, write_splits
from shared_data.corpus.token_files import tokenizer_texts, write_tokens
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v1_quick.data_pipeline.analysis.statistics import zipf_exponent
from v1_quick.data_pipeline.download.open_corpus import open_corpus
from v1_quick.data_pipeline.processing.cleaning import new_cleaner
from v1_quick.data_pipeline.processing.deduplication import new_deduplicator
from v1_quick.data_pipeline.tokenizer.bpe_encode import document_encoder
from v1_quick.data_pipeline.tokenizer.bpe_train import train_bpe
from v1_quick.data_pipeline.tokenizer.tokenizer import ensure_chat_template, load_tokenizer


def prepare_documents(settings: Settings, run: RunFolder) -> Metrics:
    """Stage `data`: write the clean documents of each split, report.json and plots; returns what was counted."""
    data = settings.data
    cleaner = new_cleaner(data.cleaning, data.languages)
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
    """Stage `tokenizer`: train or load the tokenizer, save it, encode every split; returns what was counted."""
    section = settings.tokenizer
    if section.load is not None:
        tokenizer = load_tokenizer(section.load)
        ensure_chat_template(tokenizer)
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
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    return write_tokens(settings, run, document_encoder(tokenizer), vocab_size, tokenizer.eos_token_id)
