"""The Picture of a model's networks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from torch import nn

from composer.diagram.folding import Draft, DraftBox, DraftFrame, Value, boxes_of, fold
from composer.diagram.labels import typeset
from composer.diagram.picture import Picture
from composer.network.autoregressive import AutoregressiveNetwork
from composer.network.module import InputSource, NetworkModule
from composer.network.network import EnsembleNetwork, Network
from composer.spec.places import ENSEMBLE
from composer.summary.networks import networks_by_name, served_actors, short_name, target_of
from composer.summary.rows import Row, RowPath, class_name, network_in
from composer.summary.table import Summary, summarize
from perception_blocks.graph.assemble import BuiltNode
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import Port, format_shape

__all__ = ["sketch"]

Values = dict[str, Value]  # a name in some graph -> the tensor
INPUT, OUTPUT = "->", "<-"  # no node is named so
SAID = {
    "action": "the action",
    "presence": "who is there",
    "actor": "which actor it is",
    "shared": "from the policy",
    "previous": "of the step before",
}


def sketch(net: nn.Module) -> Picture:
    """The Picture of a Model, Policy, Critic, InferenceBlock, or of the InferenceBlocks inside another module.

    Raises ValueError for plain PyTorch, in which there is no graph to see.
    """
    modules = networks_by_name(net)
    _refuse_plain([module.network.module for module in modules.values()] or [net])
    summary = summarize(net)
    sketcher = _Sketcher(net, summary)
    sketched: list[Draft]
    if modules:
        sketched = sketcher.networks(modules)
    elif isinstance(net, InferenceBlock):
        sketched = sketcher.alone(net, ())
    else:
        root = (class_name(net),)
        sketched = [
            DraftFrame([path], sketcher.alone(block, (*root, *path.split("."))))
            for path, block in _outermost(net).items()
        ]
    return typeset(fold(sketched), summary)


def _refuse_plain(modules: list[nn.Module]) -> None:
    if any(isinstance(m, InferenceBlock) for module in modules for m in module.modules()):
        return
    names = list(dict.fromkeys(class_name(module) for module in modules))
    verb, them = ("is", "it") if len(names) == 1 else ("are", "them")
    raise ValueError(
        f"{' and '.join(names)} {verb} plain PyTorch: there is no graph to draw; "
        f"build {them} with InferenceBlock to see {them}"
    )


def _outermost(module: nn.Module, ours: Collection[nn.Module] = ()) -> dict[str, InferenceBlock]:
    """InferenceBlocks that are in no other one and none of ``ours``, by their path."""
    if isinstance(module, InferenceBlock):
        return {"": module}
    blocks: dict[str, InferenceBlock] = {}
    for name, child in module.named_children():
        if child in ours:
            continue
        for path, block in _outermost(child).items():
            blocks[f"{name}.{path}" if path else name] = block
    return blocks


class _Sketcher:
    """Makes drafts of boxes and frames; a tensor is named by the path of its writer."""

    def __init__(self, net: nn.Module, summary: Summary) -> None:
        self._served = served_actors(net)
        self._has_target = target_of(net) is not None
        self._rows = {row.path: row for row in summary.rows}
        self._heads = {(head.network, head.name): head for head in summary.heads}
        self._ours: set[nn.Module] = set()  # children that are no part of a network
        self._inputs: dict[Value, DraftBox] = {}  # by what they hold
        self._outputs: dict[str, Values] = {}  # by network

    def networks(self, modules: Mapping[str, NetworkModule]) -> list[Draft]:
        """Observations, then policies and critics as frames."""
        frames: list[Draft] = []
        read = {key for module in modules.values() for key in module.shared}
        for name, module in modules.items():
            self._ours |= set(module.own_children().values())
            env = self._observed(name, module, modules)
            stacks = self._handed(name, module, env)
            children, outputs = self._network(name, module.network, env)
            children = [*stacks, *children]
            children += [
                self._output(name, module, key, value, env)
                for key, value in outputs.items()
                if key not in read or not self._heads[name, key].shared
            ]
            self._outputs[name] = outputs
            frames.append(
                DraftFrame([name], children, network=True, remark=self._about(name, module))
            )
        return [*self._inputs.values(), *frames]

    def _about(self, name: str, module: NetworkModule) -> str:
        """The text beside a network's name."""
        has_target = self._has_target and module.part == "critic"
        if name not in self._served:
            return "and its target copy" if has_target else ""
        return self._served[name].words(most=2) + (", with target" if has_target else "")

    def _observed(
        self, name: str, module: NetworkModule, modules: Mapping[str, NetworkModule]
    ) -> Values:
        """The inputs of a network that no other network makes."""
        env: Values = {}
        for key, source in module.input_sources().items():
            if not source.is_handed_over:
                title = short_name(name, key)
                # Of an actor, and of several on one axis, it is not the same tensor.
                value = ("", title, "stack") if source.stacked else ("", title)
                remark = self._remark(name, modules, source)
                box = self._inputs.setdefault(value, _input(value, title, source.port, remark))
                env[key] = box.writes[0]
        return env

    def _remark(self, name: str, modules: Mapping[str, NetworkModule], source: InputSource) -> str:
        """The remark at an input that the network ``name`` is the first to read."""
        if source.kind in SAID:
            return SAID[source.kind]
        owners = source.actors or self._actors(name)
        acting = [modules[maker] for maker in self._makers(owners) if maker in modules]
        seen = any(source.key in policy.input_sources() for policy in acting)
        remarks = {
            f"of {len(owners)} actors": source.stacked,
            "normalized": source.normalized,
            "only for the critic": acting and not seen and modules[name] not in acting,
        }
        return ", ".join(remark for remark, holds in remarks.items() if holds)

    def _handed(self, name: str, module: NetworkModule, env: Values) -> list[Draft]:
        """Put into ``env`` a critic's values from other networks; values of several networks are stacked first."""
        stacks: list[Draft] = []
        for key, source in module.input_sources().items():
            if not source.is_handed_over:
                continue
            critics = [maker for maker in self._outputs if maker.startswith("critic")]
            follows = source.kind == "previous"
            owners = source.actors or self._actors(name)
            makers = critics[-1:] if follows else self._makers(owners)
            outputs_of_makers = [self._outputs[maker] for maker in makers]
            values = [outs[source.key] for outs in outputs_of_makers if source.key in outs]
            if not values:  # a critic that is drawn without its policy
                title = short_name(name, key)
                value = ("policy", title)
                self._inputs[value] = _input(value, title, source.port, SAID[source.kind])
                values = self._inputs[value].writes
            elif source.stacked or len(values) > 1:
                stacked = (OUTPUT, name, "stack", key)
                many = f"{len(owners)} actors" if source.stacked else f"{len(values)} groups"
                lines = (f"{key} of {many}",)
                stacks.append(
                    DraftBox("opaque", ["stack"], ("stack", key), values, [stacked], lines)
                )
                values = [stacked]
            env[key] = values[0]
        return stacks

    def _actors(self, name: str) -> tuple[str, ...]:
        return self._served[name].actors if name in self._served else ()

    def _makers(self, actors: Collection[str]) -> list[str]:
        """The policies that act for any of ``actors``; of one Space, the only one."""
        policies = [name for name in self._outputs if name.startswith("policy")]
        return [name for name in policies if not actors or set(self._actors(name)) & set(actors)]

    def alone(self, net: InferenceBlock, path: RowPath) -> list[Draft]:
        """An InferenceBlock with tensors of its own around it."""
        inputs = [_input((*path, key), key, port) for key, port in net.in_ports.items()]
        env = {box.names[0]: box.writes[0] for box in inputs}
        drafts: list[Draft] = [*inputs, *self._graph(net, path, env)]
        for key, port in net.out_ports.items():
            drafts.append(_tensor_out((OUTPUT, *path, key), key, port, env[net.outputs[key]]))
        return drafts

    # --- one network --------------------------------------------------------------------------------------------------

    def _network(self, name: str, network: Network, env: Values) -> tuple[list[Draft], Values]:
        """The inside of a network, and its outputs."""
        module = network.module
        if isinstance(module, InferenceBlock):
            values = dict(env)
            drawn = network.drawn if isinstance(network, AutoregressiveNetwork) else {}
            children = self._graph(module, (name,), values, drawn)
            return children, {key: values[value] for key, value in module.outputs.items()}
        if isinstance(network, EnsembleNetwork):
            inner = network.ensemble.network.network
            path = (name, ENSEMBLE, class_name(inner.module))
            children, outputs = self._custom(path, inner, env)
            remark = _copies(self._rows[path[:2]], network.ensemble.copies)
            return [DraftFrame([ENSEMBLE], children, remark=remark)], outputs
        return self._custom((name,), network, env)

    def _custom(self, base: RowPath, network: Network, env: Values) -> tuple[list[Draft], Values]:
        """A user's class: the InferenceBlocks in it, and opaque boxes for the Python code around them.

        Blocks that read the network's inputs come first, then the class itself, then the blocks that read its values,
        and the class again if it makes outputs of theirs.
        """
        inner = _outermost(network.module, self._ours)
        blocks = {path: _outside_inputs(block, network) for path, block in inner.items()}
        early = [path for path, outside in blocks.items() if not outside]
        late = {path: outside for path, outside in blocks.items() if outside}
        computed = [(OUTPUT, *base, path, key) for path, outside in late.items() for key in outside]
        outputs: Values = {}
        children, loose = self._inside(base, network, early, env, outputs)
        after, later = self._inside(base, network, late, env, outputs)
        missing = [key for key in network.out_ports if key not in outputs]
        forward: list[Value] = [(OUTPUT, *base, "", key) for key in missing]
        read = {value for box in boxes_of([*children, *after]) for value in box.reads}
        unread = [env[key] for key in network.in_ports if env[key] not in read]
        row = self._outside_row(base, boxes_of([*children, *after]))
        if late:
            children.append(_opaque(network, bool(blocks), [*loose, *unread], computed, row))
            children += after
            if missing:
                again = replace(row, parameters=0, share=0.0)
                children.append(_opaque(network, True, later, forward, again))
        elif missing or row.parameters:
            children.append(_opaque(network, bool(blocks), [*loose, *unread], forward, row))
        outputs |= dict(zip(missing, forward))
        return children, {key: outputs[key] for key in network.out_ports}

    def _inside(
        self, base: RowPath, network: Network, paths: Iterable[str], env: Values, outputs: Values
    ) -> tuple[list[Draft], list[Value]]:
        """Frames of the InferenceBlocks at ``paths``, and their values that are not among the network's ``outputs``."""
        drafts: list[Draft] = []
        loose: list[Value] = []
        for path in paths:
            block = _outermost(network.module, self._ours)[path]
            outside = _outside_inputs(block, network)
            values: Values = {
                key: (OUTPUT, *base, path, key) if key in outside else env[key]
                for key in block.in_ports
            }
            drafts.append(DraftFrame([path], self._graph(block, (*base, *path.split(".")), values)))
            for key, port in block.out_ports.items():
                asked = network.out_ports.get(key)
                value = values[block.outputs[key]]
                if key not in outputs and asked is not None and asked.shape == port.shape:
                    outputs[key] = value
                else:
                    loose.append(value)
        return drafts, loose

    def _outside_row(self, base: RowPath, shown: Iterable[DraftBox]) -> Row:
        """The row of a class, with the parameters that are in none of the boxes ``shown``."""
        paths = {box.row.path for box in shown if box.row}
        rows = [
            row
            for path, row in self._rows.items()
            if path[: len(base)] == base
            and path not in paths
            and path[len(base) : len(base) + 1] != ("distributions",)
        ]
        parameters, share = sum(row.parameters for row in rows), sum(row.share for row in rows)
        return replace(self._rows[base], parameters=parameters, share=share)

    def _graph(
        self,
        net: InferenceBlock,
        path: RowPath,
        env: Values,
        drawn: Mapping[str, str] = MappingProxyType({}),
    ) -> list[Draft]:
        """The nodes of ``net``; ``env`` has its inputs, and gets all values.

        ``drawn`` maps the values of heads to the inputs that their actions are.
        """
        drafts: list[Draft] = []
        for node in net.nodes:
            below = (*path, *node.node.path)
            module = net.module_of(node)
            nested = network_in(module)
            if nested:
                drafts.append(self._nested(node, *nested, below, env))
                continue
            row = self._rows[below]
            for name in filter(None, node.step.outputs):
                env[name] = (*below, name)
            form = (
                row.block, repr(row.settings), row.in_shapes, row.out_shapes,
                row.parameters, row.each, row.memory, row.same_as, row.frozen,
            )  # fmt: skip
            reads = [env[name] for name in node.step.inputs]
            writes = [env[name] for name in node.step.outputs if name is not None]
            drafts.append(DraftBox("block", [node.node.name], form, reads, writes, row=row))
            for head, name in (
                (v, drawn[v]) for v in filter(None, node.step.outputs) if v in drawn
            ):
                env[name] = (OUTPUT, *path, name)
                shape = format_shape(net.in_ports[name].shape)
                lines = (shape, f"drawn from {node.node.name}")
                form = ("drawn", name)
                drafts.append(DraftBox("opaque", [name], form, [env[head]], [env[name]], lines))
        return drafts

    def _nested(
        self, node: BuiltNode, module: InferenceBlock, copies: int, path: RowPath, env: Values
    ) -> DraftFrame:
        """The frame around a nested graph, or around one of an ensemble's copies."""
        assert node.step.inner is not None
        inner_inputs, inner_outputs = node.step.inner
        values = {inner: env[name] for inner, name in zip(inner_inputs, node.step.inputs)}
        children = self._graph(module, path, values)
        for name, inner in zip(node.step.outputs, inner_outputs):
            if name is not None:
                env[name] = values[module.outputs[inner]]
        return DraftFrame([node.node.name], children, remark=_copies(self._rows[path], copies))

    # --- outputs ------------------------------------------------------------------------------------------------------

    def _output(
        self, network: str, module: NetworkModule, key: str, value: Value, env: Values
    ) -> DraftBox:
        """The output tensor of a head, with its meaning."""
        head = self._heads[network, key]
        port = replace(module.network.out_ports[key], shape=head.shape)
        box = _tensor_out((OUTPUT, network, key), key, port, value, head.meaning)
        if head.mask is not None:
            box.masks.append(env[head.mask])
            box.reads.append(env[head.mask])
        return box


def _copies(row: Row, copies: int) -> str:
    """The remark at the frame around a nested graph."""
    remark = f"{copies} copies" if row.block == "ensemble" else ""
    return remark + (", one by one" if row.why_looped else "")


def _outside_inputs(block: InferenceBlock, network: Network) -> list[str]:
    """The inputs of a block inside a class that are not the network's own: the class makes them."""
    given = {key: port.shape for key, port in network.in_ports.items()}
    return [key for key, shape in block.in_shapes.items() if given.get(key) != shape]


def _opaque(
    network: Network, has_blocks: bool, reads: list[Value], writes: list[Value], row: Row
) -> DraftBox:
    """The box for the code of a class outside its InferenceBlocks."""
    title = class_name(network.module)
    what = "what the class does around its blocks" if has_blocks else "plain PyTorch"
    return DraftBox("opaque", [title], ("opaque", title), reads, writes, (what,), row=row)


def _input(path: Value, key: str, port: Port, remark: str = "") -> DraftBox:
    value = (INPUT, *path)
    lines = tuple(filter(None, [_kind_of(port), remark]))
    details = {"shape": format_shape(port.shape), "dtype": str(port.dtype).removeprefix("torch.")}
    if isinstance(port.low, int | float) and isinstance(port.high, int | float):
        details["bounds"] = f"{port.low:g} to {port.high:g}"
    return DraftBox("input", [key], lines, [], [value], lines, details)


def _tensor_out(path: Value, key: str, port: Port, value: Value, meaning: str = "") -> DraftBox:
    lines = tuple(filter(None, [format_shape(port.shape), meaning]))
    details = {"shape": format_shape(port.shape)} | ({"meaning": meaning} if meaning else {})
    return DraftBox("output", [key], lines, [value], [path], lines, details)


def _kind_of(port: Port) -> str:
    counts = port.cardinality if isinstance(port.cardinality, tuple) else (port.cardinality,)
    if None in counts or len(set(counts)) > 1:
        return str(port)
    return f"integers below {counts[0]} {format_shape(port.shape)}"
