"""Packed rows as a `Dataset` of torch, for the `Trainer`, which shuffles and batches them.

The rows are those of levels 2 and 3 (`shared_data/training/data_loader.py`).

    rows = PackedRows(settings, run, "train"); rows[0]["input_ids"]
"""

import numpy as np
from torch.utils.data import Dataset

from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.data_loader import PackedDocuments, read_token_facts


class PackedRows(Dataset):
    """The rows of a split as arguments of the model; `shift_labels` says that labels stand at the token before already.

    Of the validation split, as many as an evaluation reads.
    """

    def __init__(self, settings: Settings, run: RunFolder, split: str) -> None:
        section, end = settings.pretrain, read_token_facts(run.tokens(split))["end_of_text_id"]
        self.documents = PackedDocuments(run.tokens(split), 1, section.sequence_length, end, section.seed)
        self.names = ["input_ids", "labels"] + (["position_ids"] if section.document_masks else [])

        self.num_rows = self.documents.num_sequences
        if split == "validation":
            self.num_rows = min(self.num_rows, section.eval_batches * section.per_device_train_batch_size)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = self.documents.read([index])
        return {name: getattr(row, name)[0] for name in self.names} | {"shift_labels": row.labels[0]}
