"""Bytes written as visible characters, as GPT-2 began it and every byte-level `tokenizer.json` still has it.

Byte-level BPE merges bytes, but its file stores tokens as text, and a byte such as 0x0A or 0xE9 is no text of its own. So
each byte gets a printable character: the 188 bytes that Latin-1 prints keep theirs, the other 68 get U+0100, U+0101 … in
order. A space becomes `Ġ` (U+0120) and a newline `Ċ`, which is why those fill every vocabulary (Radford et al. 2019,
section 2.2, and the `bytes_to_unicode` of the GPT-2 release).

Level 1 gets this alphabet from `tokenizers`.

    uv run python -c "from shared_data.tokenizer.byte_level import text_to_symbols as f; print(f('a café'))"
"""

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]


def bytes_to_unicode() -> dict[int, str]:
    """The character of each of the 256 bytes.

    >>> mapping = bytes_to_unicode()
    >>> mapping[ord("A")], mapping[ord(" ")], mapping[0]
    ('A', 'Ġ', 'Ā')
    """
    mapping = {byte: chr(byte) for byte in _PRINTABLE}
    for byte in range(256):
        if byte not in mapping:
            mapping[byte] = chr(256 + len(mapping) - len(_PRINTABLE))
    return mapping


BYTE_TO_SYMBOL = bytes_to_unicode()
_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}
SYMBOL_TO_BYTE = {symbol: byte for byte, symbol in BYTE_TO_SYMBOL.items()}

# The order in which `tokenizers` numbers the bytes: by their character, not by their value. "!" comes first; byte 0,
# written "Ā", comes after the 188 printable ones. Ties between equally frequent pairs are broken by these numbers.
ALPHABET = sorted(SYMBOL_TO_BYTE)


def text_to_symbols(text: str) -> str:
    """UTF-8 bytes of a text, one visible character a byte.

    >>> text_to_symbols("a café")
    'aĠcafÃ©'
    """
    return "".join(map(BYTE_TO_SYMBOL.__getitem__, text.encode("utf-8")))


def symbols_to_bytes(token: str) -> bytes:
    """The bytes that a token of the vocabulary stands for.

    A token with a character outside the alphabet was never made of bytes (an added token such as `日本`): it stands for
    its own UTF-8, as `tokenizers` decodes it.
    """
    try:
        return bytes(map(SYMBOL_TO_BYTE.__getitem__, token))
    except KeyError:
        return token.encode("utf-8")


def visible(token: bytes) -> str:
    """A token for people to read: spaces and line ends as signs, bytes that are no whole character as numbers.

    >>> visible(b" caf\xc3")
    '␣caf<0xC3>'
    """
    return "".join(map(_visible, token.decode("utf-8", errors="surrogateescape")))


def _visible(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if character.isprintable():
        return character
    return "".join(f"<0x{byte:02X}>" for byte in character.encode("utf-8", errors="surrogateescape"))
