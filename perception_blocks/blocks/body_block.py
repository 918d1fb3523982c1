"""What blocks with a body of Hugging Face's transformers share: its weights, drawn or from a folder, layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from perception_blocks.base_block import seed_from
from perception_blocks.blocks.adapted import AdaptedBlock
from perception_blocks.blocks.body_config import (
    BodyFolder,
    Family,
    checked_config,
    refusal,
    stored_names,
)
from perception_blocks.init import Rule, derive_seed, draw_in_a_copy, local_generator
from perception_blocks.random_states import random_states_kept
from perception_blocks.settings import SettingProblem, SettingsError

__all__ = ["BodyBlock", "make_body"]


class BodyBlock(AdaptedBlock):
    """A block whose weights are those of ``body``: a module of transformers, from ``folder`` if there is one."""

    body: PreTrainedModel
    folder: BodyFolder | None

    @property
    def adapted(self) -> nn.Module:
        return self.body  # type: ignore[return-value]

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        seed = seed_from(generator)
        self.draw_adapted(seed, lambda: self._draw(seed))

    def _draw(self, seed: int) -> None:
        if self.folder is None:
            draw_in_a_copy(self.body, seed, lambda body: draw_body(body, seed, self.initializer))
        else:
            self._copy_stored(self.body)

    def names_in_file(self, names: Iterable[str]) -> dict[str, str]:
        return {f"body.{ours}": theirs for ours, theirs in stored_names(self.body, names).items()}

    def layer_names(self) -> list[str]:
        """The layers of the body, by their names in it; not what is in a layer, which may be named as one too."""
        kinds = set(self.body._no_split_modules or ())  # type: ignore[arg-type]
        names: list[str] = []
        for name, part in self.body.named_modules():
            inside = any(name.startswith(f"{layer}.") for layer in names)
            if type(part).__name__ in kinds and not inside:
                names.append(name)
        return names

    def reset_part(self, name: str, seed: int, without: Sequence[str] = ()) -> None:
        """`reset_parameters` for the module ``name`` of the body alone, or for all of it ``without`` some modules."""
        part: Any = self.body.get_submodule(name)
        prefix = f"{name}." if name else ""

        def draw(twin: nn.Module) -> None:
            parts = [(_joined(name, inner), m) for inner, m in twin.named_modules()]
            draw_modules(self.body, parts, seed, self.initializer)

        def fill() -> None:
            if self.folder is None:
                draw_in_a_copy(part, seed, draw)
            else:
                self._copy_stored(part, prefix)

        with self.without(without):
            self.draw_adapted(seed, fill, prefix)
            self._fill(part)

    @contextlib.contextmanager
    def without(self, names: Sequence[str]) -> Iterator[None]:
        """The body without the modules called ``names``, for a while."""
        homes = [self.body.get_submodule(name.rpartition(".")[0])._modules for name in names]
        keys = [name.rpartition(".")[2] for name in names]
        held = [home.pop(key) for home, key in zip(homes, keys)]
        try:
            yield
        finally:
            for home, key, module in zip(homes, keys, held):
                home[key] = module

    def _copy_stored(self, part: nn.Module, prefix: str = "") -> None:
        """Weights of the checkpoint whose names begin with ``prefix``, into ``part`` of the body."""
        weights = part.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, tensor in self.folder.tensors(self.body):  # type: ignore[union-attr]
                if name.startswith(prefix):
                    weights[name.removeprefix(prefix)].copy_(tensor)

    def fill_constants(self) -> None:
        """Frequencies of rotary places stand in no checkpoint."""
        self._fill(self.body)

    def _fill(self, module: nn.Module) -> None:
        for part in module.modules():
            unsaved = [part._buffers[name] for name in part._non_persistent_buffers_set]
            if any(buffer is not None and not buffer.is_meta for buffer in unsaved):
                with torch.device("cpu"), torch.no_grad():
                    self.body._init_weights(part)  # type: ignore[operator]


def make_body(
    block: str,
    family: Family,
    folder: BodyFolder | None,
    settings: Mapping[str, object],
    given: Mapping[str, object],
) -> PreTrainedModel:
    """The library's module, from the ``settings`` of a ``block`` and what its inputs imply, or for a ``folder``.

    Raises SettingsError for settings that the family does not take, and for a folder that does not hold what it says.
    """
    if folder is None:
        label = f"block {block!r} of the family {family.config.model_type!r}"
        config = checked_config(label, family, settings, given)
    elif settings:
        brings = "a checkpoint brings its own configuration; leave out"
        raise SettingsError([SettingProblem(name, f"{brings} {name!r}") for name in settings])
    else:
        config = folder.config(family)
    try:
        body = family.model(config, **family.arguments)
    except Exception as error:  # whatever the library says of values that only it knows
        raise refusal(family, settings, error) from error
    if folder is not None:
        folder.check(body)
    return body


def draw_body(body: PreTrainedModel, seed: int, rule: Rule | None) -> None:
    """Weights as the library draws them, each module from a seed of its own name; matrices follow ``rule`` if any."""
    draw_modules(body, list(body.named_modules()), seed, rule)


def _joined(outer: str, inner: str) -> str:
    return ".".join(filter(None, (outer, inner)))


def draw_modules(
    body: Any, parts: Sequence[tuple[str, nn.Module]], seed: int, rule: Rule | None
) -> None:
    """The same for some modules of ``body``, by their names in it, each after those that hold it."""
    for name, part in reversed(parts):  # inner ones first: a layer scales weights of those it holds
        if isinstance(part, nn.Conv2d) and part.bias is not None:  # some families leave it as built
            nn.init.zeros_(part.bias)
        with random_states_kept(derive_seed(seed, name)):
            body._init_weights(part)
    for name, part in parts:
        weight = part._parameters.get("weight")
        if rule is not None and weight is not None and weight.dim() > 1:
            generator = local_generator(seed, f"{name}.weight")
            rule(weight.t() if isinstance(part, Conv1D) else weight, generator)
