"""LoRA and frozen modules as settings: ``lora: {rank: 8, targets: [q_proj, v_proj]}``, ``freeze: [layers.0]``.

A spec says them, so that a saved model is rebuilt from its spec.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from perception_blocks.base_block import PerceptionBlock
from perception_blocks.port import format_shape
from perception_blocks.reading import file_at
from perception_blocks.registry import missing_extra
from perception_blocks.settings import (
    PositiveFloat,
    PositiveInt,
    SettingProblem,
    SettingsError,
    check_settings,
)
from perception_blocks.words import describe

__all__ = ["PEFT_FILE", "AdaptedBlock", "refuse_other_alpha", "stored_name"]

RANK = 8
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def lora_keys(
    *,
    rank: PositiveInt = RANK,
    alpha: PositiveFloat | None = None,
    targets: Sequence[str] | None = None,
    path: str | None = None,
) -> None:
    """What ``lora`` may hold."""


class AdaptedBlock(PerceptionBlock):
    """A block with the settings ``lora`` and ``freeze``, which are about the modules in its ``body``."""

    lora: Mapping[str, Any] | None = None  # while it has adapters
    frozen: Sequence[str] = ()

    @property
    def adapted(self) -> nn.Module:
        """Where the adapters are, and from where paths of modules are counted."""
        raise TypeError(f"{type(self).__name__} must define adapted")

    def adapt(self, lora: Mapping[str, Any] | None, freeze: Sequence[str] | None) -> None:
        """Freeze what the settings say, and put adapters beside their targets; called when all modules are there."""
        if lora is None and not freeze:
            return
        tools, self.frozen = self._tools(), tuple(freeze or ())
        tools.freeze(self.adapted, self.frozen)
        if lora is None:
            return
        problems = check_settings(lora_keys, lora, "'lora'", skip=0)
        if problems:
            raise SettingsError([SettingProblem("lora", f"'lora': {p.message}") for p in problems])
        self.lora, targets = lora, lora.get("targets")
        form = tools.Lora(RANK, lora.get("alpha"), None if targets is None else tuple(targets))
        tools.inject(self.adapted, form._replace(rank=lora.get("rank", RANK)), self.frozen)
        if lora.get("path") is not None:
            self._read_adapters()  # an error is told before any weight is drawn
            self._save_instead({key: value for key, value in lora.items() if key != "path"})

    def draw_adapted(self, seed: int, draw: Callable[[], None], prefix: str = "") -> None:
        """Draw weights as without adapters, by their own names, and then the adapters whose names begin so."""
        if self.lora is None:
            draw()
            return
        tools = self._tools()
        with tools.without_adapters(self.adapted):
            draw()
        tools.draw_adapters(self.adapted, seed, prefix)
        if self.lora.get("path") is None:
            return
        with torch.no_grad():
            for name, tensor in self._read_adapters().items():
                target = self.adapted.get_parameter(name)
                if name.startswith(prefix) and not target.is_meta:
                    target.copy_(tensor)

    def merge_adapters(self) -> None:
        """Add the adapters to the weights and remove them; what was frozen for them is trained again."""
        if self.lora is None:
            return
        tools = self._tools()
        tools.merge(self.adapted)
        self.adapted.requires_grad_(True)
        tools.freeze(self.adapted, self.frozen)
        self._save_instead(None)
        self.lora = None

    def _read_adapters(self) -> dict[str, Tensor]:
        assert self.lora is not None
        alpha = self.lora.get("alpha") or self.lora.get("rank", RANK)
        return read_adapters(self.lora["path"], self.adapted, alpha)

    def _save_instead(self, lora: Mapping[str, Any] | None) -> None:
        """Let a saved spec say this in place of what the block was given."""
        if self.read_once is not None and self.read_once[0][0] != "lora":
            self.read_once = (self.read_once[0], {**self.read_once[1], "lora": lora})
        else:
            self.read_once = (("lora", self.lora), {"lora": lora})

    @staticmethod
    def _tools() -> Any:
        try:
            from perception_blocks.blocks import lora
        except ImportError as error:
            raise missing_extra("'lora' and 'freeze'", error, "llm") from error
        return lora


def read_adapters(path: str, body: nn.Module, alpha: float) -> dict[str, Tensor]:
    """Adapters by their names in ``body``, from a folder of peft's, or a file in which their names end as there.

    Raises SettingsError where some are missing or have other shapes, or were made with another ``alpha``.
    """
    try:
        place = Path(file_at(path))
    except ValueError as error:
        raise wrong(str(error)) from error
    try:
        file = place / PEFT_FILE if place.is_dir() else place
        refuse_other_alpha(path, place, alpha)
        stored = {stored_name(name): tensor for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise wrong(f"{path!r} cannot be read: {error}") from error
    except ValueError as error:
        raise wrong(str(error)) from error
    return dict(fitting_tensors(path, stored, body))


def refuse_other_alpha(path: str, place: Path, alpha: float) -> None:
    """Weights do not show by what they are multiplied, but a folder of peft's says it.

    Raises ValueError for another ``alpha``, and for a configuration that cannot be read.
    """
    config = place / PEFT_CONFIG
    if not config.is_file():
        return
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{PEFT_CONFIG!r} in {path!r} is no JSON") from error
    stated = said.get("lora_alpha") if isinstance(said, Mapping) else said
    if stated is not None and not isinstance(stated, int | float):
        raise ValueError(
            f"{PEFT_CONFIG!r} in {path!r} must say 'lora_alpha' as a number, got {describe(stated)}"
        )
    if stated not in (None, alpha):
        raise ValueError(f"the adapters in {path!r} were made with alpha {stated:g}, not {alpha:g}")


def fitting_tensors(
    path: str, stored: Mapping[str, Tensor], body: nn.Module
) -> Iterator[tuple[str, Tensor]]:
    from perception_blocks.blocks.lora import adapter_names

    lost = []
    for name in adapter_names(body):
        found = [key for key in stored if f".{key}".endswith(f".{name}")]
        needed = tuple(body.get_parameter(name).shape)
        if not found:
            lost.append(f"{name} is missing")
        elif tuple(stored[found[0]].shape) != needed:
            got = format_shape(stored[found[0]].shape)
            lost.append(f"{name} is {got}, it must be {format_shape(needed)}")
        else:
            yield name, stored[found[0]]
    if lost:
        raise wrong(f"{path!r} holds other adapters: {'; '.join(lost[:4])}")


def stored_name(name: str) -> str:
    """What peft writes, by the names that modules have."""
    for pair in ("lora_A", "lora_B"):
        name = name.replace(f".{pair}.weight", f".{pair}.default.weight")
    for pair in ("lora_embedding_A", "lora_embedding_B"):
        name = f"{name}.default" if name.endswith(f".{pair}") else name
    return name


def wrong(message: str) -> SettingsError:
    return SettingsError([SettingProblem("lora", f"'lora': {message}")])
