"""What an action model is made of, and its modules made from that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from composer.language.action_bins import ActionBins
from composer.language.hf import HfFolder, HfModel, make_model, parameters_on_meta
from composer.language.value_head import ValueHead
from composer.spec.action_model import ActionModelSpec, LoraSpec
from perception_blocks.blocks.lora import Lora, draw_adapters, freeze, inject

__all__ = ["ActionPlan", "lora_of"]


@dataclass(frozen=True)
class ActionPlan:
    """What an action model is made of, known and checked before it has weights."""

    spec: ActionModelSpec
    entry: HfModel
    folder: HfFolder | None
    config: Any
    attention: str
    dtype: torch.dtype
    bins: ActionBins
    action_token_len: int
    statistics: dict[str, Any]
    processor: Any
    seed: int
    adapters: dict[str, Tensor] = field(default_factory=dict)  # those to begin with

    def build(self, device: str) -> Any:
        """The library's module on "meta", or on "cpu" with weights; adapters injected and frozen parts frozen."""
        draws = self.folder is None
        dtype = torch.float32 if draws else self.dtype  # drawn alike in every precision
        model = self.plain(device, dtype, draws=draws)
        if self.folder is not None and device != "meta":
            self.folder.load_into(model)
        return self._finished(model)

    def without_weights(self) -> Any:
        """The same with buffers on "cpu", and with parameters on "meta" for which `give_weights` reads the folder."""
        with parameters_on_meta():
            model = self.plain("cpu", self.dtype)
        return self._finished(model)

    def plain(self, device: str, dtype: torch.dtype, *, draws: bool = False) -> Any:
        """The library's module as its class makes it, its weights drawn or else what memory holds."""
        return make_model(
            self.entry, self.config, self.attention, self.seed, device=device, dtype=dtype, draws=draws
        )  # fmt: skip

    def _finished(self, model: Any) -> Any:
        _to_dtype(model, self.dtype)
        model.config.dtype = self.dtype  # which save_pretrained writes
        if self.spec.lora is not None:
            inject(model, lora_of(self.spec.lora), self.spec.freeze)
        freeze(model, self.spec.freeze)
        draw_adapters(model, self.seed)
        if self.spec.gradient_checkpointing:
            later = "activation_checkpointing_enable"  # its name from version 5.23 on
            name = later if hasattr(model, later) else "gradient_checkpointing_enable"
            getattr(model, name)({"use_reentrant": False})
        return model

    def value_head(self, device: str) -> ValueHead | None:
        """The value head of the spec, its weights not drawn yet."""
        head = self.spec.value_head
        if head is None:
            return None
        width = self.config.get_text_config().hidden_size
        with torch.device(device):
            return ValueHead(width, head.hidden_units, activation=head.activation)


def lora_of(spec: LoraSpec) -> Lora:
    return Lora(spec.rank, spec.alpha, spec.targets)


def _to_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """All but buffers that are not saved, which are constants such as the frequencies of rotary places."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for part in model.modules():
        for name, buffer in part._buffers.items():
            saved = name not in part._non_persistent_buffers_set
            if buffer is not None and saved and buffer.is_floating_point():
                part._buffers[name] = buffer.to(dtype)
