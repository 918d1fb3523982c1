"""Families of language models: their configurations as settings of `decoder`, both ways.

A family is two functions and one table. The table has a row for each tensor of a layer: its name in Hugging Face's
files, the names of what it is here, and how the one becomes the other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from perception_blocks.registry import BLOCKS, Registry, missing_extra
from perception_blocks.settings import (
    SettingProblem,
    SettingsError,
    check_settings,
    settings_of,
)
from perception_blocks.words import cut, describe, did_you_mean, listing

__all__ = ["BESIDE", "FAMILIES", "HEAD", "HOWS", "Family", "FamilyError", "HfValues", "Row"]
__all__ += ["complete_settings", "family_of", "largest", "names_of", "told_settings"]

# (their name, our name or names, how): {} stands for the number of a layer; how is "", "t" (transposed), "split" (ours
# side by side) or "t split". A row without names of ours is a constant, which is stored and means nothing.
Row: TypeAlias = tuple[str, str | Sequence[str], str]
Values: TypeAlias = Mapping[str, Any]
HOWS = ("", "t", "split", "t split")
HEAD = "head.weight"  # our name of the head, which is no part of a decoder
# Settings that say how large a decoder is; what they follow from is computed where they are not given.
SIZES = ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_units")
SIZES += ("max_length",)
REQUIRED = ("vocab_size", "width", "num_layers", "num_heads", "max_length")
BESIDE = ("lora", "freeze", "family", "checkpoint")  # settings that are none of the family's
# Keys of mixtures of experts, which a decoder has not.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS += ("moe_intermediate_size",)


class FamilyError(ValueError):
    """A model and a family do not fit; the message names the tensors or the keys."""


FAMILIES = Registry("model family")
"""Families of language models by name, for the setting ``family`` of the block `decoder`."""
_TABLES = "perception_blocks.blocks.family_tables"
FAMILIES.register_all(
    _TABLES,
    {"gpt2": "GPT2", "llama": "LLAMA", "codellama": "LLAMA", "deepseek": "LLAMA"}
    | {"qwen2": "QWEN2", "mistral": "MISTRAL", "gemma": "GEMMA"},
)


class HfValues(dict[str, Any]):
    """The keys of a configuration of Hugging Face's; one that is missing is a FamilyError."""

    def __missing__(self, key: str) -> Any:
        raise FamilyError(f"its config.json has no {key!r}")


class _Told(dict[str, Any]):
    """Settings of a decoder; those that were not told are None."""

    def __missing__(self, key: str) -> None:
        return None


@dataclass(frozen=True)
class Family:
    """A family of language models: what `register_family` was given.

    ``hf_class`` is a class of transformers for causal language models, or ``"module:Class"``, imported when needed.
    """

    name: str
    hf_class: Any
    settings: Callable[[HfValues], Values]
    config: Callable[[Values], Values]
    table: tuple[Row, ...]
    embedding: Callable[[int], Sequence[str]] | None = None
    block: Callable[[int], Sequence[str]] | None = None
    head: Callable[[int], Sequence[str]] | None = None

    @cached_property
    def model_class(self) -> Any:
        """The class of transformers. Raises MissingExtraError without that library."""
        if not isinstance(self.hf_class, str):
            return self.hf_class
        module, _, name = self.hf_class.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise missing_extra(f"family {self.name!r}", error, "llm") from error

    @property
    def model_type(self) -> str:
        """What its config.json says."""
        known = None if isinstance(self.hf_class, str) else self.hf_class.config_class.model_type
        return known or self.name

    @property
    def class_name(self) -> str:
        """The name of the class of transformers."""
        name = self.hf_class if isinstance(self.hf_class, str) else self.hf_class.__name__
        return name.rpartition(":")[2]

    @property
    def critic_class_name(self) -> str:
        """The name of the class of transformers that has a critic's head."""
        name = self.class_name
        for end in ("ForCausalLM", "LMHeadModel"):
            name = name.removesuffix(end)
        return f"{name}ForSequenceClassification"

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a decoder for the configuration ``values``.

        Raises FamilyError for one that a decoder cannot have.
        """
        refuse_experts(values)
        settings = dict(self._called("settings", self.settings, HfValues(values)))
        lost = [name for name in REQUIRED if settings.get(name) is None]
        if lost:
            raise FamilyError(f"'settings' of the family {self.name!r} have no {listing(lost)}")
        window, places = settings.get("sliding_window"), settings.get("max_length")
        if isinstance(window, int) and isinstance(places, int) and window >= places:
            settings["sliding_window"] = None  # all tokens are seen
        problems = check_settings(BLOCKS.get("decoder"), settings, "block 'decoder'", partial=True)
        if problems:
            raise FamilyError("; ".join(problem.message for problem in problems))
        sizes = with_sizes(settings)
        return {**_defaults(), **settings, **{name: sizes[name] for name in SIZES}}

    def write(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of Hugging Face's configuration for ``settings``. Raises FamilyError where there are none."""
        values = self._called("config", self.config, _Told(with_sizes(settings)))
        return {key: value for key, value in values.items() if value is not None}

    def _called(self, what: str, function: Callable[[Any], Values], given: Any) -> Values:
        try:
            result = function(given)
        except FamilyError:
            raise
        except Exception as error:
            reason = cut(f"{type(error).__name__}: {error}", 200)
            raise FamilyError(f"{what!r} of the family {self.name!r} failed: {reason}") from error
        if not isinstance(result, Mapping):
            raise FamilyError(
                f"{what!r} of the family {self.name!r} must return a mapping, got {describe(result)}"
            )
        return result

    # --- names of parts ---

    def embedding_names(self, layers: int) -> list[str]:
        """The names of the tensors before the layers, of which there are ``layers``."""
        return self._part(self.embedding, layers, lambda ours: ours.startswith("embed_"))

    def block_names(self, index: int) -> list[str]:
        """The names of the tensors of layer ``index``."""
        if self.block is not None:
            return list(self.block(index))
        return [t.format(index) for t, ours, _ in self.table if names_of(ours) and "{}" in t]

    def head_names(self, layers: int) -> list[str]:
        """The names of the tensors after the layers, of which there are ``layers``."""
        return self._part(self.head, layers, lambda ours: not ours.startswith("embed_"))

    def _part(
        self,
        given: Callable[[int], Sequence[str]] | None,
        layers: int,
        belongs: Callable[[str], bool],
    ) -> list[str]:
        if given is not None:
            return list(given(layers))
        outside = [(t, names_of(o)) for t, o, _ in self.table if "{}" not in t]
        return [theirs for theirs, ours in outside if ours and belongs(ours[0])]

    @property
    def prefix(self) -> str:
        """What the names of a body's tensors begin with, and what a file of the body alone leaves out."""
        begins = {t.partition(".")[0] for t, ours, _ in self.table if HEAD not in names_of(ours)}
        return f"{begins.pop()}." if len(begins) == 1 else ""


def names_of(ours: str | Sequence[str]) -> tuple[str, ...]:
    return (ours,) if isinstance(ours, str) else tuple(ours)


def family_of(values: Mapping[str, Any], preferred: str | None = None) -> Family:
    """The family of a configuration: of several for one type of model the ``preferred``, or else the first.

    Raises FamilyError for a type of model that none has.
    """
    refuse_experts(values)
    stated = values.get("model_type")
    for name in sorted(FAMILIES, key=lambda name: name != preferred):
        family = FAMILIES.get(name)
        if stated == family.model_type:
            return family
    others = f"; there is {listing(FAMILIES)}; register_family adds others"
    near = did_you_mean(str(stated), FAMILIES) or others
    raise FamilyError(f"its model type is {stated!r}" + near)


def refuse_experts(values: Mapping[str, Any]) -> None:
    """Raise FamilyError for a mixture of experts."""
    stated = str(values.get("model_type"))
    keys = [key for key in EXPERTS if values.get(key)]
    if keys or "moe" in stated.lower() or stated == "mixtral":
        said = f"{keys[0]!r} is {values[keys[0]]!r}" if keys else f"its model type is {stated!r}"
        raise FamilyError(f"it is a mixture of experts ({said}), which a decoder is not")


# --- settings ---------------------------------------------------------------------------------------------------------


def complete_settings(family: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a decoder of the ``family``: those ``given``, and what follows from the family.

    ``tied_head`` is what the family does, unless it is given. Raises SettingsError for an unknown family, and for
    settings that its models cannot have.

    >>> settings = complete_settings("gemma", {"width": 64})
    >>> settings["norm"], settings["embed_scale"]
    ('rms_plus_one', 8.0)
    """
    if family not in FAMILIES:
        message = f"'family' names the unknown model family {family!r}" + FAMILIES.hint(family)
        raise SettingsError([SettingProblem("family", message)])
    entry: Family = FAMILIES.get(family)
    problems = check_settings(BLOCKS.get("decoder"), given, "block 'decoder'", partial=True)
    if problems:
        raise SettingsError(problems)
    told = {key: value for key, value in given.items() if key not in BESIDE}
    try:
        full = entry.read(entry.write(told))
    except FamilyError as error:
        message = f"a model of the family {family!r} cannot have these settings: {error}"
        raise SettingsError([SettingProblem("family", message)]) from error
    problems = [
        SettingProblem(
            name,
            f"{name!r} of the family {family!r} is {_shown(full[name])}, got {_shown(value)}; leave out {name!r}",
        )
        for name, value in told.items()
        if value is not None and full[name] != value and name != "vocab_size"
    ]
    if problems:
        raise SettingsError(problems)
    beside = {key: given[key] for key in given if key in BESIDE}
    full["vocab_size"] = told.get("vocab_size")
    if full["head_dim"] % 2 or full["head_dim"] * full["num_heads"] != full["width"]:
        full["head_dim"] = told.get("head_dim")  # the decoder says what is wrong with the others
    return {**full, **beside}


def _defaults() -> dict[str, Any]:
    """Of all settings of a decoder that may follow from its family."""
    known, _ = settings_of(BLOCKS.get("decoder"))
    return {name: setting.default for name, setting in known.items() if name not in BESIDE}


def with_sizes(told: Mapping[str, Any]) -> dict[str, Any]:
    """``told``, with the sizes of a decoder that were not told."""
    defaults = _defaults()
    sizes = {name: defaults[name] for name in SIZES}
    full = {**sizes, **{name: value for name, value in told.items() if value is not None}}
    full["vocab_size"] = largest(full["vocab_size"] or 1)
    full["num_kv_heads"] = full["num_kv_heads"] or full["num_heads"]
    full["head_dim"] = full["head_dim"] or max(1, full["width"] // full["num_heads"])
    full["mlp_units"] = full["mlp_units"] or 4 * full["width"]
    return full


def largest(vocab_size: int | Sequence[int]) -> int:
    """The number of tokens, of which a list has one for each element of the input."""
    return max(vocab_size) if isinstance(vocab_size, Sequence) else int(vocab_size)


def told_settings(family: Family, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``settings`` that have to be told beside the ``family``: sizes, and what is not its default."""
    sizes = {name: settings[name] for name in SIZES if name in settings}
    default = complete_settings(family.name, sizes)
    different = {k: v for k, v in settings.items() if k not in sizes and default.get(k) != v}
    return {"family": family.name, **sizes, **different}


def _shown(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)
