"""The stage `pretrain`: token files in, a language model out; resumable at any moment.

The results are a Hugging Face folder (`config.json`, `model.safetensors`, the tokenizer's files), the metrics log, and numbers
for metrics.json, among them the bits per byte on held-out text beside the lowest that any model can reach.

Level 1 hands the training to `transformers.Trainer`; level 3 is the same over NumPy.

    uv run v2 pretrain --config tiny
"""

import torch
from torch import Tensor

from shared_data.device import resolve_device
from shared_data.evaluation.expert_reading import write_expert_reading
from shared_data.evaluation.held_out import pretrained_metrics
from shared_data.inference.sample_prompts import pretraining_prompt
from shared_data.model_files.compatibility import initial_config
from shared_data.model_files.config import ModelConfig
from shared_data.model_names import find_model
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.data_loader import Batch, open_documents
from shared_data.training.expert_load import load_metrics
from shared_data.training.training_run import Metrics
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer, load_tokenizer
from v2_handwritten.inference.generate import generate
from v2_handwritten.inference.routing import chosen_experts
from v2_handwritten.inference.scoring import negative_log_probs
from v2_handwritten.models.checkpoint import load_weights, save_model
from v2_handwritten.models.transformer import Transformer, new_model
from v2_handwritten.pretrain.components.training import Training, evaluate_loss, model_inputs


def pretrain(settings: Settings, run: RunFolder) -> Metrics:
    """Train the model of the settings on the token files of the run; returns the metrics of the stage.

    Raises `UserError` for a corpus below one sequence, a checkpoint or tokenizer that does not fit, a diverged loss.
    """
    section, device = settings.pretrain, resolve_device(settings.device)
    tokenizer = load_tokenizer(run.tokenizer)
    train = open_documents(settings, run, "train", tokenizer)
    validation = open_documents(settings, run, "validation", tokenizer)
    model = build_model(settings, run, tokenizer).to(device)
    mean_loss = torch.compile(model.loss) if section.torch_compile else model.loss

    def step(batch: Batch) -> tuple[Tensor, Metrics]:
        loss = mean_loss(**model_inputs(batch, device, section.document_masks))
        return loss, load_metrics(model.expert_loads)

    def evaluate() -> Metrics:
        return evaluate_loss(model, validation, section.eval_batches, section.document_masks)

    beginning = pretraining_prompt(settings, run)

    def sample(seed: int) -> str:
        prompt = [tokenizer.end_of_text_id, *tokenizer.encode(beginning)]  # as a document begins
        (ids,) = generate(model, [prompt], max_new_tokens=section.sample_tokens, temperature=0.8, seed=seed)
        return beginning + tokenizer.decode(ids, skip_special_tokens=True)

    metrics = Training("pretrain", settings, run).fit(model, train, step, evaluate=evaluate, sample=sample)
    save_model(model, run.stage("pretrain"), run.tokenizer.parent)
    metrics["epochs"] = metrics["tokens"] / len(train.tokens)
    metrics["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    metrics |= pretrained_metrics(negative_log_probs, model, settings, run)
    return metrics | write_expert_reading(chosen_experts, model, tokenizer, run)


def build_model(settings: Settings, run: RunFolder, tokenizer: Tokenizer) -> Transformer:
    """A new model of the settings, or that of `model_name_or_path`, which brings its own sizes.

    Raises `UserError` where that has another vocabulary than the tokenizer of the run.
    """
    config = ModelConfig.from_settings(settings.model, tokenizer.vocab_size, tokenizer.end_of_text_id)
    if settings.pretrain.model_name_or_path is None:
        return new_model(config, settings.pretrain.seed, settings.kernels)
    folder = find_model(run, settings.pretrain.model_name_or_path).folder
    model = Transformer(initial_config(folder, config, run.tokenizer), settings.kernels)
    load_weights(model, folder)
    return model
