"""Where a file has the settings of RLlib's models: ``model``, ``model_config`` or ``DefaultModelConfig(...)``."""

from __future__ import annotations

from dataclasses import dataclass

from composer.errors import Path, SpecError
from composer.importing.document import Document
from composer.importing.imported import Imported, finished
from composer.importing.kinds import Kind
from composer.importing.nodes import OBSERVATION
from composer.importing.python_config import python_arguments
from composer.importing.rllib import fill_in_model
from composer.importing.taken import CLASS, Taken
from composer.source.foreign import foreign_text
from composer.source.values import Located, plain
from perception_blocks.words import did_you_mean, few_of

__all__ = ["RLLIB", "read_rllib"]

_OLD, _NEW = "model", "model_config"  # the keys that hold the settings, of each stack
_KEYS = (_OLD, _NEW, "model_config_dict")
_NEW_CLASS = "DefaultModelConfig"
_OF_BOTH = {"fcnet_hiddens", "fcnet_activation", "conv_filters", "use_lstm", "vf_share_layers"}
_OF_NEW = {"head_fcnet_hiddens", "fcnet_kernel_initializer", "fcnet_use_layernorm"}
_OF_OLD = {"post_fcnet_hiddens", "no_final_linear", "use_attention", "custom_model", "free_log_std"}
_ACTOR_CRITICS = ("PPO", "APPO", "IMPALA", "MARWIL", "BC", "A2C", "A3C", "PG")


@dataclass(frozen=True)
class _Settings:
    """Settings of a ``model``, of the old stack or the new one, in the file ``top``, below the mappings ``around``."""

    top: Taken
    around: tuple[Taken, ...]
    model: Taken
    is_old: bool


def _is_rllib(document: Document) -> bool:
    try:
        if document.is_python:
            return bool(_in_python(document))
        return bool(_in_mapping(Taken(document.data))) if document.root() else False
    except SpecError:
        return False


def read_rllib(document: Document, name: str | None = None) -> Imported:
    """The actor-critic of a ``model`` or ``model_config``; ``name`` is an experiment or a variable."""
    settings = _chosen(document, name)
    out = Imported({"version": 1})
    for around in settings.around:
        for key in ("run", "algo", "algorithm", "algorithm_class"):
            if around.has(key):
                _require_actor_critic(around, key)
    fill_in_model(out, settings.model, settings.is_old)
    for around in settings.around:
        key = "observation_filter"
        if around.has(key) and around[key] == "MeanStdFilter":
            out.spec["normalize"] = [OBSERVATION]
            out.note(f"{around.name(key)}: the model itself normalises, and clips at 10 deviations")
    return finished(out, settings.top, _training(settings))


def _require_actor_critic(around: Taken, key: str) -> None:
    name = str(around[key]).rpartition(".")[2]
    if name not in _ACTOR_CRITICS:
        reason = f"{name!r} has no actor with a state value; those that have are {few_of(_ACTOR_CRITICS, 8)}"
        around.refuse(key, reason)


def _training(settings: _Settings) -> list[Path]:
    """The paths of all that is beside the settings of the model."""
    model = settings.model.path
    return [path for path in settings.top.left() if path[: len(model)] != model]


# --- where the settings are ---


def _chosen(document: Document, name: str | None) -> _Settings:
    if document.is_python:
        settings_by_name = _in_python(document)
        top = document.taken(Located({}, None))
    else:
        top = document.taken()
        settings_by_name = _in_mapping(top)
    if not settings_by_name:
        raise top.refusal(None, "it has no 'model' or 'model_config' of RLlib")
    if name is not None:
        if name not in settings_by_name:
            near = did_you_mean(name, settings_by_name) or f"; there is {few_of(settings_by_name)}"
            raise top.refusal(None, f"there are no settings {name!r}{near}")
        return settings_by_name[name]
    kinds = {repr(plain(each.model.node)): each for each in settings_by_name.values()}
    if len(kinds) > 1:
        names = few_of(settings_by_name)
        reason = (
            f"it has the settings of {len(kinds)} models; say which with --class, or name=: {names}"
        )
        raise top.refusal(None, reason)
    return next(iter(kinds.values()))


def _in_python(document: Document) -> dict[str, _Settings]:
    """By the name of a variable, or ``model:12`` by key and line: what the file gives as settings."""
    settings_by_name: dict[str, _Settings] = {}
    text = foreign_text(document.path)
    named = [(name, node) for name, node in document.mappings.items() if _is_new_class(node)]
    places = {(node.position, repr(plain(node))) for _, node in named}
    given = python_arguments(text, document.name, _KEYS)
    for key, node in [*named, *given]:
        values = node.value
        is_new = _is_new_class(node) or key in (_NEW, "model_config_dict")
        known = values.keys() & (_OF_BOTH | _OF_NEW | _OF_OLD)
        if not (known or _is_new_class(node)):
            continue
        is_named = (key, node) in named
        if not is_named and (node.position, repr(plain(node))) in places:
            continue  # the variable again
        line = f":{node.position.line}" if node.position else ""
        model = document.taken(node)
        model.ask(CLASS)
        settings_by_name[key if is_named else f"{key}{line}"] = _Settings(
            model, (), model, not is_new
        )
    return settings_by_name


def _is_new_class(node: Located) -> bool:
    name = node.value.get(CLASS) if isinstance(node.value, dict) else None
    return name is not None and name.value == _NEW_CLASS


def _in_mapping(top: Taken) -> dict[str, _Settings]:
    """By the name of an experiment: its settings; of a file with one model, by ``model``."""
    if top.keys() & _OF_BOTH and top.keys() <= _most_keys(top):
        is_new = bool(top.keys() & _OF_NEW)
        return {"model": _Settings(top, (), top, not is_new)}
    direct = _settings_in(top, top)
    if direct is not None:
        return {"model": direct}
    settings_by_name = {}
    for key in top:
        if isinstance(top.node.value[key].value, dict):
            entry = top.below(key)
            settings = _settings_in(top, entry)
            if settings is not None:
                settings_by_name[key] = settings
    if len(settings_by_name) > 1:
        for key in settings_by_name:
            settings_by_name[key] = _only(top, key)
    return settings_by_name


def _only(top: Taken, key: str) -> _Settings:
    """The settings of one experiment, so that the keys of the others are not named."""
    alone = Taken(Located({key: top.node.value[key]}, top.node.position), (), top.refusals)
    settings = _settings_in(alone, alone.below(key))
    assert settings is not None
    return settings


def _most_keys(top: Taken) -> set[str]:
    """The keys of a file that holds the settings alone: none of them is that of an algorithm."""
    return {key for key in top if key not in (*_KEYS, "config", "run", "env", "params")}


def _settings_in(top: Taken, entry: Taken) -> _Settings | None:
    """The settings in ``entry``, or in its ``config``."""
    arounds = [entry, *([entry.below("config")] if _is_mapping(entry, "config") else [])]
    for around in arounds:
        for key in _KEYS:
            if _is_mapping(around, key):
                keys = around.node.value[key].value.keys()
                if keys & (_OF_BOTH | _OF_NEW | _OF_OLD):
                    is_old = key == _OLD and not keys & _OF_NEW
                    return _Settings(top, tuple(arounds), around.below(key), is_old)
    return None


def _is_mapping(owner: Taken, key: str) -> bool:
    return key in owner and isinstance(owner.node.value[key].value, dict)


RLLIB = Kind(
    "YAML, JSON or Python with a 'model' or 'model_config', or DefaultModelConfig(...)",
    _is_rllib,
    read_rllib,
)
