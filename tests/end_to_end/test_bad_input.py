"""Every mistake of a user's is one line that names cause and remedy, exit code 2, and nothing overwritten.

Each row runs the console script of level 2 on a run that has finished before, and compares the whole folder before and
after. The faults that need a process of their own to happen to (a full disk, Ctrl-C) stand below the table.
"""

import gzip
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.conftest import command, console_script, environment, snapshot

STORY = "Once upon a time there was a little dog who had a red ball and he was very happy with it. "

Arguments = list[str | Path]
Fault = Callable[[Path, Path], Arguments]  # (scratch folder, copy of the finished run) -> arguments of `v2`


def corpus(name: str, content: bytes, *more: str) -> Fault:
    """A user's corpus in one file."""

    def fault(scratch: Path, run: Path) -> Arguments:
        (scratch / name).write_bytes(content)
        return ["data", "--set", f"data.source={scratch / name}", *more]

    return fault


def setting(assignment: str) -> Fault:
    return lambda scratch, run: ["data", "--set", assignment]


def damaged(file: str, content: bytes | None, *arguments: str) -> Fault:
    """A file of the finished run is cut in half (None) or holds something else."""

    def fault(scratch: Path, run: Path) -> Arguments:
        path = run / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
        return [*arguments]

    return fault


def small_corpus(scratch: Path, run: Path) -> Arguments:
    """Long enough to be documents, shorter in tokens than the sequence that training asks for."""
    lines = [json.dumps({"text": f"{STORY} Number {n} is the last word."}) for n in range(4)]
    (scratch / "small.jsonl").write_text("\n".join(lines))
    wide = ["--set", "model.max_position_embeddings=4096", "--set", "pretrain.sequence_length=4096"]
    return ["run", "--set", f"data.source={scratch / 'small.jsonl'}", *wide, "--out", scratch / "other"]


def start_from(file: str, change: Callable[[bytes], bytes], *more: str) -> Fault:
    """Pretraining starts from a copy of the finished model with one file changed."""

    def fault(scratch: Path, run: Path) -> Arguments:
        model = Path(shutil.copytree(run / "pretrain", scratch / "model"))
        (model / file).write_bytes(change((model / file).read_bytes()))
        return ["pretrain", "--set", f"pretrain.init_from={model}", *more]

    return fault


def generate_from(file: str, change: Callable[[bytes], bytes]) -> Fault:
    """Generation from a copy of the finished model with one file changed."""

    def fault(scratch: Path, run: Path) -> Arguments:
        model = Path(shutil.copytree(run / "pretrain", scratch / "model"))
        (model / file).write_bytes(change((model / file).read_bytes()))
        return ["generate", "--prompt", "Once", "--checkpoint", model]

    return fault


def edit_json(**changes: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), **changes}).encode()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def garbage(content: bytes) -> bytes:
    return b"\x00garbage\xff" * 10


def without_the_last_merge(content: bytes) -> bytes:
    """A tokenizer of one token less than the model has."""
    tokenizer = json.loads(content)
    merge = tokenizer["model"]["merges"].pop()
    left, right = merge if isinstance(merge, list) else merge.split(" ")
    removed = tokenizer["model"]["vocab"].pop(left + right)
    for token, number in tokenizer["model"]["vocab"].items():
        tokenizer["model"]["vocab"][token] = number - (number > removed)
    for token in tokenizer["added_tokens"]:
        token["id"] -= token["id"] > removed
    return json.dumps(tokenizer).encode()


def parquet_half() -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": [STORY] * 100}), sink)
    return half(sink.getvalue().to_pybytes())


JSONL = (json.dumps({"text": STORY}) + "\n").encode()

# name: (fault, what the line must say)
FAULTS: dict[str, tuple[Fault, str]] = {
    "unknown setting": (
        setting("pretrain.step=3"),
        r"unknown setting 'pretrain\.step'.*did you mean 'steps'",
    ),
    "wrong type": (setting("pretrain.steps=many"), r"pretrain\.steps.*integer.*correct it"),
    "heads not dividing": (
        setting("model.num_attention_heads=3"),
        r"hidden_size 16 is not a multiple.*change",
    ),
    "sequence longer than positions": (
        setting("pretrain.sequence_length=64"),
        r"64 is above .*positi.* 32; lower",
    ),
    "vocabulary under 256": (setting("tokenizer.vocab_size=100"), r"tokenizer\.vocab_size.*256"),
    "missing configuration": (
        lambda s, r: ["data", "--config", "nope.toml"],
        r"no configuration 'nope\.toml'; use one of",
    ),
    "malformed configuration": (
        lambda s, r: [(s / "x.toml").write_text("[data\n"), ["data", "--config", s / "x.toml"]][1],  # type: ignore[return-value]
        r"x\.toml is not valid TOML.*line 1.*correct",
    ),
    "unknown option": (lambda s, r: ["data", "--sett", "a=1"], r"No such option.*--help"),
    "unknown command": (lambda s, r: ["trane"], r"No such command 'trane'.*--help"),
    "not a number": (lambda s, r: ["data", "--seed", "x"], r"--seed.*--help"),
    "unknown stage": (lambda s, r: ["run", "--from", "train"], r"no stage 'train'; the stages are data"),
    "stages not done": (
        lambda s, r: ["pretrain", "--out", s / "new"],
        r"data.* not finished yet; run `v2 data` first",
    ),
    "stage made with other settings": (
        lambda s, r: ["evaluate", "--set", "pretrain.steps=5"],
        r"pretrain\.steps = 4, not 5; use the options it was made with, or run `v2 pretrain`",
    ),
    "no such GPU": (
        lambda s, r: ["pretrain", "--force", "--device", "cuda"],
        r"cuda.* not there.*--device cpu",
    ),
    "no such device": (
        lambda s, r: ["pretrain", "--force", "--device", "abacus"],
        r"unknown device 'abacus'; use",
    ),
    "missing corpus": (setting("data.source=nowhere/nothing.txt"), r"nothing\.txt.*;"),
    "empty corpus": (corpus("empty.txt", b""), r"empty\.txt.*empty.*;"),
    "empty folder": (
        lambda s, r: [(s / "f").mkdir(), ["data", "--set", f"data.source={s / 'f'}"]][1],
        r"/f.*;",
    ),  # type: ignore[return-value,func-returns-value]
    "blank corpus": (corpus("blank.txt", b" \n\n \n"), r"blank\.txt.*;"),
    "binary corpus": (corpus("binary.txt", bytes(range(256)) * 20), r"binary\.txt.*;"),
    "badly encoded corpus": (
        corpus("latin.txt", ("café " + STORY).encode("latin-1")),
        r"latin\.txt.*utf-8.*encoding",
    ),
    "truncated gzip": (
        corpus("cut.txt.gz", half(gzip.compress((STORY * 200).encode()))),
        r"cut\.txt\.gz.*(truncated|damaged|ended).*;",
    ),
    "not gzip": (corpus("not.txt.gz", STORY.encode()), r"not\.txt\.gz.*gzip.*;"),
    "truncated parquet": (corpus("cut.parquet", parquet_half()), r"cut\.parquet.*;"),
    "malformed JSONL line": (
        corpus("bad.jsonl", JSONL * 2 + b'{"text": "x\n' + JSONL),
        r"bad\.jsonl.* line 3\b.*;",
    ),
    "JSONL line that is no object": (corpus("list.jsonl", JSONL + b"[1]\n"), r"list\.jsonl.* line 2\b.*;"),
    "JSONL without the text field": (
        corpus("field.jsonl", b'{"body": "x"}\n'),
        r"field\.jsonl.*text.*body.*text_field",
    ),
    "malformed JSON": (corpus("bad.json", b'[{"text": "a"}, '), r"bad\.json.*;"),
    "CSV without the text column": (corpus("bad.csv", b"body\nhello\n"), r"bad\.csv.*text.*text_field"),
    "unknown kind of file": (corpus("story.docx", STORY.encode()), r"story\.docx.*\.txt.*"),
    "hub out of reach": (
        lambda s, r: [
            "data",
            "--set",
            "data.source=no/dataset",
            "--set",
            "data.hub_endpoint=http://127.0.0.1:9",
            "--set",
            f"data.hub_cache={s}",
        ],
        r"no/dataset.*;",
    ),
    "missing tokenizer": (lambda s, r: ["tokenizer", "--set", "tokenizer.load=nowhere"], r"nowhere.*;"),
    "corpus smaller than one sequence": (small_corpus, r"tokens.*4096.*;"),
    "start from no model": (lambda s, r: ["pretrain", "--set", "pretrain.init_from=nowhere"], r"nowhere.*;"),
    "start from another shape": (
        start_from("config.json", lambda c: c, "--set", "model.hidden_size=32"),
        r"hidden_size.*;",
    ),
    "start from damaged weights": (start_from("model.safetensors", half), r"model\.safetensors.*;"),
    "checkpoint that does not fit its own configuration": (
        damaged("pretrain/config.json", None, "evaluate"),
        r"config\.json.*;",
    ),
    "generate: weights of another shape": (
        generate_from("config.json", edit_json(intermediate_size=48)),
        r"(shape|intermediate).*;",
    ),
    "generate: missing layers": (
        generate_from("config.json", edit_json(num_hidden_layers=2)),
        r"layers\.1.*;",
    ),
    "generate: tokenizer of another vocabulary": (
        generate_from("tokenizer.json", without_the_last_merge),
        r"tokenizer.*299.*300.*;|300.*tokenizer.*299.*;|vocab.*299.*300.*;|vocab.*300.*299.*;",
    ),
    "generate: corrupted tokenizer.json": (generate_from("tokenizer.json", half), r"tokenizer\.json.*;"),
    "generate: tokenizer.json of another kind": (
        generate_from(
            "tokenizer.json", lambda c: b'{"version": "1.0", "model": {"type": "Unigram", "vocab": []}}'
        ),
        r"tokenizer\.json.*;",
    ),
    "generate: garbage in safetensors": (
        generate_from("model.safetensors", garbage),
        r"model\.safetensors.*;",
    ),
    "generate: no such folder": (lambda s, r: ["generate", "--checkpoint", s / "no"], r"no.*;"),
    "generate: no model yet": (
        lambda s, r: ["generate", "--out", s / "new"],
        r"no model in .*run `v2 run` first",
    ),
    "generate: negative temperature": (
        lambda s, r: ["generate", "--temperature", "-1"],
        r"generate\.temperature.*",
    ),
    "evaluate: corrupted safetensors": (
        damaged("pretrain/model.safetensors", None, "evaluate"),
        r"model\.safetensors.*;",
    ),
    "pretrain: corrupted tokenizer.json": (
        damaged("tokenizer/tokenizer.json", b"{", "pretrain", "--force"),
        r"tokenizer\.json.*;",
    ),
    "pretrain: token file cut short": (
        damaged("tokenizer/train.bin", None, "pretrain", "--force"),
        r"train\.bin.*;",
    ),
    "tokenizer: documents cut short": (
        damaged("data/train.jsonl", None, "tokenizer", "--force"),
        r"train\.jsonl.*line.*;",
    ),
    "damaged metrics": (damaged("metrics.json", b"{", "evaluate"), r"metrics\.json is not valid JSON.*;"),
    "output below a file": (
        lambda s, r: [(s / "file").touch(), ["data", "--out", s / "file" / "run"]][1],
        r"Not a directory; .*choose",
    ),  # type: ignore[return-value,func-returns-value]
    "report of no run": (lambda s, r: ["report", "--out", s / "new"], r"no run.*`v2 run`"),
}


def assert_one_line(done: subprocess.CompletedProcess[str], says: str) -> None:
    """Exit code 2, and on stderr one line with cause and remedy."""
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert re.search(says, lines[0]), lines[0]
    assert "Traceback" not in done.stdout
    assert "; " in lines[0], f"no remedy: {lines[0]}"


@pytest.mark.parametrize("name", FAULTS)
def test_one_line_exit_code_2_and_nothing_overwritten(
    name: str, config: Path, a_run: Path, tmp_path: Path
) -> None:
    fault, says = FAULTS[name]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = fault(scratch, a_run)
    before = snapshot(a_run)
    if len(arguments) > 1 or arguments in (["evaluate"],):
        arguments = [
            arguments[0],
            "--config",
            config,
            "--out",
            a_run,
            *arguments[1:],
        ]  # the last --config and --out count
    assert_one_line(command("v2", *arguments, cwd=scratch), says)
    assert snapshot(a_run) == before


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """A file system of that size at the folder, where mounting is allowed (in a container, as root); else False."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize(("stage", "room"), [("data", "16k"), ("tokenizer", "8k"), ("pretrain", "16k")])
def test_a_full_disk_is_one_line_and_keeps_the_last_result(
    stage: str, room: str, config: Path, a_run: Path, tmp_path: Path
) -> None:
    """On a real full disk where the test may mount one; else with a limit on file sizes, which fails like it."""
    taken = sum(-(-path.stat().st_size // 4096) * 4 + 4 for path in a_run.rglob("*"))
    disk = tmp_path / "disk"
    with small_disk(disk, f"{taken + int(room[:-1]) + 8}k") as mounted:
        run = Path(shutil.copytree(a_run, disk / "run"))
        before = snapshot(run)
        arguments = [console_script("v2"), stage, "--force", "--config", str(config), "--out", str(run)]

        def limit_files() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

        done = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
            preexec_fn=None if mounted else limit_files,
        )
        after = snapshot(run)
    assert_one_line(done, r"(No space left on device|File too large); (free|raise)")
    results = {
        name: content
        for name, content in before.items()
        if "state" not in name and not name.endswith((".jsonl", "finished.json"))
    }
    assert results.items() <= after.items()
    if stage != "pretrain":
        assert after == before


def test_a_read_only_output_is_one_line(config: Path, tmp_path: Path) -> None:
    """Permissions bind a user; root is bound by a file system mounted read-only."""
    folder = tmp_path / "read_only"
    with small_disk(folder, "64k") as mounted:
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        else:
            folder.chmod(0o555)
            if os.geteuid() == 0:
                pytest.skip(
                    "root writes anywhere, and this container does not let it mount a read-only file system"
                )
        done = command("v2", "data", "--config", config, "--out", folder / "run")
    assert_one_line(done, r"read_only.*(Read-only file system|Permission denied); (choose|check)")


@pytest.mark.parametrize("level", ["v2", "v3"])
def test_ctrl_c_leaves_a_resumable_run(level: str, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [
        "--config",
        str(config),
        "--out",
        str(run),
        "--set",
        "pretrain.steps=4000",
        "--set",
        "pretrain.eval_every=0",
    ]
    options += ["--set", "pretrain.sample_every=0", "--set", "pretrain.checkpoint_every=5"]
    for stage in ("data", "tokenizer"):
        assert command(level, stage, *options).returncode == 0
    log, state = run / "pretrain" / "metrics_log.jsonl", run / "pretrain" / "state"
    with subprocess.Popen(
        [console_script(level), "pretrain", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as training:
        deadline = time.monotonic() + 60
        while not (state.is_dir() and any(state.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.02)
        training.send_signal(signal.SIGINT)
        out, err = training.communicate(timeout=30)
    assert training.returncode == 2, err
    assert re.fullmatch(r"interrupted: .*the same command continues.*\n", err), err
    first = len(log.read_bytes().splitlines())
    assert 0 < first < 4000, out

    done = command(level, "pretrain", *options, "--set", "pretrain.keep_checkpoints=1")
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if "loss" in json.loads(line)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 4000
    assert "resum" in done.stdout.lower() or "continu" in done.stdout.lower()


@pytest.mark.parametrize("level", ["v1", "v2", "v3"])
def test_a_reader_that_goes_away_is_no_error(level: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{console_script(level)} settings | head -n 1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""
