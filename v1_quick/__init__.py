"""Level 1, the library call: `load_model` and `load_tokenizer` return transformers' own objects.

from v1_quick import generate, load_model, load_tokenizer
"""

from importlib import import_module
from typing import Any

# Imported when they are first used: transformers takes seconds, `v1 --help` should not.
_EXPORTS = {
    "generate": "v1_quick.inference.generate",
    "load_model": "v1_quick.models.checkpoint",
    "load_tokenizer": "v1_quick.data_pipeline.tokenizer.tokenizer",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
