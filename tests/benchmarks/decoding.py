"""A real model on one thread: tokens a second at batch 1 of all levels, beside transformers' `generate`, and the memory that a process needs.

SmolLM2-135M-Instruct of the extra `smollm2`, decoded to float32; at level 2 also with its blocks in 8 and 4 bits. All sides run in one process, taking
turns; the prefill is subtracted, and compiling comes before. Memory is the peak of a process of its own, less that after its imports.

    OMP_NUM_THREADS=1 uv run --extra smollm2 python -m tests.benchmarks.decoding
"""

import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import v1_quick
import v2_handwritten
import v3_numpy_deep
from shared_data.errors import UserError
from shared_data.model_names import smollm2_file
from v2_handwritten.models.quantization.quantize import quantize_model

PROMPT = "Once upon a time there was a king"
NEW_TOKENS, REPEATS = 40, 5
TARGETS = {"v2, float32": 2.0, "v3, float32": 2.0, "v2, int8": 3.0}


def seconds_per_token(generate: Callable[..., Any], model: Any, ids: list[int]) -> float:
    """Of a decode step: what more tokens take, so that the prefill is not counted."""

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        generate(model, [ids], max_new_tokens=tokens, eos_token_id=[])
        return time.perf_counter() - started

    return (seconds(NEW_TOKENS + 4) - seconds(4)) / NEW_TOKENS


def peak_memory(package: str, file: str) -> float:
    """Peak memory of a process that loads the model and writes, less that after its imports, by the size of the weights in float32."""
    program = f"""
        import sys
        from {package} import generate, load_model, load_tokenizer
        generate, load_model, load_tokenizer
        def peak():
            (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
            return int(line.split()[1]) * 1024
        before = peak()
        tokenizer, model = load_tokenizer(sys.argv[1]), load_model(sys.argv[1])
        generate(model, [tokenizer.encode({PROMPT!r})], max_new_tokens=20)
        print((peak() - before) / sum(4 * parameter.size for parameter in [p.data for p in model.parameters()])
              if {package!r} == "v3_numpy_deep" else (peak() - before) / sum(4 * p.numel() for p in model.parameters()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), file], capture_output=True, text=True
    )
    return float(done.stdout)


def run() -> Iterator[dict[str, Any]]:
    """One row a side; nothing where the extra is not installed."""
    try:
        file = smollm2_file("v2")
    except UserError:
        return
    torch.set_num_threads(1)
    ids = v2_handwritten.load_tokenizer(file).encode(PROMPT)
    sides: dict[str, tuple[Callable[..., Any], Any]] = {
        "v1, float32": (v1_quick.generate, v1_quick.load_model(file)),
        "v2, float32": (v2_handwritten.generate, v2_handwritten.load_model(file)),
        "v3, float32": (v3_numpy_deep.generate, v3_numpy_deep.load_model(file)),
    }
    for scheme in ("int8", "int4"):
        model = quantize_model(v2_handwritten.load_model(file), scheme)
        sides[f"v2, {scheme}"] = (v2_handwritten.generate, model)
    for generate, model in sides.values():
        generate(model, [ids], max_new_tokens=4, eos_token_id=[])  # to warm up
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(REPEATS):
        for name, side in sides.items():
            times[name].append(seconds_per_token(*side, ids))
    for name in list(sides)[1:]:
        pairs = zip(times["v1, float32"], times[name], strict=True)
        yield {
            "what": f"decoding SmolLM2-135M, one thread: {name} ÷ HF generate, tokens/s",
            "ratio": statistics.median(theirs / ours for theirs, ours in pairs),
            "target": TARGETS.get(name, ""),
            "tokens_per_second": 1 / statistics.median(times[name]),
            "tokens_per_second_of_HF": 1 / statistics.median(times["v1, float32"]),
        }
    for package in ("v2_handwritten", "v3_numpy_deep"):
        yield {
            "what": f"decoding SmolLM2-135M: peak memory of {package} ÷ weights in float32",
            "ratio": peak_memory(package, str(file)),
            "target": 1.15,
        }


if __name__ == "__main__":
    for row in run():
        print(f"{row['ratio']:6.2f}  {row['what']}  (target {row['target'] or 'none'})", flush=True)
