"""The command line: options reach the stages, mistakes are one line, bugs keep their traceback."""

import errno
import re
import signal
from pathlib import Path

import pytest

from shared_data.command_line import build_app
from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.stages import STAGES

received: list[Settings] = []
failure: list[BaseException] = []


def do_stage(settings: Settings, run: RunFolder) -> dict[str, float]:
    received.append(settings)
    if failure:
        raise failure.pop()
    return {"documents": 1}


def generate_command(settings, run, prompts, model, use_cache, write) -> None:  # type: ignore[no-untyped-def]
    received.append(settings)
    for prompt in prompts:
        write(f"{prompt}|{model}|{use_cache}\n")


def v2(*arguments: str | Path) -> int:
    """Run a command line in this process; the exit code."""
    received.clear()
    app = build_app("v2", "A level for tests.", dict.fromkeys(STAGES, f"{__name__}:do_stage"))
    try:
        app([str(argument) for argument in arguments])
    except SystemExit as leave:
        return int(leave.code or 0)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that leaves ignores it
    return 0


def test_every_stage_has_a_command_and_every_option_a_line_of_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert v2("--help") == 0
    commands = capsys.readouterr().out
    for name in ("run", *STAGES, "export", "report", "settings"):
        assert re.search(rf"│ {name} +\S", commands)
        assert v2(name, "--help") == 0
        text = capsys.readouterr().out
        assert f"Usage: uv run v2 {name} " in text
        for option in re.findall(r"│ +(--[a-z-]+).*", text):
            line = next(line for line in text.splitlines() if option in line)
            assert re.search(r"[A-Za-z]{3,}.*\s\s\S.*[a-z]", line), line


def test_options_become_settings(tmp_path: Path) -> None:
    options = [
        "--config",
        "smoke",
        "--set",
        "data.text_field=body",
        "--seed",
        "9",
        "--device",
        "cpu",
        "--out",
        tmp_path,
    ]
    assert v2("data", *options) == 0
    settings = received[0]
    assert (settings.name, settings.data.text_field, settings.device) == ("smoke", "body", "cpu")
    assert (settings.data.seed, settings.pretrain.seed, settings.generate.seed) == (9, 9, 9)
    assert (tmp_path / "data" / "finished.json").is_file()


def test_run_does_all_stages_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("data", "tokenizer"):
        assert v2(stage, "--config", "smoke", "--out", tmp_path) == 0
    assert f"next:                      uv run v2 pretrain --out {tmp_path}\n" in capsys.readouterr().out
    assert v2("run", "--out", tmp_path) == 0
    assert received[-1].name == "smoke"
    assert len(received) == len(STAGES) - 2
    out = capsys.readouterr().out
    assert f"report of the run:         {tmp_path / 'report.html'}" in out
    hints = out[out.index("== finished") :]
    assert f"uv run v2 chat --out {tmp_path}\n" in hints
    assert len(re.findall(r"uv run v\d", hints)) == len(re.findall(r"\bv\d (?=[a-z])", hints)) > 3


def test_generate_passes_prompts_and_sampling_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "-p",
        "a",
        "-p",
        "b",
        "--temperature",
        "0",
        "--top-k",
        "5",
        "-n",
        "3",
        "--seed",
        "4",
        "--no-cache",
    ]
    for stream in ("--stream", "--no-stream"):
        assert v2("generate", "--out", tmp_path, *options, stream) == 0
        assert capsys.readouterr().out == "a|pretrain|False\nb|pretrain|False\n"
        section = received[0].generate
        assert (section.temperature, section.top_k, section.max_new_tokens, section.seed) == (0, 5, 3, 4)
        assert received[0].pretrain.seed == 0  # the model's own seed is not the sampler's


def test_settings_are_shown_with_their_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert v2("settings", "--set", "pretrain.max_steps=7") == 0
    assert "# optimizer steps\nmax_steps = 7\n" in capsys.readouterr().out


FAILURES: list[tuple[BaseException, str]] = [
    (UserError("the file is empty;\nuse another"), "error: the file is empty; use another\n"),
    (
        KeyboardInterrupt(),
        "interrupted: finished stages and checkpoints are kept; `uv run v2 data --out ",
    ),
    (
        OSError(errno.ENOSPC, "No space left on device", "x.bin"),
        "error: x.bin: No space left on device; free some space",
    ),
    (
        PermissionError(errno.EACCES, "Permission denied", "x.bin"),
        "error: x.bin: Permission denied; check the permissions",
    ),
    (OSError(errno.EROFS, "Read-only file system"), "error: Read-only file system; choose a writable folder"),
    (MemoryError(), "error: out of memory in data; lower the size of the data or the size of the model"),
]


@pytest.mark.parametrize(("error", "line"), FAILURES, ids=lambda value: type(value).__name__)
def test_what_a_user_can_cause_is_one_line_and_exit_code_2(
    error: BaseException, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failure.append(error)
    assert v2("data", "--out", tmp_path) == 2
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_changes_of_remembered_settings_are_named_and_a_finished_result_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert v2("data", "--config", "smoke", "--out", tmp_path) == 0
    capsys.readouterr()
    assert v2("data", "--out", tmp_path, "--set", "data.seed=3") == 2
    out, err = capsys.readouterr()
    assert out == f"settings of {tmp_path}: data.seed = 3 (was 0)\n"
    assert err.startswith(
        f"error: {tmp_path / 'data'} holds a finished result, but it was made with data.seed = 0, not 3; "
    )
    assert received == []
    assert v2("data", "--out", tmp_path, "--set", "data.seed=3", "--force") == 0
    assert v2("data", "--out", tmp_path) == 0
    assert "nothing changed" in capsys.readouterr().out


def test_version_says_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert v2("--version") == 0
    assert re.search(r"^Python 3\.\d+\.\d+\nllm-from-scratch \d.*\n(.+\n)*torch \d", capsys.readouterr().out)


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    failure.append(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        v2("data", "--out", tmp_path)


def test_a_wrong_call_is_one_line_that_names_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, line in (
        (["data", "--sett", "x=1"], r"error: No such option: --sett.*; see `uv run v2 data --help`\n"),
        (["date"], r"error: No such command 'date'.*; see `uv run v2 --help`\n"),
        (["data", "--seed", "-1"], r"error: Invalid value for '--seed'.*; see `uv run v2 data --help`\n"),
        (["data", "--seed", str(2**64)], r"error: Invalid value for '--seed'.*4294967295; see .*\n"),
        (["generate", "--seed", str(2**32)], r"error: Invalid value for '--seed'.*4294967295; see .*\n"),
        (["chat", "--seed", str(2**32)], r"error: Invalid value for '--seed'.*4294967295; see .*\n"),
        (
            ["generate", "--checkpoint", "x"],
            r"error: No such option: --checkpoint.*, use --model; see `uv run v2 generate --help`\n",
        ),
        (
            ["chat", "--stage", "dpo"],
            r"error: No such option: --stage.*, use --model; see `uv run v2 chat --help`\n",
        ),
        (["data", "extra"], r"error: Got unexpected extra argument.*; see `uv run v2 data --help`\n"),
    ):
        assert v2(*arguments) == 2
        assert re.fullmatch(line, capsys.readouterr().err)


def interrupted_hint(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What the command says when Ctrl-C comes while its stage works."""
    failure.append(KeyboardInterrupt())
    capsys.readouterr()
    assert v2(*words) == 2
    err = capsys.readouterr().err
    failure.clear()
    return err.partition("`uv run v2 ")[2].partition("`")[0]


def test_the_hint_of_an_interrupted_command_goes_on_with_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ("data", "--config", "smoke", "--set", "data.seed=5", "--out", str(tmp_path))
    # Nothing was there: the settings are remembered from the start.
    assert interrupted_hint(capsys, *first) == f"data --out {tmp_path}"
    assert v2("data", "--out", tmp_path) == 0
    # A finished result keeps its settings until a new one counts: the hint repeats the options.
    again = ("data", "--force", "--set", "data.seed=6", "--out", str(tmp_path))
    assert interrupted_hint(capsys, *again) == " ".join(again)
    assert v2(*again) == 0
    assert received[-1].data.seed == 6
    # Before anything was written.
    with monkeypatch.context() as patched:
        patched.setattr(
            "shared_data.pipeline.check_needs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt())
        )
        new = ("data", "--config", "smoke", "--set", "data.seed=7", "--out", str(tmp_path / "new"))
        assert interrupted_hint(capsys, *new) == " ".join(new)


@pytest.mark.parametrize("words", [["data"], ["data", "--force"], ["run", "--from", "data"], ["settings"]])
def test_a_folder_that_is_no_run_loses_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / ".data.old").mkdir()
    files = [tmp_path / "data" / "precious.txt", tmp_path / ".data.old" / "a.txt", tmp_path / ".x.tmp"]
    for file in files:
        file.write_text("mine")
    code = v2(*words, "--config", "smoke", "--out", tmp_path)
    assert all(file.read_text() == "mine" for file in files)
    assert code == (0 if words == ["settings"] else 2)
    if code:
        message = (
            f"error: {files[0]} is not of a run; move it elsewhere, or choose another folder with --out\n"
        )
        assert capsys.readouterr().err == message
    else:
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(files)


def test_a_source_where_the_stage_writes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert v2("data", "--config", "smoke", "--out", tmp_path) == 0
    source = tmp_path / "data" / "train.jsonl"
    source.write_text('{"text": "Once."}\n')
    words = ("data", "--force", "--set", f"data.source={source}", "--out", tmp_path)
    assert v2(*words) == 2
    assert (
        f"data.source = {source} lies where the stage data writes; move it elsewhere"
        in capsys.readouterr().err
    )
    assert source.exists()


def test_a_source_that_is_not_found_from_another_folder_is_named_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "mine.jsonl").write_text('{"text": "Once."}\n')
    monkeypatch.chdir(tmp_path / "a")
    assert v2("data", "--config", "smoke", "--set", "data.source=mine.jsonl", "--out", tmp_path / "run") == 0
    monkeypatch.chdir(tmp_path / "b")
    assert v2("data", "--out", tmp_path / "run") == 2
    assert (
        "the data.source file mine.jsonl is not there any more (relative paths count from"
        in capsys.readouterr().err
    )
