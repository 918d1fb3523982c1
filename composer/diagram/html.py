"""A Picture as one HTML file that needs no network: the drawing, the details of each box, and a script."""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files

from composer.diagram.dot import to_dot
from composer.diagram.picture import Picture
from composer.diagram.render import SECONDS, GivenUp, render
from perception_blocks.words import printable

__all__ = ["to_html", "to_svg"]

LONGEST = 200  # characters of a title


def to_svg(picture: Picture, seconds: float = SECONDS, given_up: GivenUp | None = None) -> str:
    """The picture as SVG; a box shows its title when pointed at. Raises DrawError as `render` does."""
    svg = render(to_dot(picture), "svg", seconds, given_up).decode()

    def title(match: re.Match[str]) -> str:
        box = picture.boxes.get(match[1])
        return f"<title>{escape(printable(box.title, LONGEST))}</title>" if box else ""

    return re.sub(r"<title>(.*?)</title>\n?", title, svg)


def to_html(picture: Picture) -> str:
    """The picture as a page: drag to pan, turn the wheel to zoom, click a box for its settings and its line."""
    svg = to_svg(picture)
    svg = svg[svg.index("<svg") :]
    details = {}
    for name, box in picture.boxes.items():
        lines = [(printable(key), printable(text)) for key, text in box.details.items()]
        details[name] = {"title": printable(box.title), "lines": lines}
    # Only "<" could end a script element.
    data = json.dumps(details, indent=1).replace("<", "\\u003c")
    page = files("composer.diagram").joinpath("page.html").read_text(encoding="utf-8")
    for mark, content in (("<!--drawing-->", svg), ("/*details*/", data)):
        before, _, after = page.rpartition(mark)
        page = before + content + after
    return page
