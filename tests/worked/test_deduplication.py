"""Two sentences that differ in one word: Jaccard similarity, MinHash and bands, as in deduplication.md."""

import random
from itertools import islice

import torch

from shared_data.cleaning.deduplication import shingles
from shared_data.corpus.documents import Document
from shared_data.settings import DeduplicationSettings
from shared_data.story_world import StoryWorld
from tests.real_files.made_texts import made_text, with_changed_characters
from tests.worked import agrees
from v2_handwritten.data_pipeline.processing.deduplication import minhash_signature, new_deduplicator

PAGE = "v2_handwritten/data_pipeline/processing/deduplication.md"

A = shingles("The cat sat on the mat.", words=2)
B = shingles("The cat sat on the hat.", words=2)
ALL = ["the cat", "cat sat", "sat on", "on the", "the mat", "the hat"]
JACCARD = len(A & B) / len(A | B)


def signature(shingle_set: set[str], permutations: int = 8) -> torch.Tensor:
    """With the seed of the settings, as fractions of 2^32."""
    return minhash_signature(shingle_set, permutations, seed=1).double() / 2**32


def test_shingles_and_their_similarity() -> None:
    agrees(PAGE, "shingles", [[shingle in A, shingle in B] for shingle in ALL])
    assert JACCARD == 4 / 6


def test_the_smallest_hashes_are_the_signature() -> None:
    """The hash of one shingle is the signature of the set that holds only this one."""
    hashes = torch.stack([signature({shingle}) for shingle in ALL])  # [shingles, permutations]
    agrees(PAGE, "hashes", hashes)
    assert torch.equal(signature(A), hashes[[shingle in A for shingle in ALL]].amin(dim=0))
    equal = signature(A) == signature(B)
    agrees(PAGE, "signatures", torch.stack([signature(A), signature(B), equal.double()]))
    bands = equal.view(4, 2).all(dim=1)  # four bands of two rows
    assert bands.tolist() == [True, False, False, False]
    assert round(1 - (1 - JACCARD**2) ** 4, 3) == 0.905


def test_more_permutations_estimate_the_similarity_better() -> None:
    rows = []
    for permutations in (8, 128, 1024):
        estimate = (signature(A, permutations) == signature(B, permutations)).double().mean()
        rows.append([estimate, (JACCARD * (1 - JACCARD) / permutations) ** 0.5])
    agrees(PAGE, "permutations", rows)


def test_chinese_is_cut_into_characters() -> None:
    a, b = shingles("宝玉来到园中看花。", 2), shingles("宝玉来到园中看书。", 2)
    runs = ["宝 玉", "玉 来", "来 到", "到 园", "园 中", "中 看", "看 花", "看 书"]
    agrees(PAGE, "characters", [[run in a, run in b] for run in runs])
    assert len(a & b) / len(a | b) == 6 / 8


def test_changed_copies_are_found_in_every_script() -> None:
    rows = [[found(code, share) for share in (0.01, 0.02, 0.03, 0.05)] for code in ("en", "zh", "ja", "th")]
    agrees(PAGE, "copies found", rows)


def found(code: str, share: float) -> int:
    """Of 40 copies of texts with this share of their words (English) or characters changed."""
    if code == "en":
        stories = [story.text for story in islice(StoryWorld().stories(0), 80)]
        texts = [f"{first} {second}" for first, second in zip(stories[::2], stories[1::2], strict=True)]
        copies = [with_changed_words(text, share, seed) for seed, text in enumerate(texts)]
    else:
        texts = [made_text(code, seed, 300 + 18 * seed) for seed in range(40)]
        copies = [with_changed_characters(text, share, seed) for seed, text in enumerate(texts)]
    deduplicator = new_deduplicator(DeduplicationSettings())
    originals = [
        deduplicator.find_original(Document(text, str(number))) for number, text in enumerate(texts + copies)
    ]
    assert originals[:40] == [None] * 40
    return sum(original == str(number) for number, original in enumerate(originals[40:]))


def with_changed_words(text: str, share: float, seed: int) -> str:
    generator, words = random.Random(seed), text.split()
    for place in generator.sample(range(len(words)), round(share * len(words))):
        words[place] = f"zebra{generator.randrange(99)}"
    return " ".join(words)
