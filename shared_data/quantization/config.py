"""How a model's weights are quantized: the `quantization_config` of a config.json, read and written.

int8 and NF4 stand in bitsandbytes' layout, as transformers saves it. Four bits with a scale and a zero point for each group stand in
GPTQ's packed tensors, whichever algorithm found them (round-to-nearest, GPTQ or AWQ). torchao's files only level 1 reads.

    uv run python -c "from shared_data.quantization.config import *; print(Quantization('int4', group_size=64).to_hf())"
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from shared_data.errors import UserError
from shared_data.foreign_json import ForeignJson, Size

# What `quantize` makes: how to choose the codes.
SCHEMES = ("int8", "int4", "nf4", "gptq", "awq")
# How the codes are stored: the three that levels 2 and 3 compute with.
FORMATS = ("int8", "int4", "nf4")
BLOCK_SIZE = 64  # of NF4: weights that share a scale
OUTLIER_THRESHOLD = 6.0  # of int8: larger activations are not rounded (LLM.int8, section 3.2)

_NEEDED = "use the checkpoint before it was quantized"


@dataclass(frozen=True)
class Quantization:
    """How the linear layers of the blocks are stored. `algorithm` says what chose the codes; it changes nothing about reading them."""

    format: str  # one of `FORMATS`, or "torchao"
    algorithm: str = ""
    group_size: int = -1  # int4: inputs that share a scale and a zero point; -1: all of a row
    desc_act: bool = False  # int4: groups are not neighbours; `g_idx` says which group an input is in
    shifted_zeros: bool = True  # int4: the file has each zero point less 1
    threshold: float = OUTLIER_THRESHOLD  # int8: activations from here on are outliers
    double_quantization: bool = False  # nf4: the scales are stored in 8 bits

    @classmethod
    def from_hf(cls, entry: dict[str, Any]) -> "Quantization":
        """Read a `quantization_config`. Raises `UserError` that names what is not supported."""
        method = entry.get("quant_method")
        if method == "bitsandbytes":
            return _read_bitsandbytes(entry)
        if method == "gptq":
            return _read_gptq(entry)
        if method == "torchao":
            return cls("torchao", "torchao")
        raise UserError(
            f"quantization_config has quant_method {method!r:.40}, which is not supported; choose a checkpoint of "
            f"bitsandbytes (int8, nf4) or gptq, or {_NEEDED}"
        )

    def to_hf(self) -> dict[str, Any]:
        """The `quantization_config` that transformers reads."""
        if self.format == "int4":
            return {
                "quant_method": "gptq",
                "bits": 4,
                "group_size": self.group_size,
                "desc_act": self.desc_act,
                "sym": False,
                "checkpoint_format": "gptq" if self.shifted_zeros else "gptq_v2",
                "pack_dtype": "int32",
                "meta": {"quantizer": ["llm-from-scratch"], "algorithm": self.algorithm},
            }
        is_int8 = self.format == "int8"
        return {
            "quant_method": "bitsandbytes",
            "load_in_8bit": is_int8,
            "load_in_4bit": not is_int8,
            "llm_int8_threshold": self.threshold,
            "llm_int8_skip_modules": None,
            "llm_int8_has_fp16_weight": False,
            "bnb_4bit_quant_type": "fp4" if is_int8 else "nf4",  # transformers' default where it says nothing
            "bnb_4bit_use_double_quant": self.double_quantization,
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
        }

    @property
    def name(self) -> str:
        """The scheme in one word, as `quantize --scheme` calls it."""
        return self.algorithm or self.format

    def check_readable(self, formats: tuple[str, ...], remedy: str) -> None:
        """Raise `UserError` where a level does not compute with this format."""
        if self.format not in formats:
            stored = {"int4": "GPTQ's packed int4", "torchao": "torchao's"}.get(self.format, self.format)
            raise UserError(f"the weights are in {stored} format, which this level does not read; {remedy}")


class _BitsAndBytes(ForeignJson):
    """`BitsAndBytesConfig` of transformers; null is as if there were no such entry, but for what an unusual weight would need."""

    load_in_8bit: bool | None = False
    load_in_4bit: bool | None = False
    llm_int8_threshold: Annotated[float, Field(ge=0, le=1e30)] = OUTLIER_THRESHOLD
    llm_int8_skip_modules: list[str] | None = None
    llm_int8_has_fp16_weight: bool | None = False
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_quant_storage: str | None = "uint8"
    bnb_4bit_use_double_quant: bool | None = False


class _Gptq(ForeignJson):
    """What AutoGPTQ, GPTQModel and transformers' `GPTQConfig` write."""

    bits: int
    group_size: Size | Literal[-1] = -1
    desc_act: bool | None = False
    checkpoint_format: str | None = "gptq"
    meta: Any = None


def _read_bitsandbytes(entry: dict[str, Any]) -> Quantization:
    """int8 and NF4."""
    read = _BitsAndBytes.read(entry, "quantization_config")
    unusual = {
        "llm_int8_skip_modules": not set(read.llm_int8_skip_modules or ()) <= {"lm_head"},
        "llm_int8_has_fp16_weight": bool(read.llm_int8_has_fp16_weight),
        "bnb_4bit_quant_storage": read.bnb_4bit_quant_storage != "uint8",
    }
    for name, is_unusual in unusual.items():
        if is_unusual:
            raise UserError(
                f"quantization_config sets {name} = {entry[name]!r:.60}, which is not supported; {_NEEDED}"
            )
    if read.load_in_8bit:
        return Quantization("int8", "int8", threshold=float(read.llm_int8_threshold))
    if not read.load_in_4bit or read.bnb_4bit_quant_type != "nf4":
        kind = (
            f"bnb_4bit_quant_type = {read.bnb_4bit_quant_type!r:.20}" if read.load_in_4bit else "neither bits"
        )
        raise UserError(
            f"quantization_config of bitsandbytes has {kind}; int8 (load_in_8bit) and nf4 are supported"
        )
    return Quantization("nf4", "nf4", double_quantization=bool(read.bnb_4bit_use_double_quant))


def _read_gptq(entry: dict[str, Any]) -> Quantization:
    """Four bits, in either order of the zero points."""
    read = _Gptq.read(entry, "quantization_config")
    checkpoint_format = read.checkpoint_format or "gptq"
    if read.bits != 4:
        raise UserError(
            f"quantization_config of gptq has bits = {read.bits!r:.20}, and only 4 is supported; use a checkpoint of 4 bits"
        )
    if checkpoint_format not in ("gptq", "gptq_v2"):
        raise UserError(
            f"quantization_config has checkpoint_format = {checkpoint_format!r:.20}; gptq and gptq_v2 are supported"
        )
    algorithm = read.meta.get("algorithm") if isinstance(read.meta, dict) else None
    return Quantization(
        "int4",
        algorithm if isinstance(algorithm, str) and algorithm in SCHEMES else "gptq",
        read.group_size,
        bool(read.desc_act),
        checkpoint_format == "gptq",
    )
