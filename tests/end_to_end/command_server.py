"""Runs many commands of one level, each in a process of its own, without importing the libraries again for each.

A console script spends seconds on `import torch` before it reads its arguments. This process imports what the level
imports once, and forks itself for every command; the child calls the same `app` as the console script does, and ends with
the same exit code. A test compares both ways (`test_bad_input.py`).

    python -m tests.end_to_end.command_server v2_handwritten        # then JSON requests, a line each
"""

import json
import os
import resource
import sys
import traceback
from pathlib import Path


def import_everything(package: str) -> None:
    """Import every module of the level, so that the children need not."""
    import importlib

    for name in (
        f"{package}.cli",  # first, as in the console script: it keeps the libraries of level 1 quiet
        "shared_data.pipeline",
        "shared_data.report",
        "matplotlib.figure",
        "matplotlib.backends.backend_svg",
    ):
        importlib.import_module(name)
    root = Path(__file__).parents[2]
    for file in sorted((root / package).rglob("*.py")):
        importlib.import_module(
            ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        )


def run_command(package: str, request: dict) -> None:
    """In the child: become the command, and never return."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    if request["file_size_limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size_limit"],) * 2)
    code = 1
    try:
        sys.argv = [package, *request["arguments"]]
        sys.modules[f"{package}.cli"].app()
    except SystemExit as leave:
        code = int(leave.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    package = sys.argv[1]
    import_everything(package)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run_command(package, json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
