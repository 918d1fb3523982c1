"""How a node is wired: what its block reads, in which order, over which axes, and what its outputs are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from perception_blocks.base_block import block_label
from perception_blocks.graph.graph import LEFT_OUT, Block, Graph, Node
from perception_blocks.port import Port, Shape, format_shape
from perception_blocks.words import as_module_name, did_you_mean, hint

__all__ = [
    "LeftOutError",
    "NodeError",
    "filled",
    "kept_mask",
    "module_name",
    "nested_graph",
    "nested_outputs",
    "output_names",
    "refused_call",
]
__all__ += ["strip_each", "wires", "with_masks"]

# What each setting named in `from_ports` is called on the Port.
PORT_SETTINGS = {"num_embeddings": "cardinality", "vocab_size": "cardinality"}


class NodeError(ValueError):
    """A problem of the node that is being built: at which ``key`` of it, and whether the key itself is at fault."""

    kind = ""  # of its GraphProblem

    def __init__(self, key: str | None, message: str, of_key: bool = False) -> None:
        super().__init__(message)
        self.key, self.message, self.of_key = key, message, of_key


class LeftOutError(NodeError):
    """Given as the block of a node that is not to be built: what is wrong with it is known where it was wired."""

    kind = LEFT_OUT

    def __init__(self) -> None:
        super().__init__("block", "the node is left out")


class CombinedNodeError(Exception):
    """Several problems of one node."""

    def __init__(self, errors: Iterable[Exception]) -> None:
        self.errors = list(errors)
        super().__init__("; ".join(map(str, self.errors)))


def wires(node: Node, block: Block) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The values that the block reads in the order of its forward, and keyword names where positions do not do."""
    if isinstance(node.inputs, tuple):
        return node.inputs, None
    parameters = inspect.signature(block.forward).parameters
    known = [name for name in parameters if name != "self"]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in node.inputs:
        if name not in known and not takes_any:
            free = [other for other in known if other not in node.inputs]
            near = hint(name, free, "it takes", listed=known)
            raise NodeError("in", f"{name!r} is not an argument of {block_label(block)}" + near)
    return _in_order(node.inputs, parameters)


def _in_order(
    given: Mapping[str, str], parameters: Mapping[str, inspect.Parameter]
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The values ``given`` by argument in the order of forward, and the argument names where positions do not do."""
    known = [name for name in parameters if name != "self"]
    ordered = sorted(given, key=lambda name: known.index(name) if name in known else len(known))
    kinds = {parameters[name].kind for name in ordered if name in parameters}
    positional = ordered == known[: len(ordered)] and inspect.Parameter.KEYWORD_ONLY not in kinds
    return tuple(given[name] for name in ordered), None if positional else tuple(ordered)


def refused_call(
    module: nn.Module, inputs: Sequence[object], names: Sequence[str] | None = None
) -> str | None:
    """Why forward of ``module`` does not take ``inputs``, by its signature; ``names`` are keyword names."""
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # its arguments are unknown
        return None
    try:
        signature.bind(*inputs) if names is None else signature.bind(**dict(zip(names, inputs)))
    except TypeError as error:
        arguments = ", ".join(signature.parameters)
        count = "one input" if len(inputs) == 1 else f"{len(inputs)} inputs"
        return f"forward({arguments}) does not take {count}: {error}"
    return None


def with_masks(
    block: Block,
    reads: tuple[str, ...],
    names: tuple[str, ...] | None,
    ports: Mapping[str, Port],
    each: int = 0,
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The values and argument names of `wires`, and the masks of the inputs where the block takes them.

    A mask of which ``each`` takes off all axes is not passed.
    """
    mask_of = getattr(block, "mask_of", None)
    if not mask_of:
        return reads, names
    parameters = inspect.signature(block.forward).parameters
    known = [name for name in parameters if name != "self"]
    given = dict(zip(known if names is None else names, reads))
    empty = inspect.Parameter.empty
    if any(parameters[name].default is empty for name in {*known} - {*given, *mask_of}):
        return reads, names  # what is missing is reported for the inputs that were named
    added = {}
    for argument, index in mask_of.items():
        masked = given.get(known[index])
        mask = None if masked is None else _element_mask(masked, ports)
        if mask is not None and argument not in given and len(ports[mask].shape) > each:
            added[argument] = mask
    if not added:
        return reads, names
    return _in_order(given | added, parameters)


def kept_mask(
    node: Node, module: nn.Module, reads: Sequence[str], ports: Mapping[str, Port]
) -> str | None:
    """The name of the mask that a node's first output still has: the mask of its first masked input.

    A mask of another input that the block takes, such as the padding of keys, ends there.

    Raises NodeError where the mask of another input would be dropped in silence.
    """
    if all(ports[name].mask is None for name in reads):
        return None
    free = {reads[index] for index in getattr(module, "mask_free", ()) if index < len(reads)}
    masks = {name: _element_mask(name, ports) for name in reads}
    masked = {name: mask for name, mask in masks.items() if mask and name not in free}
    first = masks[reads[0]] if reads else None

    def outlasts(mask: str) -> bool:
        return getattr(module, "keeps_mask", False) or len(ports[mask].shape) <= node.each

    if first is not None and outlasts(first):
        kept = first
    else:
        others = (mask for mask in masked.values() if mask not in reads and outlasts(mask))
        kept = next(others, None)
    for name, mask in masked.items():
        if mask in reads or mask == kept:
            continue
        if kept is not None:
            names = f"{kept!r} and {mask!r}"
            raise NodeError("in", f"the inputs are masked by {names}; they must share one mask")
        raise NodeError(
            "in",
            f"{block_label(module)} would drop the mask of {name!r}; pool or attend first, or "
            "instead (masked_global_pooling, attention_pooling), or apply it to each element: each: 1",
        )
    return kept


def _element_mask(name: str, ports: Mapping[str, Port]) -> str | None:
    """The name of the mask over a value's elements.

    A mask without axes is about a value as a whole, an alternative of a OneOf: where it is not there it is zeros, which
    any block may read.
    """
    mask = ports[name].mask
    if mask is None:
        return None
    if mask not in ports:
        raise NodeError(
            "in", f"{name!r} is masked by {mask!r}, which is not among the inputs; add it"
        )
    return mask if ports[mask].shape else None


def strip_each(node: Node, ports: list[Port]) -> tuple[list[Port], Shape]:
    """Ports without their first `each` axes, which all inputs must share, and those axes."""
    if not node.each:
        return ports, ()
    for name, port in zip(node.reads, ports):
        if len(port.shape) < node.each:
            shape = format_shape(port.shape)
            raise NodeError(
                "each", f"'each: {node.each}' needs as many axes; {name!r} has the shape {shape}"
            )
    axes = {port.shape[: node.each] for port in ports}
    if len(axes) > 1:
        sizes = " and ".join(format_shape(a) for a in sorted(axes, key=str))
        raise NodeError(
            "each", f"'each: {node.each}' needs inputs with the same first axes, got {sizes}"
        )
    inner = [replace(port, shape=port.shape[node.each :], mask=None) for port in ports]
    return inner, axes.pop() if axes else ()


def filled(block: Block, given: Mapping[str, object], ports: Sequence[Port]) -> dict[str, object]:
    """The settings ``given``, and settings in `from_ports` that were left out and the first input's Port knows."""
    settings = dict(given)
    for name in getattr(block, "from_ports", ()):
        value = getattr(ports[0], PORT_SETTINGS.get(name) or name, None) if ports else None
        if name not in settings and value is not None:
            settings[name] = value
    return settings


def output_names(node: Node, count: int, block: Block) -> tuple[str, ...]:
    """What the ``count`` outputs of ``block`` are called. Raises NodeError where the node names another number."""
    if node.out is None:
        return (node.value_name,)
    if isinstance(node.out, Mapping):
        raise NodeError("out", "'out' is a list of names; only a nested graph takes a mapping")
    if len(node.out) != count:
        given, label = len(node.out), block_label(block)
        raise NodeError("out", f"'out' names {given} outputs, but {label} has {count}")
    return node.out


def nested_graph(graph: Graph, ports: Mapping[str, Port], masks: Iterable[str] = ()) -> Graph:
    """The nested graph with the Ports that really come in; ``masks`` may stay unread."""
    declared = graph.inputs
    wired = {name: port for name, port in ports.items() if name not in masks}
    for name, port in wired.items():
        if declared and name not in declared:
            near = did_you_mean(name, declared)
            raise NodeError("in", f"the nested graph has no input {name!r}" + near)
        if declared and declared[name].shape != port.shape:
            expected, got = format_shape(declared[name].shape), format_shape(port.shape)
            message = f"the nested graph declares {name!r} as {expected}, but gets {got}"
            raise NodeError("in", message)
    for name in declared:
        if name not in ports:
            raise NodeError("in", f"the nested graph's input {name!r} is not given")
    inner = Graph(ports, optional=masks)
    inner.nodes = graph.nodes
    return inner


def nested_outputs(node: Node, graph: Graph) -> dict[str, str]:
    """Outer name -> inner name of a nested graph's outputs."""
    if isinstance(node.out, Mapping):
        return dict(node.out)
    if node.out is not None:
        return {name: name for name in node.out}
    sinks = graph.dag(None).sinks()
    if len(sinks) != 1:
        names = ", ".join(map(repr, sinks))
        raise NodeError(
            "out", f"the nested graph ends in {len(sinks)} values ({names}); say which with 'out'"
        )
    return {node.name: sinks[0]}


def module_name(key: str) -> str:
    """A key of any text as a name that ``nn.Module`` takes for a child, and that generated code may hold.

    Other keys have other names.

    >>> module_name("move"), module_name("gear.box"), module_name("type")
    ('move', 'gear%2Ebox', '%74ype')
    """
    name = as_module_name(key.replace("%", "%25").replace(".", "%2E"))
    if not name or hasattr(nn.ModuleDict, name):
        return f"%{ord(name[0]):02X}{name[1:]}" if name else "%"
    return name
