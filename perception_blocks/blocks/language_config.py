"""Bodies of Hugging Face's transformers: their configurations, checked, and their weights in a folder.

The library takes an unknown key, a layer count of -1 or a checkpoint of which half is missing without a word; here all
of that is an error. Nothing is downloaded, and no code or pickle of a checkpoint is ever read.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from safetensors import safe_open
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.activations import ACT2FN

from perception_blocks.blocks.model_folder import ModelFolder, misfits, reason_of
from perception_blocks.port import format_shape
from perception_blocks.settings import (
    LayerCount,
    PositiveInt,
    Probability,
    SettingProblem,
    SettingsError,
    mismatch,
)
from perception_blocks.words import did_you_mean, hint

__all__ = ["FAMILIES", "Family", "Folder", "checked_config", "settings_of"]


class Family(NamedTuple):
    """The library's classes for one kind of body."""

    config: Any  # a class derived from PretrainedConfig
    model: type[PreTrainedModel]


# All of them are causal: what stands after a token changes nothing of its features.
FAMILIES = {
    "gpt2": Family(GPT2Config, GPT2Model),
    "llama": Family(LlamaConfig, LlamaModel),
    "mamba": Family(MambaConfig, MambaModel),
}
NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_OLD_KEYS = ("rope_theta", "rope_scaling")  # which files of earlier versions have
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


def checked_config(
    family: str, settings: Mapping[str, object], vocab_size: int | None
) -> PretrainedConfig:
    """The library's configuration. Raises SettingsError with every setting that ``family`` does not take."""
    cls = FAMILIES[family].config
    problems = list(_problems(family, settings))
    if problems:
        raise SettingsError(problems)
    given = dict(settings) if vocab_size is None else {**settings, "vocab_size": vocab_size}
    try:
        return cls(**given, **NO_TOKENS)
    except Exception as error:  # StrictDataclassError is an Exception and nothing more
        raise refusal(family, settings, error) from error


def settings_of(config: PretrainedConfig) -> dict[str, object]:
    """The settings that make this configuration again, without most of those that are their family's defaults."""
    cls = type(config)
    names = [name for name in inspect.get_annotations(cls) if name not in WITHHELD]
    given = {name: getattr(config, name) for name in names}
    settings = {"vocab_size": given["vocab_size"]}
    for _ in range(2):  # a default may follow from another setting, once that is given
        base = cls(**settings, **NO_TOKENS)
        settings |= {name: value for name, value in given.items() if getattr(base, name) != value}
    return settings


def refusal(family: str, settings: Mapping[str, object], error: Exception) -> ValueError:
    """What the library says of values that only it knows, as an error of the user's."""
    shown = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return ValueError(
        f"family {family!r} cannot be built with {shown or 'its defaults'}: {reason_of(error)}"
    )


def _problems(family: str, settings: Mapping[str, object]) -> Iterator[SettingProblem]:
    """Unknown, withheld and doubled keys, and numbers that no body can have."""
    cls = FAMILIES[family].config
    label = f"block 'transformer' of the family {family!r}"
    annotations = inspect.get_annotations(cls, eval_str=True)
    aliases = {alias: name for alias, name in cls.attribute_map.items() if name in annotations}
    known = {name: kind for name, kind in annotations.items() if name not in WITHHELD}
    for name, value in settings.items():
        if name in WITHHELD and name in annotations:
            message = f"{name!r} cannot be set: {WITHHELD[name]}"
            yield SettingProblem(name, message, misspelt=True)
        elif aliases.get(name, name) not in known:
            near = hint(name, [*known, *aliases], "it has", listed=known)
            message = f"{name!r} is not a setting of {label}{near}"
            yield SettingProblem(name, message, misspelt=True)
        elif name in aliases and aliases[name] in settings:
            other = aliases[name]
            yield SettingProblem(name, f"{name!r} and {other!r} are the same; give one of them")
        elif wrong := _wrong_value(name, known[aliases.get(name, name)], value):
            yield SettingProblem(name, f"{name!r} {wrong}")


def _wrong_value(name: str, annotation: object, value: object) -> str | None:
    """What the library would not notice until it runs, or never, and plain types in our own words."""
    kinds = get_args(annotation) or (annotation,)
    if set(kinds) <= {int, float, str, bool, type(None)} and (wrong := mismatch(annotation, value)):
        return wrong
    if name.endswith(("pdrop", "dropout")):
        return mismatch(Probability, value)
    if name in ("activation_function", "hidden_act") and value not in ACT2FN:
        near = did_you_mean(str(value), ACT2FN)
        return f"names the unknown activation {value!r} of transformers{near}"
    if name in ("n_layer", "num_hidden_layers"):
        return mismatch(LayerCount, value)
    counts = int in kinds and float not in kinds and isinstance(value, int)
    return mismatch(PositiveInt, value) if counts else None


class Folder(ModelFolder):
    """The folder of a body of transformers."""

    def family(self, expected: str | None) -> str:
        """Which family it is of. Raises SettingsError for one that is unknown or not the ``expected`` one."""
        family = self._values.get("model_type")
        if family not in FAMILIES:
            names = ", ".join(map(repr, FAMILIES))
            raise self._wrong(f"{self.path!r} is of the family {family!r}; there is {names}")
        if expected not in (None, family):
            raise self._wrong(f"{self.path!r} is of the family {family!r}, not {expected!r}")
        return family

    def config(self, family: str) -> PretrainedConfig:
        """The library's configuration that the folder holds.

        Keys that say nothing of the body itself are left out: some name code that the library would download and run.
        """
        cls = FAMILIES[family].config
        known = {*inspect.get_annotations(cls), *cls.attribute_map, *_OLD_KEYS}
        values = {key: value for key, value in self._values.items() if key in known}
        try:
            return cls.from_dict({**values, **NO_TOKENS})
        except Exception as error:
            raise self._wrong(f"{self.path!r} {refusal(family, {}, error)}") from error

    def check(self, body: PreTrainedModel) -> None:
        """Raise SettingsError with every tensor of ``body`` that is not in the files, or has another shape there."""
        lost = []
        places = self._places(body)
        for name, tensor in body.state_dict().items():
            if name not in places:
                lost.append(f"{name} {format_shape(tensor.shape)} is missing")
                continue
            file, stored = places[name]
            with safe_open(file, framework="pt") as opened:
                lost += misfits(name, opened.get_slice(stored), tensor)
        if lost:
            raise self._wrong(f"{self.path!r} does not hold its body: {'; '.join(lost)}")

    def tensors(self, body: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """The weights of ``body`` by its own names."""
        for name, (file, stored) in self._places(body).items():
            with safe_open(file, framework="pt") as opened:
                yield name, opened.get_tensor(stored)

    def _places(self, body: PreTrainedModel) -> dict[str, tuple[Path, str]]:
        """By a tensor's name in ``body``: its file, and its name there, which has a prefix in a head's checkpoint."""
        self.stored_shapes()  # raises where two files hold one tensor
        names, prefix = set(body.state_dict()), f"{body.base_model_prefix}."
        places = {}
        for file in self.files:
            for name in self._names_in(file):
                if name.removeprefix(prefix) in names:
                    places[name.removeprefix(prefix)] = (file, name)
        return places
