"""Where a command starts and leaves: streams that cannot show a character or are closed, and one more Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import pytest

ECHO = """
import sys
from shared_data.errors import UserError, one_line_errors
with one_line_errors():
    print("Zoë")
    for line in sys.stdin:
        print(len(line), flush=True)
    if "fail" in sys.argv:
        raise UserError("no Zoë; name another")
"""
# A thread that is not done yet keeps Python waiting while it leaves.
LEAVING = """
import sys, threading, time
from shared_data.command_line import build_app
from shared_data.errors import one_line_errors
threading.Thread(target=time.sleep, args=(1.5,)).start()
if "settings" in sys.argv:
    build_app("v2", "For tests.", {})()
with one_line_errors():
    print("ready", flush=True)
    time.sleep(60)
"""


def run(
    code: str, *words: str, shell: str = "", input: bytes = b"", **extra: str
) -> tuple[int, bytes, bytes]:
    """A Python program with streams as a shell makes them: exit code, stdout, stderr."""
    done = subprocess.run(
        ["sh", "-c", f'"$@" {shell}', "sh", sys.executable, "-c", code, *words],
        input=input,
        capture_output=True,
        env={**os.environ, **extra},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_what_a_terminal_cannot_show_is_a_question_mark() -> None:
    assert run(ECHO, PYTHONIOENCODING="ascii") == (0, b"Zo?\n", b"")
    assert run(ECHO, "fail", PYTHONIOENCODING="ascii") == (2, b"Zo?\n", b"error: no Zo?; name another\n")
    assert run(ECHO, PYTHONIOENCODING="utf-8") == (0, "Zoë\n".encode(), b"")


def test_bytes_in_another_encoding_are_read_as_one_character_each() -> None:
    assert run(ECHO, input=b"caf\xe9\n", PYTHONIOENCODING="utf-8") == (0, "Zoë\n5\n".encode(), b"")


@pytest.mark.parametrize("shell", ["<&-", ">&-", "<&- >&- 2>&-", "2>&-"])
def test_a_closed_stream_reads_and_writes_nothing(shell: str) -> None:
    words, out, err = "Zoë\n".encode(), b"" if ">&-" in shell.replace("2>&-", "") else None, b""
    code, written, said = run(ECHO, shell=shell, PYTHONIOENCODING="utf-8")
    assert (code, written, said) == (0, words if out is None else out, err)
    code, written, said = run(ECHO, "fail", shell=shell, PYTHONIOENCODING="utf-8")
    assert (code, written) == (2, words if out is None else out), "the error is not printed among the output"
    assert said == (b"" if "2>&-" in shell else "error: no Zoë; name another\n".encode())


def test_a_second_ctrl_c_changes_nothing_while_the_process_leaves() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEAVING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "interrupted\n"
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 2


def test_ctrl_c_after_the_last_line_changes_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEAVING, "settings"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("# ")
        time.sleep(0.3)  # all of it is written at once
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0
