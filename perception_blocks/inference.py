"""InferenceBlock: the network of a Graph, an ``nn.Module`` from dict to dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perception_blocks.dag import Dag, DagNode
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.graph.assemble import BuiltNode, assemble
from perception_blocks.graph.construct import Construction
from perception_blocks.graph.graph import Graph
from perception_blocks.lowering.lowered import LoweredNetwork
from perception_blocks.lowering.program import Program, write_program
from perception_blocks.port import Port, Shape, tell_out_of_range

if TYPE_CHECKING:
    from networkx import DiGraph

__all__ = ["InferenceBlock", "submodule_at"]


class InferenceBlock(nn.Module):
    """The network of ``graph`` that computes ``outputs`` (names of values, or {output name: value}).

    Only what the outputs depend on is built; modules are named by their nodes. Inputs and outputs are dicts of tensors;
    all leading axes (batch, or none) are treated alike.

    ``net(inputs)`` starts from a zero state and returns the outputs; ``step`` and ``unroll`` carry the state of blocks
    with memory and return (outputs, state), where state is one flat dict ``{"node/h": (...) + shape}``.

    Raises GraphError with everything that is wrong with the graph.

    >>> graph = Graph({"observation": (4,)})
    >>> _ = graph.add("latent", "dense", "observation", hidden_units=[8])
    >>> net = InferenceBlock(graph, outputs=["latent"])
    >>> net.out_shapes
    {'latent': (8,)}
    """

    def __init__(
        self,
        graph: Graph,
        outputs: Sequence[str] | Mapping[str, str],
        *,
        construction: Construction | None = None,
        path: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        construction = construction or Construction()
        if isinstance(outputs, str):
            raise ValueError(f"outputs is a list of names or a mapping, got the text {outputs!r}")
        values = dict(outputs) if isinstance(outputs, Mapping) else {name: name for name in outputs}

        def nest(
            inner: Graph, names: list[str], inner_path: tuple[str, ...], copies: int | None
        ) -> InferenceBlock | EnsembleBlock:
            if copies is None:
                return InferenceBlock(inner, names, construction=construction, path=inner_path)
            networks = [
                InferenceBlock(inner, names, construction=construction.copy(inner_path, index))
                for index in range(copies)
            ]
            ensemble = EnsembleBlock(networks)
            construction.when_weights_exist(lambda: ensemble.adopt(networks))
            return ensemble

        nodes = assemble(graph, list(values.values()), self, construction, nest, path)
        read = {name for node in nodes for name in node.step.inputs} | set(values.values())
        in_ports = {name: graph.inputs[name] for name in graph.inputs if name in read}
        ports = {**in_ports, **{name: p for node in nodes for name, p in node.out_ports.items()}}
        states = {name: shape for node in nodes for name, shape in node.state_shapes.items()}
        vars(self).update(  # not by assignment: a node may be named like one of these
            nodes=nodes,
            in_ports=in_ports,
            out_ports={name: ports[value] for name, value in values.items()},
            state_shapes=states,
            outputs=values,
        )
        self._compile()

    nodes: list[BuiltNode]
    in_ports: dict[str, Port]
    out_ports: dict[str, Port]
    state_shapes: dict[str, Shape]
    outputs: dict[str, str]  # output name -> value of the graph

    @property
    def in_keys(self) -> list[str]:
        return list(self.in_ports)

    @property
    def out_keys(self) -> list[str]:
        return list(self.out_ports)

    @property
    def in_shapes(self) -> dict[str, Shape]:
        return {name: port.shape for name, port in self.in_ports.items()}

    @property
    def out_shapes(self) -> dict[str, Shape]:
        return {name: port.shape for name, port in self.out_ports.items()}

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        state: Mapping[str, Tensor] | None = None,
        resets: Tensor | None = None,
        unroll: bool = False,
    ) -> dict[str, Tensor] | tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs alone without a ``state`` (memory then starts from zero), else (outputs, state)."""
        try:
            if state is None:
                return self._run(self._modules, inputs)
            if self._run_memory is None:
                return self._run(self._modules, inputs), {}
            return self._run_memory(self._modules, inputs, state, resets, unroll)
        except IndexError as error:
            tell_out_of_range(error, inputs, self.in_ports, self.nodes)
            raise

    def step(
        self,
        inputs: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        resets: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step: inputs (...) + shapes, state (...) + shapes, resets (...), true at an episode's first step."""
        return self(inputs, state, resets)

    def unroll(
        self,
        inputs: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        resets: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All steps: inputs (..., T) + shapes with T >= 1, state (...) + shapes, resets (..., T)."""
        return self(inputs, state, resets, unroll=True)

    def initial_state(
        self,
        batch_size: int | Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Zeros for ``batch_size`` sequences (a number, or leading axes; () is the unbatched case)."""
        leading = (batch_size,) if isinstance(batch_size, int) else tuple(batch_size)
        like = next(self.parameters(), None)
        if like is not None:
            device, dtype = device or like.device, dtype or like.dtype
        return {
            name: torch.zeros(leading + tuple(shape), device=device, dtype=dtype)  # type: ignore[arg-type]
            for name, shape in self.state_shapes.items()
        }

    def lower(self) -> LoweredNetwork:
        """The same network as straight-line functional code that reads its parameters; called like it, and faster.

        It follows all changes of the network: loading, moving, training, hooks, parametrizations, adapters.
        """
        return LoweredNetwork(self, InferenceBlock)

    def source(self) -> str:
        """The generated code of the forward pass; ``k`` are names, ``v`` values, ``m`` groups of modules."""
        return self._program.source if self._memory_program is None else self._memory_program.source

    def module_of(self, node: BuiltNode) -> nn.Module:
        """The module of one of ``self.nodes``."""
        return self.get_submodule(".".join(node.step.module))

    def part(self, nodes: Sequence[BuiltNode], outputs: Mapping[str, str]) -> InferenceBlock:
        """The network of some of its ``nodes``, over the very modules of this one.

        What they, and ``outputs`` ({output name: value}), read of the other nodes are inputs of it, by their names.
        """
        written = {name: port for node in nodes for name, port in node.out_ports.items()}
        outside = {name: port for node in self.nodes for name, port in node.out_ports.items()}
        known = {**self.in_ports, **outside}
        read = dict.fromkeys(name for node in nodes for name in node.step.inputs)
        read |= dict.fromkeys(outputs.values())
        part = InferenceBlock.__new__(InferenceBlock)
        nn.Module.__init__(part)
        vars(part).update(
            _modules=self._modules,
            nodes=list(nodes),
            in_ports={name: known[name] for name in read if name not in written},
            out_ports={name: known[value] for name, value in outputs.items()},
            state_shapes={
                name: shape for node in nodes for name, shape in node.state_shapes.items()
            },
            outputs=dict(outputs),
        )
        part._compile()
        return part

    def to_networkx(self) -> DiGraph:
        """What was built as a `networkx.DiGraph`: the graph's inputs and nodes that the outputs need.

        Its attributes are as in `Graph.to_networkx`; masks that blocks read by themselves have edges too.
        """
        nodes = [DagNode(n.node.value_name, n.step.inputs, n.node.writes) for n in self.nodes]
        dag = Dag(nodes, self.in_ports, None)
        graph = dag.to_networkx()
        for name, known_as in dag.input_names().items():
            graph.nodes[known_as]["shape"] = self.in_ports[name].shape
        for node in self.nodes:
            graph.nodes[node.node.value_name]["block"] = node.label
        return graph

    def get_submodule(self, target: str) -> nn.Module:
        return submodule_at(self, target)

    def extra_repr(self) -> str:
        return f"{self.in_shapes} -> {self.out_shapes}"

    def _compile(self) -> None:
        steps = [node.step for node in self.nodes]
        program = write_program(steps, self.outputs, memory=False)
        with_memory = write_program(steps, self.outputs, memory=True) if self.state_shapes else None
        vars(self).update(
            _program=program,
            _memory_program=with_memory,
            _run=program.function,
            _run_memory=with_memory.function if with_memory else None,
        )

    _program: Program
    _memory_program: Program | None
    _run: Callable[..., Any]
    _run_memory: Callable[..., Any] | None

    def __getstate__(self) -> dict[str, object]:
        generated = ("_program", "_memory_program", "_run", "_run_memory")
        return {name: value for name, value in self.__dict__.items() if name not in generated}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compile()


def submodule_at(root: nn.Module, target: str) -> nn.Module:
    """By path; unlike torch's ``get_submodule``, it finds a node that is named like a method ("train")."""
    module = root
    for name in filter(None, target.split(".")):
        child = module._modules.get(name)
        if child is None:
            raise AttributeError(f"no module {target!r} in this network")
        module = child
    return module
