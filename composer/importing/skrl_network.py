"""The networks of skrl's YAML: containers of layers, each with an expression for its input."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from composer.importing.nodes import OBSERVATION, Nodes
from composer.importing.taken import MOST, Taken
from perception_blocks.words import describe, hint, listing

__all__ = ["Containers", "named_observations"]

ACTIVATIONS = {
    "elu": "elu",
    "leaky_relu": "leaky_relu",
    "relu": "relu",
    "selu": "selu",
    "sigmoid": "sigmoid",
    "softplus": "softplus",
    "softsign": "softsign",
    "tanh": "tanh",
}
_NONE = "identity"
_NO_LAYER: tuple[str, Mapping[str, Any]] = ("flatten", {})
_LAYERS = ("linear", "conv2d", "flatten")
_OBSERVATIONS = ("OBSERVATIONS", "STATES")
_CHANNELS_FIRST = (0, 3, 1, 2)  # of a batch of images
_LONGEST = 1_000  # characters of an expression
_KEY = re.compile(r"""\[\s*["']([^"']+)["']\s*\]""")  # of a dict of observations


@dataclass(frozen=True)
class _Layer:
    """A layer of a container: its settings here, its activation, and its name in the container."""

    block: str
    settings: Mapping[str, Any]
    activation: str
    index: int

    def joins(self, other: _Layer) -> bool:
        """Whether both can be layers of one block."""
        alike = self.block == other.block and self.activation == other.activation
        return alike and self.block != "flatten" and self.settings["bias"] == other.settings["bias"]


class Containers:
    """Reads the ``network`` of a model into a graph; ``theirs`` is where a checkpoint has the model."""

    def __init__(self, nodes: Nodes, theirs: str) -> None:
        self.nodes, self._theirs = nodes, theirs
        self._values: dict[str, str] = {}  # containers by name -> the node that gives their output
        self.observations: dict[str, None] = {}  # what was read of them
        self._has_names = True
        self.after = ""  # the name of what follows the last layer, where skrl puts the output

    def read(self, model: Taken) -> None:
        network = model.entries("network")
        if not network:
            model.refuse("network", "needs at least one container of layers")
        for container in network:
            name = container.text("name")
            if not name.isidentifier():
                container.refuse("name", f"a name has letters, digits and '_', got {name!r}")
                self._has_names = False
            self._container(container, name)

    def _container(self, container: Taken, name: str) -> None:
        self.nodes.last = self._input(container)
        layers = self._layers(container)
        runs: list[list[_Layer]] = []
        for layer in layers:
            if runs and runs[-1][-1].joins(layer):
                runs[-1].append(layer)
            else:
                runs.append([layer])
        for index, run in enumerate(runs):
            node = name if index == len(runs) - 1 else f"{name}_{index}"
            self._node(node, run, f"{self._theirs}{name}_container")
        self._values[name] = self.nodes.last
        used = len(layers) + sum(layer.activation != _NONE for layer in layers)
        self.after = f"{self._theirs}{name}_container.{used}"

    def _node(self, name: str, run: list[_Layer], theirs: str) -> None:
        block, bias = run[0].block, run[0].settings.get("bias", True)
        if block == "flatten":
            self.nodes.add(name, "flatten")
            return
        settings = {k: [layer.settings[k] for layer in run] for k in run[0].settings if k != "bias"}
        more: dict[str, Any] = {} if bias else {"bias": False}
        if all(value == 1 for value in settings.get("dilations", [])):
            settings.pop("dilations", None)
        name = self.nodes.add(name, block, **settings, activation=run[0].activation, **more)
        inside = "linears" if block == "dense" else "convs"
        for index, layer in enumerate(run):
            self.nodes.weigh(f"{name}.{inside}.{index}", f"{theirs}.{layer.index}")

    # --- layers ---------------------------------------------------------------------------------------------------

    def _layers(self, container: Taken) -> list[_Layer]:
        given = container["layers"] if container.has("layers") else []
        if not isinstance(given, list) or not given:
            container.refuse("layers", f"must be a list of layers, got {describe(given)}")
            return []
        activations = self._activations(container, len(given))
        layers, index = [], 0
        for position, (value, activation) in enumerate(zip(given, activations, strict=True)):
            block, settings = self._layer(container, value, position)
            activation = _NONE if block == "flatten" else activation
            layers.append(_Layer(block, settings, activation, index))
            index += 1 if activation == _NONE else 2
        return layers

    def _activations(self, container: Taken, count: int) -> list[str]:
        given = container["activations"] if container.has("activations") else []
        listed = given if isinstance(given, list) else [given] * count
        listed = [None] * count if not listed else listed * count if len(listed) == 1 else listed
        if len(listed) != count:
            reason = (
                f"{len(listed)} activations for {count} layers; give one for all, or one for each"
            )
            container.refuse("activations", reason)
            return [_NONE] * count
        return [self._activation(container, each, index) for index, each in enumerate(listed)]

    def _activation(self, container: Taken, given: object, index: int) -> str:
        if given is None or given == "":
            return _NONE
        word = given.lower() if isinstance(given, str) else None
        if word in ACTIVATIONS:
            return ACTIVATIONS[word]
        if word is None or word == "softmax":
            reason = f"there is no activation {given!r}{hint(word, ACTIVATIONS)}"
            container.refuse("activations", reason, index)
            return _NONE
        if word not in (_NONE, "none", "null"):
            self.nodes.imported.note(
                f"{container.name('activations')}: skrl has no {given!r} and applies nothing, nor does this spec"
            )
        return _NONE

    def _layer(self, container: Taken, value: Any, index: int) -> tuple[str, Mapping[str, Any]]:
        """The block of the layer at ``index``, and its settings; a flatten for one that is refused."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = {"linear": value}
        elif isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, Mapping) or len(value) != 1:
            got = listing(value) if isinstance(value, Mapping) and value else describe(value)
            reason = f"a layer is a number, a word or a mapping with one key, got {got}"
            container.refuse("layers", reason, index)
            return _NO_LAYER
        ((kind, settings),) = value.items()
        if kind.lower() not in _LAYERS:
            container.refuse("layers", f"there is no layer {kind!r}{hint(kind, _LAYERS)}", index)
            return _NO_LAYER
        settings = settings if isinstance(settings, Mapping | list) else [settings]
        read = {"linear": _linear, "conv2d": _conv2d, "flatten": _flatten}[kind.lower()]
        try:
            return read(settings)
        except (TypeError, ValueError) as error:
            container.refuse("layers", f"{kind}: {error}", index)
            return _NO_LAYER

    # --- inputs ---------------------------------------------------------------------------------------------------

    def _input(self, container: Taken) -> str:
        text = container.text("input")
        try:
            if len(text) > _LONGEST:
                raise ValueError
            return self._value(ast.parse(text.strip(), mode="eval").body, container)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            reason = f"{describe(text)} is no input of a spec: observations, containers, permute and concatenate are"
            if self._has_names:  # it may be of a container whose name was refused
                container.refuse("input", reason)
            return OBSERVATION

    def _value(self, node: ast.expr, container: Taken) -> str:
        """The value that an expression reads, with the nodes that it needs. Raises ValueError for others."""
        if isinstance(node, ast.Name):
            return self._named(node.id, container)
        if isinstance(node, ast.Subscript):
            return self._keyed(node, container)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._called(node.func.id, node.args, container)
        raise ValueError

    def _named(self, name: str, container: Taken) -> str:
        if name in self._values:
            return self._values[name]
        if name not in _OBSERVATIONS:
            raise ValueError
        self._note_states(name, container)
        self.observations[OBSERVATION] = None
        return OBSERVATION

    def _keyed(self, node: ast.Subscript, container: Taken) -> str:
        """An observation of a dict: ``OBSERVATIONS["camera"]``."""
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        whole = node.value.id if isinstance(node.value, ast.Name) else ""
        if not isinstance(key, str) or whole not in _OBSERVATIONS:
            raise ValueError
        self._note_states(whole, container)
        self.observations[key] = None
        return key

    def _note_states(self, name: str, container: Taken) -> None:
        if name == "STATES":
            self.nodes.imported.note(
                f"{container.name('input')}: STATES is the observation here; for a state of its own write "
                "'observations:' for the critic"
            )

    def _called(self, function: str, arguments: list[ast.expr], container: Taken) -> str:
        if function == "permute" and len(arguments) == 2:
            if ast.literal_eval(arguments[1]) != _CHANNELS_FIRST:
                raise ValueError
            return self._put("image", "channels_first", self._value(arguments[0], container))
        if function == "concatenate" and len(arguments) == 1:
            if not isinstance(arguments[0], ast.List | ast.Tuple):
                raise ValueError
            parts = [self._value(each, container) for each in arguments[0].elts]
            return parts[0] if len(parts) == 1 else self._put("joined", "concat", parts)
        if function == "one_hot_encoding" and len(arguments) == 2:
            return self._put("one_hot", "one_hot", self._value(arguments[1], container))
        raise ValueError

    def _put(self, name: str, block: str, reads: str | list[str]) -> str:
        """Append a node of this form, or find it among those that there are."""
        for known, node in self.nodes.graph.items():
            if node == {"block": block, "in": reads}:
                return known
        return self.nodes.add(name, block, reads)


def named_observations(models: Taken) -> list[str]:
    """The observations of a dict that any of the ``models`` reads."""
    names: dict[str, None] = {}
    waiting = [models.node.value]
    while waiting:
        value = waiting.pop()
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, node in inner:
            if isinstance(node.value, dict | list):
                waiting.append(node.value)
            elif key == "input" and isinstance(node.value, str):
                names |= dict.fromkeys(_KEY.findall(node.value))
    return [*names]


def _linear(given: Mapping[str, Any] | list[Any]) -> tuple[str, dict[str, Any]]:
    names = {"features": "out_features", "use_bias": "bias"}
    values = _settings(given, ["out_features", "bias"], names, ["in_features"])
    return "dense", {
        "hidden_units": _whole(values, "out_features"),
        "bias": _flag(values, "bias"),
    }


def _conv2d(given: Mapping[str, Any] | list[Any]) -> tuple[str, dict[str, Any]]:
    names = {"features": "out_channels", "strides": "stride", "use_bias": "bias"}
    order = ["out_channels", "kernel_size", "stride", "padding", "bias"]
    values = _settings(given, order, names, ["dilation", "in_channels"])
    return "strided_conv", {
        "hidden_channels": _whole(values, "out_channels"),
        "hidden_kernels": _sizes(values, "kernel_size"),
        "strides": _sizes(values, "stride", 1),
        "padding": _sizes(values, "padding", 0, least=0),
        "dilations": _sizes(values, "dilation", 1),
        "bias": _flag(values, "bias"),
    }


def _flatten(given: Mapping[str, Any] | list[Any]) -> tuple[str, dict[str, Any]]:
    values = _settings([] if given == [None] else given, ["start_dim", "end_dim"], {}, [])
    if values.get("start_dim", 1) != 1 or values.get("end_dim", -1) != -1:
        raise ValueError("flattens all axes here")
    return "flatten", {}


def _settings(
    given: Mapping[str, Any] | list[Any],
    order: list[str],
    names: Mapping[str, str],
    others: list[str],
) -> dict[str, Any]:
    """The settings of a layer by name, as a list in their order or as a mapping with other names. Raises ValueError."""
    if isinstance(given, list):
        if len(given) > len(order):
            raise ValueError(f"{len(given)} settings, and there are {len(order)}")
        return dict(zip(order, given, strict=False))
    values = {names.get(key, key): value for key, value in given.items()}
    known = [*order, *others]
    wrong = next((key for key in values if key not in known), None)
    if wrong is not None:
        raise ValueError(f"there is no setting {wrong!r} here{hint(wrong, known)}")
    return values


def _whole(values: Mapping[str, Any], key: str, least: int = 1) -> int:
    return _size(values[key] if key in values else _missing(key), key, least)


def _sizes(
    values: Mapping[str, Any], key: str, default: int | None = None, least: int = 1
) -> int | list[int]:
    value = values.get(key, default)
    if isinstance(value, list):
        return [_size(each, key, least) for each in value]
    return _size(_missing(key) if value is None else value, key, least)


def _size(value: object, key: str, least: int) -> int:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not is_whole or isinstance(value, bool) or not least <= value <= MOST:  # type: ignore[operator]
        raise ValueError(f"{key!r} is a whole number of at least {least}, got {describe(value)}")
    return int(value)  # type: ignore[call-overload]


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key, True)
    if not isinstance(value, bool):
        raise ValueError(f"{key!r} is true or false, got {describe(value)}")
    return value


def _missing(key: str) -> Any:
    raise ValueError(f"{key!r} is missing")
