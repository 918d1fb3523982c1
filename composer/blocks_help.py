"""What blocks there are and how they are used, read from the classes themselves."""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from composer.source import dump_flow
from perception_blocks.registry import (
    ACTIVATIONS,
    BLOCKS,
    FUNCTIONS,
    INITIALIZERS,
    MissingExtraError,
)
from perception_blocks.settings import Setting, describe, settings_of

__all__ = ["Example", "describe_block", "example_of", "list_blocks"]

INPUT_NAMES = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Example:
    """One use of a block, taken from its documentation: shapes by input name, settings, shapes of outputs and state."""

    block: str
    in_shapes: dict[str, tuple[int | None, ...]]
    settings: dict[str, Any]
    out_shapes: list[tuple[int | None, ...]]
    state_shapes: dict[str, tuple[int, ...]]

    def __str__(self) -> str:
        """A line of a graph in YAML."""
        names = list(self.in_shapes)
        inputs: Any = names[0] if len(names) == 1 else names
        return f"latent: {dump_flow({'block': self.block, 'in': inputs, **self.settings})}"


def list_blocks() -> str:
    """Every registered block: its name, and the first line of its documentation; then the other names."""
    rows = [(name, _summary(name)) for name in sorted(BLOCKS)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    for registry in (ACTIVATIONS, INITIALIZERS, FUNCTIONS):
        lines += ["", f"{registry.kind}s: {', '.join(registry)}"]
    return "\n".join([*lines, "", "composer blocks NAME describes one block."])


def describe_block(name: str) -> str:
    """Documentation, settings and an example of one block.

    Raises UnknownNameError for an unknown name and MissingExtraError where its library is not installed.
    """
    block = BLOCKS.get(name)
    settings, takes_any = settings_of(block)
    lines = [name, "", _documentation(block), "", "Settings:"]
    shown = [_setting_line(s, s.name in block.from_ports) for s in settings.values()]
    shown += ["any other: handed on"] if takes_any else []
    lines += [f"  {line}" for line in shown or ["none"]]
    for what, why in block.limits.items():
        lines += ["", f"Not possible: {what} ({why})."]
    example = example_of(name)
    if example is not None:
        lines += ["", "In a graph:", f"  {example}", "", "Shapes:", f"  {_shapes_line(example)}"]
    return "\n".join(lines)


def example_of(name: str) -> Example | None:
    """The first use of the block in its own documentation; None where that shows none with plain values."""
    block = BLOCKS.get(name)
    for call in _calls(block):
        with contextlib.suppress(ValueError):  # arguments that are computed
            shapes = ast.literal_eval(call.args[0])
            settings = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
            inputs = ("observation",) if len(shapes) == 1 else INPUT_NAMES
            made = block(shapes, **settings)
            in_shapes: dict[str, Any] = dict(zip(inputs, shapes))
            return Example(name, in_shapes, settings, made.out_shapes, dict(made.state_shapes))
    return None


def _calls(block: type) -> Iterator[ast.Call]:
    """Constructions of ``block`` in the examples of its docstring."""
    for example in doctest.DocTestParser().get_examples(inspect.getdoc(block) or ""):
        for node in ast.walk(ast.parse(example.source)):
            if (
                isinstance(node, ast.Call)
                and node.args
                and ast.unparse(node.func) == block.__name__
            ):
                yield node


def _documentation(block: type) -> str:
    """The docstring without its examples and marks."""
    text = inspect.getdoc(block) or ""
    return _plain(text.partition(">>>")[0].strip())


def _plain(text: str) -> str:
    return re.sub(r"`+", "", text)


def _summary(name: str) -> str:
    try:
        return _documentation(BLOCKS.get(name)).partition("\n")[0]
    except MissingExtraError:
        return f"(needs the extra [{BLOCKS.extra_of(name)}])"


def _setting_line(setting: Setting, from_space: bool) -> str:
    what = describe(setting.annotation)
    if from_space:
        return f"{setting.name}: {what} (default: from the input's space)"
    if setting.required:
        return f"{setting.name}: {what} (required)"
    return f"{setting.name}: {what} (default: {_written(setting.default)})"


def _written(value: Any) -> str:
    """A default as it would be written in a spec."""
    try:
        return dump_flow({"": value})[5:-1]
    except ValueError:
        return repr(value)


def _shapes_line(example: Example) -> str:
    inputs, state = map(_named_shapes, (example.in_shapes, example.state_shapes))
    line = f"{inputs} -> {', '.join(map(_shape, example.out_shapes))}"
    return f"{line}, carrying {state} from step to step" if state else line


def _named_shapes(shapes: Mapping[str, tuple[int | None, ...]]) -> str:
    return ", ".join(f"{name} {_shape(shape)}" for name, shape in shapes.items())


def _shape(shape: tuple[int | None, ...]) -> str:
    sizes = ["?" if size is None else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
