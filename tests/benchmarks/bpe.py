"""BPE against `tokenizers` (Rust): training on 10 MB with its own threads, encoding on one thread.

Both sides run in one process and take turns; the best of several rounds of each counts, and only the ratio is reported.
Corpora: stories of the story world, and text that every Python installation has and nobody made for this purpose: the
language reference (`pydoc_data`) and the sources of the standard library. Other natural text comes by path.

    python -m tests.benchmarks.bpe [TEXT_FILE ...]
"""

import os
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import v1_quick.data_pipeline.tokenizer.bpe_train as v1
import v2_handwritten.data_pipeline.tokenizer.bpe_train as v2
import v3_numpy_deep.data_pipeline.tokenizer.bpe_train as v3

LEVELS = {"v2": v2, "v3": v3}


def take(texts: Iterable[str], megabytes: float) -> list[str]:
    """Texts until they have so many million bytes."""
    taken, size = [], 0.0
    for text in texts:
        if size >= megabytes * 1e6:
            break
        taken.append(text)
        size += len(text.encode())
    return taken


def stories() -> Iterator[str]:
    """Clean stories without end."""
    from shared_data.story_world import StoryWorld

    return (story.text for story in StoryWorld().stories())


def python_texts() -> Iterator[str]:
    """English prose about Python, then Python."""
    from pydoc_data.topics import topics

    yield from topics.values()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*/*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="replace")


def files(paths: list[Path]) -> Iterator[str]:
    """Paragraphs of text files, again and again, each time varied, so that what is repeated still brings new words."""
    for number in count():
        for path in paths:
            for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
                yield vary(paragraph, number) if number else paragraph


def vary(paragraph: str, number: int) -> str:
    """Every tenth word gets another letter at its end."""
    words = paragraph.split(" ")
    for place in range(number % 10, len(words), 10):
        words[place] += "abcdefghijklmnopqrstuvwxyz"[(number * 7 + len(words[place])) % 26]
    return " ".join(words)


def best_ratio(
    ours: Callable[[], Any], reference: Callable[[], Any], rounds: int
) -> tuple[float, float, float]:
    """Least seconds of ours ÷ least seconds of the reference, taking turns; and the two times."""
    seconds: dict[Callable[[], Any], float] = {}
    for _ in range(rounds):
        for contender in (ours, reference):
            start = time.perf_counter()
            contender()
            seconds[contender] = min(seconds.get(contender, float("inf")), time.perf_counter() - start)
    return seconds[ours] / seconds[reference], seconds[ours], seconds[reference]


def training_ratio(texts: list[str], level: str = "v2", vocab_size: int = 8192, rounds: int = 3) -> float:
    """Seconds of training, the level's ÷ the library's, which may use all its threads. Target of v2: at most 3."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    ours, reference = (
        lambda module=module: module.train_bpe(texts, vocab_size) for module in (LEVELS[level], v1)
    )
    return best_ratio(ours, reference, rounds)[0]


def encoding_ratio(texts: list[str], level: str = "v2", vocab_size: int = 8192, rounds: int = 5) -> float:
    """Megabytes a second of encoding to lists of ids, the level's ÷ the library's on one thread. Target of v2: at least 1."""
    tokens, library = (module.train_bpe(texts, vocab_size) for module in (LEVELS[level], v1))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # read at each call
    reference = library.backend_tokenizer.encode_batch_fast
    ratio, _, _ = best_ratio(
        lambda: tokens.encode_batch(texts), lambda: [encoded.ids for encoded in reference(texts)], rounds
    )
    return 1 / ratio


def measure(paths: list[Path] | None = None, megabytes: float = 10) -> Iterator[dict[str, Any]]:
    """All comparisons of this file, as they are measured: what, the ratio, its target (level 3 has none)."""
    corpora = {"stories": stories(), "Python's documentation and sources": python_texts()}
    if paths:
        corpora = {f"{' and '.join(path.name for path in paths)}, repeated with variations": files(paths)}
    for name, texts in corpora.items():
        corpus = take(texts, megabytes)
        for level in LEVELS:
            yield {
                "what": f"BPE training, {megabytes:g} MB of {name}, 8,192 tokens: {level} time ÷ tokenizers",
                "ratio": training_ratio(corpus, level, rounds=2),
                "target": "≤ 3" if level == "v2" else "",
            }
            yield {
                "what": f"BPE encoding, {name}: {level} MB/s ÷ tokenizers on one thread",
                "ratio": encoding_ratio(corpus[: len(corpus) // 4], level, rounds=3),
                "target": "≥ 1.0" if level == "v2" else "",
            }


if __name__ == "__main__":
    for row in measure([Path(path) for path in sys.argv[1:]]):
        print(f"{row['ratio']:6.2f}  {row['target']:6}  {row['what']}", flush=True)
