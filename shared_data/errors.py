"""The one error a user can cause, and the one place that prints it.

`UserError` carries a message of one line that names the cause and the remedy. The command line runs everything inside
`one_line_errors`: such an error becomes `error: cause; remedy` on stderr and exit code 2, without a traceback; a library
caller catches a `ValueError`. Any other exception is a bug and keeps its traceback.
"""

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

EXIT_CODE = 2

# What to do about the operating system's refusals; the cause is its own sentence ("No space left on device").
_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder with --out",
    getattr(errno, "EDQUOT", -1): "free some of your quota or choose another folder with --out",
    errno.EFBIG: "raise the file size limit (ulimit -f) or choose another folder with --out",
    errno.EACCES: "check the permissions, or choose another folder with --out",
    errno.EPERM: "check the permissions, or choose another folder with --out",
    errno.EROFS: "choose a writable folder with --out",
    errno.ENOTDIR: "a part of that path is a file; choose another folder",
    errno.EEXIST: "a file stands where a folder must be: move it, or choose another folder with --out",
    errno.EISDIR: "that path is a folder; name a file",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "close some files or raise the limit (ulimit -n)",
    errno.ENOMEM: "make the model or the batch smaller",
    errno.EIO: "check the disk",
}


class UserError(ValueError):
    """A mistake of the user's: the message says what is wrong and what to do about it, in one line."""


class StageError(UserError):
    """What a stage's own settings make impossible: the training diverged, or memory ran out. Other settings may do better."""


def explain_os_error(error: OSError, path: Path | str | None = None) -> UserError | None:
    """The one line for what the operating system refused; None where it is more likely a bug of ours."""
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    where = path if path is not None else error.filename
    cause = os.strerror(error.errno or 0)
    return UserError(f"{where}: {cause}; {remedy}" if where is not None else f"{cause}; {remedy}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether NumPy, Python or torch could not get memory; torch, which is not imported here, says so by name or in words."""
    words = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and ("not enough memory" in words or "out of memory" in words))
    )


@contextmanager
def library_errors(source: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises about a user's file or dataset into a `UserError` that names both."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} cannot be read ({type(error).__name__}: {reason}); {remedy}") from error


def prepare_streams() -> None:
    """Let no character break a command, and no stream that the shell has closed.

    What the terminal cannot show is written as `?`, bytes typed in another encoding are read as U+FFFD; a closed stream (`<&-`, `>&-`),
    which is None in Python, reads and writes nothing.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  open as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(io.UnsupportedOperation):  # something was read before, so no command starts here
                stream.reconfigure(errors="replace")


def ignore_interrupts() -> None:
    """From here on the process only leaves: one more Ctrl-C must neither print a traceback nor change the exit code."""
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave(message: str) -> None:
    """Print one line on stderr and end with the exit code of a user's mistake."""
    ignore_interrupts()
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(EXIT_CODE)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can cause into one line on stderr and exit code 2; let bugs keep their traceback."""
    prepare_streams()
    try:
        yield
    except UserError as error:
        _leave(f"error: {error}")
    except KeyboardInterrupt as stop:
        ignore_interrupts()
        kept = f": finished stages and checkpoints are kept; {stop} continues from there" if str(stop) else ""
        _leave(f"interrupted{kept}")
    except BrokenPipeError:
        # The reader of our output went away (`v2 run | head`). Python would complain once more when it flushes stdout
        # at exit, unless stdout leads nowhere by then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        explained = explain_os_error(error)
        if explained is None:
            raise
        _leave(f"error: {explained}")
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _leave(
            "error: out of memory; shorten the text or lower the number of new tokens, or take a smaller model"
        )
