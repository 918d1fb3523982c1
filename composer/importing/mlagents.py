"""ML-Agents of Unity: the ``network_settings`` of a behavior, as releases since 2 (``behaviors:``) read them."""

from __future__ import annotations

from typing import Any

from composer.errors import Path
from composer.importing.document import Document
from composer.importing.imported import Imported, finished
from composer.importing.kinds import Kind
from composer.importing.taken import Taken
from composer.source.dump import dump_flow
from composer.source.values import Located
from perception_blocks.words import did_you_mean, few_of, hint

__all__ = ["MLAGENTS", "read_mlagents"]

_SETTINGS, _DEFAULTS = "network_settings", "default_settings"
_NORMAL = {"kaiming_normal": {"nonlinearity": "linear"}}
_LEAKY = {"activation": "leaky_relu"}
_VISUAL = {  # what brings an image to hidden_units features
    "simple": {
        "block": "strided_conv_dense", "hidden_channels": [16, 32], "hidden_kernels": [8, 4],
        "strides": [4, 2], **_LEAKY,
    },
    "nature_cnn": {"block": "nature_cnn_dense", **_LEAKY},
    "match3": {"block": "strided_conv_dense", "hidden_channels": [35, 144], "hidden_kernels": 3, **_LEAKY},
    "fully_connected": {"block": "flatten_dense", **_LEAKY},
}  # fmt: skip
_NETWORKS = ("actor_critic", "sac")


def _is_mlagents(document: Document) -> bool:
    behaviors = document.root().get("behaviors")
    return behaviors is not None and isinstance(behaviors.value, dict)


def read_mlagents(document: Document, name: str | None = None) -> Imported:
    """The policy and the critic of the behavior ``name``, or of the only one."""
    name, top = _chosen(document, name)
    behavior = top.below("behaviors").below(name)
    out = Imported({"version": 1})
    trainer = behavior.text("trainer_type", "ppo")
    if trainer not in ("ppo", "sac"):
        reason = f"{trainer!r} has a critic of all agents with attention; {hint(trainer, ['ppo', 'sac']).lstrip('; ')}"
        behavior.refuse("trainer_type", reason)
    settings = (
        behavior.below(_SETTINGS) if behavior.has(_SETTINGS) else document.taken(Located({}, None))
    )
    _fill_in(out, settings, trainer)
    return finished(out, top, _training(top, settings))


def _chosen(document: Document, name: str | None) -> tuple[str, Taken]:
    """The name of the behavior, and the file with this one alone, on its ``default_settings``."""
    top = document.taken()
    root, behaviors = top.node.value, top.below("behaviors")
    if name is None:
        if len(behaviors) != 1:
            reason = f"it has {len(behaviors)} behaviors; say which with --class, or name=: {few_of(behaviors)}"
            raise behaviors.refusal(None, reason)
        (name,) = behaviors
    if name not in behaviors:
        near = did_you_mean(name, behaviors) or f"; it has {few_of(behaviors)}"
        raise behaviors.refusal(None, f"there is no behavior {name!r}{near}")
    behavior = root["behaviors"].value[name]
    if _DEFAULTS in root and isinstance(root[_DEFAULTS].value, dict):
        behavior = _on(root[_DEFAULTS], behavior)
    alone = {
        **{key: value for key, value in root.items() if key != _DEFAULTS},
        "behaviors": Located({name: behavior}, behaviors.node.position),
    }
    return name, document.taken(Located(alone, top.node.position))


def _on(base: Located, node: Located) -> Located:
    """``node`` with the keys of ``base`` that it does not have, at any depth."""
    if not (isinstance(base.value, dict) and isinstance(node.value, dict)):
        return node
    values = {
        key: _on(base.value[key], inner) if key in base.value else inner
        for key, inner in node.value.items()
    }
    return Located({**base.value, **values}, node.position, node.key_position)


def _training(top: Taken, settings: Taken) -> list[Path]:
    return [
        path
        for path in top.left()
        if path[: len(settings.path)] != settings.path or not settings.path
    ]


def _fill_in(out: Imported, settings: Taken, trainer: str) -> None:
    units, layers = settings.whole("hidden_units", 128), settings.layers("num_layers", 2)
    trunk = {"block": "dense", "hidden_units": [units] * layers, "activation": "silu"}
    template: dict[str, Any] = {"trunk": trunk}
    if settings.has("memory"):
        memory = settings.below("memory")
        size = memory.whole("memory_size", 128, least=2)
        memory.ask("sequence_length")
        template["memory"] = {"block": "lstm", "hidden_units": size // 2, "init": "xavier_uniform"}
        out.note(f"{memory.name()}: the forget gates begin with a bias of 1 there, of 0 here")
    init = {"init": {"body": _NORMAL, "heads": _NORMAL}}
    out.spec["policy"] = {**init, "template": template}
    out.note(
        "heads: their weights begin at a fifth of this size there, and those of choices at a tenth"
    )
    if trainer == "ppo":
        out.spec["critic"] = {**init, "template": template}
        rule = {"distribution": "gaussian", "log_std": "learned"}
        out.note(
            "actions: numbers are clipped at 3 and divided by 3 there, here they are in the units of the space"
        )
    else:
        out.spec["critic"] = {"kind": "state_action", "ensemble": 2, **init, "template": template}
        rule = {"distribution": "squashed_gaussian", "log_std": "state"}
        out.note("critic: beside the two Q functions there is a value of the state there")
    out.spec["distributions"] = [{"space": "box", **rule, "optional": True}]
    _visual(out, settings, units)
    if settings.flag("normalize", False):
        key = settings.name("normalize")
        out.note(
            f"{key}: name the vectors under 'normalize:'; clipped at 5 deviations there, at 10 here"
        )
    settings.ask("deterministic")
    goals = settings.node.value.get("goal_conditioning_type")
    if goals is not None and goals.value == "none":  # a layer that reads goals is no block
        settings.ask("goal_conditioning_type")


def _visual(out: Imported, settings: Taken, units: int) -> None:
    """Say what an image would need: a template must not name what the environment has not."""
    if not settings.has("vis_encode_type"):
        return
    kind = settings.text("vis_encode_type")
    if kind == "resnet":
        out.note(
            f"{settings.name('vis_encode_type')}: 'resnet' pools without padding; the nearest block is impala_cnn"
        )
        return
    if kind not in _VISUAL:
        settings.refuse(
            "vis_encode_type", f"there is no encoder {kind!r}{hint(kind, [*_VISUAL, 'resnet'])}"
        )
        return
    node = dump_flow({"image": {**_VISUAL[kind], "hidden_units": units}})[1:-1]
    out.note(f"{settings.name('vis_encode_type')}: for images add this to both templates: {node}")


MLAGENTS = Kind("YAML with 'behaviors:'", _is_mlagents, read_mlagents)
