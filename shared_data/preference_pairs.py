"""What every level asks of preference pairs before it learns from them: that a pair has something to say.

A pair is (prompt ids, chosen ids, rejected ids). An empty reply, two equal ones, or a reply that does not fit the context
would not stop a training run: it would quietly teach nothing, or something else. So they are refused by name.

    python -c "from shared_data.preference_pairs import check_pairs; check_pairs([([1], [2], [2])], max_length=8)"
"""

from collections.abc import Sequence

from shared_data.errors import UserError

Pair = tuple[Sequence[int], Sequence[int], Sequence[int]]  # prompt, chosen reply, rejected reply


def check_pairs(pairs: Sequence[Pair], max_length: int, names: Sequence[str] | None = None) -> None:
    """Raise `UserError` for the first pair that cannot be learned from; `names` says what to call it (default: its number).

    A prompt and a reply together may be longer than `max_length` tokens: the end is then cut off, as trl does. Each alone
    may not, and after the cut the two replies must still differ.
    """
    if not pairs:
        raise UserError("there is no preference pair; bring at least one")
    for index, (prompt, chosen, rejected) in enumerate(pairs):
        name = names[index] if names is not None else f"pair {index}"
        for part, ids in (("prompt", prompt), ("chosen reply", chosen), ("rejected reply", rejected)):
            if not len(ids):
                raise UserError(f"{name}: the {part} is empty; complete or remove the record")
            if len(ids) >= max_length + (part != "prompt"):
                raise UserError(
                    f"{name}: the {part} has {len(ids)} tokens and does not fit the context of {max_length}; "
                    "shorten or remove the record, or allow a longer context"
                )
        if list(chosen) == list(rejected):
            raise UserError(f"{name}: chosen and rejected reply are identical; remove the record")
        room = max_length - len(prompt)
        if list(chosen[:room]) == list(rejected[:room]):
            raise UserError(
                f"{name}: chosen and rejected reply differ only after the {max_length} tokens of the context; "
                "shorten the prompt, remove the record, or allow a longer context"
            )
