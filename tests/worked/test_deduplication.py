"""Two sentences that differ in one word: Jaccard similarity, MinHash and bands, as in deduplication.md."""

import torch

from shared_data.cleaning.deduplication import shingles
from tests.worked import agrees
from v2_handwritten.data_pipeline.processing.deduplication import minhash_signature

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
