"""SentencePiece's BPE from a GGUF file: a vocabulary with scores, as BPE with merges and byte fallback.

SentencePiece merges, of all neighbouring pieces whose union is in the vocabulary, those whose union scores best. BPE merges the pair that stands
first in its list. So the list is: every way to cut a piece into two pieces of the vocabulary, best score first (as `generate_merges`
of transformers, whose order of ties this keeps). A character that is no piece becomes its UTF-8 bytes, <0xE2> and so on.
"""

from typing import Any

from shared_data.errors import UserError
from shared_data.files import is_number
from shared_data.model_files.gguf import GgufFile
from shared_data.tokenizer.tokenizer_file import Definition, new_definition

SPACE = "\u2581"  # what a space is written as


def sentencepiece_definition(
    file: GgufFile,
    entries: dict[str, Any],
    vocab: dict[str, int],
    merges: list[tuple[str, str]] | None,
    unknown_id: int | None,
) -> Definition:
    """`tokenizer.json` of a SentencePiece tokenizer, without its added tokens and its template.

    merges: those that the file lists, which older ones do, in their order; else they follow from the scores. Raises `UserError` for damaged scores.
    """
    scores = entries.get("scores")
    if merges is None:
        if (
            not isinstance(scores, list)
            or len(scores) != len(entries["tokens"])
            or not all(map(is_number, scores))
        ):
            raise UserError(
                f"{file.path} has no score for each of its tokens (tokenizer.ggml.scores); copy it again"
            )
        merges = merges_by_score(vocab, {token: scores[id] for token, id in vocab.items()})
    definition = new_definition(vocab, merges, "gpt4", [])
    unknown = None if unknown_id is None else entries["tokens"][unknown_id]
    definition["model"] |= {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    prefix = bool(entries.get("add_space_prefix", True))
    definition["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": "first" if prefix else "never",
        "split": False,
    }
    steps: list[Definition] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    definition["decoder"] = {"type": "Sequence", "decoders": steps}
    return definition


def merges_by_score(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces whose union is a piece, best score first; of equal scores the longer left half first, then the longer right one.

    >>> merges_by_score({"a": 0, "b": 1, "ab": 2, "aba": 3}, {"a": 0, "b": 0, "ab": -1, "aba": -2})
    [('a', 'b'), ('ab', 'a')]
    """
    pairs = []
    for piece, score in scores.items():
        cuts = [
            (piece[:index], piece[index:])
            for index in range(1, len(piece))
            if piece[:index] in vocab and piece[index:] in vocab
        ]
        cuts.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        pairs += [(score, len(left), len(right), left, right) for left, right in cuts]
    pairs.sort(key=lambda pair: pair[:3], reverse=True)
    return [(left, right) for *_, left, right in pairs]
