"""What is known of a spec's text, as plain data: it goes from one process to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from composer.editor.client_settings import ClientSettings
from composer.errors import Path, Position, Problem, Span
from composer.source.load import Source
from composer.source.values import Located
from composer.spec.places import NodePath
from perception_blocks.words import Shape

__all__ = ["ARROW", "Checked", "Hover", "Index", "NodeFacts", "NodesByPath", "Outline", "Stage"]
__all__ += ["Question", "ValuesByPath"]

ARROW = "\N{RIGHTWARDS ARROW}"  # from inputs to outputs
Stage = Literal["syntax", "structure", "shapes", "check"]


def _unknown() -> None:
    return None


@dataclass(frozen=True)
class NodeFacts:
    """A node, a head or a class of one network, as it was built; ``outputs`` are empty where it could not be.

    ``path`` is where it is in the model (``("policy", "latent")``): several networks may be described by one part of a
    spec, and one head may stand for several actions. ``inputs`` map what it reads to shapes, None where these are not
    known. ``guessed``: as the text was probably meant, or as it was before a mistake.
    """

    block: str
    inputs: Mapping[str, Shape | None]
    outputs: Mapping[str, Shape]
    parameters: int | None = None
    path: NodePath = ()
    guessed: bool = False
    _count: Callable[[], int | None] = field(default=_unknown, repr=False, compare=False)

    def flops(self) -> int | None:
        """For one observation, counted now; None where they are not known. A multiply-add counts as two."""
        return self._count()

    def as_guess(self) -> NodeFacts:
        return replace(self, guessed=True)

    def __reduce__(self) -> tuple:
        plain = self.block, self.inputs, self.outputs, self.parameters, self.path, self.guessed
        return NodeFacts, plain  # the module, whose FLOPs are counted, stays where it is


NodesByPath: TypeAlias = Mapping[Path, tuple[NodeFacts, ...]]
ValuesByPath: TypeAlias = Mapping[Path, Mapping[str, "Shape | None"]]


class Question(NamedTuple):
    """What is checked: the ``text`` of the file at ``path``, beside the unsaved texts of other ``files``."""

    text: str
    path: str
    files: Mapping[str, str]
    settings: ClientSettings


class Index(Protocol):
    """Where the keys and values of a spec are written, and what they are: a `Source` is one, and its `Outline`."""

    @property
    def name(self) -> str | None: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    @property
    def data(self) -> Mapping[str, Any]: ...
    @property
    def params(self) -> Mapping[str, object]: ...
    def span(self, path: Path, key: bool = False) -> Span | None: ...


@dataclass(frozen=True)
class Checked:
    """What is known of one text.

    ``index`` says where keys and values are written; of a text that is no YAML, of what it was probably meant to be.
    ``nodes`` and ``values`` are by the path of a node, a network or a nested graph. ``environment`` is the id, or the
    checkpoint, whose spaces the shapes follow from; where it is None, ``unknown`` says why. ``stage`` is how far it
    went: a text that is no YAML ends at "syntax"; at "check" something else than the text ended it. ``parameters`` are
    counted by policy and critic where there is no problem.
    """

    problems: tuple[Problem, ...]
    index: Index
    nodes: NodesByPath = field(default_factory=dict)
    values: ValuesByPath = field(default_factory=dict)
    params: Mapping[str, object] = field(default_factory=dict)
    environment: str | None = None
    stage: Stage = "syntax"
    unknown: str = ""
    parameters: Mapping[str, int] = field(default_factory=dict)


class Hover(NamedTuple):
    """A text about what is written in a span."""

    text: str
    span: Span


_Place: TypeAlias = "tuple[Any, Any, Any, Any]"  # the arguments of a Located behind its value


@dataclass
class Outline:
    """The places and the data of a `Source`, without its tree: a tenth of the time of sending that."""

    name: str | None = None
    files: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, object] = field(default_factory=dict)
    _places: dict[Path, _Place] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Source) -> Outline:
        places = {path: _place(node) for path, node in source.walk()}
        return cls(source.name, source.files, source.data, source.params, places)

    def span(self, path: Path, key: bool = False) -> Span | None:
        """As `Source.span`."""
        exists = path in self._places
        while path and path not in self._places:
            path = path[:-1]
        while True:
            position, key_position, *ends = self._places.get(path, (None,) * 4)
            node = Located(None, _position(position), _position(key_position), *ends)
            span = node.span(key and exists and key_position is not None)
            if span is not None or position is not None or not path:
                return span
            path, exists = path[:-1], True


def _place(node: Located) -> _Place:
    """In plain tuples, which are sent three times as fast."""
    position, key = node.position, node.key_position
    return (
        None if position is None else tuple(position),
        None if key is None else tuple(key),
        node.end_mark,
        node.key_end_mark,
    )


def _position(place: tuple[Any, Any, Any] | None) -> Position | None:
    return None if place is None else Position(*place)
