"""Bodies of Hugging Face's transformers: their configurations, checked, and their weights in a folder.

The library takes an unknown key, a layer count of -1 or a checkpoint of which half is missing without a word; here all
of that is an error. Nothing is downloaded, and no code or pickle of a checkpoint is ever read.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args

from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

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

__all__ = ["BodyFolder", "Family", "checked_config", "chosen_family", "refusal", "settings_of"]
__all__ += ["stored_names"]

_LAYERS = ("n_layer", "num_hidden_layers")
_DEPTHS = ("depths",)  # numbers of layers, one for each stage
_MOST_LAYERS = 1_000  # of all stages together
_ACTIVATIONS = ("activation_function", "hidden_act")


class Family(NamedTuple):
    """The library's classes for one kind of body, and how a user may set it.

    ``fixed`` are keys of its configuration that have one value here; ``withheld`` are keys that cannot be set, and why.
    """

    config: Any  # a class derived from PretrainedConfig
    model: type[PreTrainedModel]
    fixed: Mapping[str, Any]
    withheld: Mapping[str, str]
    arguments: Mapping[str, Any] = {}  # of the model's class, beside its configuration


def chosen_family(
    block: str, family: str | None, folder: BodyFolder | None, families: Iterable[str]
) -> str:
    """The name of the family that the settings of a ``block`` say. Raises SettingsError where they say none."""
    if folder is not None:
        return folder.family(family)
    if family is None:
        names = ", ".join(map(repr, families))
        message = f"block {block!r} needs 'family' (one of {names}) or 'checkpoint'"
        raise SettingsError([SettingProblem("family", message)])
    return family


def checked_config(
    label: str, family: Family, settings: Mapping[str, object], given: Mapping[str, object]
) -> PretrainedConfig:
    """The library's configuration; ``given`` is what follows from the inputs.

    Raises SettingsError with every setting that the ``family`` does not take; ``label`` says whose settings they are.
    """
    problems = list(_problems(label, family, settings))
    if problems:
        raise SettingsError(problems)
    try:
        return family.config(**{**given, **settings}, **family.fixed)
    except Exception as error:  # StrictDataclassError is an Exception and nothing more
        raise refusal(family, settings, error) from error


def settings_of(
    family: Family, config: PretrainedConfig, always: Collection[str] = ()
) -> dict[str, object]:
    """The settings that make this configuration again, without most of those that are their family's defaults.

    Those of ``always`` are among them.
    """
    names = [name for name in inspect.get_annotations(family.config) if name not in family.withheld]
    given = {name: getattr(config, name) for name in names}
    settings = {name: given[name] for name in always}
    for _ in range(2):  # a default may follow from another setting, once that is given
        base = family.config(**settings, **family.fixed)
        settings |= {name: value for name, value in given.items() if getattr(base, name) != value}
    return settings


def refusal(family: Family, settings: Mapping[str, object], error: Exception) -> ValueError:
    """What the library says of values that only it knows, as an error of the user's."""
    shown = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return ValueError(
        f"family {family.config.model_type!r} cannot be built with {shown or 'its defaults'}: {reason_of(error)}"
    )


def _problems(
    label: str, family: Family, settings: Mapping[str, object]
) -> Iterator[SettingProblem]:
    """Unknown, withheld and doubled keys, and numbers that no body can have."""
    cls, withheld = family.config, family.withheld
    annotations = inspect.get_annotations(cls, eval_str=True)
    aliases = {alias: name for alias, name in cls.attribute_map.items() if name in annotations}
    known = {name: kind for name, kind in annotations.items() if name not in withheld}
    for name, value in settings.items():
        if name in withheld and name in annotations:
            message = f"{name!r} cannot be set: {withheld[name]}"
            yield SettingProblem(name, message, misspelt=True)
        elif aliases.get(name, name) not in known:
            near = hint(name, [*known, *aliases], "it has", listed=known)
            message = f"{name!r} is not a setting of {label}" + near
            yield SettingProblem(name, message, misspelt=True)
        elif name in aliases and aliases[name] in settings:
            other = aliases[name]
            yield SettingProblem(name, f"{name!r} and {other!r} are the same; give one of them")
        elif wrong := _wrong_value(name, known[aliases.get(name, name)], value):
            yield SettingProblem(name, f"{name!r} " + wrong)


def _wrong_value(name: str, annotation: object, value: object) -> str | None:
    """What the library would not notice until it runs, or never, and plain types in our own words."""
    kinds = get_args(annotation) or (annotation,)
    if set(kinds) <= {int, float, str, bool, type(None)} and (wrong := mismatch(annotation, value)):
        return wrong
    if name.endswith(("pdrop", "dropout", "dropout_prob")):
        return mismatch(Probability, value)
    if name in _ACTIVATIONS and value not in ACT2FN:
        near = did_you_mean(str(value), ACT2FN)
        return f"names the unknown activation {value!r} of transformers" + near
    if wrong := _wrong_layers(name, value):
        return wrong
    counts = int in kinds and float not in kinds and isinstance(value, int)
    return mismatch(PositiveInt, value) if counts else None


def _wrong_layers(name: str, value: object) -> str | None:
    """Numbers of layers so large that the library would fill the memory with lists of them."""
    if name in _LAYERS:
        return mismatch(LayerCount, value)
    if name not in _DEPTHS:
        return None
    if wrong := mismatch(Sequence[LayerCount], value):
        return wrong
    total = sum(value)  # type: ignore[arg-type]
    return (
        f"must be at most {_MOST_LAYERS:,} layers in all, got {total:,}"
        if total > _MOST_LAYERS
        else None
    )


class BodyFolder(ModelFolder):
    """The folder of a body of transformers, of one of the ``families``."""

    families: ClassVar[Mapping[str, Any]]
    old_keys: ClassVar[tuple[str, ...]] = ()  # which files of earlier versions have

    def family(self, expected: str | None) -> str:
        """Which family it is of. Raises SettingsError for one that is unknown or not the ``expected`` one."""
        family = self._values.get("model_type")
        if not isinstance(family, str) or family not in self.families:
            names = ", ".join(map(repr, self.families))
            raise self._wrong(f"{self.path!r} is of the family {family!r}; there is {names}")
        if expected not in (None, family):
            raise self._wrong(f"{self.path!r} is of the family {family!r}, not {expected!r}")
        return family

    def config(self, family: Family) -> PretrainedConfig:
        """The library's configuration that the folder holds.

        Keys that say nothing of the body itself are left out: some name code that the library would download and run.
        """
        cls = family.config
        known = {*inspect.get_annotations(cls), *cls.attribute_map, *self.old_keys}
        values = {key: value for key, value in self._values.items() if key in known}
        for key, value in values.items():
            if wrong := _wrong_layers(key, value):
                raise self._wrong(f"{self._named('config.json')} has {key!r}, which {wrong}")
        try:
            return cls.from_dict({**values, **family.fixed})
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
        """By a tensor's name in ``body``: its file, and its name there."""
        self.stored_shapes()  # raises where two files hold one tensor
        homes = {stored: file for file in self.files for stored in self._names_in(file)}
        return {name: (homes[stored], stored) for name, stored in stored_names(body, homes).items()}


_TOWERS = ("vision_model.",)  # of models of images and texts


def stored_names(body: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """Which of the ``stored`` tensors is which of ``body``'s: its name in the file, by its name in the body.

    A checkpoint with a head has a prefix; names may be those of earlier versions of the library.
    """
    names = set(body.state_dict())
    renamings = [
        rule for rule in get_model_conversion_mapping(body) if isinstance(rule, WeightRenaming)
    ]
    places = {}
    for name in stored:
        for prefix in ("", f"{body.base_model_prefix}.", *_TOWERS):
            inner = name.removeprefix(prefix)
            renamed, _ = rename_source_key(inner, renamings, [])
            target = renamed if renamed in names else inner
            if target in names and name.startswith(prefix):
                places[target] = name
                break
    return places
