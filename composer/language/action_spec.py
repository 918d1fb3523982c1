"""The key `model` against what there is: its folder or configuration, statistics and spaces; all problems at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils import import_utils

from composer.errors import Problems
from composer.language.action_bins import ActionBins, StatisticsError
from composer.language.action_files import HEAD, read_adapters
from composer.language.action_plan import ActionPlan, lora_of
from composer.language.hf import (
    VALUE_HEAD_FILE,
    HfFolder,
    HfModel,
    config_problems,
    make_config,
    model_type_of,
)
from composer.language.processors import processor_from, processor_of_files
from composer.limits import how_to_raise
from composer.source.load import Source
from composer.spec.action_model import ActionModelSpec, LoraSpec
from perception_blocks.blocks.lora import freeze, inject
from perception_blocks.port import format_shape
from perception_blocks.settings import SettingsError
from perception_blocks.words import describe, did_you_mean, listing

__all__ = ["plan_action_model", "size_in"]

Spaces = tuple[Any, Any]  # of observations and actions; None where they are not known
_FLASH: dict[str, Callable[[], bool]] = {
    "flash_attention_2": import_utils.is_flash_attn_2_available,
    "flash_attention_3": import_utils.is_flash_attn_3_available,
}


def plan_action_model(
    spec: ActionModelSpec,
    source: Source,
    spaces: Spaces,
    dtype: torch.dtype,
    seed: int,
    *,
    layers: int,
    processor: Mapping[str, str] | None = None,
) -> ActionPlan:
    """The plan; ``dtype`` is that of weights that are drawn, where the spec has no ``precision``.

    A configuration may have at most ``layers`` layers. ``processor`` has the files of the processor, where a checkpoint
    holds them.

    Raises SpecError with everything that does not fit.
    """
    problems = Problems(source)
    planner = _Planner(spec, problems, source.data["model"])
    entry, folder = planner.entry(), planner.folder()
    problems.raise_if_any()
    config = planner.config(entry, folder)
    problems.raise_if_any()
    chosen = planner.dtype(config, folder, dtype)
    attention = planner.attention(entry, chosen)
    planner.sizes(config)
    planner.layers(config, layers)
    bins = planner.bins(entry, config, folder)
    built_processor = planner.processor(entry, config, folder, processor)
    planner.vocabulary(built_processor, config)
    length = planner.length(bins, config, spaces[1])
    planner.observations(spaces[0])
    problems.raise_if_any()
    assert bins is not None
    assert length is not None
    plan = ActionPlan(
        spec,
        entry,
        folder,
        config,
        attention,
        chosen,
        bins,
        length,
        planner.statistics,
        built_processor,
        seed,
    )
    adapters = planner.architecture(plan)
    problems.raise_if_any()
    return replace(plan, adapters=adapters)


class _Planner:
    """Each method settles one thing, or notes what is wrong with it."""

    def __init__(self, spec: ActionModelSpec, problems: Problems, written: Container[str]) -> None:
        self.spec = spec
        self.problems = problems
        self.written = written  # the keys of the spec
        self.origin = "config" if spec.model_path is None else "model_path"
        self.statistics: dict[str, Any] = {}
        self._chosen = ""  # the statistics that are used

    def entry(self) -> HfModel:
        try:
            return model_type_of(self.spec.model_type)
        except ValueError as error:
            self._note("model_type", str(error))
        return None  # type: ignore[return-value]  # which is raised

    def folder(self) -> HfFolder | None:
        if self.spec.model_path is None:
            return None
        try:
            return HfFolder(self.spec.model_path)
        except SettingsError as error:
            self._note_all(error)
        return None

    def config(self, entry: HfModel, folder: HfFolder | None) -> Any:
        values = self.spec.config or {}
        try:
            if folder is not None:
                values = folder.values(self.spec.model_type)
            else:
                for path, message in config_problems(entry.config, values):
                    self.problems.add((*self.spec.path, "config", *path), message, key=True)
                if len(self.problems):
                    return None
            return make_config(entry.config, values)
        except SettingsError as error:
            self._note_all(error)
        except ValueError as error:
            self._note(self.origin, str(error))
        return None

    def dtype(self, config: Any, folder: HfFolder | None, dtype: torch.dtype) -> torch.dtype:
        word = self.spec.precision
        if word is None and folder is not None:
            stated = getattr(config, "dtype", None)
            return stated if isinstance(stated, torch.dtype) else torch.float32
        return dtype if word is None else getattr(torch, word)

    def attention(self, entry: HfModel, dtype: torch.dtype) -> str:
        word, cls = self.spec.attention, entry.model
        halves = dtype in (torch.bfloat16, torch.float16)
        supported = {
            "sdpa": getattr(cls, "_supports_sdpa", False),
            "flex_attention": getattr(cls, "_supports_flex_attn", False),
            **dict.fromkeys(_FLASH, getattr(cls, "_supports_flash_attn", False)),
        }
        if word == "auto":
            flash = supported["flash_attention_2"] and halves and _FLASH["flash_attention_2"]()
            return "flash_attention_2" if flash else "sdpa" if supported["sdpa"] else "eager"
        why = ""
        if not supported.get(word, True):
            why = f"the model type {self.spec.model_type!r} does not support it"
        elif word in _FLASH and not _FLASH[word]():
            why = "it needs the package 'flash_attn' and a GPU"
        elif word in _FLASH and not halves:
            why = f"it needs the precision bf16 or fp16, and this is {str(dtype).removeprefix('torch.')}"
        if why:
            message = f"'attn_implementation: {word}' cannot run here: {why}; write auto"
            self._note("attn_implementation", message)
        return word

    def sizes(self, config: Any) -> None:
        """Notes each size of RLinf's keys that is not that of the configuration."""
        for key, given in self.spec.sizes.items():
            actual = size_in(config, key)
            if actual is None:
                self._note(key, f"{key!r} is not in the configuration; leave it out")
            elif _as_pair(given) != _as_pair(actual):
                message = f"{key!r} is {given}, the configuration of the model has {actual}"
                self._note(key, message)

    def layers(self, config: Any, most: int) -> None:
        """Notes more layers than the limit allows, in the configuration or in those of its parts."""
        for part in (config, *vars(config).values()):
            count = getattr(part, "num_hidden_layers", None)
            if isinstance(part, PretrainedConfig) and type(count) is int and count > most:
                text = f"'num_hidden_layers' is {count}, but the limit of layers is {most:,}"
                self._note(self.origin, f"{text}; {how_to_raise('layers', count)}")

    def bins(self, entry: HfModel, config: Any, folder: HfFolder | None) -> ActionBins | None:
        statistics = getattr(config, "norm_stats", None) or {}
        if not isinstance(statistics, Mapping):
            self._note_config("norm_stats", "statistics by name", statistics)
            return None
        beside: dict[str, Any] = {}
        if folder is not None and not self._try(lambda: beside.update(folder.statistics())):
            return None
        self.statistics = statistics = {**statistics, **beside}
        chosen = self._statistics(statistics)
        text = config.get_text_config()
        sizes = {
            "vocab_size": getattr(text, "vocab_size", None),
            "hidden_size": getattr(text, "hidden_size", None),
            "pad_to_multiple_of": getattr(config, "pad_to_multiple_of", None) or 0,
            "n_action_bins": getattr(config, "n_action_bins", 256),
        }
        wrong = {key: value for key, value in sizes.items() if type(value) is not int}
        for key, value in wrong.items():
            self._note_config(key, "a whole number", value)
        if chosen is None or wrong:
            return None
        vocabulary = sizes["vocab_size"] - sizes["pad_to_multiple_of"]
        try:
            return entry.bins(chosen, sizes["n_action_bins"], vocabulary)
        except StatisticsError as error:
            self._note(self._key_or_origin("unnorm_key"), f"of {self._chosen!r}: {error}")
        return None

    def _note_config(self, key: str, needed: str, value: object) -> None:
        message = f"{key!r} of the configuration must be {needed}, got {describe(value)}"
        self._note(self.origin, message)

    def _statistics(self, statistics: dict[str, Any]) -> dict[str, Any] | None:
        """Those of the action under ``unnorm_key``; OpenVLA has them beside those of other things."""
        name = self.spec.unnorm_key
        if not statistics:
            message = "there are no statistics of actions: 'norm_stats' of the configuration, or the file "
            self._note(
                self.origin, f"{message}'dataset_statistics.json' of the folder, must have them"
            )
            return None
        if name is None and len(statistics) > 1:
            message = f"'model' needs an 'unnorm_key', one of {listing(statistics)}"
            self.problems.add(self.spec.path, message)
            return None
        name = next(iter(statistics)) if name is None else name
        if name not in statistics:
            near = did_you_mean(name, statistics) or f"; there is {listing(statistics)}"
            self._note("unnorm_key", f"there are no statistics of {name!r}{near}")
            return None
        self._chosen = name
        chosen = statistics[name]
        chosen = chosen.get("action", chosen) if isinstance(chosen, dict) else None
        if not isinstance(chosen, dict):
            self._note(self.origin, f"the statistics of {name!r} must be a mapping")
            return None
        return chosen

    def processor(
        self,
        entry: HfModel,
        config: Any,
        folder: HfFolder | None,
        files: Mapping[str, str] | None,
    ) -> Any:
        try:
            if files:
                return processor_of_files(entry, files, config)
            return processor_from(entry, folder and folder.place, config)
        except ValueError as error:
            self._note(self.origin, str(error))
        return None

    def vocabulary(self, processor: Any, config: Any) -> None:
        """A tokenizer may know fewer tokens than the model, never more."""
        tokenizer, size = getattr(processor, "tokenizer", None), config.get_text_config().vocab_size
        if tokenizer is None or type(size) is not int:
            return
        count = len(tokenizer)
        highest = max(getattr(tokenizer, "get_vocab", dict)().values(), default=0)
        if count > size or highest >= size:
            has = f"{count} tokens" if count > size else f"a token {highest}"
            message = f"the tokenizer has {has}, 'vocab_size' of the configuration is {size}"
            self._note(self.origin, message)

    def length(self, bins: ActionBins | None, config: Any, space: Any) -> int | None:
        """How many tokens an action has, as the spec, its statistics and the space say."""
        if bins is None:
            return None
        chunks, given = self.spec.action_chunks_len, self.spec.action_token_len
        needed = bins.size * chunks
        made_of = f"{bins.size} numbers" + (f" times {chunks} chunks" if chunks > 1 else "")
        if given is not None and given != needed:
            message = (
                f"'action_token_len' is {given}, an action has {made_of} by the statistics of "
            )
            self._note("action_token_len", f"{message}{self._chosen!r}: it must be {needed}")
        places = getattr(config.get_text_config(), "max_position_embeddings", needed)
        if isinstance(places, int) and needed > places:
            message = f"an action has {needed} tokens by the statistics of {self._chosen!r}, "
            message += f"'max_position_embeddings' of the configuration is {places}"
            self._note(self.origin, message)
        if space is not None:
            self._action_space(space, bins.size)
        return needed

    def _action_space(self, space: Any, size: int) -> None:
        key = self._key_or_origin("action_token_len")
        if not isinstance(space, gymnasium.spaces.Box):
            kind = type(space).__name__
            self._note(key, f"an action model acts in a Box, and the action space is a {kind}")
        elif math.prod(space.shape) != size:
            message = (
                f"the statistics of {self._chosen!r} have {size} numbers, an action of the space "
            )
            self._note(key, f"{message}has {math.prod(space.shape)}")

    def observations(self, space: Any) -> None:
        if space is None:
            return
        if not isinstance(space, gymnasium.spaces.Dict):
            message = (
                f"'inputs' name observations of a Dict, and the space is a {type(space).__name__}"
            )
            self._note(self._key_or_origin("inputs"), message)
            return
        for kind, name in self.spec.inputs.items():
            if name not in space.spaces:
                near = did_you_mean(name, space.spaces) or f"; there is {listing(space.spaces)}"
                message = f"there is no observation {name!r} for the {kind}{near}"
                path = (*self.spec.path, "inputs", kind)
                self.problems.add(path if "inputs" in self.written else self.spec.path, message)

    def architecture(self, plan: ActionPlan) -> dict[str, Tensor]:
        """The adapters to begin with. Notes weights that do not fit, and targets and frozen parts that nothing has."""
        try:
            model = plan.plain("meta", torch.float32)
        except Exception as error:  # whatever its class says of values that only it knows
            name, reason = self.spec.model_type, str(error).strip().partition("\n")[0]
            self._note(self.origin, f"{name!r} cannot be built: {type(error).__name__}: {reason}")
            return {}
        empty = [name for name, weight in model.named_parameters() if not weight.numel()]
        if empty:
            shape = format_shape(model.get_parameter(empty[0]).shape)
            message = f"{self.spec.model_type!r} cannot be built: its {empty[0]} is {shape}, without any number"
            self._note(self.origin, message)
            return {}
        lora, frozen = plan.spec.lora, plan.spec.freeze
        head = self._head(plan)
        if plan.folder is not None:
            self._try(partial(plan.folder.check_whole, model))
            self._folders_head(head, plan.folder)
        self._try(partial(freeze, model, frozen))
        if lora is None or not self._try(partial(inject, model, lora_of(lora), frozen)):
            return {}
        return {} if lora.weights is None else self._adapters(lora, lora.weights, model, head)

    def _head(self, plan: ActionPlan) -> nn.Module | None:
        try:
            return plan.value_head("meta")
        except (TypeError, RuntimeError):  # of numbers that torch has no bits for
            message = "'hidden_units' has numbers that no tensor can have; choose smaller ones"
            self._note("value_head.hidden_units", message)
        return None

    def _adapters(
        self, lora: LoraSpec, path: str, model: nn.Module, value_head: nn.Module | None
    ) -> dict[str, Tensor]:
        key = "lora_path" if lora.key == "is_lora" else "lora.path"
        try:
            adapters = read_adapters(path, model, lora.alpha or lora.rank)
        except ValueError as error:
            self._note(key, str(error))
            return {}
        head = {n.removeprefix(HEAD): t for n, t in adapters.items() if n.startswith(HEAD)}
        self._check_head(
            value_head, head, key, f"the value head in {path!r}", "or write value_head: false"
        )
        return adapters

    def _folders_head(self, head: nn.Module | None, folder: HfFolder) -> None:
        """Notes a value head in the folder that is another one than the spec asks for."""
        stored: dict[str, Tensor] = {}
        self._try(lambda: stored.update(folder.value_head()))
        key, other = self._key_or_origin("value_head"), f"or remove {VALUE_HEAD_FILE!r}"
        self._check_head(head, stored, key, "the folder's value head", other)

    def _check_head(
        self, head: nn.Module | None, stored: Mapping[str, Tensor], key: str, what: str, other: str
    ) -> None:
        """Notes ``what`` is ``stored`` where it is no value head as the spec asks for; ``other`` is a way out."""
        if head is None or not stored:
            return
        assert self.spec.value_head is not None
        needed = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
        has = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        units = [shape[0] for shape in has.values() if len(shape) == 2][:-1]
        asked = list(self.spec.value_head.hidden_units)
        whole = [name for name, tensor in stored.items() if not tensor.is_floating_point()]
        if units != asked:
            place = " in the place of add_value_head" if "add_value_head" in self.written else ""
            message = f"{what} has hidden_units {units}, the spec asks for {asked}; write "
            self._note(key, f"{message}value_head: {{hidden_units: {units}}}{place}, {other}")
        elif has != needed or whole:
            odd = whole or sorted(dict(has.items() ^ needed.items()))
            way_out = other.removeprefix("or ")
            self._note(key, f"{what} has other weights than this one, such as {odd[0]}; {way_out}")

    def _try(self, check: Callable[[], object]) -> bool:
        try:
            check()
        except SettingsError as error:
            self._note_all(error)
            return False
        return True

    # --- problems ---

    def _note(self, key: str, message: str) -> None:
        self.problems.add((*self.spec.path, *key.split(".")), message)

    def _note_all(self, error: SettingsError) -> None:
        for problem in error.problems:
            key = problem.setting
            if key == "lora" and self.spec.lora is not None:
                key = self.spec.lora.key + (".targets" if self.spec.lora.targets else "")
            advice = " under 'lora', in the place of 'is_lora'" if key == "is_lora" else ""
            self._note(key, f"{problem.message}{advice}")

    def _key_or_origin(self, key: str) -> str:
        return key if key in self.written else self.origin


def size_in(config: Any, key: str) -> Any:
    parts = [config.get_text_config()] if key != "image_size" else []
    parts += [config, getattr(config, "vision_config", None)]
    for part in parts:
        for name in (key, f"{key}s"):
            value = getattr(part, name, None)
            if value is not None:
                return value
    return None


def _as_pair(size: Any) -> Any:
    if isinstance(size, list | tuple):
        return tuple(size) if len(size) == 2 else size
    return (size, size)
