"""The blocks and how to use them, read from their classes."""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from composer.reference.families import families, title_of
from composer.reference.words import MEANINGS
from composer.source.dump import dump_flow
from perception_blocks.base_block import PerceptionBlock
from perception_blocks.port import format_shape
from perception_blocks.registry import (
    ACTIVATIONS,
    BLOCKS,
    FUNCTIONS,
    INITIALIZERS,
    MissingExtraError,
    UnknownNameError,
)
from perception_blocks.settings import Setting, describe, settings_of
from perception_blocks.words import wrapped

__all__ = ["GRAPHS", "Example", "default_of", "describe_block", "documentation"]
__all__ += ["example_of", "list_blocks", "setting_of_block", "settings_of_block", "summary_of"]

INPUT_NAMES = ("first", "second", "third", "fourth", "fifth", "sixth")
# The blocks of a spec that are graphs themselves, by `composer.spec.nodes.NESTED`.
GRAPHS = {
    "graph": """\
Several blocks as one node: the inputs of the graph inside -> its outputs.

`in` maps inner names to outer ones, or lists names that are the same inside; `out` lists inner names.

Settings:
  graph: a mapping from names to nodes (required)

In a graph:
  latent: {block: graph, in: {x: observation}, out: [y], graph: {y: {block: dense, in: x, hidden_units: 8}}}

Shapes:
  x (3,) -> y (8,)""",
    "ensemble": """\
Copies of a graph, each with its own weights, run as one call: outputs gain a first axis of copies.

It is wired like `graph`. Copies that cannot be batched run one by one, and `composer show` says why.

Settings:
  graph: a mapping from names to nodes (required)
  copies: a positive integer (required)

In a graph:
  all: {block: ensemble, copies: 5, in: {x: observation}, out: [y], graph: {y: {block: dense, in: x, hidden_units: 8}}}

Shapes:
  x (3,) -> y (5, 8)""",
}


@dataclass(frozen=True)
class Example:
    """An example of a block from its documentation: shapes by input name, settings, shapes of outputs and state."""

    block: str
    in_shapes: dict[str, tuple[int | None, ...]]
    settings: dict[str, object]
    out_shapes: list[tuple[int | None, ...]]
    state_shapes: dict[str, tuple[int, ...]]

    def __str__(self) -> str:
        """A line of a graph in YAML."""
        names = list(self.in_shapes)
        inputs: object = names[0] if len(names) == 1 else names
        many = {} if len(self.out_shapes) == 1 else {"out": list(self.out_names)}
        return f"latent: {dump_flow({'block': self.block, 'in': inputs, **many, **self.settings})}"

    @property
    def out_names(self) -> tuple[str, ...]:
        return ("latent", "more", "rest")[: len(self.out_shapes)]

    @property
    def shapes(self) -> str:
        """``first (3,), second (4,) -> (7,)``"""
        inputs, state = map(_named_shapes, (self.in_shapes, self.state_shapes))
        line = f"{inputs} -> {', '.join(map(format_shape, self.out_shapes))}"
        return f"{line}, carrying {state} from step to step" if state else line


def list_blocks(width: int | None = None) -> str:
    """Every registered block by family: its name, what it does with its shapes, and its settings; then the other names.

    Lines have at most ``width`` characters (None: as many as they need).
    """
    listed = {title_of(family): names for family, names in families().items()}
    listed["Nested graphs"] = list(GRAPHS)
    known = {name for names in listed.values() for name in names}
    listed["Others"] = [name for name in BLOCKS if name not in known]
    column = max(len(name) for names in listed.values() for name in names) + 4
    lines = []
    for title, names in listed.items():
        lines += [title] if names else []
        lines += [line for name in sorted(names) for line in _listed(name, column, width)]
        lines += [""] if names else []
    lines.append(f"{'':<{column}}settings with a * must be given")
    for registry in (ACTIVATIONS, INITIALIZERS, FUNCTIONS):
        lines += ["", *wrapped(f"{registry.kind}s: {', '.join(registry)}", width)]
    return "\n".join([*lines, "", "composer blocks NAME describes one block."])


def _listed(name: str, column: int, width: int | None) -> list[str]:
    """What a block does, and its settings, beside its name."""
    text = summary_of(name)
    settings = "graph" if name in GRAPHS else _setting_names(name)
    indent = " " * column
    lines = wrapped(f"{'  ' + name:<{column}}{text}", width, indent)
    return lines + (wrapped(indent + settings, width, indent) if settings else [])


def describe_block(name: str, width: int | None = None) -> str:
    """Documentation, settings and an example of one block, in lines of at most ``width`` characters (None: any).

    Raises UnknownNameError for an unknown name and MissingExtraError where its library is not installed.
    """
    if name in GRAPHS:
        return _fitted(f"{name}\n\n{GRAPHS[name].replace('`', '')}", width)
    block = BLOCKS.get(name)
    settings, takes_any = settings_of(block)
    lines = [name, "", documentation(block), "", "Settings:"]
    shown = [_setting_line(s, s.name in block.from_ports) for s in settings.values()]
    shown += ["any other: passed on"] if takes_any else []
    lines += [f"  {line}" for line in shown or ["none"]]
    for what, why in block.limits.items():
        lines += ["", f"Not possible: {what} ({why})."]
    example = example_of(name)
    if example is not None:
        lines += ["", "In a graph:", f"  {example}", "", "Shapes:", f"  {example.shapes}"]
    return _fitted("\n".join(lines).replace("`", ""), width)


def _fitted(text: str, width: int | None) -> str:
    """``text`` with lines of at most ``width``: what is indented by line, and paragraphs as a whole."""
    if width is None:
        return text
    parts = []
    for part in text.split("\n\n"):
        is_prose = not any(line.startswith(" ") for line in part.splitlines())
        lines = [" ".join(part.splitlines())] if is_prose else part.splitlines()
        fitted = [wrapped(line, width, "" if is_prose else "    ") for line in lines]
        parts.append("\n".join(line for each in fitted for line in each))
    return "\n\n".join(parts)


def example_of(name: str) -> Example | None:
    """The first use of the block in its own documentation; None where that shows none with plain values."""
    block = BLOCKS.get(name)
    for call in _calls(block):
        with contextlib.suppress(ValueError):  # arguments that are computed
            shapes = list(map(tuple, ast.literal_eval(call.args[0])))
            settings = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
            built = block(shapes, **settings)
            in_shapes = dict(zip(_input_names(block, len(shapes)), shapes))
            return Example(name, in_shapes, settings, built.out_shapes, dict(built.state_shapes))
    return None


def _input_names(block: type[PerceptionBlock], count: int) -> list[str]:
    """The names of an example's inputs: of masks their argument, of others a number."""
    arguments = list(inspect.signature(block.forward).parameters)[1:]
    named = [name if name in block.mask_of else None for name in arguments[:count]]
    named += [None] * (count - len(named))
    numbers = iter(["observation"] if named.count(None) == 1 else INPUT_NAMES)
    return [name or next(numbers) for name in named]


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


def documentation(block: type) -> str:
    """The docstring without its examples."""
    text = inspect.getdoc(block) or ""
    return text.partition(">>>")[0].strip()


def summary_of(name: str) -> str:
    """The first line of a block's documentation, or which extra it needs."""
    if name in GRAPHS:
        return GRAPHS[name].partition("\n")[0]
    try:
        return documentation(BLOCKS.get(name)).partition("\n")[0].replace("`", "")
    except MissingExtraError:
        return f"(needs the extra [{BLOCKS.extra_of(name)}])"


def _setting_names(name: str) -> str:
    """A block's settings in a row, those without a default marked."""
    try:
        block = BLOCKS.get(name)
    except MissingExtraError:
        return ""
    settings, _ = settings_of(block)
    filled = block.from_ports  # by the input's space
    return ", ".join(f"{n}*" if s.required and n not in filled else n for n, s in settings.items())


def setting_of_block(block: str, name: str) -> str | None:
    """The line of the help about a setting of a registered block; None where the block has no such setting.

    >>> setting_of_block("dense", "bias")
    'bias: true or false (default: true), whether layers add a learned constant'
    """
    return settings_of_block(block).get(name)


def settings_of_block(block: str) -> dict[str, str]:
    """The lines of the help about the settings of a registered block, by their names; none where it is not there."""
    try:
        known = BLOCKS.get(block)
    except (MissingExtraError, UnknownNameError):
        return {}
    settings, _ = settings_of(known)
    return {name: _setting_line(s, name in known.from_ports) for name, s in settings.items()}


def _setting_line(setting: Setting, from_space: bool) -> str:
    default = default_of(setting, from_space)
    shown = default if default == "required" else f"default: {default}"
    what, means = describe(setting.annotation), MEANINGS.get(setting.name)
    return f"{setting.name}: {what} ({shown})" + (f", {means}" if means else "")


def default_of(setting: Setting, from_space: bool) -> str:
    """The value of a setting that is left out, as a spec would have it."""
    if from_space:
        return "from the input's space"
    return "required" if setting.required else _written(setting.default)


def _written(value: object) -> str:
    """A default as it would be written in a spec."""
    try:
        return dump_flow({"": value})[5:-1]
    except ValueError:
        return repr(value)


def _named_shapes(shapes: Mapping[str, tuple[int | None, ...]]) -> str:
    return ", ".join(f"{name} {format_shape(shape)}" for name, shape in shapes.items())
