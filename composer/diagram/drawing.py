"""draw: a picture of a model in the format that the file's name asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from composer.atomic import WriteError, replace_with
from composer.diagram.dot import to_dot
from composer.diagram.html import to_html, to_svg
from composer.diagram.mermaid import to_mermaid
from composer.diagram.picture import Picture
from composer.diagram.render import DrawError, render
from perception_blocks.words import did_you_mean

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DrawError", "draw", "format_of", "write_picture"]

FORMATS: dict[str, Callable[[Picture], str | bytes]] = {
    "png": lambda picture: render(to_dot(picture), "png"),
    "svg": to_svg,
    "pdf": lambda picture: render(to_dot(picture), "pdf"),
    "html": to_html,
    "dot": to_dot,
    "mermaid": to_mermaid,
}
ENDINGS = {"mmd": "mermaid", "gv": "dot", "htm": "html"}


def draw(net: nn.Module, path: str | os.PathLike[str], *, format: str | None = None) -> Path:
    """Draw a Model, Policy, Critic or InferenceBlock into the file ``path``, which is overwritten; returns the path.

    ``format`` is png, svg, pdf, html, dot or mermaid; by default the extension of ``path`` selects it. The file
    is written whole or not at all.

    Raises ValueError for an unknown format, a file that cannot be written, and plain PyTorch, which has no graph.
    """
    from composer.diagram.sketch import sketch

    format_of(Path(path), format)  # before the picture is made
    picture = getattr(net, "picture", None)  # of what is no graph of blocks
    return write_picture(sketch(net) if picture is None else picture(), path, format)


def write_picture(
    picture: Picture, path: str | os.PathLike[str], format: str | None = None
) -> Path:
    """Write a picture as `draw` does. Raises DrawError."""
    target = Path(path)
    content = FORMATS[format_of(target, format)](picture)
    data = content if isinstance(content, bytes) else content.encode()
    try:
        replace_with(target, lambda temporary: Path(temporary).write_bytes(data))
    except WriteError as error:
        raise DrawError(str(error)) from error
    return target


def format_of(path: Path, given: str | None = None) -> str:
    """The format that is ``given``, or that the ending of ``path`` names. Raises DrawError for an unknown one."""
    name = (path.suffix.removeprefix(".") if given is None else given.removeprefix(".")).lower()
    name = ENDINGS.get(name, name)
    if name in FORMATS:
        return name
    known = ", ".join(sorted(FORMATS))
    if not name:
        raise DrawError(f"{path.name!r} has no ending that says what to draw; there is {known}")
    near = did_you_mean(name, [*FORMATS, *ENDINGS]) or f"; there is {known}"
    raise DrawError(f"{name!r} is not a format of diagrams{near}")
