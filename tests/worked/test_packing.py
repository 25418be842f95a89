"""Three short documents in two rows, as in shared_data/training/data_loader.md."""

from pathlib import Path

import numpy as np
import torch

from shared_data.training.data_loader import Batch, PackedDocuments
from tests.shared_data.test_data_loader import write_tokens
from tests.worked import agrees
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.packing import Packing

PAGE = "shared_data/training/data_loader.md"

END, A, CAT, SAT, NO, DOGS, BIRDS, SING, LOUDLY = range(9)
DOCUMENTS = [[A, CAT, SAT], [NO, DOGS], [BIRDS, SING, LOUDLY]]


def batch(folder: Path) -> Batch:
    stream = [token for document in DOCUMENTS for token in [*document, END]]
    documents = PackedDocuments(write_tokens(folder, np.array(stream)), 2, 6, END, seed=0, shuffle=False)
    return documents.next_batch()


def test_three_documents_in_two_rows(tmp_path: Path) -> None:
    made = batch(tmp_path)
    for row in (0, 1):
        arrays = (made.input_ids, made.labels, made.position_ids, made.document_ids)
        agrees(PAGE, f"row {row + 1}", [array[row] for array in arrays])
    assert made.num_items == 11 == sum(map(len, DOCUMENTS)) + len(DOCUMENTS)


def test_a_token_sees_its_own_document_only(tmp_path: Path) -> None:
    documents = torch.from_numpy(batch(tmp_path).document_ids)
    allowed = AttentionMask(6, 6, packing=Packing(documents)).allowed()
    agrees(PAGE, "may look, row 2", allowed[1].int())
