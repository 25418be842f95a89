"""Deduplication of the three levels: the same signatures, bands and decisions, number for number."""

import random
from itertools import islice
from mmap import PAGESIZE
from pathlib import Path

import numpy as np
import pytest
from datasketch import LeanMinHash, MinHash, MinHashLSH

from shared_data.cleaning.deduplication import shingles
from shared_data.corpus.documents import Document
from shared_data.settings import DeduplicationSettings
from shared_data.story_world import StoryWorld
from v1_quick.data_pipeline.processing import deduplication as v1
from v2_handwritten.data_pipeline.processing import deduplication as v2
from v2_handwritten.data_pipeline.processing.signature_index import SignatureIndex as Index2
from v3_numpy_deep.data_pipeline.processing import deduplication as v3
from v3_numpy_deep.data_pipeline.processing.signature_index import SignatureIndex as Index3

STATM = Path("/proc/self/statm")  # the second number: pages in memory
TEXTS = [
    "",
    "...",
    "one",
    "The cat sat on the mat, and the cat sat on the hat.",
    "Größe, ça va? Да! 狐は 跳ぶ 🦊",
    "to be or not to be " * 50,
]


def stories(count: int, seed: int = 0) -> list[str]:
    return [story.text for story in islice(StoryWorld().stories(seed), count)]


def garbled(text: str, share: float, seed: int) -> str:
    """The text with this share of its words replaced: similarity falls smoothly as the share grows."""
    generator = random.Random(seed)
    return " ".join("zebra" if generator.random() < share else word for word in text.split())


@pytest.mark.parametrize(("permutations", "seed"), [(128, 1), (64, 7), (9, 0)])
def test_signatures_are_those_of_datasketch(parity, permutations: int, seed: int) -> None:
    def datasketch_signature(one: set[str], permutations: int, seed: int) -> np.ndarray:
        minhash = MinHash(num_perm=permutations, seed=seed)
        minhash.update_batch(shingle.encode() for shingle in one)
        return minhash.hashvalues

    sets = [shingles(text, 5) for text in TEXTS + stories(20)]
    expected, *signatures = (
        np.stack([np.asarray(signature_of(one, permutations, seed), dtype=np.int64) for one in sets])
        for signature_of in (datasketch_signature, v2.minhash_signature, v3.minhash_signature)
    )
    for levels, actual in zip(("v1-v2", "v1-v3"), signatures, strict=True):
        parity(
            component="deduplication",
            quantity=f"signature, {permutations} permutations",
            levels=levels,
            actual=actual,
            expected=expected,
            tolerance=0.0,
        )


def test_bands_are_those_of_datasketch(parity) -> None:
    cases = [
        (threshold, permutations, *weights)
        for threshold, permutations in ((0.3, 64), (0.5, 128), (0.7, 128), (0.7, 100), (0.9, 128))
        for weights in ((0.5, 0.5), (0.1, 0.9))
    ]
    indices = [MinHashLSH(threshold=t, num_perm=k, weights=weights) for t, k, *weights in cases]
    for levels, level in (("v1-v2", v2), ("v1-v3", v3)):
        parity(
            component="deduplication",
            quantity="bands and rows",
            levels=levels,
            actual=[level.choose_bands(*case) for case in cases],
            expected=[(index.b, index.r) for index in indices],
            tolerance=0.0,
        )


def test_every_level_decides_alike_on_near_duplicates_of_every_degree() -> None:
    originals = stories(60)
    texts = (
        originals
        + originals[:5]
        + [
            garbled(text, share, seed)
            for seed, text in enumerate(originals)
            for share in (0.01, 0.03, 0.06, 0.1, 0.2)
        ]
    )
    documents = [Document(text, f"d{number}") for number, text in enumerate(texts)]
    decisions, reports = [], []
    for level in (v1, v2, v3):
        deduplicator = level.new_deduplicator(DeduplicationSettings())
        decisions.append([deduplicator.find_original(document) for document in documents])
        reports.append(deduplicator.report.as_dict())
    assert decisions[0] == decisions[1] == decisions[2]
    assert reports[0] == reports[1] == reports[2]
    found = decisions[0]
    assert found[:60] == [None] * 60, "different stories were taken for duplicates"
    assert found[60:65] == ["d0", "d1", "d2", "d3", "d4"], "exact duplicates were missed"
    mild = [decision for decision in found[65::5] if decision is not None]
    strong = [decision for decision in found[69::5] if decision is not None]
    assert len(mild) >= 54, "a hundredth of the words changed is still the same story"
    assert len(strong) <= 3, "a fifth of the words changed leaves few shingles of five words"


@pytest.mark.parametrize("level", [v1, v2, v3])
def test_exact_and_near_can_be_switched_off(level) -> None:
    text = stories(1)[0]
    texts = [text, text.upper() + "!!", garbled(text, 0.02, 1)]
    documents = [Document(text, str(number)) for number, text in enumerate(texts)]
    found = {}
    for exact, near in ((True, True), (True, False), (False, True), (False, False)):
        deduplicator = level.new_deduplicator(DeduplicationSettings(exact=exact, near=near))
        found[exact, near] = [deduplicator.find_original(document) for document in documents]
    assert found[True, True] == [None, "0", "0"]
    assert found[True, False] == [None, "0", None]
    assert found[False, True] == [None, "0", "0"]
    assert found[False, False] == [None, None, None]


BOUND = 4.5  # standard deviations


def test_equal_rows_of_signatures_estimate_the_jaccard_similarity() -> None:
    """The exercise of deduplication.md: the estimate is unbiased, with variance J (1 - J) / k."""
    estimates, outside = 0, 0
    for share in (0.0, 0.02, 0.05, 0.1, 0.3):
        for seed, text in enumerate(stories(10)):
            a, b = shingles(text, 3), shingles(garbled(text, share, seed), 3)
            jaccard = len(a & b) / len(a | b)
            rows = v2.minhash_signature(a, 1024, 1) == v2.minhash_signature(b, 1024, 1)
            deviation = (jaccard * (1 - jaccard) / 1024) ** 0.5
            estimates += jaccard < 1
            outside += abs(float(rows.double().mean()) - jaccard) > BOUND * deviation
    assert outside == 0, f"{outside} of {estimates} estimates"


@pytest.mark.parametrize("index_class", [Index2, Index3])
def test_the_index_finds_every_chained_document_and_stays_small(index_class) -> None:
    """Many documents in one slot of the hash table are all found; memory a document is what the docstring says."""
    make = v2.minhash_signature if index_class is Index2 else v3.minhash_signature
    index = index_class(20, 6, 128)
    empty = index.memory_bytes()
    signature = make(shingles("the same text for all of them " * 3, 5), 128, 1)
    for number in range(3000):
        digest = number.to_bytes(4, "little").ljust(20, b"\0") if number else b"\x07" + bytes(19)
        index.add(f"id-{number}", digest, signature if number % 1000 == 0 else None)
    assert index.find_near(signature, 1.0) == ("id-0", 1.0)
    assert [index.find_exact(n.to_bytes(4, "little").ljust(20, b"\0")) for n in (1, 1500, 2999)] == [
        "id-1",
        "id-1500",
        "id-2999",
    ]
    assert index.find_exact(b"\xff" * 20) is None
    assert len(index) == 3000
    assert (index.memory_bytes() - empty) / 3000 <= 1.5 * (8 * 21 + 8)


def test_level_1_too_names_the_earliest_of_equally_similar_documents() -> None:
    index, minhash = v1.SignatureIndex(0.7, 128), MinHash(num_perm=128)
    minhash.update_batch(shingle.encode() for shingle in shingles(stories(1)[0], 5))
    for number in range(20):
        index.add(f"id-{number}", bytes([number]) * 20, LeanMinHash(minhash))
    index.add("text only", b"a" * 20, None)
    assert index.find_near(LeanMinHash(minhash), 1.0) == ("id-0", 1.0)
    assert index.find_exact(b"a" * 20) == "text only"
    assert index.find_exact(b"b" * 20) is None


@pytest.mark.skipif(not STATM.exists(), reason="only Linux says how much memory a process has")
def test_memory_of_level_1_does_not_grow_with_the_documents() -> None:
    """datasketch's own tables take 7,000 bytes a document. With a small page cache a few thousand documents show it."""
    index, generator = v1.SignatureIndex(0.7, 128), np.random.default_rng(0)
    index._database.execute("PRAGMA cache_size = -500")  # kilobytes
    empty = MinHash(num_perm=128, seed=1)

    def add(first: int, last: int) -> None:
        for number in range(first, last):
            minhash = empty.copy()
            minhash.hashvalues = generator.integers(0, 1 << 32, 128, dtype=np.uint32)
            index.add(f"document {number}", number.to_bytes(20), LeanMinHash(minhash))

    add(0, 1000)
    before = int(STATM.read_text().split()[1]) * PAGESIZE
    add(1000, 4000)
    grown = int(STATM.read_text().split()[1]) * PAGESIZE - before
    assert grown / 3000 < 500
