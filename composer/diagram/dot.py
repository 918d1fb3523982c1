"""A Picture as text of the DOT language, the same bytes for the same picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TypeAlias

from graphviz import Digraph

from composer.diagram.picture import Box, Frame, Picture
from composer.diagram.trunks import Trunk, trunks_of
from perception_blocks.words import printable

__all__ = ["fill_color", "heat_color", "to_dot"]

FONT = "Helvetica,Arial,sans-serif"
INK, FAINT, FRAME = "#1f2933", "#3e4c59", "#9aa5b1"
TENSORS = {"input": ("#eef7ee", "#6a9a6f"), "output": ("#fdf3e3", "#c08a3e")}
LIGHT, DEEP, HOT = (0xF7, 0xFA, 0xFD), (0x7F, 0xB2, 0xE5), (0xF0, 0x8A, 0x5D)
LONGEST = 40  # characters of a name
PULL = 16  # edges that hold a network on its side
POINT = {"shape": "point", "width": "0.05", "height": "0.05", "label": ""}

Attributes: TypeAlias = dict[str, str]
Color: TypeAlias = tuple[int, int, int]


def to_dot(picture: Picture) -> str:
    """The picture as DOT. Labels are HTML-like; every text from a user is escaped."""
    trunks = trunks_of(picture)
    graph = Digraph(
        "model",
        graph_attr={
            "newrank": "true", "ranksep": "0.3", "nodesep": "0.3", "pad": "0.2", "fontname": FONT, "fontsize": "9",
            "fontcolor": FAINT, "labelloc": "b", "labeljust": "l", "label": f"<{_footer(picture, trunks)}>",
        },
        node_attr={
            "fontname": FONT, "fontsize": "11", "fontcolor": INK, "shape": "box", "style": "filled",
            "margin": "0.14,0.05",
        },
        edge_attr={"color": FAINT, "arrowsize": "0.7", "weight": "4"},
    )  # fmt: skip
    _Frames(picture, trunks).add_networks(graph)
    _put_inputs_on_top(graph, picture)
    bundled = {(trunk.writer, reader) for trunk in trunks for reader in trunk.readers()}
    for tail, head in picture.arrows():
        if (tail, head) not in bundled:
            graph.edge(tail, head, **_arrow(picture, tail, head))
    for trunk in trunks:
        _add_line(graph, picture, trunk)
    for tail, head, text in picture.hooks:
        graph.edge(tail, head, style="dashed", constraint="false", **_at_arrow(text))
    return graph.source.replace("\t", "  ")  # no label has a tab


def _add_line(graph: Digraph, picture: Picture, trunk: Trunk) -> None:
    """The line and its branches; only what ends at a box has an arrow head."""
    look = _arrow(picture, trunk.writer, trunk.readers()[0])
    branch = {name: value for name, value in look.items() if name != "label"}
    for tail, head in trunk.segments():
        graph.edge(tail, head, **look, **({} if head == trunk.end else {"arrowhead": "none"}))
        look = branch  # its text stands at the beginning
    for point, readers in trunk.points.items():
        for reader in readers:
            graph.edge(point, reader, **branch)


def fill_color(share: float) -> str:
    """From nearly white for no parameters to blue for all of them; the square root tells small shares apart.

    >>> fill_color(0.0), fill_color(1.0)
    ('#f7fafd', '#7fb2e5')
    """
    return _between(LIGHT, DEEP, share**0.5)


def heat_color(heat: float) -> str:
    """From nearly white for 0 to orange for 1.

    >>> heat_color(0.0), heat_color(1.0)
    ('#f7fafd', '#f08a5d')
    """
    return _between(LIGHT, HOT, heat)


def _between(light: Color, deep: Color, depth: float) -> str:
    return "#" + "".join(f"{round(a + (b - a) * depth):02x}" for a, b in zip(light, deep))


class _Frames:
    """Adds the boxes of a picture within their frames, and the points of its ``trunks``."""

    def __init__(self, picture: Picture, trunks: Sequence[Trunk]) -> None:
        self._picture = picture
        self._trunks = trunks
        self._reads = {node.name: node.reads for node in picture.dag.nodes}

    def add_networks(self, graph: Digraph) -> None:
        """Add all that is in no frame, then the frames: those of critics at the right of the others."""
        self._add_boxes(graph, None)
        frames = self._picture.frames_in(None)
        policies, critics = (
            [name for name in frames if self._picture.frames[name].title.partition("/")[0] == part]
            for part in ("policy", "critic")
        )
        if not policies or not critics:
            return self._add_frames(graph, frames)
        # Layout keeps the order of two nodes on one line if neither is in a frame; each pulls the frames below it, by
        # many edges, as a weight counts for nothing where edges cross.
        line = Digraph(graph_attr={"rank": "same"})
        line.edge("left", "right", style="invis", weight="1")
        for side in ("left", "right"):
            names = [name for name in frames if (name in critics) == (side == "right")]
            look = {"style": "invis", "margin": "8", "label": ""}
            half = Digraph(f"cluster_{side}", graph_attr=look)
            self._add_frames(half, names)
            graph.node(side, style="invis", width="0", height="0", label="")
            for name in names * PULL:
                graph.edge(side, name, style="invis", weight="1")
            graph.subgraph(half)
        graph.subgraph(line)

    def _add_boxes(self, graph: Digraph, outer: str | None) -> None:
        for name in self._picture.inside(outer):
            graph.node(name, id=name, **_box(self._picture.boxes[name]))
        for trunk in self._trunks:
            if trunk.frame == outer:
                color = _arrow(self._picture, trunk.writer, trunk.readers()[0]).get("color", FAINT)
                for point in trunk.points:
                    graph.node(point, **POINT, color=color, fillcolor=color)

    def _add_frames(self, graph: Digraph, frames: Iterable[str]) -> None:
        """Add frames with all that is within them."""
        for name in frames:
            frame = self._picture.frames[name]
            inner = Digraph(f"cluster_{name}", graph_attr=_frame(frame))
            inner.node(name, **_title(frame))
            self._add_boxes(inner, name)
            self._add_frames(inner, self._picture.frames_in(name))
            # A title is a node above all that is in its frame: arrows go around nodes, but through a cluster's label.
            above = self._points_above(name)
            for below in self._first(name):
                if below not in above:
                    inner.edge(name, below, style="invis", weight="1")
            for below in self._picture.frames_in(name):
                inner.edge(above.get(below, name), below, style="invis", weight="0")
            graph.subgraph(inner)

    def _first(self, frame: str) -> list[str]:
        """The boxes at the top of a frame."""
        inside = dict.fromkeys(self._picture.inside(frame))
        return [name for name in inside if not inside.keys() & self._reads.get(name, ())]

    def _points_above(self, frame: str) -> dict[str, str]:
        """For boxes and frames below the first point of a line in ``frame``: the point that is above them."""
        above: dict[str, str] = {}
        for trunk in self._trunks:
            if trunk.frame == frame:
                for point, reader in trunk.lower_branches():
                    around = self._picture.enclosing(self._picture.boxes[reader].frame)
                    for name in (reader, *around):
                        above.setdefault(name, point)
        return above


def _put_inputs_on_top(graph: Digraph, picture: Picture) -> None:
    """Put the inputs of a network above its title, not beside it."""
    pairs = dict.fromkeys(
        (tail, picture.network_of(head))
        for tail, head in picture.arrows()
        if picture.boxes[tail].kind == "input" and picture.boxes[tail].frame is None
    )
    for tail, network in pairs:
        if network is not None:
            graph.edge(tail, network, style="invis", weight="0")


def _frame(frame: Frame) -> Attributes:
    if frame.network:
        look = {"style": "rounded,filled", "fillcolor": "#fbfcfd", "margin": "12"}
    else:
        look = {"style": "rounded,dashed", "fillcolor": "none", "margin": "10"}
    return look | {"color": FRAME, "label": ""}


def _title(frame: Frame) -> Attributes:
    size = 13 if frame.network else 11
    label = f'<font point-size="{size}"><b>{_text(frame.title)}</b></font>'
    if frame.remark:
        label += f'<font point-size="10">   {_text(frame.remark, 2 * LONGEST)}</font>'
    look = {"shape": "plaintext", "style": "", "fontcolor": FAINT}
    return look | {"label": f"<{label}>", "margin": "0", "height": "0", "width": "0"}


def _box(box: Box) -> Attributes:
    if box.kind in TENSORS:
        fill, line = TENSORS[box.kind]
        look = {"style": "rounded,filled", "fillcolor": fill, "color": line}
    elif box.kind == "opaque":
        look = {"style": "filled,dashed", "fillcolor": "#eceff1", "color": FAINT}
    elif box.kind == "training":
        look = {"fillcolor": "#fdeedd", "color": "#c08a3e"}
    else:
        look = {"fillcolor": fill_color(box.share), "color": "#5b7a99"}
    if box.heat is not None and box.kind not in TENSORS:
        look["fillcolor"] = heat_color(box.heat)
    if box.remembers:
        look |= {"peripheries": "2", "penwidth": "1.4"}
    if box.frozen:
        look |= {"style": "filled,dotted", "penwidth": "1.8", "color": INK}
    return look | {"label": f"<{_label(box)}>"}


def _label(box: Box) -> str:
    """A table with a row for each line: lines of one text would touch."""
    rows = [f"<b>{_text(box.title)}</b>"]
    rows += [
        f'<font point-size="10" color="{FAINT}">{_text(line, 80)}</font>' for line in box.lines
    ]
    cells = "".join(f"<tr><td>{row}</td></tr>" for row in rows)
    return f'<table border="0" cellborder="0" cellspacing="0" cellpadding="0">{cells}</table>'


def _arrow(picture: Picture, tail: str, head: str) -> Attributes:
    stopped = {"style": "dotted", "penwidth": "1.6"} if (tail, head) in picture.stopped else {}
    if (tail, head) in picture.shared:
        return stopped | {"color": "#b4532a", "penwidth": "2"}
    if stopped:
        return stopped
    if (tail, head) in picture.masks:
        return {"style": "dashed"}
    text = picture.labels.get((tail, head))
    return {} if text is None else _at_arrow(text)


def _at_arrow(text: str) -> Attributes:
    """A blank on each side keeps the text off its line."""
    label = f"< {_text(text, 80)} >"
    return {"label": label, "fontname": FONT, "fontsize": "9", "fontcolor": FAINT}


def _footer(picture: Picture, trunks: Sequence[Trunk]) -> str:
    branching = ["dot on a line: it branches"] if trunks else []
    lines = [picture.caption, "   ".join([*picture.legend(), *branching])]
    return "".join(f'<br/>{_text(line, 200)}<br align="left"/>' for line in lines if line)


def _text(text: str, longest: int = LONGEST) -> str:
    """Text as content of an HTML-like label; Graphviz reads backslashes there too."""
    text = escape(printable(text, longest), quote=False)
    return text.replace('"', "&quot;").replace("\\", "&#92;&#92;")
