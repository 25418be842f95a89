'''What the user of `chat` types, message by message: lines of a terminal or of a pipe.

    terminal   lines that are pasted together are one message; Ctrl-C clears what has been typed, and leaves where that is nothing
    pipe       a line is a message
    both       lines between `"""` and `"""` are one message

GNU readline, which `input` uses, hands over a pasted text whole ("bracketed paste"). Its substitute libedit, with which some
Pythons are built, and a plain terminal hand over line after line: there, lines that follow at once belong together.

    for text in typed_messages(welcome=lambda: print("Hello.")): print(text)
'''

import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

BLOCK = '"""'
SECONDS_APART = 0.05  # at most, between the lines of a paste; nobody types so fast


def typed_messages(welcome: Callable[[], None]) -> Iterator[str]:
    """Message after message until the input ends; in a terminal, `welcome` is called first."""
    terminal = sys.stdin.isatty()
    if terminal:
        welcome()
    for lines in _from_terminal() if terminal else _from_pipe():
        text = "\n".join(lines).strip()
        yield text.removeprefix(BLOCK).removesuffix(BLOCK).strip() if text.startswith(BLOCK) else text


def _from_terminal() -> Iterator[list[str]]:
    """The lines of each message. Raises `KeyboardInterrupt` at Ctrl-C where nothing has been typed."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  (from now on, `input` edits lines)
    ended = False
    while not ended:
        lines: list[str] = []
        try:
            lines.append(input("> "))
            while _is_open(lines) or _more_follows():
                lines.append(input("... " if _is_open(lines) else ""))
        except EOFError:
            ended = True
            print()
        except KeyboardInterrupt:
            print()
            if lines or _line_is_begun():
                continue
            raise
        if lines:
            yield lines


def _from_pipe() -> Iterator[list[str]]:
    """The lines of each message; a block that never ends is a message too."""
    lines: list[str] = []
    for line in iter(sys.stdin.readline, ""):
        lines.append(line.rstrip("\n"))
        if not _is_open(lines):
            yield lines
            lines = []
    if lines:
        yield lines


def _is_open(lines: Sequence[str]) -> bool:
    """Whether a block has begun that has not ended yet."""
    text = "\n".join(lines).strip()
    return text.startswith(BLOCK) and not text[len(BLOCK) :].endswith(BLOCK)


def _more_follows() -> bool:
    """Whether the terminal holds another line already."""
    try:
        return bool(select.select([sys.stdin], [], [], SECONDS_APART)[0])
    except (OSError, ValueError):  # Windows waits for sockets only
        return False


def _line_is_begun() -> bool:
    """Whether Ctrl-C came after the first letter of a line."""
    with suppress(ImportError):
        import readline

        return bool(readline.get_line_buffer())
    return False
