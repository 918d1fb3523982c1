"""LoRA and frozen modules as settings: ``lora: {rank: 8, targets: [q_proj, v_proj]}``, ``freeze: [layers.0]``.

A spec says them, so that a saved model is rebuilt from its spec.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from perception_blocks.base_block import PerceptionBlock
from perception_blocks.blocks.lora import (
    Lora,
    adapter_names,
    adapter_scales,
    draw_adapters,
    freeze,
    inject,
    is_adapter,
    merge,
    without_adapters,
)
from perception_blocks.init import Rule
from perception_blocks.port import format_shape
from perception_blocks.reading import file_at, json_in, require_regular
from perception_blocks.settings import (
    PositiveFloat,
    PositiveInt,
    SettingProblem,
    SettingsError,
    check_settings,
)
from perception_blocks.words import cut, describe, listing

__all__ = [
    "AdaptedBlock",
    "fitting_adapters",
    "refuse_other_kind",
    "refuse_other_scales",
    "stored_adapters",
]

RANK = 8
SCALES = "adapter_scales"  # where a checkpoint says them
# Keys of peft's configuration for adapters that are multiplied or added in other ways.
OTHER_KINDS = ("use_rslora", "use_dora", "alpha_pattern", "lora_bias", "layer_replication")
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
    """A block with the settings ``lora`` and ``freeze``, which are about the modules in its body.

    It may have ``checkpoint`` too, whose weights no ``init`` replaces.
    """

    lora: Mapping[str, Any] | None = None  # while it has adapters
    frozen: Sequence[str] = ()
    folder: Any = None  # from which the weights are, where a checkpoint is named

    @property
    def adapted(self) -> nn.Module:
        """Where the adapters are, and from where paths of modules are counted."""
        raise TypeError(f"{type(self).__name__} must define adapted")

    def adapt(self, lora: Mapping[str, Any] | None, frozen: Sequence[str] | None) -> None:
        """Freeze what the settings say, and put adapters beside their targets; called when all modules are there."""
        if lora is None and not frozen:
            return
        self.frozen = tuple(frozen or ())
        freeze(self.adapted, self.frozen)
        if lora is None:
            return
        problems = check_settings(lora_keys, lora, "'lora'", skip=0)
        if problems:
            raise SettingsError([SettingProblem("lora", "'lora': " + p.message) for p in problems])
        self.lora, targets = lora, lora.get("targets")
        targets = None if targets is None else tuple(targets)
        form = Lora(lora.get("rank", RANK), lora.get("alpha"), targets)
        inject(self.adapted, form, self.frozen)
        if lora.get("path") is not None:
            self._read_adapters()  # an error is told before any weight is drawn
            self._save_instead({key: value for key, value in lora.items() if key != "path"})

    def draw_adapted(self, seed: int, draw: Callable[[], None], prefix: str = "") -> None:
        """Draw weights as without adapters, by their own names, and then the adapters whose names begin so."""
        if self.lora is None:
            draw()
            return
        with without_adapters(self.adapted):
            draw()
        draw_adapters(self.adapted, seed, prefix)
        if self.lora.get("path") is None:
            return
        with torch.no_grad():
            for name, tensor in self._read_adapters().items():
                target = self.adapted.get_parameter(name)
                if name.startswith(prefix) and not target.is_meta:
                    target.copy_(tensor)

    def take_initializer(self, rule: Rule) -> None:
        if self.folder is not None:
            why = "a checkpoint's weights are kept as they are; leave out 'init' or 'checkpoint'"
            raise SettingsError([SettingProblem("init", why)])
        super().take_initializer(rule)

    def merge_adapters(self) -> None:
        """Add the adapters to the weights and remove them; what was frozen for them is trained again."""
        if self.lora is None:
            return
        merge(self.adapted)
        self.adapted.requires_grad_(True)
        freeze(self.adapted, self.frozen)
        self._save_instead(None)
        self.lora = None

    def _read_adapters(self) -> dict[str, Tensor]:
        """The adapters in the file that ``path`` names. Raises SettingsError where they do not fit."""
        assert self.lora is not None
        path, alpha = self.lora["path"], self.lora.get("alpha") or self.lora.get("rank", RANK)
        try:
            return fitting_adapters(path, *stored_adapters(path, alpha), self.adapted)
        except ValueError as error:
            raise SettingsError([SettingProblem("lora", "'lora': " + str(error))]) from error

    def _save_instead(self, lora: Mapping[str, Any] | None) -> None:
        """Let a saved spec say this in place of what the block was given."""
        given, instead = self.read_once or ({"lora": self.lora}, {})
        self.read_once = (given, {**instead, "lora": lora})


def stored_adapters(path: str, alpha: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in a folder of peft's, or in a file such as a checkpoint, by names as modules have them.

    Beside them what a checkpoint says of their scales, by the paths of layers; empty in other files.
    Raises ValueError for other files, and for adapters that were made with another ``alpha``.
    """
    place = Path(file_at(path))
    file = place
    if place.is_dir():
        file = place / PEFT_FILE
        if not os.path.lexists(file):
            raise ValueError(f"there is no {PEFT_FILE} in {path!r}")
        file_at(str(file))  # which may be a link
        refuse_other_kind(path, place, alpha)
    elif not os.path.lexists(place):
        raise ValueError(f"there is no {path!r}")
    try:
        require_regular(file)
        tensors = {stored_name(name): tensor for name, tensor in load_file(file).items()}
        with safe_open(file, framework="pt") as opened:
            scales = json.loads((opened.metadata() or {}).get(SCALES, "{}"))
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path!r} cannot be read: {error}") from error
    strange = [name for name in tensors if file != place and not is_adapter(name)]
    if strange:
        raise ValueError(
            f"{path!r} holds weights beside its adapters, such as {cut(strange[0], 200)}; train it without "
            "modules_to_save and biases, or merge it in peft"
        )
    return tensors, scales if isinstance(scales, dict) else {}


def refuse_other_kind(path: str, place: Path, alpha: float) -> None:
    """Weights do not show by what they are multiplied, nor how they are added, but a folder of peft's says it.

    Raises ValueError for another kind or ``alpha``, and for a configuration that cannot be read.
    """
    config = place / PEFT_CONFIG
    if not os.path.lexists(config):
        return
    file_at(str(config))
    what = f"{PEFT_CONFIG!r} in {path!r}"
    try:
        said = json_in(config)
    except ValueError as error:
        raise ValueError(f"{what} cannot be read: {error}") from error
    if not isinstance(said, Mapping):
        raise ValueError(f"{what} must hold a mapping, got {describe(said)}")
    other = [key for key in OTHER_KINDS if said.get(key)]
    if said.get("peft_type", "LORA") != "LORA":
        other.append("peft_type")
    if other:
        raise ValueError(
            f"{what} says {other[0]!r}, adapters of a kind that is not read here; merge them in peft, or train others"
        )
    stated = said.get("lora_alpha")
    if stated is not None and not isinstance(stated, int | float):
        raise ValueError(f"{what} must say 'lora_alpha' as a number, got {describe(stated)}")
    if stated not in (None, alpha):
        shown = f"{stated:g}" if abs(stated) < 1e9 else cut(str(stated), 40)
        raise ValueError(f"the adapters in {path!r} were made with alpha {shown}, not {alpha:g}")


def fitting_adapters(
    path: str, stored: Mapping[str, Tensor], scales: Mapping[str, Any], body: nn.Module
) -> dict[str, Tensor]:
    """Those of ``stored`` that belong to ``body``, by its names; in a file of a model theirs begin with its path.

    Raises ValueError where some are missing, too many, or of another shape, kind or scale.
    """
    needed = {name: body.get_parameter(name) for name in adapter_names(body)}
    theirs = {name: tensor for name, tensor in stored.items() if is_adapter(name)}
    fits = Counter(
        other.removesuffix(name)
        for name in needed
        for other in theirs
        if f".{other}".endswith(f".{name}")
    )
    most = max(fits.values(), default=0)
    best = [prefix for prefix, count in fits.items() if count == most]
    if len(best) > 1:
        raise ValueError(
            f"{path!r} holds adapters of several networks, {listing(best)}; load them with model.load_weights, or name "
            "a file that holds one network's"
        )
    prefix = best[0] if best else ""
    lost = []
    for name, parameter in needed.items():
        tensor = theirs.get(prefix + name)
        if tensor is None:
            lost.append(f"{name} is missing")
        elif tensor.shape != parameter.shape:
            got, form = format_shape(tensor.shape), format_shape(parameter.shape)
            lost.append(f"{name} is {got}, it must be {form}")
        elif not tensor.is_floating_point():
            lost.append(f"{name} is {tensor.dtype}, it must be floating-point numbers")
    for name in theirs:
        if name.startswith(prefix) and name.removeprefix(prefix) not in needed:
            lost.append(f"{cut(name, 200)} is no adapter of this model")
    if lost:
        more = f"; and {len(lost) - 4} others" if len(lost) > 4 else ""
        raise ValueError(f"{path!r} holds other adapters: {'; '.join(lost[:4])}{more}")
    refuse_other_scales(path, adapter_scales(body), scales, prefix)
    return {name: theirs[prefix + name] for name in needed}


def refuse_other_scales(
    path: object, needed: Mapping[str, float], stored: Mapping[str, Any], prefix: str = ""
) -> None:
    """Raise ValueError where a checkpoint says that its adapters were made with another scale than is ``needed``."""
    for layer, scale in needed.items():
        other = stored.get(prefix + layer, scale)
        if other != scale:
            raise ValueError(
                f"the adapters in {path!r} are multiplied by {cut(str(other), 40)}, those of this model by {scale:g}; "
                "write the 'rank' and 'alpha' that they were made with"
            )


def stored_name(name: str) -> str:
    """What peft writes, by the names that modules have."""
    for pair in ("lora_A", "lora_B"):
        name = name.replace(f".{pair}.weight", f".{pair}.default.weight")
    for pair in ("lora_embedding_A", "lora_embedding_B"):
        name = f"{name}.default" if name.endswith(f".{pair}") else name
    return name
