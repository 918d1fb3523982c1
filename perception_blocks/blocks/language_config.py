"""Families of language models of Hugging Face's transformers, and folders that hold one."""

from __future__ import annotations

from typing import Any

from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, MambaConfig, MambaModel

from perception_blocks.blocks.body_config import BodyFolder, Family

__all__ = ["FAMILIES", "Folder"]

NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_A_HEAD = "it belongs to a head, which is a node of its own"
# Keys of configurations that are no settings here, and why.
WITHHELD = {
    **dict.fromkeys(NO_TOKENS, "the environment defines what tokens mean"),
    **dict.fromkeys(("summary_type", "summary_use_proj", "summary_activation"), _A_HEAD),
    **dict.fromkeys(("summary_proj_to_labels", "summary_first_dropout"), _A_HEAD),
    "tie_word_embeddings": _A_HEAD,
    "add_cross_attention": "there is one sequence to look at",
    "use_cache": "it reads the whole sequence at every step",
    "pretraining_tp": "it does not change the result",
}
# All of them are causal: what stands after a token changes nothing of its features.
FAMILIES = {
    "gpt2": Family(GPT2Config, GPT2Model, NO_TOKENS, WITHHELD),
    "llama": Family(LlamaConfig, LlamaModel, NO_TOKENS, WITHHELD),
    "mamba": Family(MambaConfig, MambaModel, NO_TOKENS, WITHHELD),
}


class Folder(BodyFolder):
    """The folder of a language model of transformers."""

    families = FAMILIES
    old_keys = ("rope_theta", "rope_scaling")
