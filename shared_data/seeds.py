"""Which seeds there are: those of NumPy's and transformers' `set_seed`, 32 bits, in settings and options.

uv run python -c "from shared_data.seeds import check_seed; check_seed(7)"
"""

from numbers import Integral
from typing import Any

from shared_data.errors import UserError

LARGEST_SEED = 2**32 - 1
_LARGEST_INTEGER = 2**63 - 1


def check_seed(seed: Any) -> None:
    """Raise `UserError` for what seeds no generator. Functions take 63 bits: a stage adds its steps to the seed of the settings."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) <= _LARGEST_INTEGER:
        raise UserError(f"the seed is {seed!r:.60}; choose an integer from 0 to {LARGEST_SEED}")
