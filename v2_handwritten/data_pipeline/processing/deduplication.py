"""Find documents that repeat an earlier one: exactly, or nearly, by MinHash with banded locality-sensitive hashing.

    Jaccard similarity   J(A, B) = |A ∩ B| / |A ∪ B|                  of the sets of 5-word shingles
    MinHash              P(min h(A) = min h(B)) = J(A, B)             (Broder 1997), so equal rows estimate J
    LSH                  P(candidate) = 1 - (1 - J^r)^b               b bands of r rows (Leskovec et al., MMDS, 3.4)

Theory and pictures: `deduplication.md`. Level 1 asks datasketch; level 2 computes signatures with torch and walks hash
chains one by one; level 3 does both with whole arrays. Signatures, bands and decisions are equal at all levels.

    uv run python -c "from v2_handwritten.data_pipeline.processing.deduplication import choose_bands; print(choose_bands(0.7, 128))"
"""

import hashlib
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from shared_data.cleaning.deduplication import FALSE_NEGATIVE_WEIGHT, FALSE_POSITIVE_WEIGHT, Deduplicator
from shared_data.settings import DeduplicationSettings
from v2_handwritten.data_pipeline.processing.signature_index import SignatureIndex

_MASK, _SIGN = 0xFFFFFFFF, -(1 << 31)


def minhash_signature(shingle_set: set[str], permutations: int, seed: int) -> Int[Tensor, "permutations"]:
    """The smallest hash of the set under each of many hash functions; equal to `datasketch.MinHash` number for number.

    h_k(x) = a_k · mix(sha1(x)) + b_k  mod 2^32 with odd a_k, a permutation of the 32-bit numbers.
    """
    if not shingle_set:
        return torch.full((permutations,), _MASK)
    digests = b"".join(hashlib.sha1(shingle.encode()).digest()[:4] for shingle in shingle_set)
    hashes = _mix(torch.frombuffer(bytearray(digests), dtype=torch.int32).long() & _MASK)  # [shingles]
    a, b = _hash_functions(permutations, seed)  # [permutations, 1] each
    # int32 products wrap around, which is the arithmetic modulo 2^32 that we want. Flipping the sign bit turns the order
    # of signed numbers into that of unsigned ones, so that the minimum is the right one.
    smallest = ((a * hashes.to(torch.int32) + b) ^ _SIGN).amin(dim=1) ^ _SIGN
    return smallest.long() & _MASK


def _mix(hashes: Int[Tensor, "shingles"]) -> Int[Tensor, "shingles"]:
    """The last step of MurmurHash3 (32 bits): every input bit flips each output bit about half of the time."""
    hashes = ((hashes ^ (hashes >> 16)) * 0x85EBCA6B) & _MASK
    hashes = ((hashes ^ (hashes >> 13)) * 0xC2B2AE35) & _MASK
    return hashes ^ (hashes >> 16)


@lru_cache(maxsize=4)
def _hash_functions(
    permutations: int, seed: int
) -> tuple[Int[Tensor, "permutations 1"], Int[Tensor, "permutations 1"]]:
    """The multipliers (odd) and the offsets, drawn as datasketch draws them."""
    generator = np.random.RandomState(seed)
    a = generator.randint(0, 1 << 31, permutations, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    b = generator.randint(0, 1 << 32, permutations, dtype=np.uint32)
    return torch.from_numpy(a.view(np.int32))[:, None], torch.from_numpy(b.view(np.int32))[:, None]


@lru_cache(maxsize=16)
def choose_bands(
    threshold: float,
    permutations: int,
    false_positive_weight: float = 0.5,
    false_negative_weight: float = 0.5,
) -> tuple[int, int]:
    """Bands and rows whose S-curve 1 - (1 - s^r)^b errs least around the threshold (datasketch's criterion).

    Error: the area under the curve left of the threshold (unlike pairs that become candidates) and above it to the
    right (like pairs that do not), weighted.
    """
    best, least = (1, 1), float("inf")
    for bands in range(1, permutations + 1):
        for rows in range(1, permutations // bands + 1):
            left = _integral(lambda s, r=rows, b=bands: 1 - (1 - s**r) ** b, 0.0, threshold)
            right = _integral(lambda s, r=rows, b=bands: (1 - s**r) ** b, threshold, 1.0)
            error = left * false_positive_weight + right * false_negative_weight
            if error < least:
                best, least = (bands, rows), error
    return best


def _integral(function: Any, start: float, end: float, intervals: int = 512) -> float:
    """Simpson's rule."""
    points = torch.linspace(start, end, intervals + 1, dtype=torch.float64)
    values = function(points)
    step = (end - start) / intervals
    return float(step / 3 * (values[0] + 4 * values[1::2].sum() + 2 * values[2:-1:2].sum() + values[-1]))


def new_deduplicator(settings: DeduplicationSettings) -> Deduplicator:
    """A deduplicator whose signatures and index are those of this level."""
    bands, rows = choose_bands(
        settings.threshold, settings.permutations, FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT
    )
    signature_of = partial(minhash_signature, permutations=settings.permutations, seed=settings.seed)
    return Deduplicator(settings, SignatureIndex(bands, rows, settings.permutations), signature_of)
