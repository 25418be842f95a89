"""Where the mathematics of this level runs.

`resolve_device` reads the setting `device`: `auto` takes a GPU where there is one. This level computes
with NumPy, on the CPU only; levels 1 and 2 return a `torch.device`.

    python -c "from v3_numpy_deep.device import resolve_device; print(resolve_device('auto'))"
"""

from shared_data.errors import UserError


def resolve_device(name: str = "auto") -> str:
    """The device that a setting names: auto or cpu.

    Raises `UserError` for any other, as NumPy has no other.
    """
    if name not in ("auto", "cpu"):
        raise UserError(
            f"device {name!r} is not for level 3, which is NumPy on the CPU; use --device cpu, or v1 or v2"
        )
    return "cpu"
