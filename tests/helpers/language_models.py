"""Tiny language models of Hugging Face's transformers, with weights that matter, in all the forms of their families."""

import torch
import transformers

from perception_blocks.blocks.families import FAMILIES

WORDS, WIDTH, PLACES = 40, 32, 24
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZES = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": PLACES,
    **NO_TOKENS,
}  # fmt: skip
GPT2 = {
    "vocab_size": WORDS, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": PLACES, **NO_TOKENS,
}  # fmt: skip
WINDOW = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}
# With 16 places before, of the pairs of features some are fast, some slow, and some in between.
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
# Name: the family, and the keys of its configuration beside the sizes.
FORMS = {
    "llama": ("llama", {"rope_theta": 5000.0}),
    "llama, tied, with biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, wide heads, eps, gelu": ("llama", {"head_dim": 16, "rms_norm_eps": 1e-2, "hidden_act": "gelu"}),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("llama", {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, with a window": ("qwen2", {"tie_word_embeddings": True, **WINDOW}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, with a window": ("mistral", {"sliding_window": 5, "head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma, not tied, with biases": ("gemma", {"head_dim": 16, "tie_word_embeddings": False, "attention_bias": True}),
    "gpt2": ("gpt2", {}),
    "gpt2, not tied, inner": ("gpt2", {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "relu"}),
}  # fmt: skip
CLASSES = {
    "llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral", "gemma": "Gemma", "gpt2": "GPT2",
}  # fmt: skip


def hf_class(family, kind="CausalLM"):
    if family == "gpt2" and kind == "CausalLM":
        return transformers.GPT2LMHeadModel
    return getattr(transformers, f"{CLASSES[family]}For{kind}")


def hf_config(form, **changes):
    family, keys = FORMS[form]
    sizes = GPT2 if family == "gpt2" else SIZES
    return hf_class(family).config_class(**{**sizes, **keys, **changes})


def hf_model(form, kind="CausalLM", **changes):
    """A model of the form, its weights drawn anew."""
    torch.manual_seed(0)
    model = hf_class(FORMS[form][0], kind)(hf_config(form, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape) * 0.2
            parameter.copy_(drawn if parameter.dim() > 1 else parameter + drawn)
    return model


def saved(model, folder, **how):
    model.save_pretrained(folder, **how)
    return str(folder)


def only_built_in(monkeypatch):
    """Families that other tests have registered are not there."""
    names = ("gpt2", "llama", "codellama", "deepseek", "qwen2", "mistral", "gemma")
    monkeypatch.setattr(FAMILIES, "_entries", {name: FAMILIES._entries[name] for name in names})


def tokens(*shape):
    return torch.randint(WORDS, shape, generator=torch.Generator().manual_seed(1))
