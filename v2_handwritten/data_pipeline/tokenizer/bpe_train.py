"""Training byte-level BPE: join the most frequent pair of neighbours, again and again.

Sennrich, Haddow and Birch (2016), "Neural Machine Translation of Rare Words with Subword Units", section 3.2, on bytes
(Radford et al. 2019). The vocabulary begins with the special tokens and the 256 bytes; each merge adds one token until
`vocab_size` is reached or no pair is frequent enough. The theory page `bpe_train.md` has the derivation.

Four ideas make it fast, none of them approximate:
1. Text is cut into pre-tokens and only the multiset of them is kept: ten megabytes of stories have a few thousand words.
2. A word is a Python string with one character a token (`chr(id)`), so that a merge is `str.split` and `str.join`, in C.
3. An index from each pair to the words that hold it: a merge visits only those.
4. A heap of pairs, refreshed lazily: between its creation and its merge a pair's count only falls (new pairs hold the new
   token), so a stale entry at the top is put back with its true count, and a true one is the maximum.

Merges and ids equal those of `tokenizers`, ties included: of equally frequent pairs the one with the smaller ids goes first,
and bytes are numbered in the order of `byte_level.ALPHABET`. Level 1 calls its `BpeTrainer`; level 3 keeps all words in one
flat array and counts pairs by sorting.

    uv run python -c "from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe; print(train_bpe(['low low lower'], 260).encode('lowest'))"
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush

from shared_data.progress import progress
from shared_data.tokenizer.byte_level import ALPHABET
from shared_data.tokenizer.tokenizer_file import new_config, new_definition
from shared_data.tokenizer.training import count_words, initial_vocab
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str = "gpt4",
    special_tokens: Sequence[str] = (),
    min_frequency: int = 2,
    show_progress: bool = False,
) -> Tokenizer:
    """Learn a tokenizer from texts, read once as they come.

    `vocab_size` counts the special tokens and the 256 bytes; fewer tokens come out where no pair is left that occurs at least
    `min_frequency` times. Raises `UserError` for a vocabulary too small or a corpus without text.
    """
    vocab = initial_vocab(vocab_size, special_tokens)
    words = count_words(texts, pattern)
    merges = learn_merges(words, vocab, vocab_size, min_frequency, show_progress)
    return Tokenizer(new_definition(vocab, merges, pattern, special_tokens), new_config(special_tokens))


def learn_merges(
    words: Counter[str], vocab: dict[str, int], vocab_size: int, min_frequency: int, show_progress: bool
) -> list[tuple[str, str]]:
    """Merge until `vocab` (extended in place) is full; returns the merges as pairs of tokens.

    A pair is a string of two characters, so the order of strings is the order of the pairs of ids, by which ties are broken.
    """
    token_of = list(vocab)
    spelled = {symbol: chr(vocab[symbol]) for symbol in ALPHABET}
    texts = ["".join(map(spelled.__getitem__, word)) for word in words]
    frequencies = list(words.values())
    counts, holders = _count_pairs(texts, frequencies)
    heap = [(-counts[pair], pair, found) for pair, found in holders.items()]
    heapify(heap)
    merges: list[tuple[str, str]] = []
    with progress(vocab_size - len(vocab), "BPE merges", unit="tokens", show=show_progress) as bar:
        while heap and len(vocab) < vocab_size:
            negative_count, pair, found = heappop(heap)
            if -negative_count != counts[pair]:  # stale: lower by now
                heappush(heap, (-counts[pair], pair, found))
                continue
            if counts[pair] < max(min_frequency, 1):
                break
            left, right = token_of[ord(pair[0])], token_of[ord(pair[1])]
            # No two merges spell the same token (bpe_train.md), but a special token may be spelled so: it keeps its id.
            new_id = vocab.setdefault(left + right, len(vocab))
            if new_id == len(token_of):
                token_of.append(left + right)
                bar.update(1)
            merges.append((left, right))
            for formed, where in _merge_everywhere(
                pair, chr(new_id), found, texts, frequencies, counts
            ).items():
                if counts[formed] > 0:
                    heappush(heap, (-counts[formed], formed, where))
    return merges


def _count_pairs(
    texts: list[str], frequencies: list[int]
) -> tuple[defaultdict[str, int], defaultdict[str, list[int]]]:
    """How often each pair of neighbours occurs, and in which words."""
    counts: defaultdict[str, int] = defaultdict(int)
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for word, (text, frequency) in enumerate(zip(texts, frequencies, strict=True)):
        for position in range(len(text) - 1):
            pair = text[position : position + 2]
            counts[pair] += frequency
            found = holders[pair]
            if not found or found[-1] != word:
                found.append(word)
    return counts, holders


def _merge_everywhere(
    pair: str,
    new: str,
    found: list[int],
    texts: list[str],
    frequencies: list[int],
    counts: defaultdict[str, int],
) -> dict[str, list[int]]:
    """Replace a pair in the words that may hold it; updates `counts` and returns the words of each newly formed pair.

    `x a b y` becomes `x N y`: (x, a) and (b, y) occur less often, (x, N) and (N, y) more often. The count of the merged
    pair itself is left as it is: it is never looked up again.
    """
    a, b = pair[0], pair[1]
    formed: defaultdict[str, list[int]] = defaultdict(list)
    for word in found:
        parts = texts[word].split(pair)  # from left to right, without overlap: what a merge means
        if len(parts) == 1:
            continue  # an earlier merge took the pair apart
        frequency = frequencies[word]
        texts[word] = new.join(parts)
        last = len(parts) - 1
        for number in range(last):
            before, after = parts[number], parts[number + 1]
            # Two occurrences side by side: to the left stands the new token already, to the right the old one still.
            x = before[-1] if before else new if number else ""
            y = after[0] if after else a if number + 1 < last else ""
            if x:
                counts[x + a] -= frequency
                counts[x + new] += frequency
                if not (where := formed[x + new]) or where[-1] != word:
                    where.append(word)
            if y:
                counts[b + y] -= frequency
                counts[new + y] += frequency
                if not (where := formed[new + y]) or where[-1] != word:
                    where.append(word)
    return formed
