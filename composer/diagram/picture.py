"""The contents of a diagram, for any format: a Dag of boxes, their labels, and the frames around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from perception_blocks.dag import Dag

__all__ = ["Box", "Frame", "Kind", "Picture"]

Kind: TypeAlias = Literal["input", "output", "block", "opaque", "training"]


@dataclass(frozen=True)
class Box:
    """The label of one node of the Dag: an input or output tensor, a block, or a class whose inside is unknown.

    In an experiment: its data set, a call, or a call that trains a model.

    Texts are not escaped yet. ``frame`` is the name of the frame around the box; ``details`` appear on request.

    ``path`` is the same for the same node or tensor in the picture of an edited spec, unlike the box's name: its names
    from the network on, such as ``policy/latent``, ``inputs/observation`` or ``outputs/policy/action``. ``stands_for``
    are the paths of all that is drawn as this box. ``heat``, 0 to 1, colors it instead of its ``share``.
    """

    kind: Kind
    title: str
    lines: tuple[str, ...] = ()
    share: float = 0.0  # of all parameters, 0 to 1
    remembers: bool = False  # carries a state
    frozen: bool = False  # has parameters, none of which is trained
    frame: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    stands_for: tuple[str, ...] = ()
    heat: float | None = None


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
    heat: str = ""  # what colors say, if not the share of parameters

    def colored(self, values: Mapping[str, float], legend: str) -> Picture:
        """This picture with boxes colored by ``values``, from 0 (as if it had none) to 1, by the paths of nodes.

        A box that stands for several nodes has the largest of their values; other boxes have no color. ``legend`` says
        what a deep color means, such as "dormant units". Raises ValueError for a value outside of 0 to 1.
        """
        for path, value in values.items():
            if not 0 <= value <= 1:
                raise ValueError(f"the value of {path!r} must be from 0 to 1, got {value}")
        boxes = {}
        for name, box in self.boxes.items():
            heat = [values[path] for path in box.stands_for if path in values]
            boxes[name] = replace(box, heat=max(heat, default=0.0))
        return replace(self, boxes=boxes, heat=legend)

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

    def enclosing(self, frame: str | None) -> Iterator[str]:
        """``frame`` and the frames around it, the innermost first."""
        while frame is not None:
            yield frame
            frame = self.frames[frame].parent

    def network_of(self, box: str) -> str | None:
        """The network that a box is in."""
        around = self.enclosing(self.boxes[box].frame)
        return next((frame for frame in around if self.frames[frame].network), None)

    def common_frame(self, boxes: Sequence[str]) -> str | None:
        """The innermost frame around all of ``boxes``."""
        first, *others = (list(self.enclosing(self.boxes[box].frame)) for box in boxes)
        return next((frame for frame in first if all(frame in frames for frames in others)), None)

    def legend(self) -> list[str]:
        """The meaning of the symbols that occur in this picture."""
        boxes = self.boxes.values()
        kinds = {box.kind for box in boxes}
        lines = ["rounded: data set" if self.labels else "rounded: tensor"]  # of an experiment
        if "training" in kinds:
            lines.append("orange: trains its model")
        if self.heat:
            lines.append(f"deeper color: {self.heat}")
        elif any(box.share for box in boxes):
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
