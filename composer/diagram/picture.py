"""The contents of a diagram, for any format: a Dag of boxes, their labels, and the frames around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from perception_blocks.dag import Dag

__all__ = ["Box", "Frame", "Kind", "Picture"]

Kind: TypeAlias = Literal["input", "output", "block", "opaque", "training"]


@dataclass(frozen=True)
class Box:
    """The label of one node of the Dag: an input or output tensor, a block, or a class whose inside is unknown.

    In an experiment: its data set, a call, or a call that trains a model.

    Texts are not escaped yet. ``frame`` is the name of the frame around the box; ``details`` appear on request.
    """

    kind: Kind
    title: str
    lines: tuple[str, ...] = ()
    share: float = 0.0  # of all parameters, 0 to 1
    remembers: bool = False  # carries a state
    frozen: bool = False  # has parameters, none of which is trained
    frame: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """A frame around boxes: a network, a nested graph, a part that repeats, or a model of an experiment."""

    title: str
    remark: str = ""
    parent: str | None = None
    network: bool = False


@dataclass(frozen=True)
class Picture:
    """``dag`` has the connections, where each node writes its own name; ``boxes`` and ``frames`` are labels by name.

    ``shared`` are the (writer, reader) pairs in which a critic reads a value of the policy, ``masks`` the pairs in
    which an observation masks an action, ``stopped`` the pairs in which no gradient flows back. ``labels`` are the
    texts at arrows. ``hooks`` are further arrows, each from a box to a frame, with a text; they order nothing.
    """

    dag: Dag
    boxes: Mapping[str, Box]
    frames: Mapping[str, Frame]
    shared: frozenset[tuple[str, str]] = frozenset()
    masks: frozenset[tuple[str, str]] = frozenset()
    stopped: frozenset[tuple[str, str]] = frozenset()
    caption: str = ""
    labels: Mapping[tuple[str, str], str] = field(default_factory=dict)
    hooks: tuple[tuple[str, str, str], ...] = ()

    def arrows(self) -> Iterator[tuple[str, str]]:
        """(writer, reader) in the order of the readers, each pair once."""
        for node in self.dag.nodes:
            for name in dict.fromkeys(node.reads):
                yield name, node.name

    def inside(self, frame: str | None) -> list[str]:
        """The boxes directly in ``frame`` (None: in no frame), in their order."""
        return [name for name, box in self.boxes.items() if box.frame == frame]

    def frames_in(self, frame: str | None) -> list[str]:
        return [name for name, inner in self.frames.items() if inner.parent == frame]

    def legend(self) -> list[str]:
        """The meaning of the symbols that occur in this picture."""
        boxes = self.boxes.values()
        kinds = {box.kind for box in boxes}
        lines = ["rounded: data set" if self.labels else "rounded: tensor"]  # of an experiment
        if "training" in kinds:
            lines.append("orange: trains its model")
        if any(box.share for box in boxes):
            lines.append("darker: larger share of the parameters")
        if any(box.kind == "opaque" for box in boxes):
            lines.append("dashed box: not a block")
        if any(box.remembers for box in boxes):
            lines.append("double border: carries memory")
        if any(box.frozen for box in boxes):
            lines.append("dotted border: frozen")
        if self.shared:
            lines.append("bold arrow: shared with the critic")
        if self.masks:
            lines.append("dashed arrow: masks an action")
        if self.stopped:
            lines.append("dotted arrow: no gradient flows back")
        if self.hooks:
            lines.append("dashed arrow: blends weights, after the iteration")
        return lines
