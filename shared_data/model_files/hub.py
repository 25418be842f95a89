"""Models of the Hugging Face hub: a name becomes a folder on this disk, downloaded once by huggingface_hub.

Mirrors, tokens and the place of the cache are huggingface_hub's own settings: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE.

    uv run python -c "from shared_data.model_files.hub import download_model; print(download_model('HuggingFaceTB/SmolLM2-135M'))"
"""

import re
from pathlib import Path

from shared_data.errors import UserError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "*.model"]


def is_hub_name(name: str) -> bool:
    """Whether a text has the form owner/name."""
    return _HUB_NAME.fullmatch(name) is not None


def download_model(name: str) -> Path:
    """The folder of a model, adapter or tokenizer of the hub: from the cache where it is there, else downloaded.

    Raises `UserError` where there is no such name, no network, or no permission.
    """
    from huggingface_hub import snapshot_download  # takes a second to import
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except GatedRepoError as error:
        raise UserError(
            f"{name} asks for its terms to be accepted; do that on its page of the hub, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no folder {name} here and no model {name} on the hub; correct the name, or `hf auth login` if it is private"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"there is no folder {name} here, and the hub cannot be reached for the model of that name; connect, or download it elsewhere "
            f"(`hf download {name} --local-dir DIR`) and use --model DIR"
        ) from error
