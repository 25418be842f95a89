"""LoRA, rsLoRA and DoRA: PEFT's `LoraConfig` and `get_peft_model`.

model = inject_lora(model, settings.sft.adapter)
"""

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from shared_data.settings import AdapterSettings


def inject_lora(model: PreTrainedModel, section: AdapterSettings) -> PeftModel:
    """The model with a new adapter, which alone is trained."""
    names = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora"}
    config = LoraConfig(
        **section.model_dump(include=names),
        modules_to_save=section.modules_to_save or None,
        ensure_weight_tying=bool(section.modules_to_save) and model.config.tie_word_embeddings,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
