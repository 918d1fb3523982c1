"""The key `models` of an experiment -> a ModelEntry for each model, and whether two of them have one shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from composer.dataflow.algorithms.optimization import OptimizerSettings
from composer.dataflow.calls.experiment import ModelEntry, Settings
from composer.errors import Path, Problems
from composer.spec.fields import Fields
from composer.spec.parallel import read_parallel
from perception_blocks.blocks.decoder import DecoderBlock
from perception_blocks.blocks.families import FAMILIES
from perception_blocks.settings import PositiveFloat, Range, check_settings
from perception_blocks.words import hint, listing

__all__ = [
    "MODEL_KEYS",
    "name_problem",
    "note_settings",
    "read_models",
    "roots_of",
    "shape_difference",
]

ORIGINS = ("decoder", "checkpoint", "spec", "model_type", "like")
MODEL_KEYS = (*ORIGINS, "is_critic", "init_critic_from_actor", "vocabulary", "max_length", "lr")
MODEL_KEYS += ("optimizer", "parallel")
LONGEST_NAME = 100
MOST_SHOWN = 12  # models of a circle
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def name_problem(what: str, name: str) -> str | None:
    """Why ``what`` may not be called ``name``, which files, workers and pictures have too; None if it may.

    >>> name_problem("a model", "reward-2"), name_problem("a model", "a/b")
    (None, "the name 'a/b' of a model must start with a letter or '_' and hold letters, digits, '_' and '-' only")
    """
    if len(name) > LONGEST_NAME:
        return f"the name {name!r} of {what} has {len(name)} characters; it may have {LONGEST_NAME}"
    if _NAME.fullmatch(name):
        return None
    rule = "must start with a letter or '_' and hold letters, digits, '_' and '-' only"
    return f"the name {name!r} of {what} {rule}"


def note_settings(
    fields: Fields, takes: type, label: str, *, skip: int = 0, partial: bool = False
) -> None:
    """Note each of the ``fields`` that ``takes`` cannot be given, and what it needs in vain unless ``partial``."""
    for problem in check_settings(takes, fields.values, label, partial=partial, skip=skip):
        if problem.setting in fields:
            fields.note(problem.setting, problem.message, on_key=problem.misspelt)
        else:
            fields.problems.add(fields.path, problem.message)


def read_models(values: Mapping[str, object], problems: Problems) -> dict[str, ModelEntry]:
    """The models by name; what is wrong with one is noted, and the model is there all the same."""
    entries = {name: _read_model(name, values, problems) for name in values}
    for entry in entries.values():
        circle = _circle(entry, entries)
        if circle and entry.name == min(circle):  # once for each circle
            names = [repr(name) for name in [*circle, circle[0]]]
            if len(names) > MOST_SHOWN:
                names[4:-3] = ["..."]
            shown = " -> ".join(names)
            way_out = "say of one where it comes from"
            problems.add(
                (*entry.path, "like"),
                f"the models are like each other in a circle: {shown}; {way_out}",
            )
    return entries


def _circle(entry: ModelEntry, entries: Mapping[str, ModelEntry]) -> list[str]:
    """The names of the models in a circle of `like` that begins with ``entry``; empty where it is in none."""
    names, name = {entry.name: None}, entry.like
    while name is not None and name in entries and name not in names:
        names[name] = None
        name = entries[name].like
    return [*names] if name == entry.name and entry.like != entry.name else []


class _Limits:
    """What the numbers of a model may be."""

    def __init__(
        self, *, max_length: Annotated[int, Range(low=2)] | None = None, lr: PositiveFloat = 1.0
    ) -> None: ...


def _read_model(name: str, values: Mapping[str, object], problems: Problems) -> ModelEntry:
    path: Path = ("models", name)
    if problem := name_problem("a model", name):
        problems.add(path, problem, key=True)
    value = values[name]
    if not isinstance(value, dict):
        example = "{decoder: {width: 64}, vocabulary: tokens.txt}"
        Fields(values, ("models",), problems).wrong(name, f"a mapping such as {example}")
        return ModelEntry(name, path, {})
    fields = Fields(value, path, problems)
    meant = fields.unknown(MODEL_KEYS, "a model")
    origin = _origin(fields, name, meant)
    numbers = {key: fields.values[key] for key in ("max_length", "lr") if key in fields}
    note_settings(Fields(numbers, path, problems), _Limits, "a model")
    max_length = fields.values.get("max_length")
    entry = ModelEntry(
        name=name,
        path=path,
        origin=origin,
        like=_like(fields, name, values),
        is_critic=fields.boolean("is_critic"),
        init_critic_from_actor=fields.boolean("init_critic_from_actor"),
        vocabulary=fields.text("vocabulary"),
        max_length=max_length if isinstance(max_length, int) else None,
        optimizer=_optimizer(fields),
        parallel=read_parallel(fields),
    )
    if entry.init_critic_from_actor and not entry.is_critic and "is_critic" not in meant:
        message = "'init_critic_from_actor' is for a critic; write is_critic: true beside it"
        fields.note("init_critic_from_actor", message, on_key=True)
    return entry


def _origin(fields: Fields, name: str, meant: set[str]) -> Settings:
    """Where the weights and the form come from, under its key; `like` is no origin of its own."""
    given = [key for key in ORIGINS if fields.values.get(key) is not None]
    if len(given) > 1:
        message = f"the model {name!r} has {listing(given)}; keep one of them"
        fields.note(given[1], message, on_key=True)
    elif not given and not meant & {*ORIGINS}:
        message = f"the model {name!r} does not say where it comes from; give it one of {listing(ORIGINS)}"
        fields.problems.add(fields.path, message)
    if "decoder" in given:
        _check_decoder(fields)
    if "checkpoint" in given:
        fields.text("checkpoint")
    for key in ("spec", "model_type"):
        if key in given and not isinstance(fields.values[key], str | dict):
            fields.wrong(key, "a text or a mapping")
    return {key: fields.values[key] for key in given if key != "like"}


def _check_decoder(fields: Fields) -> None:
    settings = fields.values["decoder"]
    if not isinstance(settings, dict):
        fields.wrong("decoder", "a mapping of the settings of the block 'decoder'")
        return
    inner = Fields(settings, fields.at("decoder"), fields.problems)
    note_settings(inner, DecoderBlock, "block 'decoder'", skip=1, partial=True)
    family = inner.values.get("family")
    if isinstance(family, str) and family not in FAMILIES:
        inner.note("family", f"unknown model family {family!r}{FAMILIES.hint(family)}")


def _like(fields: Fields, name: str, models: Mapping[str, object]) -> str | None:
    if fields.values.get("like") is None:
        return None
    like = fields.text("like")
    if like == name:
        fields.note("like", f"the model {name!r} cannot be like itself")
    elif like is not None and like not in models:
        others = [other for other in models if other != name]
        fields.note("like", f"there is no model {like!r}{hint(like, others)}")
    return like


def _optimizer(fields: Fields) -> Settings | None:
    """What the optimiser takes, its `lr` among it; None for a model that is never trained."""
    given = fields.mapping("optimizer")
    inner = Fields(given, fields.at("optimizer"), fields.problems)
    lr = {"lr": fields.values["lr"]} if fields.values.get("lr") is not None else {}
    if lr and "lr" in given:
        message = "'lr' is given twice, here and in 'optimizer'; keep one of them"
        fields.note("lr", message, on_key=True)
    if given:
        note_settings(inner, OptimizerSettings, "the optimiser", partial=bool(lr))
    return {**given, **lr} or None


def shape_difference(
    first: ModelEntry, second: ModelEntry, roots: Mapping[str, ModelEntry]
) -> str | None:
    """Why the weights of two models are of other shapes, as far as a spec tells; else None. See `roots_of`."""
    if first.is_critic != second.is_critic:
        critic, actor = (first, second) if first.is_critic else (second, first)
        return f"{critic.name!r} is a critic, and {actor.name!r} is none"
    pair = [roots[entry.name] for entry in (first, second)]
    settings = [root.origin.get("decoder") for root in pair]
    if pair[0] is pair[1] or not all(isinstance(given, dict) for given in settings):
        return None
    written = [dict(given) for given in settings if isinstance(given, dict)]
    for key in dict.fromkeys([*written[0], *written[1]]):
        values = [given.get(key, "the default") for given in written]
        if values[0] != values[1] and key in _SHAPES:
            return f"their {key!r} is {values[0]} and {values[1]}"
    if pair[0].vocabulary != pair[1].vocabulary:
        return f"their 'vocabulary' is {pair[0].vocabulary} and {pair[1].vocabulary}"
    return None


_SHAPES = ("family", "vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim")
_SHAPES += ("mlp_units", "gated", "norm", "positions", "qkv_bias", "out_bias", "mlp_bias")


def roots_of(entries: Mapping[str, ModelEntry]) -> dict[str, ModelEntry]:
    """For each model the one that says where it, and all that are like it, come from."""
    return {name: _root(entry, entries) for name, entry in entries.items()}


def _root(entry: ModelEntry, entries: Mapping[str, ModelEntry]) -> ModelEntry:
    """The model that says where it and all that are like it come from."""
    seen = {entry.name}
    while entry.like is not None and entry.like in entries and entry.like not in seen:
        seen.add(entry.like)
        entry = entries[entry.like]
    return entry
