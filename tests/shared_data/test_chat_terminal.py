"""`chat` in a terminal and in a pipe: what is one message, what Ctrl-C and Ctrl-D do, and what the welcome says.

The terminal is real (a pseudo-terminal), the model is a few lines that repeat what they were told.
"""

import io
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared_data.errors import UserError
from shared_data.files import write_json
from shared_data.finished import write_finished
from shared_data.inference.typed import typed_messages
from shared_data.inference.welcome import example, welcome
from shared_data.run_writing import SETTINGS
from shared_data.runs import RunFolder
from shared_data.settings import load_settings, settings_to_toml
from shared_data.story_world import StoryWorld
from shared_data.story_world.questions import answer

pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")

ECHO = """
from shared_data.errors import one_line_errors
from shared_data.inference.typed import typed_messages
with one_line_errors():
    for text in typed_messages(lambda: print("WELCOME")):
        print("GOT", repr(text), flush=True)
"""
SLOW = """
import time
from shared_data.errors import one_line_errors
from shared_data.inference import chat
from shared_data.inference.typed import typed_messages
from shared_data.settings import GenerateSettings

def complete_chat(generate, model, tokenizer, conversations, on_text, on_cut_off, **options):
    on_text(f"{len(conversations[0])} turns, and")
    if conversations[0][-1]["content"] == "stop me":
        time.sleep(600)
    return ["done"]

class Model:
    class config:
        max_position_embeddings = 50

chat.complete_chat = complete_chat
chat.encode_chat = lambda tokenizer, messages: [0] * sum(len(message["content"]) for message in messages)
with one_line_errors():
    chat.chat(None, Model, None, GenerateSettings(), typed_messages(lambda: None), lambda text: print(text, end="", flush=True))
"""


class Terminal:
    """A program in a pseudo-terminal: wait for what it shows, type, and ask for its exit code."""

    def __init__(self, program: str, kind: str = "xterm") -> None:
        self.mine, theirs = pty.openpty()
        environment = os.environ | {"TERM": kind, "INPUTRC": os.devnull}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            # A session of its own, whose terminal this is: else Ctrl-C reaches nobody.
            preexec_fn=lambda: (
                os.setsid(),
                __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
            ),
        )
        os.close(theirs)
        self.shown = ""

    def wait_for(self, text: str, seconds: float = 100) -> str:
        """What is shown up to this text, which must come."""
        end = time.monotonic() + seconds
        while text not in self.shown and time.monotonic() < end:
            if select.select([self.mine], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self.mine, 65536).decode()
                except OSError:  # the program has ended
                    break
        before, found, self.shown = self.shown.partition(text)
        assert found, f"{text!r} does not come, but {before!r}"
        return before

    def type(self, keys: str) -> None:
        os.write(self.mine, keys.encode())

    def interrupt(self) -> None:
        """Ctrl-C, when the program waits: Python's readline notices a signal that comes while it draws at the next key only."""
        time.sleep(0.3)
        self.type("\x03")

    def exit_code(self) -> int:
        code = self.process.wait(timeout=100)
        os.close(self.mine)
        return code


PASTE = "The story.\nIts end.\nQuestion: Who?"


@pytest.mark.parametrize(("kind", "before", "after"), [("xterm", "\x1b[200~", "\x1b[201~"), ("dumb", "", "")])
def test_lines_pasted_together_are_one_message(kind: str, before: str, after: str) -> None:
    """With the bracketed paste of modern terminals, and without."""
    terminal = Terminal(ECHO, kind)
    terminal.wait_for("> ")
    terminal.type(f"{before}{PASTE}{after}")
    time.sleep(0.5)  # the user looks at it
    terminal.type("\r")
    terminal.wait_for(f"GOT {PASTE!r}")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0


def test_a_block_is_one_message_and_single_lines_are_their_own() -> None:
    terminal = Terminal(ECHO)
    terminal.wait_for("WELCOME")
    terminal.wait_for("> ")
    for line, prompt in (('"""', "... "), ("one", "... "), ("two", "... ")):
        terminal.type(f"{line}\r")
        terminal.wait_for(prompt)
    terminal.type('"""\r')
    terminal.wait_for("GOT 'one\\ntwo'")
    for line in ("alone", '"""short"""'):
        terminal.wait_for("> ")
        terminal.type(f"{line}\r")
        terminal.wait_for("GOT '" + line.strip('"') + "'")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0


def test_ctrl_c_clears_what_is_typed_and_leaves_an_empty_prompt() -> None:
    terminal = Terminal(ECHO)
    terminal.wait_for("> ")
    terminal.type("half")
    terminal.wait_for("half")
    terminal.interrupt()
    terminal.wait_for("> ")
    terminal.type('"""\rline')
    terminal.wait_for("line")
    terminal.interrupt()
    terminal.wait_for("> ")
    terminal.interrupt()
    assert "GOT" not in terminal.wait_for("interrupted\r\n")
    assert terminal.exit_code() == 2


def test_ctrl_c_stops_an_answer_and_keeps_its_beginning() -> None:
    terminal = Terminal(SLOW)
    terminal.wait_for("> ")
    terminal.type("stop me\r")
    terminal.wait_for("1 turns, and")
    terminal.interrupt()
    terminal.wait_for("[stopped]")
    terminal.wait_for("> ")
    terminal.type("go on\r")
    terminal.wait_for("3 turns, and")
    terminal.wait_for("> ")
    terminal.type("/quit\r")
    assert terminal.exit_code() == 0


def test_a_message_that_is_too_long_is_refused_and_the_chat_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW], input=f"{'x' * 80}\nshort\n", capture_output=True, text=True, check=True
    )
    refused, answered = done.stdout.splitlines()
    assert (
        refused
        == "[the message has 80 tokens with the chat template, and at most 49 fit into this model; shorten it]"
    )
    assert answered == "1 turns, and"


def test_forgotten_turns_are_announced() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW],
        input="a\n" + "b" * 36 + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "1 turns, and",
        "[the oldest turns no longer fit into the model's positions and are forgotten]",
        "1 turns, and",
    ]


def test_a_script_that_is_interrupted_ends() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdin=-1, stdout=-1, stderr=-1, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("stop me\nnever\n")
    process.stdin.flush()
    assert process.stdout.read(12) == "1 turns, and"
    process.send_signal(2)
    assert process.communicate(timeout=100) == ("", "interrupted\n")
    assert process.returncode == 2


def test_in_a_pipe_a_line_is_a_message_and_nothing_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('one\ntwo\n"""\nthree\nfour\n"""\n"""five\nsix'))
    texts = list(typed_messages(lambda: pytest.fail("a pipe needs no welcome")))
    assert texts == ["one", "two", "three\nfour", "five\nsix"]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with a tuned model, as far as the welcome looks."""
    run = RunFolder("v2", load_settings("smoke"), tmp_path / "run")
    run.path.mkdir()
    (run.path / SETTINGS).write_text(settings_to_toml(run.settings))
    for stage in ("pretrain", "sft"):
        write_json(run.stage(stage) / "config.json", {})
    return run


def test_the_welcome_shows_a_held_out_story_and_two_questions_it_answers(run: RunFolder) -> None:
    story, first, second = example()
    parts = list(welcome(run, "sft"))
    assert [text for text, can_be_pasted in parts if can_be_pasted] == [
        f"{story}\nQuestion: {first}",
        f"Question: {second}",
    ]
    facts = StoryWorld().read(story, "test").facts
    for question in (first, second):
        assert "not say" not in (answer(question, facts) or "not say")
    with pytest.raises(UserError):
        StoryWorld().log2_probability(story, "train")


def test_the_welcome_says_how_often_the_model_is_right(run: RunFolder) -> None:
    assert "right." not in "".join(text for text, _ in welcome(run, "sft"))
    write_finished(run.stage("pretrain"), run.inputs("pretrain"), {"seconds": 1.0})
    write_finished(run.stage("sft"), run.inputs("sft"), {"qa_accuracy": 0.685, "seconds": 1.0})
    assert "It answered 68.5% of the held-out questions right." in next(welcome(run, "sft"))[0]
    assert next(welcome(run, run.path / "sft")) == next(welcome(run, "sft")), "by its folder too"


def test_the_welcome_of_other_models_promises_no_story(run: RunFolder, tmp_path: Path) -> None:
    write_json(tmp_path / "foreign" / "config.json", {})
    settings = load_settings("smoke", ["sft.source=mine.jsonl"])
    tuned_on_a_file = RunFolder("v2", settings, tmp_path / "other")
    write_json(tuned_on_a_file.stage("sft") / "config.json", {})
    (tuned_on_a_file.path / SETTINGS).write_text(settings_to_toml(settings))
    for name, sentence in (
        ("pretrain", "it has not been tuned to answer"),
        (tmp_path / "foreign", "foreign is loaded."),
        (tuned_on_a_file.path / "sft", "tuned on the conversations of mine.jsonl"),
    ):
        parts = list(welcome(run, name))
        assert sentence in parts[0][0]
        assert not any(can_be_pasted for _, can_be_pasted in parts)
        assert "/reset" in parts[-1][0]
