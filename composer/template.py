"""A network that follows from its observations: a block for each, concat, trunk, memory.

`expand` turns a template into the graph that a user could have written instead; nothing after it knows of templates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch

from composer.errors import Problems
from composer.model_spec import HeadsSpec, NetworkSpec, NodeSpec, TemplateSpec
from composer.tree import listing
from perception_blocks.port import InputShapeError, Port
from perception_blocks.registry import did_you_mean
from perception_blocks.scale import find_channels

__all__ = ["expand", "kind_of_observation"]

Kind = Literal["image", "vector", "discrete"]

SMALLEST_IMAGE = 5  # pixels of the shorter side: (5, 5, 3) is a picture, (2, 3, 3) a table
SMALLEST_GREY_IMAGE = 16  # without channels, (4, 8) is a table
SMALLEST_NATURE = 36  # what the kernels of nature_cnn need
MOST_ONE_HOT = 64  # values of an integer; more of them get a learned vector each
EMBEDDING = {"block": "embedding", "embedding_dim": 32}
NATURE = {"block": "nature_cnn_dense", "hidden_units": [256]}
SMALL_CNN = {
    "block": "strided_conv_dense",
    "hidden_channels": [16, 32],
    "strides": [1, 2],
    "padding": "same",  # so that no image is too small
    "hidden_units": [128],
}


def expand(spec: NetworkSpec, ports: Mapping[str, Port], problems: Problems) -> NetworkSpec | None:
    """``spec`` with the graph that its template stands for, over the observations ``ports``; heads read its end.

    A node's path is where the template says something of it, for messages. What does not fit is noted; None where
    there is nothing to read.
    """
    template = spec.template
    assert template is not None
    for pattern in template.by_name:
        if not any(fnmatchcase(key, pattern) for key in ports):
            message = f"{pattern!r} matches no observation; there is {listing(ports) or 'none'}"
            problems.add((*template.path, "by_name", pattern), message, key=True)
    readable = {key: port for key, port in ports.items() if 0 not in port.shape}
    if not readable:
        problems.add(template.path, "a template needs an observation to read, there is none")
        return None
    nodes, end = _Expansion(template, readable).graph()
    for index, name in enumerate(spec.shares):
        if name not in nodes:
            near = did_you_mean(name, nodes) or f"; it has {listing(nodes) or 'none'}"
            message = f"the template makes no value {name!r} to share{near}"
            problems.add((*spec.path, "shares", index), message)
    head = NodeSpec(template.path, "", "linear_output", (end,))
    return replace(spec, graph=nodes, heads=spec.heads or HeadsSpec(template.path, default=head))


def kind_of_observation(port: Port) -> Kind:
    """What a template takes an observation for.

    >>> kind_of_observation(Port((64, 64, 3), torch.uint8)), kind_of_observation(Port((17,)))
    ('image', 'vector')
    """
    if port.is_integer:
        return "discrete"
    if None in port.shape:
        return "vector"
    if len(port.shape) == 2:
        grey = port.dtype == torch.uint8 and min(_sides(port)) >= SMALLEST_GREY_IMAGE
        return "image" if grey else "vector"
    pictured = len(port.shape) == 3 or port.dtype == torch.uint8
    return (
        "image"
        if pictured and len(port.shape) >= 3 and min(_sides(port)) >= SMALLEST_IMAGE
        else "vector"
    )


class _Expansion:
    """One run of `expand`: gathers nodes, each under a name that nothing else has."""

    def __init__(self, template: TemplateSpec, ports: Mapping[str, Port]) -> None:
        self.template = template
        self.ports = ports
        self.nodes: dict[str, NodeSpec] = {}

    def graph(self) -> tuple[dict[str, NodeSpec], str]:
        """The nodes, and the name of the value at the end."""
        parts = [self._observation(key, port) for key, port in self.ports.items()]
        end = parts[0]
        if len(parts) > 1:
            end = self._add("features", {"block": "concat"}, *parts)
        if self.template.trunk is not None:
            end = self._place("latent", self.template.trunk, end)
        if self.template.memory is not None:
            end = self._place("memory", self.template.memory, end)
        return self.nodes, end

    def _observation(self, key: str, port: Port) -> str:
        """Nodes that make a vector of one observation; returns the vector's name."""
        base = "" if len(self.ports) == 1 else f"{identifier(key)}_"
        kind = kind_of_observation(port)
        chosen = next((n for p, n in self.template.by_name.items() if fnmatchcase(key, p)), None)
        if kind == "image":
            return self._image(key, port, base, chosen or self.template.image)
        if chosen is None and kind == "vector":
            return self._vector(key, port, base, self.template.vector)
        if kind == "discrete":
            chosen = chosen or self.template.discrete or self._own(_integer_block(port))
        assert chosen is not None
        value = self._place(f"{base}features", chosen, key)
        side_by_side = chosen.block == "one_hot" and isinstance(port.cardinality, tuple)
        one_vector = ends_in_vector(chosen) or side_by_side or port.shape == ()
        return value if one_vector else self._flat(base, value)

    def _image(self, key: str, port: Port, base: str, node: NodeSpec | None) -> str:
        each = max(len(port.shape) - 3, 0)
        value = key
        scale = _image_scale(port)
        if scale is not None:
            value = self._place(f"{base}scaled", replace(self._own(scale), each=each), value)
        node = node or self._own(_image_block(port))
        value = self._place(f"{base}features", replace(node, each=node.each or each), value)
        return value if ends_in_vector(node) and not each else self._flat(base, value)

    def _vector(self, key: str, port: Port, base: str, node: NodeSpec | None) -> str:
        value = key if len(port.shape) == 1 else self._flat(base, key)
        if port.dtype == torch.uint8:
            value = self._add(f"{base}scaled", {"block": "scale_image"}, value)
        return value if node is None else self._place(f"{base}features", node, value)

    def _flat(self, base: str, value: str) -> str:
        return self._add(f"{base}flat", {"block": "flatten"}, value)

    def _add(self, name: str, description: Mapping[str, Any], *reads: str) -> str:
        return self._place(name, self._own(description), *reads)

    def _own(self, description: Mapping[str, Any]) -> NodeSpec:
        """A node of the template's own choice."""
        settings = {key: value for key, value in description.items() if key != "block"}
        return NodeSpec(self.template.path, "", description["block"], (), settings=settings)

    def _place(self, name: str, node: NodeSpec, *reads: str) -> str:
        free, count = name, 1
        while free in self.ports or free in self.nodes:
            count += 1
            free = f"{name}_{count}"
        self.nodes[free] = replace(node, name=free, inputs=reads)
        return free


def identifier(key: str) -> str:
    """An observation's key as (part of) a node's name.

    >>> identifier("robot/joint angles"), identifier("0")
    ('robot_joint_angles', 'part_0')
    """
    name = re.sub(r"[^A-Za-z0-9]+", "_", key).strip("_")
    return name if name and not name[0].isdigit() else f"part_{name}".rstrip("_")


def ends_in_vector(node: NodeSpec) -> bool:
    """Whether one sample becomes a vector for certain; what else comes out is flattened."""
    return isinstance(node.block, str) and node.block.endswith(("dense", "lstm_last_step"))


def _integer_block(port: Port) -> dict[str, Any]:
    counts = port.cardinality if isinstance(port.cardinality, tuple) else (port.cardinality or 0,)
    return EMBEDDING if max(counts) > MOST_ONE_HOT else {"block": "one_hot"}


def _image_block(port: Port) -> dict[str, Any]:
    return NATURE if min(_sides(port)) >= SMALLEST_NATURE else SMALL_CNN


def _image_scale(port: Port) -> dict[str, Any] | None:
    """How an image gets into [0, 1] and its channels to the front; None where both hold or cannot be had."""
    order, declared = _channel_order(port)
    settings: dict[str, Any] = {"block": "scale_image"}
    if declared:
        settings["channels"] = order
    if isinstance(port.low, float) and isinstance(port.high, float):
        done = (port.low, port.high, order) == (0.0, 1.0, "first") and port.dtype != torch.uint8
        return None if done else settings
    if port.dtype == torch.uint8:
        return settings
    # Without bounds there is nothing to scale by: this only moves the channels.
    return None if order == "first" else {**settings, "low": 0, "high": 1}


def _channel_order(port: Port) -> tuple[Literal["first", "last"], bool]:
    """Where the channels are, and whether that has to be said. Where both ends could be them, the shorter one is."""
    shape = port.shape[-3:]
    if len(shape) == 2:
        return "last", False  # scale_image gives it its channel
    if port.channels is not None:
        return port.channels, False
    try:
        return find_channels(shape), False
    except InputShapeError:
        first, last = shape[0] or math.inf, shape[-1] or math.inf
        return ("first" if first < last else "last"), True


def _sides(port: Port) -> tuple[int, int]:
    """Height and width."""
    shape: Any = port.shape[-3:]
    if len(shape) < 3:
        return shape
    return shape[1:] if _channel_order(port)[0] == "first" else shape[:2]
