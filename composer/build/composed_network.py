"""compose_network: a spec with `network`, and the shapes of what goes in and comes out; a checked network out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any, TypeAlias

import torch
from torch import Tensor

from composer.build.budget import Budget, LimitReached
from composer.build.construction import (
    SeededConstruction,
    chosen_seed,
    on_cpu,
    refuse_too_large,
)
from composer.build.context import BuildContext, BuildNotes, Requirements, VisiblePorts
from composer.build.network_builder import build_network
from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import write_checkpoint
from composer.checkpoint.plain_spec import saved_spec
from composer.errors import Problems
from composer.limits import GivenLimits, Limits, limits_from
from composer.network.module import InputSource, NetworkModule, OutputMeaning
from composer.network.network import Inputs, Network, State
from composer.source.dump import dump_yaml
from composer.source.load import Override, Source, load_source
from composer.spec.model_spec import NetworkSpec
from composer.spec.network_file import (
    InputSpec,
    NetworkFile,
    OutputShape,
    input_of,
    output_of,
    read_network,
)
from composer.spec.template import STAGES
from composer.trust import allow_list, import_allowed, import_extensions
from perception_blocks.graph.collector import collection_paused
from perception_blocks.port import Port, Shape, format_shape
from perception_blocks.reading import files_found
from perception_blocks.words import did_you_mean, listing, sparing

__all__ = ["ComposedNetwork", "check_network", "compose_network"]

InputShape: TypeAlias = "Port | int | tuple[int | None, ...] | list[int | None] | Mapping[str, Any]"
"""A size, a shape without batch, ``{"shape": (), "choices": 5}`` for integers below 5, or a Port."""


class ComposedNetwork(NetworkModule):
    """A network without actions. ``network(inputs)`` returns a dict of outputs; all leading axes are treated alike.

    With memory, ``network(inputs, state, resets)`` returns (outputs, state); ``resets`` is true where an input is the
    first of its episode. `unroll` does so for sequences (..., T). ``in_shapes`` and ``out_shapes`` are without leading
    axes, ``seed`` is the seed of the initial weights, ``spec`` the typed spec.
    """

    part = "network"
    call_arguments = "inputs, state, resets"

    def __init__(
        self,
        network: Network,
        spec: NetworkFile,
        construction: SeededConstruction,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(network, dtype)
        self.spec = spec
        self.seed = seed
        object.__setattr__(self, "_construction", construction)

    spec: NetworkFile
    seed: int
    _construction: SeededConstruction | None

    @property
    def in_shapes(self) -> dict[str, Shape]:
        """The shapes of the inputs that it reads."""
        return {name: port.shape for name, port in self.network.in_ports.items()}

    @property
    def out_shapes(self) -> dict[str, Shape]:
        """The shapes of its outputs."""
        return {name: port.shape for name, port in self.network.out_ports.items()}

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        state: State | None = None,
        resets: object = None,
        *,
        unroll: bool = False,
    ) -> Any:
        """Outputs by name, shapes (...) + `out_shapes`; with memory (outputs, state)."""
        outputs, after = self.evaluate(self.read(inputs), state, resets, unroll)
        return self._returned(outputs, after, unroll)

    def read(self, observations: object) -> Inputs:
        """What the network reads of its inputs, as it computes with them. Raises ValueError for a missing input."""
        if isinstance(observations, Inputs):
            return observations
        ports = self.network.in_ports
        if not isinstance(observations, Mapping):
            raise ValueError(
                f"the network reads {listing(ports)}, got a {type(observations).__name__}"
            )
        try:
            return Inputs(
                {name: self._read(observations[name], port) for name, port in ports.items()}
            )
        except KeyError:
            got = listing(observations) or "nothing"
            raise ValueError(f"the network reads {listing(ports)}, got {got}") from None

    def _read(self, value: Any, port: Port) -> Tensor:
        dtype = torch.int64 if port.is_integer else self.dtype
        return torch.as_tensor(value).to(device=self.device, dtype=dtype)

    def input_sources(self) -> dict[str, InputSource]:
        ports = self.network.in_ports.items()
        return {name: InputSource("input", name, port) for name, port in ports}

    def output_meanings(self) -> dict[str, OutputMeaning]:
        return {name: OutputMeaning(port) for name, port in self.network.out_ports.items()}

    def materialize(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> ComposedNetwork:
        """Allocate the weights of a network composed on ``device="meta"``, as composing it there would have.

        Raises SpecError, naming the largest node, if they do not fit into the memory of ``device``.
        """
        if self._construction is None:
            raise ValueError("this network has its weights already")
        target, wanted = torch.device(device), dtype or self.dtype
        try:
            refuse_too_large([self._construction], target, wanted)
            self._construction.materialize(target, wanted)
        except LimitReached as reached:
            raise reached.as_error(self.spec.source) from reached.__cause__
        object.__setattr__(self, "_construction", None)
        return self.to(device=target, dtype=wanted)

    def summary(self) -> str:
        """Shapes, parameters and FLOPs of every node, as an aligned table."""
        # Not above: counting FLOPs needs more of torch than composing does.
        from composer.summary.table import summarize

        return str(summarize(self))

    def save(self, path: str | FilePath) -> None:
        """Write weights, spec, inputs, outputs and seed to one safetensors file, for `composer.load_network`.

        The file appears whole or not at all. Raises CheckpointError if something in the spec has no name by which it
        can be loaded, or an input is more than a spec can say.
        """
        ports = self.network.in_ports.items()
        sizes = {
            "inputs": {name: _said_input(name, port) for name, port in ports},
            "outputs": {name: list(shape) for name, shape in self.out_shapes.items()},
        }
        data = saved_spec(self.spec.source.data, self)
        frozen = [name for name, each in self.named_parameters() if not each.requires_grad]
        write_checkpoint(
            path, self, spec=dump_yaml({**data, "network": {**data["network"], **sizes}}),
            observation_space={}, action_space={}, seed=self.seed, dtype=self.dtype,
            gradients={"frozen": frozen} if frozen else None,
        )  # fmt: skip

    def draw(self, path: str | FilePath) -> FilePath:
        """Draw the network; the extension of ``path`` (png, svg, pdf, html, dot, mmd) selects the format."""
        from composer.diagram.drawing import draw

        return draw(self, path)


@collection_paused()
@sparing
def compose_network(
    spec: Any,
    inputs: Mapping[str, InputShape] | None = None,
    outputs: Mapping[str, int | tuple[int, ...] | None] | None = None,
    *,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    limits: GivenLimits = None,
) -> ComposedNetwork:
    """Build a network without actions from a ``spec`` with `network`, for hosts that hand over shapes and no spaces.

    ``inputs`` are shapes without batch by name: ``{"observation": (8,), "image": (3, 64, 64)}``; integers below 5 are
    ``{"shape": (), "choices": 5}``, and a `perception_blocks.Port` says everything else. ``outputs`` are the widths of
    what must come out: ``{"logits": 4}``; None is any. An output is a value of the graph, or a head. Without the two
    arguments they are those in the spec. The others are as for `composer.compose`.

    Raises SpecError with every problem of the spec, and ValueError for what is no shape.
    """
    allow, limits = allow_list(allow), limits_from(limits)
    import_allowed(allow)
    source = load_source(spec, overrides, allow)
    import_extensions(source, allow)
    file = read_network(source, allow, limits=limits)
    target = torch.device(device)
    context = BuildContext(
        source, Problems(source), allow, chosen_seed(seed), target.type == "meta", Budget(limits)
    )
    with on_cpu(), files_found(source.find_file, has_weights=source.is_stored):
        built = _built(file, inputs, outputs, context, BuildNotes())
        network = ComposedNetwork(built[0], file, built[1], context.seed, dtype)
        return network if context.meta else network.materialize(target, dtype)


def check_network(
    source: Source, allow: tuple[str, ...], limits: Limits, notes: BuildNotes
) -> NetworkFile:
    """The typed spec of a network without actions that `compose_network` could build; ``notes`` gets what is known.

    Raises SpecError with every problem of the spec.
    """
    file = read_network(source, allow, limits=limits)
    context = BuildContext(source, Problems(source), allow, 0, True, Budget(limits))
    with on_cpu(), files_found(source.find_file, has_weights=source.is_stored):
        _built(file, None, None, context, notes)
    return file


def _said_input(name: str, port: Port) -> Any:
    """What a spec says of an input. Raises CheckpointError where it has no words for it."""
    shape = list(port.shape)
    said = {"shape": shape, "choices": port.cardinality} if port.is_integer else shape
    read = input_of(said)
    if read is None or _port(read) != port:
        raise CheckpointError(
            f"cannot be saved: the input {name!r} is a Port that says more than a shape or choices, which a spec has "
            "no words for; give it to compose_network as a shape"
        )
    return said


# --- what goes in and comes out ---------------------------------------------------------------------------------------


def _input_ports(
    file: NetworkFile, given: Mapping[str, InputShape] | None, problems: Problems
) -> dict[str, Port]:
    if given is None:
        if not file.inputs:
            message = (
                "it is not known what the network reads; write inputs: {observation: [8]} in it, or give "
                "inputs={'observation': (8,)}"
            )
            problems.add(file.network.path, message, key=True)
        return {name: _port(shape) for name, shape in (file.inputs or {}).items()}
    form = "inputs maps names to shapes such as {'observation': (8,)}"
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{form}, got {given!r}")
    ports = {}
    for name, value in given.items():
        shape = value if isinstance(value, Port) else input_of(value)
        if shape is None or not isinstance(name, str):
            raise ValueError(f"{form}, got {value!r} for {name!r}")
        ports[name] = shape if isinstance(shape, Port) else _port(shape)
    return ports


def _port(shape: InputSpec) -> Port:
    if shape.choices is None:
        return Port(shape.shape)
    return Port(shape.shape, dtype=torch.int64, cardinality=shape.choices)


def _output_shapes(
    file: NetworkFile, given: Mapping[str, Any] | None, problems: Problems
) -> dict[str, OutputShape]:
    if given is None:
        if not file.outputs:
            message = (
                "it is not known what comes out of the network; write outputs: {logits: 4} in it, or give "
                "outputs={'logits': 4}"
            )
            problems.add(file.network.path, message, key=True)
        return file.outputs or {}
    form = "outputs maps names to widths such as {'logits': 4}"
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{form}, got {given!r}")
    shapes = {}
    for name, value in given.items():
        try:
            shapes[name] = output_of(value)
        except ValueError:
            raise ValueError(f"{form}, got {value!r} for {name!r}") from None
    return shapes


# --- the network ------------------------------------------------------------------------------------------------------


def _built(
    file: NetworkFile,
    inputs: Mapping[str, InputShape] | None,
    outputs: Mapping[str, Any] | None,
    context: BuildContext,
    notes: BuildNotes,
) -> tuple[Network, SeededConstruction]:
    """The network without weights yet. Raises SpecError with everything that is wrong with the spec."""
    ports = _input_ports(file, inputs, context.problems)
    wanted = _output_shapes(file, outputs, context.problems)
    context.problems.raise_if_any()
    try:
        return _built_for(file.network, ports, wanted, context, notes)
    except LimitReached as reached:
        raise reached.as_error(context.source) from None


def _built_for(
    spec: NetworkSpec,
    ports: Mapping[str, Port],
    outputs: Mapping[str, OutputShape],
    context: BuildContext,
    notes: BuildNotes,
) -> tuple[Network, SeededConstruction]:
    values = _values(spec, outputs)
    requirements = _requirements(spec, outputs, values, context)
    context.problems.raise_if_any()  # the rest would be consequences
    spec = replace(spec, shares=values)
    built = build_network("network", spec, VisiblePorts(ports, {}), requirements, context, notes)
    if built is not None:
        _note_wrong_values(notes.expanded.get(spec.path, spec), built[0], outputs, values, context)
        unread = [name for name in ports if name not in notes.read]
        for name in unread if spec.target is None else ():
            message = f"nothing reads the input {name!r}; leave it out of 'inputs', or read it"
            context.problems.add(spec.path, message, key=True)
    if not context.problems:
        notes.effects.note(context.problems)
    context.problems.raise_if_any()
    assert built is not None
    return built


def _values(spec: NetworkSpec, outputs: Iterable[str]) -> tuple[str, ...]:
    """The outputs that are values of the graph; the others are heads."""
    if spec.target is not None:
        return ()
    nodes = (spec.graph or {}).values()
    known = STAGES.values() if spec.template else [name for node in nodes for name in node.writes]
    heads = spec.heads.actions if spec.heads else {}
    return tuple(name for name in outputs if name in known and name not in heads)


def _requirements(
    spec: NetworkSpec,
    outputs: Mapping[str, OutputShape],
    values: tuple[str, ...],
    context: BuildContext,
) -> Requirements:
    """What is asked of the network; outputs that it cannot have are noted, as are heads without a width."""
    heads = {name: shape for name, shape in outputs.items() if name not in values}
    if heads and spec.graph is not None and spec.heads is None:
        known = [name for node in spec.graph.values() for name in node.writes]
        for name in heads:
            way_out = f"; it has {listing(known)}; a head makes another: heads: {{in: {known[-1]}}}"
            near = did_you_mean(name, known) or way_out
            context.problems.add(
                (*spec.path, "graph"), f"the graph makes no value {name!r}" + near, key=True
            )
    for name in [name for name, shape in heads.items() if shape is None and not spec.target]:
        message = f"the head {name!r} needs a width; write outputs: {{{name}: 4}} or outputs={{{name!r}: 4}}"
        context.problems.add(spec.heads.path if spec.heads else spec.path, message, key=True)
        del heads[name]
    reasons = {
        name: f"outputs={{{name!r}: {_shown(shape)}}}"
        for name, shape in heads.items()
        if shape is not None
    }
    return Requirements(
        {name: shape or () for name, shape in heads.items()}, reasons, values, "output",
        {"output_shapes": dict(outputs)}, added=(),
    )  # fmt: skip


def _note_wrong_values(
    spec: NetworkSpec,
    network: Network,
    outputs: Mapping[str, OutputShape],
    values: Iterable[str],
    context: BuildContext,
) -> None:
    """Values of the graph that have another shape than is asked for."""
    nodes = (spec.graph or {}).values()
    for name in values:
        wanted, port = outputs[name], network.out_ports.get(name)
        if wanted is None or port is None or wanted == port.shape:
            continue
        got = port.shape
        needed = f"outputs={{{name!r}: {_shown(wanted)}}} needs {format_shape(wanted)}"
        path = next(node.path for node in nodes if name in node.writes)
        message = f"the value {name!r} has the shape {format_shape(got)}, but {needed}"
        context.problems.add(path, message)


def _shown(shape: tuple[int, ...]) -> str:
    """A shape as ``outputs`` has it: a width alone where there is only one axis."""
    return str(shape[0]) if len(shape) == 1 else str(shape)
