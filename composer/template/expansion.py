"""A network that follows from its observations: a block for each, concat, trunk, memory.

`expand` turns a template into the graph that a user could have written instead; nothing after it knows of templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from composer.errors import Path, Problems
from composer.spec.model_spec import HeadsSpec, NetworkSpec, NodeSpec, TemplateSpec
from composer.spec.template import KINDS, STAGES
from composer.template.kinds import (
    ObservationGroup,
    channel_order,
    groups_of,
    kind_of_observation,
    kind_problem,
    sides,
)
from perception_blocks.port import Port
from perception_blocks.words import hint, listing

__all__ = ["Effects", "expand"]

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
SET = {"block": "deep_set", "hidden_units": [64]}
TEXT = {"block": "attention_pooling", "num_heads": 4}
ADJACENCY = {"block": "adjacency", "directed": False}  # what edges link learns from each other
GRAPH = {"block": "graph_conv", "hidden_units": [64, 64]}
POOLED = ("deep_set", "attention_pooling", "point_net", "masked_global_pooling")


class Effects:
    """The keys of a spec's templates that have an effect in any network: each network may read other observations."""

    def __init__(self) -> None:
        self._used: set[Path] = set()
        self._unused: dict[Path, str] = {}

    def add(self, path: Path, unused: str | None) -> None:
        """Add a key of one network: the message ``unused`` says that it has no effect, None that it has one."""
        if unused is None:
            self._used.add(path)
        else:
            self._unused.setdefault(path, unused)

    def note(self, problems: Problems) -> None:
        """Add the keys that have no effect in any network to ``problems``."""
        for path, message in self._unused.items():
            if path not in self._used:
                problems.add(path, message, key=True)


def expand(
    spec: NetworkSpec,
    ports: Mapping[str, Port],
    problems: Problems,
    origins: Mapping[str, frozenset[str]] | None = None,
    effects: Effects | None = None,
) -> NetworkSpec | None:
    """``spec`` with a graph in place of its template, over the values ``ports``; heads read the end of the graph.

    ``origins`` maps values that a policy shares to the observations that they are made of: the template reads the value
    in place of these. For messages, the path of a node is the place in the template that it comes from. Adds to
    ``problems``, and to ``effects`` the keys with and without effect. Returns None if there is nothing to read.
    """
    template = spec.template
    assert template is not None
    shared = {name: made_of for name, made_of in (origins or {}).items() if name in ports}
    template = _continued(template, shared)
    ports = _without(ports, frozenset().union(*shared.values()))
    groups = groups_of(ports)
    sound = _names_are_right(template, groups, ports, problems)
    if not sound:
        template = replace(template, kinds={})
    readable = {key: port for key, port in ports.items() if 0 not in port.shape}
    if not groups_of(readable):
        problems.add(template.path, "a template needs an observation to read, there is none")
        return None
    expansion = _Expansion(template, readable)
    nodes, end = expansion.graph()
    if sound and effects is not None:
        expansion.report(effects)
    _refuse_shares(spec, nodes, problems)
    head = NodeSpec(template.path, "", "linear_output", (end,))
    return replace(spec, graph=nodes, heads=spec.heads or HeadsSpec(template.path, default=head))


def _names_are_right(
    template: TemplateSpec,
    groups: list[ObservationGroup],
    ports: Mapping[str, Port],
    problems: Problems,
) -> bool:
    """Whether every name in ``by_name`` and ``kinds`` is an observation that can be of that kind; notes the others."""
    before = len(problems)
    names = list(dict.fromkeys(name for group in groups for name in (group.name, *group.keys)))
    for where in ("by_name", "kinds"):
        for pattern in getattr(template, where):
            if not any(fnmatchcase(name, pattern) for name in names):
                message = f"{pattern!r} matches no observation; there is {listing(names) or 'none'}"
                problems.add((*template.path, where, pattern), message, key=True)
    for pattern, kind in template.kinds.items():
        for group in groups:
            if group.kind == "single" and fnmatchcase(group.name, pattern):
                problem = kind_problem(group.name, ports[group.keys[0]], kind)
                if problem:
                    problems.add((*template.path, "kinds", pattern), problem)
    return len(problems) == before


def _continued(template: TemplateSpec, shared: Iterable[str]) -> TemplateSpec:
    """``template`` without the default trunk where the policy's shared values already come from a trunk or memory."""
    is_default = template.trunk is not None and template.trunk.path == template.path
    has_one = {STAGES["trunk"], STAGES["memory"]} & set(shared)
    return replace(template, trunk=None) if is_default and has_one else template


def _without(ports: Mapping[str, Port], covered: frozenset[str]) -> dict[str, Port]:
    """``ports`` without the ``covered`` ones and without masks that only the covered ones have."""
    left = {key: port for key, port in ports.items() if key not in covered}
    needed = {port.mask for port in left.values()}
    freed = {ports[key].mask for key in covered if key in ports} - needed
    return {key: port for key, port in left.items() if key not in freed}


def _refuse_shares(spec: NetworkSpec, nodes: Mapping[str, NodeSpec], problems: Problems) -> None:
    stages = {node: stage for stage, node in STAGES.items() if stage != node}
    known = [*nodes, *(stage for stage, node in STAGES.items() if node in nodes)]
    for index, name in enumerate(spec.shares):
        if name not in nodes:
            near = hint(name, known, "it has", listed=nodes)
            said = f"{name!r} (its {stages[name]})" if name in stages else repr(name)
            message = f"the template makes no value {said} to share" + near
            problems.add((*spec.path, "shares", index), message)


class _Expansion:
    """One run of `expand`: collects nodes under unique names."""

    def __init__(self, template: TemplateSpec, ports: Mapping[str, Port]) -> None:
        self.template = template
        self.ports = ports
        self.nodes: dict[str, NodeSpec] = {}
        self._used: set[Path] = set()  # what of the template has had an effect
        self._kinds: dict[str, str] = {}  # of each observation

    def report(self, effects: Effects) -> None:
        """Which nodes, patterns and kinds of the template no observation got."""
        seen = ", ".join(f"{name!r} ({kind})" for name, kind in self._kinds.items())
        template = self.template
        if template.by_name:
            seen += "; by_name comes first"
        unused = {
            kind: f"no observation takes its block from {kind!r}; there is {seen}"
            for kind in KINDS
            if getattr(template, kind) is not None
        }
        names: dict[Path, str] = {(kind,): message for kind, message in unused.items()}
        before = "what it matches is matched by a pattern before it"
        for pattern in template.by_name:
            names["by_name", pattern] = f"{pattern!r} changes nothing: {before}"
        for pattern in template.kinds:
            names["kinds", pattern] = f"{pattern!r} changes nothing: {before}, or no single value"
        for path, message in names.items():
            effects.add((*template.path, *path), None if path in self._used else message)

    def graph(self) -> tuple[dict[str, NodeSpec], str]:
        """The nodes, and the name of the value at the end."""
        groups = groups_of(self.ports)
        self._kinds = {group.name: group.kind for group in groups}
        parts = [self._group(group, alone=len(groups) == 1) for group in groups]
        end = self._joined(STAGES["features"], parts)
        if self.template.trunk is not None:
            end = self._place(STAGES["trunk"], self.template.trunk, end)
        if self.template.memory is not None:
            end = self._place(STAGES["memory"], self.template.memory, end)
        return self.nodes, end

    def _group(self, group: ObservationGroup, alone: bool) -> str:
        """Nodes that make one vector of a group; returns the vector's name."""
        base = "" if alone else f"{identifier(group.name)}_"
        chosen = self._by_name(group.name)
        if group.kind == "single":
            (key,) = group.keys
            return self._observation(key, self.ports[key], base, chosen)
        if group.kind == "text":
            return self._text(group.keys[0], base, chosen)
        elements = self._elements(group, base)
        if group.kind == "set":
            node = chosen or self._of_kind("set") or self._own(SET)
            return self._pooled(base, node, elements)
        matrix = self._add(f"{base}matrix", ADJACENCY, elements, group.links)
        node = chosen or self._of_kind("graph") or self._own(GRAPH)
        return self._pooled(base, node, elements, matrix)

    def _by_name(self, name: str, group: str = "") -> NodeSpec | None:
        """The node of `by_name` for a name; a pattern that matches the whole ``group`` is not for its parts."""
        for pattern, node in self.template.by_name.items():
            if fnmatchcase(name, pattern) and not (group and fnmatchcase(group, pattern)):
                self._used.add(("by_name", pattern))
                return node
        return None

    def _of_kind(self, kind: str) -> NodeSpec | None:
        """The node that the template gives for all observations of a kind."""
        self._used.add((kind,))
        return getattr(self.template, kind)

    def _kind(self, key: str, port: Port) -> str:
        """The kind that a single observation is treated as."""
        for pattern, kind in self.template.kinds.items():
            if fnmatchcase(key, pattern):
                self._used.add(("kinds", pattern))
                return kind
        return kind_of_observation(port)

    # --- what varies in size ---

    def _elements(self, group: ObservationGroup, base: str) -> str:
        """The elements of a set, or the nodes of a graph, as vectors: (None, features)."""
        parts = []
        for key in group.keys:
            port = self.ports[key]
            element = replace(port, shape=port.shape[1:], mask=None)
            of_part = f"{base}element_" if len(group.keys) == 1 else f"{identifier(key)}_"
            chosen = self._by_name(key, group.name)
            parts.append(self._observation(key, element, of_part, chosen, each=1))
        return self._joined(f"{base}elements", parts)

    def _text(self, key: str, base: str, node: NodeSpec | None) -> str:
        value = self._add(f"{base}embedded", EMBEDDING, key)
        value = self._add(f"{base}placed", {"block": "positional_encoding"}, value)
        return self._pooled(base, node or self._of_kind("text") or self._own(TEXT), value)

    def _pooled(self, base: str, node: NodeSpec, *reads: str) -> str:
        """The output of ``node`` over all elements, pooled into one vector."""
        value = self._place(f"{base}features", node, *reads)
        if node.block not in POOLED or node.each:
            return self._add(f"{base}pooled", {"block": "masked_global_pooling"}, value)
        seeds = node.settings.get("num_seeds", 1)
        return value if seeds == 1 else self._flat(base, value)

    # --- what has a fixed size; with ``each`` as an element of something ---

    def _observation(
        self, key: str, port: Port, base: str, chosen: NodeSpec | None, each: int = 0
    ) -> str:
        """Nodes that make a vector of one observation; returns the vector's name."""
        kind = self._kinds[key] = self._kind(key, port)
        if kind == "image":
            return self._image(key, port, base, chosen or self._of_kind("image"), each)
        if chosen is None and kind == "vector":
            node = None if each else self._of_kind("vector")  # what follows reads vectors
            return self._vector(key, port, base, node, each)
        if kind == "discrete":
            chosen = chosen or self._of_kind("discrete") or self._own(_integer_block(port))
        assert chosen is not None
        value = self._place(f"{base}features", chosen, key, each=each)
        side_by_side = chosen.block == "one_hot" and isinstance(port.cardinality, tuple)
        one_vector = ends_in_vector(chosen) or side_by_side or port.shape == ()
        return value if one_vector else self._flat(base, value, each)

    def _image(self, key: str, port: Port, base: str, node: NodeSpec | None, each: int) -> str:
        stacked = max(len(port.shape) - 3, 0)
        value = key
        scale = _image_scale(port)
        if scale is not None:
            scaled = replace(self._own(scale), each=stacked)
            value = self._place(f"{base}scaled", scaled, value, each=each)
        node = node or self._own(NATURE if min(sides(port)) >= SMALLEST_NATURE else SMALL_CNN)
        node = replace(node, each=node.each or stacked)
        value = self._place(f"{base}features", node, value, each=each)
        return value if ends_in_vector(node) and not stacked else self._flat(base, value, each)

    def _vector(self, key: str, port: Port, base: str, node: NodeSpec | None, each: int) -> str:
        value = key if len(port.shape) == 1 else self._flat(base, key, each)
        if port.dtype == torch.uint8:
            scale = self._own({"block": "scale_image"})
            value = self._place(f"{base}scaled", scale, value, each=each)
        return value if node is None else self._place(f"{base}features", node, value, each=each)

    # --- nodes ---

    def _joined(self, name: str, values: list[str]) -> str:
        return values[0] if len(values) == 1 else self._add(name, {"block": "concat"}, *values)

    def _flat(self, base: str, value: str, each: int = 0) -> str:
        return self._place(f"{base}flat", self._own({"block": "flatten"}), value, each=each)

    def _add(self, name: str, description: Mapping[str, Any], *reads: str) -> str:
        return self._place(name, self._own(description), *reads)

    def _own(self, description: Mapping[str, Any]) -> NodeSpec:
        """A node of the template's own choice."""
        settings = {key: value for key, value in description.items() if key != "block"}
        return NodeSpec(self.template.path, "", description["block"], (), settings=settings)

    def _place(self, name: str, node: NodeSpec, *reads: str, each: int = 0) -> str:
        free, count = name, 1
        while free in self.ports or free in self.nodes:
            count += 1
            free = f"{name}_{count}"
        self.nodes[free] = replace(node, name=free, inputs=reads, each=node.each + each)
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


def _image_scale(port: Port) -> dict[str, Any] | None:
    """How an image gets into [0, 1] and its channels to the front; None where both hold or cannot be had."""
    order, declared = channel_order(port)
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
