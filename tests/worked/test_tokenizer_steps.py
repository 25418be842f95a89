"""The four steps of a tokenizer.json: `a café 狐` with byte fallback and byte by byte, the example of tokenizer.md."""

from pathlib import Path

from shared_data.tokenizer.byte_level import ALPHABET, symbols_to_bytes
from shared_data.tokenizer.decoder import Decoder
from shared_data.tokenizer.normalizer import Normalizer
from shared_data.tokenizer.pre_tokenizer import PreTokenizer
from shared_data.tokenizer.tokenizer_classes import byte_level
from tests.worked import agrees
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer

PAGE = Path("shared_data/tokenizer/tokenizer.md")
TEXT = "a café 狐"

NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


def tokenizer(steps: dict, symbols: list[str], merges: list[list[str]], **options: bool) -> Tokenizer:
    """A tokenizer whose vocabulary is its symbols and what the merges make of them."""
    tokens = [*symbols, *map("".join, merges)]
    vocab = {token: id for id, token in enumerate(tokens)}
    return Tokenizer(steps | {"model": {"type": "BPE", "vocab": vocab, "merges": merges} | options})


def merges(space: str) -> list[list[str]]:
    """The same four merges, with the space as each kind of file writes it."""
    return [[space, "c"], [space + "c", "a"], [space + "ca", "f"], [space, "a"]]


def with_byte_fallback() -> Tokenizer:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    steps = {"normalizer": NORMALIZER, "pre_tokenizer": None, "decoder": DECODER}
    return tokenizer(steps, [*byte_tokens, *"▁acf"], merges("▁"), byte_fallback=True)


def byte_by_byte() -> Tokenizer:
    steps = {"pre_tokenizer": byte_level(add_prefix_space=False), "decoder": byte_level()}
    return tokenizer(steps, ALPHABET, merges("Ġ"))


def tokens_of(tokens: Tokenizer, text: str) -> list[str]:
    return [str(tokens.id_to_token(id)) for id in tokens.encode(text)]


def test_each_step_of_byte_fallback() -> None:
    """Step by step as the page has it, and the same from the tokenizer as a whole."""
    assert Normalizer(NORMALIZER)(TEXT) == "▁a▁café▁狐"
    pre_tokenizer = PreTokenizer(None)
    assert pre_tokenizer.split("▁a▁café▁狐") == ["▁a▁café▁狐"]
    pre_tokenizer.cut_at_spaces()
    assert pre_tokenizer.split("▁a▁café▁狐") == ["▁a", "▁café", "▁狐"]
    found = ["▁a", "▁caf", "<0xC3>", "<0xA9>", "▁", "<0xE7>", "<0x8B>", "<0x90>"]
    assert tokens_of(with_byte_fallback(), TEXT) == found
    assert (
        Decoder(DECODER).text(found) == TEXT == with_byte_fallback().decode(with_byte_fallback().encode(TEXT))
    )
    shown = PAGE.read_text(encoding="utf-8")
    assert " ".join(f"`{token}`" for token in found) in shown
    assert " ".join(f"`{token}`" for token in tokens_of(byte_by_byte(), TEXT)) in shown


def test_tokens_and_bytes_of_both() -> None:
    """The rows of the page: how many bytes of the text each token stands for."""
    fallback, level = with_byte_fallback(), byte_by_byte()
    found = fallback.encode(TEXT)
    agrees(
        str(PAGE),
        "bytes of the token",
        [
            fallback.byte_lengths[found],
            fallback.byte_lengths_in(TEXT, found),
            level.byte_lengths[level.encode(TEXT)],
        ],
        digits=0,
    )
    assert len(TEXT.encode()) == fallback.byte_lengths_in(TEXT, found).sum() == 11
    assert b"".join(symbols_to_bytes(token) for token in tokens_of(level, TEXT)).decode() == TEXT


def test_half_a_character_is_one_mark_a_byte_or_one_mark() -> None:
    """What goes wrong: broken bytes are decoded differently."""
    broken = ["<0xE7>", "<0x8B>"]
    assert Decoder(DECODER).text(broken) == "\ufffd\ufffd"
    assert Decoder(byte_level()).text(["ç", "ĭ"]) == "\ufffd"
    assert Decoder(DECODER).text(["<0xE7>", "<0x8B>", "<0x90>", *broken]) == "\ufffd" * 5
