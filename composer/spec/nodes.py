"""One node of a graph, or one head, as written in a spec -> a NodeSpec."""

from __future__ import annotations

from collections.abc import Mapping

from composer.errors import Path, Problems
from composer.limits import Limits, above
from composer.spec.fields import Fields
from composer.spec.keys import (
    CRITIC_KEYS,
    KINDS,
    PLACES,
    POLICY_KEYS,
    POLICY_NETWORK_KEYS,
    TOP_KEYS,
)
from composer.spec.model_spec import NodeSpec
from composer.trust import PathError, check_trusted, import_allowed
from perception_blocks.dag import NODE_NAME, node_name_problem
from perception_blocks.registry import BLOCKS
from perception_blocks.words import describe, did_you_mean, near_name, suggest

__all__ = ["ALLOW_MODULE", "NODE_KEYS", "NodeParser", "is_misplaced"]

NODE_KEYS = ("block", "in", "out", "each", "same_as", "init")
NESTED = ("graph", "ensemble")  # blocks that hold a graph of their own
_EXAMPLE = "a mapping such as {block: dense, in: observation}"
# What people write for `in`.
_LIKE_IN = ("input", "inputs", "from")

ALLOW_MODULE = (
    "; one that a module of yours registers needs allow=['that_module'] or --allow that_module"
)
_UNKNOWN_BLOCK = f"; `composer blocks` lists them{ALLOW_MODULE}"
_NETWORK_KEYS = {*POLICY_NETWORK_KEYS, *POLICY_KEYS, *CRITIC_KEYS} - {*KINDS}


def is_misplaced(name: str, node: object) -> bool:
    """Whether ``name`` in a graph is a key of the network, or of the spec, not a node."""
    keys = {*node} if isinstance(node, dict) else set()
    if name in TOP_KEYS:
        return keys.isdisjoint(("block", "same_as", "in"))
    return name in _NETWORK_KEYS and keys.isdisjoint(("block", "same_as"))


class NodeParser:
    """Parses nodes and graphs of nodes; mistakes go to ``problems``, and the rest is parsed all the same."""

    def __init__(self, problems: Problems, allow: tuple[str, ...], limits: Limits) -> None:
        self._problems = problems
        self._allow = allow
        self._limits = limits
        self._imported = False
        self._import_failure = ""

    def graph(self, fields: Fields) -> dict[str, NodeSpec]:
        """The nodes under the key `graph`; those that cannot be read are left out.

        There may be none where `heads` read what the network is given: a linear network.
        """
        value = fields.values["graph"]
        if value == {} and "heads" in fields:
            return {}
        if not isinstance(value, dict) or not value:
            fields.wrong("graph", "a mapping from names to nodes")
            return {}
        nodes = {}
        for name, node in value.items():
            path = (*fields.at("graph"), name)
            wrong = node_name_problem(name)
            if is_misplaced(name, node):
                message = f"{name!r} is a key of the network; write it beside 'graph', not inside"
                if name in TOP_KEYS:
                    message = (
                        f"{name!r} is a key of the spec; write it at the top, not inside 'graph'"
                    )
                self._problems.add(path, message, key=True)
            elif wrong:
                self._problems.add(path, wrong, key=True)
            elif isinstance(node, dict):
                nodes[name] = self.node(name, node, path)
            else:
                self._problems.add(path, f"{name!r} must be {_EXAMPLE}, got {describe(node)}")
                nodes[name] = NodeSpec(path, name, None, ())  # so that others may refer to it
        return nodes

    def node(
        self, name: str, value: Mapping[str, object], path: Path, default_block: str | None = None
    ) -> NodeSpec:
        """The node called ``name``; a head has a ``default_block`` and may leave `block` out."""
        fields = Fields(value, path, self._problems)
        settings = {k: v for k, v in value.items() if k not in NODE_KEYS}
        same_as = fields.text("same_as")
        graph = None
        block = value.get("block", default_block)
        if "same_as" in fields:
            self._only_shared(fields)
            block = None
        elif block in NESTED:
            graph = self._nested(fields, block)
            settings = {}
        else:
            self._check_block(fields, default_block, settings)
        return NodeSpec(
            path,
            name,
            block,
            self._inputs(fields, settings, nested=graph is not None),
            out=self._outputs(fields, nested=graph is not None),
            each=fields.count("each", 0),
            same_as=same_as,
            init=value.get("init"),
            settings=settings,
            graph=graph,
            copies=fields.copies("copies", self._limits) if block == "ensemble" else None,
        )

    def _only_shared(self, fields: Fields) -> None:
        for key in fields.values:
            if key not in ("same_as", "in", "out", "each"):
                message = f"{key!r} has no place beside 'same_as': the whole module is shared, settings and weights"
                fields.note(key, message, on_key=True)

    def _nested(self, fields: Fields, block: object) -> dict[str, NodeSpec]:
        has_copies = block == "ensemble" or "copies" in fields
        extra = ("graph", "copies") if has_copies else ("graph",)
        meant = fields.unknown((*NODE_KEYS, *extra), "a nested graph", places=PLACES)
        if block != "ensemble" and has_copies:
            message = "'copies' belongs to the block 'ensemble'; write block: ensemble beside it"
            fields.note("copies", message, on_key=True)
        elif block == "ensemble" and "copies" not in fields and "copies" not in meant:
            fields.note("block", "the block 'ensemble' needs 'copies' beside it, a number")
        if "graph" in fields:
            return self.graph(fields)
        if "graph" not in meant:
            message = f"the block {block!r} needs 'graph' beside it, a mapping from names to nodes"
            fields.note("block", message)
        return {}

    def _check_block(
        self, fields: Fields, default_block: str | None, settings: dict[str, object]
    ) -> None:
        block = str(fields.values.get("block"))
        if "graph" in settings and (block in BLOCKS or not near_name(block, NESTED)):
            message = "'graph' belongs to the block 'graph'; write block: graph beside it"
            fields.note("graph", message, on_key=True)
        elif "block" in fields:
            self._check_block_value(fields)
        elif default_block is None:
            near = near_name("block", settings)
            if "_target_" in settings:
                message = "'_target_' makes a whole network; a node names its class with 'block'"
                fields.note("_target_", message, on_key=True)
            elif near:
                message = f"{near!r} is not a key of a node" + suggest(near, "block")
                fields.note(near, message, on_key=True)
            else:
                self._problems.add(fields.path, f"{fields.path[-1]!r} has no 'block'", key=True)

    def _check_block_value(self, fields: Fields) -> None:
        block = fields.values["block"]
        if not isinstance(block, str):
            # From Python: a class, a function, a ready module.
            if block is None or isinstance(block, bool | int | float | list | dict):
                fields.wrong("block", "the name of a block")
        elif "." in block:
            problem = check_trusted(block, self._allow)
            if problem:
                fields.note("block", problem)
            self._check_layers(fields)
        elif not self._is_known(block):
            near = did_you_mean(block, [*BLOCKS, *NESTED], "block")
            hint = near or self._import_failure or _UNKNOWN_BLOCK
            fields.note("block", f"unknown block {block!r}" + hint)

    def _check_layers(self, fields: Fields) -> None:
        """Note more layers than the limit: no class refuses them, and torch's take quadratic time to be built."""
        for key, value in fields.values.items():
            if key.endswith(("layer", "layers")) and isinstance(value, int):
                message = above(self._limits, "layers", key, value)
                if message:
                    fields.note(key, message)

    def _is_known(self, block: str) -> bool:
        if block not in BLOCKS and self._allow and not self._imported:
            self._imported = True
            try:
                import_allowed(self._allow)  # they may register it
            except PathError as error:
                self._import_failure = f"; an allowed module might have it, but {error}"
        return block in BLOCKS

    def _inputs(
        self, fields: Fields, settings: Mapping[str, object], nested: bool
    ) -> tuple[str, ...] | dict[str, str]:
        if "in" not in fields:
            self._no_input(fields, settings)
            return ()
        value = fields.values["in"]
        if isinstance(value, dict) and value:
            return fields.text_mapping("in", "a mapping from inputs to names")
        names = [value] if isinstance(value, str) else value
        # An observation may be called '', as any text.
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return {name: name for name in names} if nested else tuple(names)
        fields.wrong("in", "a name, a list of names, or a mapping from inputs to names")
        return ()

    def _no_input(self, fields: Fields, settings: Mapping[str, object]) -> None:
        meant = next((key for key in settings if key in _LIKE_IN), None)
        if meant:
            message = f"{meant!r} is not a key of a node" + suggest(meant, "in")
            fields.note(meant, message, on_key=True)
        else:
            message = f"{fields.path[-1]!r} has no 'in': name what it reads"
            self._problems.add(fields.path, message, key=True)

    def _outputs(self, fields: Fields, nested: bool) -> tuple[str, ...] | dict[str, str] | None:
        if "out" not in fields:
            return None
        value = fields.values["out"]
        if nested and isinstance(value, dict) and value:
            return fields.text_mapping("out", "a mapping from outer names to inner ones")
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names:
            fields.wrong("out", "a list of names, '_' for one that is dropped")
            return None
        good = tuple(name for name in names if isinstance(name, str) and NODE_NAME.fullmatch(name))
        if len(good) < len(names):
            wrong = next(name for name in names if name not in good)
            fields.note(
                "out", f"a name in 'out' must be letters, digits and '_', got {describe(wrong)}"
            )
        elif set(good) == {"_"}:
            fields.note("out", "'out' drops every output")
        return good
