"""The pages of ``docs/blocks/``: the text above the mark is hand-written, the text below comes from the classes.

``python -m composer.reference.pages docs/blocks`` rewrites them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from composer.reference.families import FAMILIES, families
from composer.reference.help import default_of, documentation, example_of
from composer.reference.words import MEANINGS
from perception_blocks.base_block import PerceptionBlock
from perception_blocks.registry import BLOCKS, MissingExtraError
from perception_blocks.settings import describe, settings_of

__all__ = ["main", "page_text"]

MARK = "<!-- below: written by python -m composer.reference.pages docs/blocks -->"
INDEX = "index"
_NOT_HERE = "It needs a library that is not installed here."


def page_text(page: str, text: str) -> str:
    """``text`` of a page with a new text below its mark."""
    head, _, old = text.partition(MARK)
    sections = _index(old) if page == INDEX else [_section(name, old) for name in families()[page]]
    return "\n".join([head + MARK, *sections]).rstrip("\n") + "\n"


def main(arguments: Sequence[str]) -> int:
    """Rewrite all pages in the folder that is given."""
    (folder,) = arguments
    for page in (INDEX, *FAMILIES):
        path = Path(folder, f"{page}.md")
        path.write_text(page_text(page, path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


# --- Markdown ---------------------------------------------------------------------------------------------------------


def _index(old: str) -> list[str]:
    """A table of all blocks for each page."""
    lines: list[str] = []
    for page, names in families().items():
        title = page.replace("-", " ").capitalize()
        lines += ["", f"## [{title}]({page}.md)", "", "| block | |", "|---|---|"]
        lines += [_row(name, f"| [{name}]({page}.md#{name}) |", old) for name in names]
    return [*lines, ""]


def _row(name: str, start: str, old: str) -> str:
    """One line of the index; as it stood in ``old`` where the block's library is not installed."""
    try:
        summary = _marked(documentation(BLOCKS.get(name))).partition("\n")[0]
    except MissingExtraError:
        lines = (line for line in old.splitlines() if line.startswith(start))
        return next(lines, f"{start} |")
    return f"{start} {_cell(summary)} |"


def _section(name: str, old: str) -> str:
    """All about one block; as it stood in ``old`` where the block's library is not installed."""
    try:
        block = BLOCKS.get(name)
    except MissingExtraError:
        return _section_in(old, name) or f"\n## {name}\n\n{_NOT_HERE}"
    lines = ["", f"## {name}", "", _marked(documentation(block)), "", *_settings(block)]
    example = example_of(name)
    if example is not None:
        lines += ["```yaml", str(example), "```", "", f"`{example.shapes}`", ""]
    extra = BLOCKS.extra_of(name)
    lines += [f"It needs the extra `[{extra}]`.", ""] if extra else []
    if block.mask_of:
        names = " and ".join(f"`{argument}`" for argument in block.mask_of)
        lines += [f"The graph passes the mask of the input, as {names}.", ""]
    for what, why in block.limits.items():
        lines += [f"Not possible: {what} ({why}).", ""]
    return "\n".join([*lines, f"In Python: `{block.__name__}`."])


def _section_in(text: str, name: str) -> str:
    section = re.search(rf"\n## {re.escape(name)}\n.*?(?=\n\n## |\n*\Z)", text, re.S)
    return section[0] if section else ""


def _settings(block: type[PerceptionBlock]) -> list[str]:
    settings, takes_any = settings_of(block)
    rows = []
    for setting in settings.values():
        from_space = setting.name in block.from_ports
        what = "; ".join(filter(None, [MEANINGS.get(setting.name), describe(setting.annotation)]))
        default = default_of(setting, from_space)
        shown = default if from_space or setting.required else f"`{default}`"
        rows.append(f"| `{setting.name}` | {_cell(what)} | {_cell(shown)} |")
    rows += ["| any other | passed on | |"] if takes_any else []
    return ["| setting | meaning | default |", "|---|---|---|", *rows, ""] if rows else []


def _marked(text: str) -> str:
    """A docstring's marks as Markdown's."""
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
