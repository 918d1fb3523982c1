"""The two kinds of exported files: ONNX, and torch's own program. Each is written, read back and run."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from composer.export.network import ExportedNetwork
from composer.export.values import Value
from perception_blocks.registry import MissingExtraError, needs_extra

__all__ = ["FORMATS", "METADATA", "FileFormat", "trace"]

METADATA = "perception_composer"  # the name under which a file says what it is
Runner = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
EXAMPLE_BATCH = 3  # sizes 0 and 1 would be taken for constants


class FileFormat(NamedTuple):
    """How to write a program, and how to read the file again as something that runs on tensors by name."""

    write: Callable[[ExportedProgram, ExportedNetwork, Mapping[str, object], str], None]
    read: Callable[[str], Runner]
    needs: tuple[str, ...] = ()

    def require(self) -> None:
        """Raise MissingExtraError unless the libraries are there."""
        missing = [name for name in self.needs if not _is_installed(name)]
        if missing:
            raise MissingExtraError(needs_extra("an .onnx file", missing, "onnx"))


def trace(network: ExportedNetwork) -> ExportedProgram:
    """The program of ``network``; the batch, and every axis that is named, may have any size."""
    names = {axis for v in network.inputs.values() for axis in v.axes if isinstance(axis, str)}
    dims = {name: Dim(f"axis_{number}") for number, name in enumerate(sorted(names))}
    shapes = {
        name: {i: dims[axis] for i, axis in enumerate(value.axes) if isinstance(axis, str)}
        for name, value in network.inputs.items()
    }
    example = network.example(EXAMPLE_BATCH)
    with _silence(), torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=(shapes,), strict=False)
    _leave_out_unread(program)
    return program


def _leave_out_unread(program: ExportedProgram) -> None:
    """Remove nodes that no output depends on, and weights that no node reads, such as the weights of targets."""
    graph, signature = program.graph_module.graph, program.graph_signature
    graph.eliminate_dead_code()
    unused = {node.name for node in graph.nodes if node.op == "placeholder" and not node.users}
    unread = {
        spec.arg.name: str(spec.target)
        for spec in signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.arg.name in unused
    }
    for node in [node for node in graph.nodes if node.name in unread]:
        graph.erase_node(node)
    signature.input_specs[:] = [s for s in signature.input_specs if s.arg.name not in unread]
    for name in unread.values():
        program.state_dict.pop(name, None)
        program.constants.pop(name, None)  # where buffers are that state_dict leaves out
    program.graph_module.recompile()


def _write_onnx(
    program: ExportedProgram, network: ExportedNetwork, metadata: Mapping[str, object], path: str
) -> None:
    with _silence(), torch.no_grad():
        onnx_program = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx_program is not None
    model = onnx_program.model
    _give_own_outputs(model.graph)
    _name_values(model.graph, network)
    _name_axes(model.graph, network)
    model.metadata_props[METADATA] = json.dumps(metadata, allow_nan=False)
    onnx_program.save(path)


def _give_own_outputs(graph: Any) -> None:
    """Give an output that is an input, or another output too, a value of its own, which can have its own name."""
    from onnxscript import ir

    taken = {id(value) for value in graph.inputs}
    for index, value in enumerate(graph.outputs):
        if id(value) in taken:
            node = ir.node("Identity", [value])
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[index] = value = node.outputs[0]
        taken.add(id(value))


def _faces(graph: Any, network: ExportedNetwork) -> list[tuple[Any, Value]]:
    """The inputs and outputs of the graph, each with the Value that declares it."""
    inputs = zip(graph.inputs, network.inputs.values(), strict=True)
    return [*inputs, *zip(graph.outputs, network.outputs.values(), strict=True)]


def _name_values(graph: Any, network: ExportedNetwork) -> None:
    """Give inputs and outputs their names, and no other value in the file one of these names."""
    faces = _faces(graph, network)
    named = {id(value) for value, _ in faces}
    taken = {*network.inputs, *network.outputs}
    inner = [*graph.initializers.values(), *(v for n in graph.all_nodes() for v in n.outputs)]
    for value in inner:
        if value.name in taken and id(value) not in named:
            value.name = f"{value.name}_inner"
    for value, declared in faces:
        value.name = declared.name


def _name_axes(graph: Any, network: ExportedNetwork) -> None:
    """Give axes that vary the names of the report, in place of torch's symbols such as ``s77``."""
    from onnxscript import ir

    names: dict[str, str] = {}
    for value, declared in _faces(graph, network):
        symbols = [str(getattr(size, "value", size)) for size in value.shape]
        names |= {s: axis for s, axis in zip(symbols, declared.axes) if isinstance(axis, str)}
    for value in {*graph.inputs, *(v for node in graph.all_nodes() for v in node.outputs)}:
        if value.shape is not None:
            sizes = [getattr(size, "value", size) for size in value.shape]
            value.shape = ir.Shape([names.get(str(size), size) for size in sizes])


def _read_onnx(path: str) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; what it warns of is the exporter's
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        arrays = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        return {n: torch.from_numpy(a) for n, a in zip(names, arrays, strict=True)}  # type: ignore[arg-type]

    return run


def _write_program(
    program: ExportedProgram, network: ExportedNetwork, metadata: Mapping[str, object], path: str
) -> None:
    extra = {METADATA: json.dumps(metadata, allow_nan=False)}
    buffer = io.BytesIO()  # of a disk that is full, torch itself says nothing
    with _silence():
        torch.export.save(program, buffer, extra_files=extra)
    Path(path).write_bytes(buffer.getbuffer())


def _read_program(path: str) -> Runner:
    with _silence():
        module = torch.export.load(path).module()
    return lambda inputs: module(dict(inputs))


FORMATS: dict[str, FileFormat] = {
    ".onnx": FileFormat(_write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    ".pt2": FileFormat(_write_program, _read_program),
}


def _is_installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without the warnings of torch's exporters, which are of their own code and of libraries that no model needs."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
