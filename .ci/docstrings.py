"""For mkdocstrings: docstrings as Markdown. An example is shown as code, and a name in backticks links to its class."""

import re
from typing import Any

from griffe import Extension, NameResolutionError, Object

# A paragraph that begins with >>>; blank lines end it. Markdown alone takes it for three quotations.
EXAMPLE = re.compile(r"(?:^|(?<=\n\n))>>> .*?(?=\n\n|\Z)", re.S)
NAME = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")


class Docstrings(Extension):
    """Rewrites every docstring."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = NAME.sub(lambda match: linked(match[1], obj), obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", text)


def linked(name: str, obj: Object) -> str:
    """``name`` with a link to where it is documented, if it is a name in the module of ``obj`` and is documented."""
    try:
        path = obj.resolve(name)
    except NameResolutionError:
        return f"`{name}`"
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'
