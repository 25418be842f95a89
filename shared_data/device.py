"""Where the mathematics of levels 1 and 2 runs.

The setting `device`: `auto` takes a GPU where there is one. Level 3 computes with NumPy, on the CPU only, and never asks.

    uv run python -c "from shared_data.device import resolve_device; print(resolve_device('auto'))"
"""

from typing import TYPE_CHECKING

from shared_data.errors import UserError

if TYPE_CHECKING:
    import torch


NO_FLOAT64 = {"mps"}  # types of devices that lack it


def widest_float(device: "torch.device") -> "torch.dtype":
    """The type for sums and angles that float32 would round: float64, on an Apple GPU float32."""
    import torch

    return torch.float32 if device.type in NO_FLOAT64 else torch.float64


def resolve_device(name: str = "auto") -> "torch.device":
    """The device that a setting names: auto, cpu, mps, cuda or cuda:N.

    Raises `UserError` for a name torch does not know, and for a GPU that is not there.
    """
    import torch  # only where it is asked for: level 3 runs without it

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; use auto, cpu, mps, cuda or cuda:N") from error
    if device.type not in ("cpu", "mps", "cuda"):
        raise UserError(f"device {name!r} is not supported; use auto, cpu, mps, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(
            f"device {name!r} is not there ({found} CUDA devices found); use --device cpu or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            f"device {name!r} is not there (it is the GPU of an Apple computer); use --device cpu or auto"
        )
    return device
