"""Blocks of eight weights, the size of a model and the order of its rows, as in shared_data/model_files/gguf.md."""

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize as library_quantize

from shared_data.model_files.config import ModelConfig
from shared_data.model_files.gguf_blocks import BLOCK_TYPES, dequantize, quantize
from shared_data.model_files.initialization import parameter_shapes
from shared_data.model_files.rope import half_to_interleaved
from tests.worked import agrees, table

PAGE = "shared_data/model_files/gguf.md"

WEIGHTS = np.zeros(32, np.float32)
WEIGHTS[:8] = [0.5, -1.27, 0.031, 0, 0.9, -0.4, 1.1, 0.02]


def test_one_block_in_three_types() -> None:
    rows = [WEIGHTS]
    for name, start in (("Q8_0", 2), ("Q4_0", 2), ("Q4_1", 4)):
        # The library writes all three; ours is the same where it writes at all.
        block = library_quantize(WEIGHTS[None], GGMLQuantizationType[name])[0]
        if name == "Q8_0":
            np.testing.assert_array_equal(quantize(WEIGHTS, name), block)
        integers = block[start:].view(np.int8)[:8] if name == "Q8_0" else block[start : start + 8] & 15
        rows += [integers.astype(np.float32), dequantize(block, name)]
    agrees(PAGE, "one block", [row[:8] for row in rows])


def test_what_a_weight_costs() -> None:
    names = ("F32", "F16", "Q8_0", "Q6_K", "Q4_1", "Q4_0", "Q4_K")
    kinds = [BLOCK_TYPES[name] for name in names]
    agrees(
        PAGE, "per block", [(kind.weights, kind.bytes, 8 * kind.bytes / kind.weights) for kind in kinds], 4
    )


def test_the_size_of_a_model() -> None:
    config = ModelConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    shapes = parameter_shapes(config)
    counts = {"Q8_0": 0, "Q4_1": 0, "F32": 0}
    for name, shape in shapes.items():
        kind = "F32" if len(shape) == 1 else "Q8_0" if "embed" in name else "Q4_1"
        counts[kind] += int(np.prod(shape))
    sizes = {
        kind: count / BLOCK_TYPES[kind].weights * BLOCK_TYPES[kind].bytes for kind, count in counts.items()
    }
    rows = [(counts[kind] / 1e6, 8 * sizes[kind] / counts[kind], sizes[kind] / 1e6) for kind in counts]
    weights, size = sum(counts.values()), sum(sizes.values())
    agrees(PAGE, "part", [*rows, (weights / 1e6, 8 * size / weights, size / 1e6)])


def test_the_order_of_rows_in_the_file() -> None:
    agrees(PAGE, "place in the file", half_to_interleaved(np.arange(8.0), num_heads=1)[None])
    assert table(PAGE, "place in the file").shape == (1, 8)
