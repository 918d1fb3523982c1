"""A picture of a spec in an editor: its text, and what the language server says of it."""

from collections.abc import Sequence
from html import escape

from lsprotocol import types as lsp

WIDTH, HEIGHT, LEFT, TOP = 8, 22, 46, 12  # of a character and of a line, and before the first
INK, QUIET, HINT, WRONG = "#1f2328", "#8c959f", "#0a6070", "#b42318"


def drawn(
    text: str, diagnostics: Sequence[lsp.Diagnostic], hints: Sequence[lsp.InlayHint], fix: str
) -> str:
    """The SVG of ``text`` with its problems underlined and told, the title of a ``fix``, and the hints behind nodes."""
    lines, parts = text.splitlines(), []
    for number, line in enumerate(lines):
        parts += [_word(str(number + 1).rjust(2), number, -4, QUIET), _word(line, number, 0, INK)]
        column = len(line) + 2
        for hint in hints:
            if hint.position.line == number:
                label = str(hint.label).strip()
                parts.append(_word(label, number, column, HINT))
                column += len(label) + 2
        for problem in diagnostics:
            if problem.range.start.line == number:
                parts.append(_underline(problem.range))
                parts.append(_word(problem.message, number, column, WRONG))
    parts.append(_word(f"Quick fix: {fix}", len(lines), 0, HINT))
    height = TOP * 2 + HEIGHT * (len(lines) + 1)
    columns = max(len(line) for line in lines) + 62
    width = LEFT + WIDTH * columns
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="monospace" '
        'font-size="13"><title>A spec in an editor: a misspelt block is underlined, the shapes stand behind the nodes</title>'
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff" stroke="#d0d7de"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _word(text: str, line: int, column: int, colour: str) -> str:
    """Each character as wide as the others, whatever font there is."""
    if not text.strip():
        return ""
    x, y = LEFT + WIDTH * column, TOP + HEIGHT * line + 16
    return (
        f'<text x="{x}" y="{y}" fill="{colour}" textLength="{WIDTH * len(text)}" xml:space="preserve">'
        f"{escape(text, quote=False)}</text>"
    )


def _underline(where: lsp.Range) -> str:
    start, end = (LEFT + WIDTH * place.character for place in (where.start, where.end))
    y = TOP + HEIGHT * where.start.line + 19
    waves = " ".join("q 2 -3 4 0 t 4 0" for _ in range(start, end, 8))
    return f'<path d="M {start} {y} {waves}" stroke="{WRONG}" fill="none"/>'
