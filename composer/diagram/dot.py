"""A Picture as text of the DOT language, the same bytes for the same picture."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

from graphviz import Digraph

from composer.diagram.picture import Box, Frame, Picture
from perception_blocks.words import printable

__all__ = ["fill_color", "to_dot"]

FONT = "Helvetica,Arial,sans-serif"
INK, FAINT, FRAME = "#1f2933", "#3e4c59", "#9aa5b1"
TENSORS = {"input": ("#eef7ee", "#6a9a6f"), "output": ("#fdf3e3", "#c08a3e")}
LIGHT, DEEP = (0xF7, 0xFA, 0xFD), (0x7F, 0xB2, 0xE5)
LONGEST = 40  # characters of a name
PULL = 16  # edges that hold a network on its side

Attributes: TypeAlias = dict[str, str]


def to_dot(picture: Picture) -> str:
    """The picture as DOT. Labels are HTML-like; every text from a user is escaped."""
    graph = Digraph(
        "model",
        graph_attr={
            "newrank": "true", "ranksep": "0.3", "nodesep": "0.3", "pad": "0.2", "fontname": FONT, "fontsize": "9",
            "fontcolor": FAINT, "labelloc": "b", "labeljust": "l", "label": f"<{_footer(picture)}>",
        },
        node_attr={
            "fontname": FONT, "fontsize": "11", "fontcolor": INK, "shape": "box", "style": "filled",
            "margin": "0.14,0.05",
        },
        edge_attr={"color": FAINT, "arrowsize": "0.7", "weight": "4"},
    )  # fmt: skip
    _add_networks(graph, picture)
    _put_inputs_on_top(graph, picture)
    for tail, head in picture.arrows():
        graph.edge(tail, head, **_arrow(picture, tail, head))
    for tail, head, text in picture.hooks:
        graph.edge(tail, head, style="dashed", constraint="false", **_at_arrow(text))
    return graph.source.replace("\t", "  ")  # no label has a tab


def fill_color(share: float) -> str:
    """From nearly white for no parameters to blue for all of them; the square root tells small shares apart.

    >>> fill_color(0.0), fill_color(1.0)
    ('#f7fafd', '#7fb2e5')
    """
    depth = share**0.5
    return "#" + "".join(f"{round(a + (b - a) * depth):02x}" for a, b in zip(LIGHT, DEEP))


def _add_boxes(graph: Digraph, picture: Picture, outer: str | None) -> None:
    for name in picture.inside(outer):
        graph.node(name, id=name, **_box(picture.boxes[name]))


def _add_frames(graph: Digraph, picture: Picture, frames: Iterable[str]) -> None:
    """Add frames with all that is within them."""
    for name in frames:
        frame = picture.frames[name]
        inner = Digraph(f"cluster_{name}", graph_attr=_frame(frame))
        inner.node(name, **_title(frame))
        _add_boxes(inner, picture, name)
        _add_frames(inner, picture, picture.frames_in(name))
        # A title is a node above all that is in its frame: arrows go around nodes, but through a cluster's label.
        for below in _first(picture, name):
            inner.edge(name, below, style="invis", weight="1")
        for below in picture.frames_in(name):
            inner.edge(name, below, style="invis", weight="0")
        graph.subgraph(inner)


def _first(picture: Picture, frame: str) -> list[str]:
    """The boxes at the top of a frame."""
    inside = dict.fromkeys(picture.inside(frame))
    reads = {node.name: node.reads for node in picture.dag.nodes}
    return [name for name in inside if not inside.keys() & reads.get(name, ())]


def _put_inputs_on_top(graph: Digraph, picture: Picture) -> None:
    """Put the inputs of a network above its title, not beside it."""
    pairs = dict.fromkeys(
        (tail, _network(picture, head))
        for tail, head in picture.arrows()
        if picture.boxes[tail].kind == "input" and picture.boxes[tail].frame is None
    )
    for tail, network in pairs:
        if network is not None:
            graph.edge(tail, network, style="invis", weight="0")


def _add_networks(graph: Digraph, picture: Picture) -> None:
    """Add all that is in no frame, then the frames: those of critics at the right of the others."""
    _add_boxes(graph, picture, None)
    frames = picture.frames_in(None)
    policies, critics = (
        [name for name in frames if picture.frames[name].title.partition("/")[0] == part]
        for part in ("policy", "critic")
    )
    if not policies or not critics:
        return _add_frames(graph, picture, frames)
    # Layout keeps the order of two nodes on one line if neither is in a frame; each pulls the frames below it, by many
    # edges, as a weight counts for nothing where edges cross.
    line = Digraph(graph_attr={"rank": "same"})
    line.edge("left", "right", style="invis", weight="1")
    for side in ("left", "right"):
        names = [name for name in frames if (name in critics) == (side == "right")]
        half = Digraph(f"cluster_{side}", graph_attr={"style": "invis", "margin": "8", "label": ""})
        _add_frames(half, picture, names)
        graph.node(side, style="invis", width="0", height="0", label="")
        for name in names * PULL:
            graph.edge(side, name, style="invis", weight="1")
        graph.subgraph(half)
    graph.subgraph(line)


def _network(picture: Picture, box: str) -> str | None:
    """The network that a box is in."""
    frame = picture.boxes[box].frame
    while frame is not None and not picture.frames[frame].network:
        frame = picture.frames[frame].parent
    return frame


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


def _footer(picture: Picture) -> str:
    lines = [picture.caption, "   ".join(picture.legend())]
    return "".join(f'<br/>{_text(line, 200)}<br align="left"/>' for line in lines if line)


def _text(text: str, longest: int = LONGEST) -> str:
    """Text as content of an HTML-like label; Graphviz reads backslashes there too."""
    text = escape(printable(text, longest), quote=False)
    return text.replace('"', "&quot;").replace("\\", "&#92;&#92;")
