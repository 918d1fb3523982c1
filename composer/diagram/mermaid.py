"""A Picture as a Mermaid flowchart, which many tools show inside Markdown; the same bytes for the same picture."""

from __future__ import annotations

from collections.abc import Iterator

from composer.diagram.dot import fill_color, heat_color
from composer.diagram.picture import Box, Picture
from perception_blocks.words import printable

__all__ = ["to_mermaid"]

LONGEST = 200  # characters of a text
SHADES = 6  # how many depths of colour
_PLAIN = frozenset(" ,.()_+-/'?!=")  # not escaped in a label, as letters and digits are not
_ROUND, _SQUARE = ("([", "])"), ("[", "]")
_SHAPES = {
    "input": _ROUND, "output": _ROUND, "block": _SQUARE, "opaque": _SQUARE, "training": _SQUARE,
}  # fmt: skip
_CLASSES = {
    "input": "fill:#eef7ee,stroke:#6a9a6f,color:#1f2933",
    "output": "fill:#fdf3e3,stroke:#c08a3e,color:#1f2933",
    "training": "fill:#fdeedd,stroke:#c08a3e,color:#1f2933",
    "opaque": "fill:#eceff1,stroke:#3e4c59,color:#1f2933,stroke-dasharray:4",
}


def to_mermaid(picture: Picture) -> str:
    """The picture as a flowchart from top to bottom. Every text from a user is escaped."""
    lines = ["flowchart TD", *_inside(picture, None, "  ")]
    styles = []
    for index, (tail, head) in enumerate(picture.arrows()):
        shared, stopped = (tail, head) in picture.shared, (tail, head) in picture.stopped
        dotted = stopped or (tail, head) in picture.masks
        arrow = "==>" if shared else "-.->" if dotted else "-->"
        text = "no gradient" if stopped else picture.labels.get((tail, head))
        label = "" if text is None else f'|"{_text(text)}"|'
        lines.append(f"  {tail} {arrow}{label} {head}")
        if shared:
            styles.append(f"  linkStyle {index} stroke:#b4532a")
    lines += [f'  {tail} -.->|"{_text(text)}"| {head}' for tail, head, text in picture.hooks]
    legend = " | ".join([picture.caption, *picture.legend()])
    lines += [f'  legend["{_text(legend)}"]', "  style legend fill:none,stroke:none"]
    used = dict.fromkeys(_class(box) for box in picture.boxes.values())
    lines += [f"  classDef {name} {_style(name)}" for name in used]
    return "\n".join(lines + styles) + "\n"


def _inside(picture: Picture, frame: str | None, indent: str) -> Iterator[str]:
    for name in picture.inside(frame):
        box = picture.boxes[name]
        text = "<br/>".join([f"<b>{_text(box.title)}</b>", *map(_text, box.lines)])
        opening, closing = ("[[", "]]") if box.remembers else _SHAPES[box.kind]
        yield f'{indent}{name}{opening}"{text}"{closing}:::{_class(box)}'
    for name in picture.frames_in(frame):
        inner = picture.frames[name]
        title = "  ".join(filter(None, [inner.title, inner.remark]))
        yield f'{indent}subgraph {name}["{_text(title)}"]'
        yield from _inside(picture, name, indent + "  ")
        yield f"{indent}end"


def _class(box: Box) -> str:
    if box.heat is not None and box.kind in ("block", "opaque"):
        return f"heat{round(box.heat * SHADES)}"
    return box.kind if box.kind in _CLASSES else f"share{round(box.share**0.5 * SHADES)}"


def _style(name: str) -> str:
    if name in _CLASSES:
        return _CLASSES[name]
    if name.startswith("heat"):
        fill = heat_color(int(name.removeprefix("heat")) / SHADES)
        return f"fill:{fill},stroke:#5b7a99,color:#1f2933"
    share = (int(name.removeprefix("share")) / SHADES) ** 2
    return f"fill:{fill_color(share)},stroke:#5b7a99,color:#1f2933"


def _text(text: str) -> str:
    """Text inside quotes: Mermaid reads ``#65;`` as the character of that number.

    >>> _text('a "b"')
    'a #34;b#34;'
    """
    return "".join(
        c if c in _PLAIN or (c.isascii() and c.isalnum()) else f"#{ord(c)};"
        for c in printable(text, LONGEST)
    )
