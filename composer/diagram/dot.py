"""A Picture as text of the DOT language, the same bytes for the same picture."""

from __future__ import annotations

from collections.abc import Iterator

from composer.diagram.picture import Box, Frame, Picture
from perception_blocks.words import printable

__all__ = ["fill_color", "to_dot"]

FONT = "Helvetica,Arial,sans-serif"
INK, FAINT, FRAME = "#1f2933", "#3e4c59", "#9aa5b1"
TENSORS = {"input": ("#eef7ee", "#6a9a6f"), "output": ("#fdf3e3", "#c08a3e")}
LIGHT, DEEP = (0xF7, 0xFA, 0xFD), (0x7F, 0xB2, 0xE5)
LONGEST = 40  # characters of a name


def to_dot(picture: Picture) -> str:
    """The picture as DOT. Labels are HTML-like; every text from a user is escaped."""
    lines = [
        "digraph model {",
        "  graph [newrank=true, ranksep=0.3, nodesep=0.3, pad=0.2, labelloc=b, labeljust=l,",
        f'    fontname="{FONT}", fontsize=9, fontcolor="{FAINT}", label=<{_footer(picture)}>];',
        f'  node [fontname="{FONT}", fontsize=11, fontcolor="{INK}", shape=box, style=filled, margin="0.14,0.05"];',
        f'  edge [color="{FAINT}", arrowsize=0.7, weight=4];',
        *_inside(picture, None, "  "),
    ]
    lines += _inputs_on_top(picture)
    lines += [
        f"  {tail} -> {head}{_arrow(picture, tail, head)};" for tail, head in picture.arrows()
    ]
    return "\n".join([*lines, "}"]) + "\n"


def fill_color(share: float) -> str:
    """From nearly white for no parameters to blue for all of them; the square root tells small shares apart.

    >>> fill_color(0.0), fill_color(1.0)
    ('#f7fafd', '#7fb2e5')
    """
    depth = share**0.5
    return "#" + "".join(f"{round(a + (b - a) * depth):02x}" for a, b in zip(LIGHT, DEEP))


def _inside(picture: Picture, group: str | None, indent: str) -> Iterator[str]:
    """Boxes and groups within ``group``."""
    for name in picture.inside(group):
        yield f"{indent}{name} [{_node(name, picture.boxes[name])}];"
    for name in picture.groups_in(group):
        yield f"{indent}subgraph cluster_{name} {{"
        yield f"{indent}  {_frame(picture.groups[name])}"
        yield f"{indent}  {name} [{_title(picture.groups[name])}];"
        yield from _inside(picture, name, indent + "  ")
        # A title is a node above all that is in its frame: arrows go around nodes, but through a cluster's own label.
        for below in _first(picture, name):
            yield f"{indent}  {name} -> {below} [style=invis, weight=1];"
        for below in picture.groups_in(name):
            yield f"{indent}  {name} -> {below} [style=invis, weight=0];"
        yield f"{indent}}}"


def _first(picture: Picture, group: str) -> Iterator[str]:
    """The boxes at the top of a group."""
    inside = set(own := picture.inside(group))
    reads = {node.name: node.reads for node in picture.dag.nodes}
    for name in own:
        if inside.isdisjoint(reads.get(name, ())):
            yield name


def _inputs_on_top(picture: Picture) -> Iterator[str]:
    """What a network reads from outside stands above its title, not beside it."""
    pairs = dict.fromkeys(
        (tail, _network(picture, head))
        for tail, head in picture.arrows()
        if picture.boxes[tail].kind == "input" and picture.boxes[tail].group is None
    )
    for tail, network in pairs:
        if network is not None:
            yield f"  {tail} -> {network} [style=invis, weight=0];"


def _network(picture: Picture, box: str) -> str | None:
    """The network that a box is in."""
    group = picture.boxes[box].group
    while group is not None and not picture.groups[group].network:
        group = picture.groups[group].parent
    return group


def _frame(group: Frame) -> str:
    if group.network:
        return f'style="rounded,filled"; color="{FRAME}"; fillcolor="#fbfcfd"; margin=12; label="";'
    return f'style="rounded,dashed"; color="{FRAME}"; fillcolor="none"; margin=10; label="";'


def _title(group: Frame) -> str:
    size = 13 if group.network else 11
    label = f'<font point-size="{size}"><b>{_text(group.title)}</b></font>'
    if group.remark:
        label += f'<font point-size="10">   {_text(group.remark, 2 * LONGEST)}</font>'
    return f'label=<{label}>, shape=plaintext, style="", fontcolor="{FAINT}", margin=0, height=0, width=0'


def _node(name: str, box: Box) -> str:
    attributes = [f"id={name}", f"label=<{_label(box)}>"]
    if box.kind in TENSORS:
        fill, line = TENSORS[box.kind]
        attributes += ['style="rounded,filled"', f'fillcolor="{fill}"', f'color="{line}"']
    elif box.kind == "opaque":
        attributes += ['style="filled,dashed"', 'fillcolor="#eceff1"', f'color="{FAINT}"']
    else:
        attributes += [f'fillcolor="{fill_color(box.share)}"', 'color="#5b7a99"']
    if box.remembers:
        attributes += ["peripheries=2", "penwidth=1.4"]
    return ", ".join(attributes)


def _label(box: Box) -> str:
    """One row a line: lines that follow each other in one text would touch."""
    rows = [f"<b>{_text(box.title)}</b>"]
    rows += [
        f'<font point-size="10" color="{FAINT}">{_text(line, 80)}</font>' for line in box.lines
    ]
    cells = "".join(f"<tr><td>{row}</td></tr>" for row in rows)
    return f'<table border="0" cellborder="0" cellspacing="0" cellpadding="0">{cells}</table>'


def _arrow(picture: Picture, tail: str, head: str) -> str:
    if (tail, head) in picture.shared:
        return ' [color="#b4532a", penwidth=2]'
    return " [style=dashed]" if (tail, head) in picture.masks else ""


def _footer(picture: Picture) -> str:
    lines = [picture.caption, "   ".join(picture.legend())]
    return "".join(f'<br/>{_text(line, 200)}<br align="left"/>' for line in lines if line)


def _text(text: str, longest: int = LONGEST) -> str:
    """Text as content of an HTML-like label; Graphviz reads backslashes there too."""
    text = printable(text, longest)
    for plain, safe in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ('"', "&quot;"),
        ("\\", "&#92;&#92;"),
    ):
        text = text.replace(plain, safe)
    return text
