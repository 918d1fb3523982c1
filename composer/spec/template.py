"""The `template` of a network, as written in a spec -> a TemplateSpec."""

from __future__ import annotations

from collections.abc import Mapping

from composer.errors import Path
from composer.spec.fields import Fields
from composer.spec.keys import PLACES, TEMPLATE_STAGES
from composer.spec.model_spec import NodeSpec, TemplateSpec
from composer.spec.nodes import NodeParser
from perception_blocks.words import describe, hint, listing

__all__ = ["GIVEN_KINDS", "KINDS", "STAGES", "TEMPLATE_KEYS", "read_template", "shared_stages"]

KINDS = ("image", "vector", "discrete", "set", "text", "graph")
GIVEN_KINDS = KINDS[:3]  # the others are clear from the space
TEMPLATE_KEYS = (*KINDS, *TEMPLATE_STAGES)
TRUNK = {"block": "dense", "hidden_units": [64, 64], "activation": "tanh"}
# A template's stages, and the names of their nodes in its graph.
STAGES = {"features": "features", "trunk": "latent", "memory": "memory"}
_EXAMPLE = "a mapping such as {block: dense, hidden_units: 64}"
# Keys of a graph's nodes that say how it is wired.
_WIRING = ("in", "out", "same_as")


def read_template(fields: Fields, nodes: NodeParser) -> TemplateSpec:
    """The value of `template` in the network ``fields``; mistakes are noted and left out."""
    given = {} if fields.values["template"] is None else fields.mapping("template")
    if fields.values["template"] is None:
        way_out = "write template: {} for the defaults"
        fields.note("template", f"'template' must be a mapping, got nothing (null); {way_out}")
    template = Fields(given, fields.at("template"), fields.problems)
    template.unknown(TEMPLATE_KEYS, "a template", places=PLACES)
    parser = _TemplateParser(template, nodes)
    stages = {key: parser.optional(key) for key in (*KINDS, "memory")}
    trunk = parser.optional("trunk", TRUNK)
    by_name, kinds = parser.by_name(), parser.kinds()
    return TemplateSpec(template.path, by_name=by_name, kinds=kinds, trunk=trunk, **stages)


def shared_stages(shares: tuple[str, ...]) -> tuple[str, ...]:
    """The nodes of a template's network that ``shares`` names; ``trunk`` means the node that the trunk becomes."""
    return tuple(STAGES.get(name, name) for name in shares)


class _TemplateParser:
    def __init__(self, template: Fields, nodes: NodeParser) -> None:
        self._template = template
        self._nodes = nodes
        self._problems = template.problems

    def optional(self, key: str, default: object = None) -> NodeSpec | None:
        """The node at ``key``; null leaves it out."""
        template = self._template
        path = template.at(key) if key in template else template.path
        value = template.values.get(key, default)
        return None if value is None else self._node(key, value, path)

    def by_name(self) -> dict[str, NodeSpec]:
        expected, path = (
            "a mapping from names of observations to nodes",
            self._template.at("by_name"),
        )
        patterns = self._template.mapping("by_name", expected)
        nodes = {name: self._node(name, value, (*path, name)) for name, value in patterns.items()}
        return {name: node for name, node in nodes.items() if node is not None}

    def kinds(self) -> dict[str, str]:
        expected = f"a mapping from names of observations to {listing(GIVEN_KINDS)}"
        given = self._template.text_mapping("kinds", expected)
        for pattern in [pattern for pattern, kind in given.items() if kind not in GIVEN_KINDS]:
            kind = given.pop(pattern)
            near = hint(kind, GIVEN_KINDS, "known are")
            message = f"{kind!r} is no kind of observation that can be given" + near
            self._problems.add((*self._template.at("kinds"), pattern), message)
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
