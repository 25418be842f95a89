"""The three levels' models with the same weights, for tests of evaluation and generation."""

import json
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from shared_data.corpus.token_files import encode_split
from shared_data.model_files.config import ModelConfig
from shared_data.runs import RunFolder
from shared_data.settings import SPECIAL_TOKENS, load_settings
from shared_data.story_world import StoryWorld
from tests.parity.model_cases import LibraryModel, config_of, pair
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.models.transformer import Transformer as ArrayTransformer


def trio(case: str, dtype: torch.dtype = torch.float64) -> tuple[LibraryModel, Transformer, ArrayTransformer]:
    """The library's model and those of levels 2 and 3, in evaluation mode."""
    ours, library = pair(case, dtype)
    arrays = ArrayTransformer(ModelConfig.from_hf(config_of(case).to_hf()))
    arrays.to(str(dtype).removeprefix("torch."))
    arrays.load_state_dict({name: tensor.numpy() for name, tensor in ours.state_dict().items()})
    return library.eval(), ours.eval(), arrays.eval()


def prompts(case: str, lengths: tuple[int, ...] = (5, 1, 9)) -> list[list[int]]:
    """Prompts of different lengths, none with the id that ends a text."""
    generator = np.random.default_rng(7)
    return [generator.integers(4, config_of(case).vocab_size, length).tolist() for length in lengths]


def small_run(root: Path, *overrides: str, stories: int = 12) -> RunFolder:
    """A run folder as after the stage `pretrain`: stories, a tokenizer, token files, an untrained model."""
    model = ["model.hidden_size=16", "model.intermediate_size=32", "model.max_position_embeddings=64"]
    settings = load_settings(
        "smoke", ["tokenizer.vocab_size=320", "generate.max_new_tokens=8", *model, *overrides]
    )
    run = RunFolder("v2", settings, root)
    told = list(islice(StoryWorld().stories(1, "test"), stories))
    documents = [
        {"id": str(number), "text": story.text, "log2_probability": story.log2_probability}
        for number, story in enumerate(told)
    ]
    run.documents("test").write_text("".join(json.dumps(document) + "\n" for document in documents))
    tokenizer = train_bpe((story.text for story in told), 320, special_tokens=SPECIAL_TOKENS)
    tokenizer.save(run.stage("tokenizer"))
    encode_split(
        run.documents("test"),
        run.tokens("test"),
        partial(tokenizer.encode_to_array, end_of_text=True),
        tokenizer.vocab_size,
        tokenizer.end_of_text_id,
    )
    config = ModelConfig.from_settings(settings.model, tokenizer.vocab_size, tokenizer.end_of_text_id)
    save_model(Transformer(config).initialize(0), run.model("pretrain"), run.stage("tokenizer"))
    return run
