"""Find documents that repeat an earlier one: exactly, or nearly, by MinHash with banded locality-sensitive hashing.

    Jaccard similarity   J(A, B) = |A ∩ B| / |A ∪ B|                  of the sets of 5-word shingles
    MinHash              P(min h(A) = min h(B)) = J(A, B)             (Broder 1997), so equal rows estimate J
    LSH                  P(candidate) = 1 - (1 - J^r)^b               b bands of r rows (Leskovec et al., MMDS, 3.4)

Theory and pictures: `v2_handwritten/data_pipeline/processing/deduplication.md`. Level 1 asks datasketch; level 2 computes
signatures with torch and walks hash chains one by one; level 3 does both with whole arrays. Signatures, bands and decisions
are equal at all levels.

    uv run python -c "from v3_numpy_deep.data_pipeline.processing.deduplication import choose_bands; print(choose_bands(0.7, 128))"
"""

import hashlib
from functools import lru_cache, partial

import numpy as np
from jaxtyping import Float, UInt32

from shared_data.cleaning.deduplication import FALSE_NEGATIVE_WEIGHT, FALSE_POSITIVE_WEIGHT, Deduplicator
from shared_data.settings import DeduplicationSettings
from v3_numpy_deep.data_pipeline.processing.signature_index import SignatureIndex

_LARGEST_HASH = 0xFFFFFFFF


def minhash_signature(
    shingle_set: set[str], permutations: int, seed: int
) -> UInt32[np.ndarray, "permutations"]:
    """The smallest hash of the set under each of many hash functions; equal to `datasketch.MinHash` number for number.

    h_k(x) = a_k · mix(sha1(x)) + b_k  mod 2^32 with odd a_k, a permutation of the 32-bit numbers.
    """
    if not shingle_set:
        return np.full(permutations, _LARGEST_HASH, dtype=np.uint32)
    digests = b"".join(hashlib.sha1(shingle.encode()).digest()[:4] for shingle in shingle_set)
    hashes = _mix(np.frombuffer(digests, dtype="<u4").astype(np.uint32))  # [shingles]
    a, b = _hash_functions(permutations, seed)  # [permutations, 1] each
    # uint32 arrays wrap around silently, which is the arithmetic modulo 2^32 that we want.
    return (a * hashes + b).min(axis=1)


def _mix(hashes: UInt32[np.ndarray, "shingles"]) -> UInt32[np.ndarray, "shingles"]:
    """The last step of MurmurHash3 (32 bits): every input bit flips each output bit about half of the time."""
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return hashes ^ (hashes >> np.uint32(16))


@lru_cache(maxsize=4)
def _hash_functions(
    permutations: int, seed: int
) -> tuple[UInt32[np.ndarray, "permutations 1"], UInt32[np.ndarray, "permutations 1"]]:
    """The multipliers (odd) and the offsets, drawn as datasketch draws them."""
    generator = np.random.RandomState(seed)
    a = generator.randint(0, 1 << 31, permutations, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    b = generator.randint(0, 1 << 32, permutations, dtype=np.uint32)
    return a[:, None], b[:, None]


@lru_cache(maxsize=16)
def choose_bands(
    threshold: float,
    permutations: int,
    false_positive_weight: float = 0.5,
    false_negative_weight: float = 0.5,
) -> tuple[int, int]:
    """Bands and rows whose S-curve 1 - (1 - s^r)^b errs least around the threshold (datasketch's criterion).

    Error: the area under the curve left of the threshold (unlike pairs that become candidates) and above it to the
    right (like pairs that do not), weighted. All pairs of bands and rows are tried in one array.
    """
    pairs = np.array([(b, r) for b in range(1, permutations + 1) for r in range(1, permutations // b + 1)])
    bands, rows = pairs[:, :1], pairs[:, 1:]  # [pairs, 1] each
    # Not a candidate at similarity s: (1 - s^r)^b, a polynomial of degree b·r <= permutations. Gauss-Legendre
    # integrates it exactly with half as many points.
    points, weights = _gauss_legendre(permutations // 2 + 1, 0.0, threshold)
    left = (1 - (1 - points**rows) ** bands) @ weights  # [pairs]
    points, weights = _gauss_legendre(permutations // 2 + 1, threshold, 1.0)
    right = ((1 - points**rows) ** bands) @ weights
    best = pairs[np.argmin(left * false_positive_weight + right * false_negative_weight)]
    return int(best[0]), int(best[1])


def _gauss_legendre(
    count: int, start: float, end: float
) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points"]]:
    """Points and weights of the quadrature on [start, end]."""
    points, weights = np.polynomial.legendre.leggauss(count)
    return start + (points + 1) * (end - start) / 2, weights * (end - start) / 2


def new_deduplicator(settings: DeduplicationSettings) -> Deduplicator:
    """A deduplicator whose signatures and index are those of this level."""
    bands, rows = choose_bands(
        settings.threshold, settings.permutations, FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT
    )
    signature_of = partial(minhash_signature, permutations=settings.permutations, seed=settings.seed)
    return Deduplicator(settings, SignatureIndex(bands, rows, settings.permutations), signature_of)
