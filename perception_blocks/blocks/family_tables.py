"""The families gpt2, llama, qwen2, mistral and gemma: how their configurations and tensors are those of a decoder.

Defaults are those of transformers' configurations, which a file may leave out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from perception_blocks.blocks.families import Family, FamilyError, HfValues, Row
from perception_blocks.blocks.rotary import ROPE_THETA, SCALINGS
from perception_blocks.settings import settings_of
from perception_blocks.words import hint, listing

__all__ = ["GEMMA", "GPT2", "LLAMA", "MISTRAL", "QWEN2"]

Settings = dict[str, Any]
TANH: Any = {"gelu": {"approximate": "tanh"}}
# The name of an activation in transformers -> ours. Of several for one, the first is written.
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": TANH, "gelu_new": TANH, "gelu_fast": TANH,
    "relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "mish": "mish",
}  # fmt: skip


def activation_of(name: object) -> Any:
    """Ours. Raises FamilyError for an activation that there is none of."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise FamilyError(f"the activation is {name!r}" + hint(name, ACTIVATIONS))
    return ACTIVATIONS[name]


def name_of(activation: object, tanh: str = "gelu_pytorch_tanh") -> str | None:
    """Theirs, where ``tanh`` is that of the approximated gelu; None where it was not told."""
    if activation is None or activation == TANH:
        return tanh if activation else None
    for name, ours in ACTIVATIONS.items():
        if ours == activation:
            return name
    raise FamilyError(f"'activation' is {activation!r}, which transformers has no name for")


# --- rotary positions -------------------------------------------------------------------------------------------------


def rope_settings(values: HfValues) -> Settings:
    """They stand in ``rope_parameters`` (transformers 5), or in ``rope_scaling`` and at the top (4).

    Raises FamilyError for positions that are scaled in another way than a decoder can.
    """
    said = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(said, Mapping):
        raise FamilyError(f"'rope_parameters' must be a mapping, got {said!r}")
    if any(isinstance(value, Mapping) for value in said.values()):
        raise FamilyError(
            "'rope_parameters' are those of several kinds of layers; a decoder has one"
        )
    kind = said.get("rope_type", said.get("type", "default"))
    if kind != "default" and kind not in SCALINGS:
        raise FamilyError(
            f"its rotary positions are scaled by the 'rope_type' {kind!r}; a decoder has {listing(SCALINGS)}"
        )
    share = said.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if share not in (None, 1):
        raise FamilyError(
            f"'partial_rotary_factor' is {share!r}; a decoder turns all features of a head"
        )
    theta = said.get("rope_theta", values.get("rope_theta"))
    scaling = None if kind == "default" else scaling_of(kind, said, values)
    return {"rope_theta": ROPE_THETA if theta is None else theta, "rope_scaling": scaling}


def scaling_of(kind: str, said: Mapping[str, Any], values: HfValues) -> Settings:
    known, _ = settings_of(SCALINGS[kind])
    scaling = {key: said[key] for key in known if key in said}
    if "original_max_position_embeddings" in known:
        scaling.setdefault(
            "original_max_position_embeddings", values.get("max_position_embeddings")
        )
    return {"rope_type": kind, **scaling}


def rope_keys(settings: Mapping[str, Any]) -> Settings:
    """Both spellings, so that either version of transformers reads what was written."""
    theta, scaling = settings["rope_theta"] or ROPE_THETA, settings["rope_scaling"]
    return {
        "rope_theta": theta,
        "rope_scaling": scaling and dict(scaling),
        "rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": theta},
    }


# --- llama and its relatives ------------------------------------------------------------------------------------------

LLAMA_TABLE: tuple[Row, ...] = (
    ("model.embed_tokens.weight", "embed_tokens.weight", ""),
    *(
        (f"model.layers.{{}}.{name}_proj.{kind}", f"layers.{{}}.{name}_proj.{kind}", "")
        for name in (*(f"self_attn.{x}" for x in "qkvo"), "mlp.gate", "mlp.up", "mlp.down")
        for kind in ("weight", "bias")
    ),
    *(
        (f"model.layers.{{}}.{name}_layernorm.weight", f"layers.{{}}.{name}_layernorm.weight", "")
        for name in ("input", "post_attention")
    ),
    ("model.layers.{}.self_attn.rotary_emb.inv_freq", (), ""),  # in files of earlier versions
    ("model.norm.weight", "norm.weight", ""),
    ("lm_head.weight", "head.weight", ""),
)  # fmt: skip


def settings_of_llamas(values: HfValues, places: int, tied: bool = False, **other: Any) -> Settings:
    """What llama and its relatives have in common; ``other`` is what a family has otherwise."""
    width, heads = values["hidden_size"], values["num_attention_heads"]
    return {
        "vocab_size": values["vocab_size"],
        "width": width,
        "num_layers": values["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": values.get("num_key_value_heads") or heads,
        "head_dim": values.get("head_dim") or width // heads,
        "mlp_units": values["intermediate_size"],
        "max_length": values.get("max_position_embeddings", places),
        "gated": True,
        "activation": activation_of(values.get("hidden_act", "silu")),
        "norm": "rms",
        "eps": values.get("rms_norm_eps", 1e-6),
        "positions": "rotary",
        **rope_settings(values),
        "qkv_bias": False,
        "out_bias": False,
        "mlp_bias": False,
        "embed_scale": 1.0,
        "sliding_window": None,
        "tied_head": values.get("tie_word_embeddings", tied),
        **other,
    }


def config_of_llamas(settings: Mapping[str, Any]) -> Settings:
    return {
        "vocab_size": settings["vocab_size"],
        "hidden_size": settings["width"],
        "intermediate_size": settings["mlp_units"],
        "num_hidden_layers": settings["num_layers"],
        "num_attention_heads": settings["num_heads"],
        "num_key_value_heads": settings["num_kv_heads"],
        "head_dim": settings["head_dim"],
        "hidden_act": name_of(settings["activation"]),
        "max_position_embeddings": settings["max_length"],
        "rms_norm_eps": settings["eps"],
        "tie_word_embeddings": settings["tied_head"],
        **rope_keys(settings),
    }


def llama_settings(values: HfValues) -> Settings:
    bias = values.get("attention_bias", False)
    return settings_of_llamas(
        values, 2048, qkv_bias=bias, out_bias=bias, mlp_bias=values.get("mlp_bias", False)
    )


def llama_config(settings: Mapping[str, Any]) -> Settings:
    biases = {
        "attention_bias": bool(settings["qkv_bias"] or settings["out_bias"]),
        "mlp_bias": bool(settings["mlp_bias"]),
    }
    return {**config_of_llamas(settings), **biases}


def mistral_settings(values: HfValues) -> Settings:
    kv_heads = values.get("num_key_value_heads", 8) or values["num_attention_heads"]
    window = values.get("sliding_window", 4096)
    return settings_of_llamas(values, 131072, num_kv_heads=kv_heads, sliding_window=window)


def mistral_config(settings: Mapping[str, Any]) -> Settings:
    # What is None is left out, and a mistral without the key would have its default: a window over all there is.
    window = settings["sliding_window"] or settings["max_length"]
    return {**config_of_llamas(settings), "sliding_window": window}


def qwen2_settings(values: HfValues) -> Settings:
    kv_heads = values.get("num_key_value_heads", 32) or values["num_attention_heads"]
    return settings_of_llamas(
        values,
        32768,
        num_kv_heads=kv_heads,
        qkv_bias=True,
        sliding_window=window_of_qwen2(values),
    )


def window_of_qwen2(values: HfValues) -> int | None:
    """The window of all layers, None where none has one. Raises FamilyError where only some have."""
    layers = values["num_hidden_layers"]
    window = values.get("sliding_window", 4096) if values.get("use_sliding_window") else None
    kinds = values.get("layer_types")
    if kinds is None:
        first = 28 if window is None else values.get("max_window_layers", 28)
        kinds = ["sliding_attention" if index >= first else "full_attention" for index in range(layers)]  # fmt: skip
    if window is None or "sliding_attention" not in kinds:
        return None
    if set(kinds) != {"sliding_attention"}:
        raise FamilyError("only some layers have a sliding window; a decoder has one for all")
    return window


def qwen2_config(settings: Mapping[str, Any]) -> Settings:
    window = settings["sliding_window"]
    keys = {"use_sliding_window": window is not None, "sliding_window": window}
    return {**config_of_llamas(settings), **keys, "max_window_layers": 0 if window else None}


def gemma_settings(values: HfValues) -> Settings:
    if values.get("use_bidirectional_attention"):
        raise FamilyError("'use_bidirectional_attention' is true; a decoder is causal")
    bias = values.get("attention_bias", False)
    # Its earliest files say "gelu" and mean the approximation.
    word = values.get("hidden_activation") or values.get("hidden_act", "gelu_pytorch_tanh")
    return settings_of_llamas(
        HfValues({**values, "hidden_act": "gelu_pytorch_tanh" if word == "gelu" else word}),
        8192,
        tied=True,
        norm="rms_plus_one",
        embed_scale=math.sqrt(values["hidden_size"]),
        qkv_bias=bias,
        out_bias=bias,
        num_kv_heads=values.get("num_key_value_heads", 16) or values["num_attention_heads"],
        head_dim=values.get("head_dim", 256),
    )


def gemma_config(settings: Mapping[str, Any]) -> Settings:
    bias = bool(settings["qkv_bias"] or settings["out_bias"])
    return {**config_of_llamas(settings), "attention_bias": bias}


# --- gpt2 -------------------------------------------------------------------------------------------------------------

# Its linear layers are transposed; queries, keys and values are one.
_LINEAR = (
    ("attn.c_attn", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "split"),
    ("attn.c_proj", ("self_attn.o_proj",), ""),
    ("mlp.c_fc", ("mlp.up_proj",), ""),
    ("mlp.c_proj", ("mlp.down_proj",), ""),
)
_NORMS = (("ln_1", "input_layernorm"), ("ln_2", "post_attention_layernorm"))
GPT2_TABLE: tuple[Row, ...] = (
    ("transformer.wte.weight", "embed_tokens.weight", ""),
    ("transformer.wpe.weight", "embed_positions.weight", ""),
    *(
        (f"transformer.h.{{}}.{theirs}.{kind}", f"layers.{{}}.{ours}.{kind}", "")
        for theirs, ours in _NORMS
        for kind in ("weight", "bias")
    ),
    *(
        (
            f"transformer.h.{{}}.{theirs}.{kind}",
            tuple(f"layers.{{}}.{name}.{kind}" for name in ours),
            f"t {how}".strip() if kind == "weight" else how,
        )
        for theirs, ours, how in _LINEAR
        for kind in ("weight", "bias")
    ),
    ("transformer.h.{}.attn.bias", (), ""),  # masks, in files of earlier versions
    ("transformer.h.{}.attn.masked_bias", (), ""),
    ("transformer.ln_f.weight", "norm.weight", ""),
    ("transformer.ln_f.bias", "norm.bias", ""),
    ("lm_head.weight", "head.weight", ""),
)


NEEDED_OF_GPT2 = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def gpt2_settings(values: HfValues) -> Settings:
    for key, needed in NEEDED_OF_GPT2.items():
        if values.get(key, needed) != needed:
            raise FamilyError(f"{key!r} is {values[key]!r}, which a decoder cannot have")
    width, heads = values["n_embd"], values["n_head"]
    return {
        "vocab_size": values["vocab_size"],
        "width": width,
        "num_layers": values["n_layer"],
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "mlp_units": values.get("n_inner") or 4 * width,
        "max_length": values.get("n_positions", 1024),
        "gated": False,
        "activation": activation_of(values.get("activation_function", "gelu_new")),
        "norm": "layer",
        "eps": values.get("layer_norm_epsilon", 1e-5),
        "positions": "learned",
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "embed_scale": 1.0,
        "sliding_window": None,
        "tied_head": values.get("tie_word_embeddings", True),
    }


def gpt2_config(settings: Mapping[str, Any]) -> Settings:
    return {
        "vocab_size": settings["vocab_size"],
        "n_embd": settings["width"],
        "n_layer": settings["num_layers"],
        "n_head": settings["num_heads"],
        "n_inner": settings["mlp_units"],
        "n_positions": settings["max_length"],
        "activation_function": name_of(settings["activation"], "gelu_new"),
        "layer_norm_epsilon": settings["eps"],
        "tie_word_embeddings": settings["tied_head"],
    }


GPT2 = Family("gpt2", "transformers:GPT2LMHeadModel", gpt2_settings, gpt2_config, GPT2_TABLE)
LLAMA = Family("llama", "transformers:LlamaForCausalLM", llama_settings, llama_config, LLAMA_TABLE)
MISTRAL = Family(
    "mistral", "transformers:MistralForCausalLM", mistral_settings, mistral_config, LLAMA_TABLE
)
QWEN2 = Family("qwen2", "transformers:Qwen2ForCausalLM", qwen2_settings, qwen2_config, LLAMA_TABLE)
GEMMA = Family("gemma", "transformers:GemmaForCausalLM", gemma_settings, gemma_config, LLAMA_TABLE)
