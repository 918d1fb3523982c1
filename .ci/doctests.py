"""For mkdocstrings: shows the examples in docstrings as code. Markdown alone takes ``>>>`` for three quotations."""

import re
from typing import Any

from griffe import Extension, Object

# A paragraph that begins with >>>; blank lines end it.
EXAMPLE = re.compile(r"(?:^|(?<=\n\n))>>> .*?(?=\n\n|\Z)", re.S)


class Doctests(Extension):
    """Puts every example of every docstring in a fence."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = EXAMPLE.sub(lambda match: f"```pycon\n{match[0]}\n```", text)
