"""What all tests share: offline mode, shape checking of annotated code, and the parity table."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers are as many as the cores; more threads would wait for each other.
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

import pytest
import torch
from jaxtyping import install_import_hook

from tests.parity.recorder import ParityRecorder

# Without a GPU, Triton's kernels run on the CPU. This is decided when Triton is imported for the first time.
os.environ.setdefault("TRITON_INTERPRET", str(int(not torch.cuda.is_available())))

# Every annotated function of the hand-written levels is checked against its shapes while tests run, so that the
# annotations cannot drift from the code.
install_import_hook(["v2_handwritten", "v3_numpy_deep"], "beartype.beartype")

_recorder = ParityRecorder()
_rows: list[dict] = []


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """A command that has left ignores Ctrl-C (shared_data/errors.py); the next test, and processes that it starts, must not."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


@pytest.fixture
def parity() -> ParityRecorder:
    """Compare two arrays and keep the measured error for the table (tests/parity/recorder.py)."""
    return _recorder


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a worker's rows to the controller; the controller writes them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["parity_rows"] = _recorder.as_dicts()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Collect the rows of a pytest-xdist worker."""
    _rows.extend(getattr(node, "workeroutput", {}).get("parity_rows", []))


def pytest_terminal_summary(terminalreporter: object, config: pytest.Config) -> None:
    """Print the parity table and write `runs/parity.json`."""
    rows = sorted(
        _rows + _recorder.as_dicts(), key=lambda row: (row["component"], row["levels"], row["quantity"])
    )
    if not rows:
        return
    path = Path(config.rootpath) / "runs" / "parity.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    terminalreporter.section(
        f"parity: {len(rows)} comparisons, written to {path.relative_to(config.rootpath)}"
    )
    widths = [max(len(row[key]) for row in rows) for key in ("component", "quantity", "levels")]
    header = ("component".ljust(widths[0]), "quantity".ljust(widths[1]), "levels".ljust(widths[2]))
    terminalreporter.write_line(f"{'  '.join(header)}  {'max abs':>8}  {'max rel':>8}  {'allowed':>8}  dtype")
    for row in rows:
        names = (
            row[key].ljust(width)
            for key, width in zip(("component", "quantity", "levels"), widths, strict=True)
        )
        numbers = (f"{row[key]:8.1e}" for key in ("max_abs_error", "max_rel_error", "tolerance"))
        terminalreporter.write_line(f"{'  '.join(names)}  {'  '.join(numbers)}  {row['dtype']}")
