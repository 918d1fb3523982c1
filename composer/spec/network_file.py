"""A spec of one network without actions -> a typed NetworkFile, or every mistake in its structure. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

from composer.errors import Problems
from composer.limits import GivenLimits, limits_from
from composer.source.load import Source
from composer.spec.fields import Fields
from composer.spec.keys import KINDS, NETWORK_FILE_KEYS
from composer.spec.model_spec import NetworkSpec
from composer.spec.read import SpecParser
from composer.spec.top_level import (
    VERSION,
    check_version,
    params_meant,
    read_extensions,
    without_other_files,
)
from perception_blocks.words import describe, sparing

__all__ = ["InputSpec", "NetworkFile", "OutputShape", "input_of", "output_of", "read_network"]

INPUT = "a size such as 8, a shape such as [3, 64, 64], or {shape: [], choices: 5} for integers"
OUTPUT = "a width such as 4, a shape, or null for any"
KEYS = (*KINDS, "heads", "init")  # of a network that has no actions

OutputShape: TypeAlias = tuple[int, ...] | None
"""The shape that an output must have; None: any."""


@dataclass(frozen=True)
class InputSpec:
    """The ``shape`` of an input, None where an axis varies; ``choices`` are the values of an integer."""

    shape: tuple[int | None, ...]
    choices: int | None = None


@dataclass(frozen=True)
class NetworkFile:
    """A spec with `network`. ``inputs`` and ``outputs`` are None where the spec leaves them to the caller."""

    network: NetworkSpec
    inputs: dict[str, InputSpec] | None
    outputs: dict[str, OutputShape] | None
    params: dict[str, object]
    extensions: tuple[str, ...]
    source: Source
    version: int = VERSION


@sparing
def read_network(
    source: Source, allow: Iterable[str] = (), *, limits: GivenLimits = None
) -> NetworkFile:
    """The typed form of a spec with `network`; arguments are as for `read_spec`.

    Raises SpecError with every mistake in the structure.
    """
    problems = Problems(source, source.problems)
    top = Fields(without_other_files(source, NETWORK_FILE_KEYS, problems), (), problems)
    is_model = _note_model(top)
    meant: set[str] = set()
    if not is_model:
        elsewhere = params_meant(source, NETWORK_FILE_KEYS)
        meant = top.unknown(NETWORK_FILE_KEYS, "a spec of a network", elsewhere=elsewhere)
    check_version(top, "version" in meant)
    extensions = read_extensions(top, allow)
    parser = SpecParser(source, problems, tuple(allow), False, limits_from(limits))
    file = None
    if "network" in top:
        file = _network_file(top, parser, extensions, source)
    elif not is_model and "network" not in meant:
        problems.add((), "the spec has no 'network'; write network: {graph: ..., heads: ...}")
    problems.raise_if_any()
    assert file is not None
    return file


def _note_model(top: Fields) -> bool:
    """Note each section of a model, and return whether there is any."""
    sections = [key for key in ("policy", "critic", "model") if key in top]
    for key in sections:
        if "network" in top:
            message = f"{key!r} has no place beside 'network'; leave one of them out"
        else:
            message = (
                f"{key!r} belongs to a model, which composer.compose builds; for a network without actions write "
                "network: {graph: ..., heads: ...}"
            )
        top.note(key, message, on_key=True)
    return bool(sections)


def _network_file(
    top: Fields, parser: SpecParser, extensions: tuple[str, ...], source: Source
) -> NetworkFile | None:
    value = top.values["network"]
    if not isinstance(value, dict):
        top.wrong("network", "a mapping with a 'graph', a '_target_' or a 'template'")
        return None
    fields = Fields(value, ("network",), top.problems)
    sizes = ("inputs", "outputs")
    inner = {key: item for key, item in value.items() if key not in sizes}
    network = parser.network(
        Fields(inner, fields.path, top.problems), KEYS, (*sizes, *KEYS), "network", "network"
    )
    inputs, outputs = _inputs(fields), _outputs(fields)
    return NetworkFile(network, inputs, outputs, source.params, extensions, source)


def _inputs(fields: Fields) -> dict[str, InputSpec] | None:
    if "inputs" not in fields:
        return None
    expected = "a mapping from inputs to shapes, such as {observation: [8]}"
    inputs: dict[str, InputSpec] = {}
    for name, value in fields.mapping("inputs", expected).items():
        shape = input_of(value)
        if shape is None:
            message = f"the input {name!r} must be {INPUT}, got {describe(value)}"
            fields.problems.add((*fields.at("inputs"), name), message)
        else:
            inputs[name] = shape
    return inputs


def _outputs(fields: Fields) -> dict[str, OutputShape] | None:
    if "outputs" not in fields:
        return None
    expected = "a mapping from outputs to widths, such as {logits: 4}"
    outputs: dict[str, OutputShape] = {}
    for name, value in fields.mapping("outputs", expected).items():
        try:
            outputs[name] = output_of(value)
        except ValueError:
            message = f"the output {name!r} must be {OUTPUT}, got {describe(value)}"
            fields.problems.add((*fields.at("outputs"), name), message)
    return outputs


def input_of(value: object) -> InputSpec | None:
    """``8``, ``(3, 64, 64)`` or ``{"shape": [], "choices": 5}`` as an InputSpec; None for anything else."""
    if isinstance(value, Mapping):
        choices, shape = value.get("choices"), _shape(value.get("shape", ()), varying=True)
        is_right = value.keys() <= {"shape", "choices"} and _is_size(choices)
        return InputSpec(shape, choices) if is_right and shape is not None else None
    shape = _shape(value, varying=True)
    return None if shape is None else InputSpec(shape)


def output_of(value: object) -> OutputShape:
    """``4``, ``(4,)`` or None as the shape of an output. Raises ValueError for anything else."""
    shape = None if value is None else _shape(value)
    if shape is None and value is not None:
        raise ValueError
    return shape  # type: ignore[return-value]


def _shape(value: object, *, varying: bool = False) -> tuple[int | None, ...] | None:
    """A size or a list of sizes as a shape; with ``varying`` a size in a list may be None."""
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    varies = varying and isinstance(value, list | tuple)
    shape = tuple(size for size in sizes if _is_size(size) or (varies and size is None))
    return shape if len(shape) == len(sizes) else None


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
