"""The `template` of a network, as written in a spec -> a TemplateSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composer.errors import Path, Problems
from composer.spec.fields import Fields
from composer.spec.model_spec import NodeSpec, TemplateSpec
from composer.spec.nodes import NodeReader
from perception_blocks.words import describe, hint, listing

__all__ = ["GIVEN_KINDS", "KINDS", "STAGES", "TEMPLATE_KEYS", "read_template", "shared_stages"]

KINDS = ("image", "vector", "discrete", "set", "text", "graph")
GIVEN_KINDS = KINDS[:3]  # the others are clear from the space
TEMPLATE_KEYS = (*KINDS, "by_name", "kinds", "trunk", "memory")
TRUNK = {"block": "dense", "hidden_units": [64, 64], "activation": "tanh"}
# What a template's stages are called as nodes of the graph that it stands for.
STAGES = {"features": "features", "trunk": "latent", "memory": "memory"}
_EXAMPLE = "a mapping such as {block: dense, hidden_units: 64}"
# Keys of a graph's nodes that say how it is wired.
_WIRING = ("in", "out", "same_as")


def read_template(fields: Fields, nodes: NodeReader) -> TemplateSpec:
    """The template at `template` of the network ``fields``; what is wrong is noted and left out."""
    given = {} if fields.values["template"] is None else fields.mapping("template")
    if fields.values["template"] is None:
        message = (
            "'template' must be a mapping, got nothing (null); write template: {} for the defaults"
        )
        fields.note("template", message)
    template = Fields(given, fields.at("template"), fields.problems)
    template.unknown(TEMPLATE_KEYS, "a template")
    reader = _TemplateReader(nodes, fields.problems)
    return TemplateSpec(
        template.path,
        image=reader.optional(template, "image"),
        vector=reader.optional(template, "vector"),
        discrete=reader.optional(template, "discrete"),
        set=reader.optional(template, "set"),
        text=reader.optional(template, "text"),
        graph=reader.optional(template, "graph"),
        by_name=reader.by_name(template),
        kinds=reader.kinds(template),
        trunk=reader.optional(template, "trunk", TRUNK),
        memory=reader.optional(template, "memory"),
    )


def shared_stages(shares: tuple[str, ...]) -> tuple[str, ...]:
    """The values that a template's network shares, where it may say ``trunk`` for the node that its trunk becomes."""
    return tuple(STAGES.get(name, name) for name in shares)


class _TemplateReader:
    def __init__(self, nodes: NodeReader, problems: Problems) -> None:
        self._nodes = nodes
        self._problems = problems

    def optional(
        self, template: Fields, key: str, default: Mapping[str, Any] | None = None
    ) -> NodeSpec | None:
        """The node at ``key``; null leaves it out."""
        if key not in template:
            return None if default is None else self._node(key, default, template.path)
        value = template.values[key]
        return None if value is None else self._node(key, value, template.at(key))

    def by_name(self, template: Fields) -> dict[str, NodeSpec]:
        patterns = template.mapping("by_name", "a mapping from names of observations to nodes")
        nodes = {}
        for pattern, value in patterns.items():
            node = self._node(pattern, value, (*template.at("by_name"), pattern))
            if node is not None:
                nodes[pattern] = node
        return nodes

    def kinds(self, template: Fields) -> dict[str, str]:
        expected = f"a mapping from names of observations to {listing(GIVEN_KINDS)}"
        given = template.text_mapping("kinds", expected)
        for pattern in [pattern for pattern, kind in given.items() if kind not in GIVEN_KINDS]:
            kind = given.pop(pattern)
            near = hint(kind, GIVEN_KINDS, "known are")
            message = f"{kind!r} is no kind of observation that can be given{near}"
            self._problems.add((*template.at("kinds"), pattern), message)
        return given

    def _node(self, name: str, value: object, path: Path) -> NodeSpec | None:
        if not isinstance(value, Mapping):
            self._problems.add(path, f"{name!r} must be {_EXAMPLE}, got {describe(value)}")
            return None
        wiring = [key for key in _WIRING if key in value]
        for key in wiring:
            message = f"{key!r} has no place in a template, which wires its blocks itself"
            self._problems.add((*path, key), message, key=True)
        if value.get("block") == "graph":
            message = "a template is made of single blocks; describe a network of your own with 'graph' instead"
            self._problems.add((*path, "block"), message)
            return None
        plain = {key: setting for key, setting in value.items() if key not in wiring}
        return self._nodes.node(name, {**plain, "in": name}, path)  # what it reads follows later
