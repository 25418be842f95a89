"""What the command `look` prints: the tokens of a text, what a model expects after each, its attention maps as shaded blocks.

print_look(lambda id: token_name(tokenizer, id), ids, log_probs, maps, layers=[0, 1], heads=[0, 1, 2, 3])
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from shared_data.errors import UserError
from shared_data.tokenizer.byte_level import visible

SHADES = ((0.7, "█"), (0.4, "▓"), (0.2, "▒"), (0.05, "░"), (0.0, "·"))  # for weights from that number on
_FILE_WIDTH = 100  # columns where the output is no terminal
_LONGEST_TOKEN = 14  # columns; longer ones are cut
_PREDICTIONS = 5  # for each position, fewer where the terminal is narrow


def token_name(tokenizer: Any, id: int) -> str:
    """The text of a token; the number of one that the tokenizer does not know (models may have more ids)."""
    return visible(tokenizer.decode_bytes([id])) or f"<{id}>"


def chosen_maps(kind: str, index: int | None, count: int) -> list[int]:
    """The layers or heads to show: one, or all. Raises `UserError` for one that the model does not have."""
    if index is None:
        return list(range(count))
    if not 0 <= index < count:
        raise UserError(
            f"the model has no {kind} {index}; choose one of 0 to {count - 1}, or leave out --{kind} to see all"
        )
    return [index]


def some_of(count: int, most: int = 4) -> list[int]:
    """At most so many of the layers or heads, from the first to the last."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, most))})


def print_look(
    name: Callable[[int], str],
    ids: Sequence[int],
    log_probs: Float[np.ndarray, "T V"],
    maps: Float[np.ndarray, "L H T T"],
    layers: Sequence[int],
    heads: Sequence[int],
) -> None:
    """Print all of it. `name` gives the text of a token; `layers` and `heads` are the numbers of the maps."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    tokens = [name(id) for id in ids]
    console.print(Text(f"\n{len(ids)} tokens", "bold"))
    console.print(Text("│".join(token.replace("␣", " ") for token in tokens)))
    lines = [
        *_predictions(name, ids, log_probs, console.width),
        *_maps(tokens, maps, layers, heads, console.width),
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def _predictions(
    name: Callable[[int], str], ids: Sequence[int], log_probs: Float[np.ndarray, "T V"], width: int
) -> Iterator[Any]:
    """A line for each position: its token, the probability of the one that follows, the most probable ones."""
    from rich.text import Text

    label = _label_width(map(name, ids))
    count = max(1, min(_PREDICTIONS, (width - label - 12) // 13))
    column = min(_LONGEST_TOKEN + 7, (width - label - 12) // count)
    yield Text("\nWhat the model expects next (␣ is a space, ⏎ the end of a line)", "bold")
    yield Text(f"    {_fit('after', label)}  actual  most likely", "dim")
    for position, row in enumerate(log_probs):
        following = ids[position + 1] if position + 1 < len(ids) else None
        line = Text(f"{position:3} {_fit(name(ids[position]), label)}")
        line.append("        " if following is None else f"  {_percent(row[following]):>6}")
        for id in np.argsort(-row, kind="stable")[:count].tolist():
            entry = f"  {_fit(name(id), column - 7)} {_percent(row[id]):>4}"
            line.append(entry, "bold green" if id == following else "")
        yield line


def _maps(
    tokens: Sequence[str],
    maps: Float[np.ndarray, "L H T T"],
    layers: Sequence[int],
    heads: Sequence[int],
    width: int,
) -> Iterator[Any]:
    """The maps of a layer side by side, as many as fit; a cell is two columns wide where all of them fit so."""
    from rich.text import Text

    T, label = len(tokens), _label_width(tokens)
    room = width - label - 4
    cell = 2 if (2 * T + 2) * len(heads) <= room else 1
    tile = max(cell * T, len("head 00"))
    side_by_side = room // (tile + 2)
    yield Text(
        "\nAttention: how much each token (row) reads from itself and each token before it (column)", "bold"
    )
    (_, lightest), *others = reversed(SHADES)
    legend = [
        f"{lightest} under {others[0][0]:.0%}",
        *(f"{shade} from {bound:.0%}" for bound, shade in others),
    ]
    yield Text(f"{'   '.join(legend)}; a row adds up to 100%", "dim")
    if not side_by_side:
        yield Text(f"maps of {T} tokens do not fit into {width} columns; see the picture")
        return
    for layer, of_layer in zip(layers, maps, strict=True):
        for first in range(0, len(heads), side_by_side):
            group = range(first, min(first + side_by_side, len(heads)))
            titles = "".join(f"  {_fit(f'head {heads[index]}', tile)}" for index in group)
            yield Text(f"\n{_fit(f'layer {layer}', label + 4)}{titles}".rstrip(), "bold")
            numbers = "".join(f"{column % 10:<{cell}}" for column in range(T))
            yield Text((" " * (label + 4) + f"  {numbers:<{tile}}" * len(group)).rstrip(), "dim")
            for row, token in enumerate(tokens):
                line = Text(f"{row:3} {_fit(token, label)}")
                for index in group:
                    shades = "".join(_shade(weight) * cell for weight in of_layer[index, row, : row + 1])
                    line.append(f"  {shades:<{tile}}", "blue")
                line.rstrip()
                yield line


def _shade(weight: float) -> str:
    return next((shade for bound, shade in SHADES if weight >= bound), "?")  # NaN


def _percent(log_prob: float) -> str:
    probability = float(np.exp(log_prob))
    return f"{probability:.0%}" if probability >= 0.005 else "<1%"


def _label_width(tokens: Any) -> int:
    """The columns that the longest token takes, at most `_LONGEST_TOKEN`."""
    from rich.cells import cell_len

    return min(_LONGEST_TOKEN, max(map(cell_len, tokens)))


def _fit(text: str, columns: int) -> str:
    """The text in exactly so many columns of a terminal, cut where it is too long; Chinese letters take two."""
    from rich.cells import cell_len, set_cell_size

    return (
        set_cell_size(text, columns) if cell_len(text) <= columns else set_cell_size(text, columns - 1) + "…"
    )
