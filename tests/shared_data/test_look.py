"""What `look` prints: numbers that one can follow by hand, at any width, for any text."""

import math

import numpy as np
import pytest
from rich.cells import cell_len

from shared_data.errors import UserError
from shared_data.inference.look import chosen_maps, print_look, some_of, token_name
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe

NAMES = ["a", "␣fox", "<0xE7>", "⏎"]
IDS = [0, 1, 2]
LOG_PROBS = np.log([[0.1, 0.6, 0.2, 0.1], [0.002, 0.996, 0.001, 0.001], [0.25, 0.25, 0.25, 0.25]])
MAPS = np.array([[[[1, 0, 0], [0.25, 0.75, 0], [0.04, 0.46, 0.5]]]])  # one layer, one head


@pytest.fixture(autouse=True)
def no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output goes to a file: its width is our own."""
    monkeypatch.delenv("COLUMNS", raising=False)


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_tokens_predictions_and_maps_are_printed_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_look(NAMES.__getitem__, IDS, LOG_PROBS, MAPS, layers=[2], heads=[5])
    assert printed(capsys) == [
        "",
        "3 tokens",
        "a│ fox│<0xE7>",
        "",
        "What the model expects next (␣ is a space, ⏎ the end of a line)",
        "    after   actual  most likely",
        "  0 a          60%  ␣fox       60%  <0xE7>     20%  a          10%  ⏎          10%",
        "  1 ␣fox       <1%  ␣fox      100%  a          <1%  <0xE7>     <1%  ⏎          <1%",
        "  2 <0xE7>          a          25%  ␣fox       25%  <0xE7>     25%  ⏎          25%",
        "",
        "Attention: how much each token (row) reads from itself and each token before it (column)",
        "· under 5%   ░ from 5%   ▒ from 20%   ▓ from 40%   █ from 70%; a row adds up to 100%",
        "",
        "layer 2     head 5",
        "            0 1 2",
        "  0 a       ██",
        "  1 ␣fox    ▒▒██",
        "  2 <0xE7>  ··▓▓▓▓",
    ]


@pytest.mark.parametrize("width", [40, 80, 100, 160])
@pytest.mark.parametrize("T", [1, 5, 20])
def test_tables_and_maps_fit_the_width_and_no_head_is_left_out(
    width: int, T: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    names = ["狐狸狐狸狐狸狐狸狐狸", "<|endoftext|>", "狐", "␣internationalization"]
    maps = np.tril(np.full((2, 6, T, T), 0.5))
    ids = [n % 4 for n in range(T)]
    print_look(names.__getitem__, ids, np.full((T, 4), math.log(0.25)), maps, [0, 1], range(6))
    lines = printed(capsys)
    tables = lines[lines.index("What the model expects next (␣ is a space, ⏎ the end of a line)") + 1 :]
    explained = ("Attention: ", "· under")  # sentences wrap
    assert max(cell_len(line) for line in tables if not line.startswith(explained)) <= width
    assert sum(line.count("head 5") for line in tables) == 2
    # Columns are aligned however wide the letters are: the first shade of each row stands below the first number.
    first = next(line for line in tables if line.startswith("layer 0"))
    begin = cell_len(first[: first.index("head 0")])
    rows = [line for line in tables if "▓" in line and not line.startswith(explained)]
    assert {cell_len(line[: line.index("▓")]) for line in rows} == {begin}


def test_maps_wider_than_the_terminal_are_left_to_the_picture(
    capsys: pytest.CaptureFixture[str],
) -> None:
    maps = np.tril(np.full((1, 1, 100, 100), 0.5))
    print_look(NAMES.__getitem__, [0] * 100, np.zeros((100, 4)), maps, [0], [0])
    assert printed(capsys)[-1] == "maps of 100 tokens do not fit into 100 columns; see the picture"


def test_a_model_that_has_diverged_can_be_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    print_look(NAMES.__getitem__, IDS, LOG_PROBS * np.nan, MAPS * np.nan, [0], [0])
    assert printed(capsys)[-1] == "  2 <0xE7>  ??????"


def test_one_layer_all_layers_or_a_few_are_chosen() -> None:
    assert chosen_maps("layer", None, 3) == [0, 1, 2]
    assert chosen_maps("layer", 2, 3) == [2]
    for wrong in (3, -1):
        with pytest.raises(
            UserError, match=rf"the model has no head {wrong}; choose one of 0 to 2, or leave out"
        ):
            chosen_maps("head", wrong, 3)
    assert [some_of(count) for count in (1, 3, 4, 12)] == [[0], [0, 1, 2], [0, 1, 2, 3], [0, 4, 7, 11]]


def test_a_token_is_named_by_its_text_and_an_unknown_one_by_its_number() -> None:
    tokenizer = train_bpe(["a fox, a fox"], 262)
    (fox,) = (id for id in range(262) if tokenizer.decode([id]) == " fox")
    assert token_name(tokenizer, fox) == "␣fox"
    assert token_name(tokenizer, 300) == "<300>"
