"""The JSON Schema of specs as a file, which editors find by a comment in a spec."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from composer.cli.loading import UserError, write_text

__all__ = ["MODELINE", "NAME", "schema_text", "write_schema", "write_spec"]

NAME = "spec.schema.json"
MODELINE = f"# yaml-language-server: $schema={NAME}\n"
_TITLE = "Perception composer spec"


def schema_text(allow: Sequence[str]) -> str:
    from composer.reference.schema import json_schema

    return json.dumps(json_schema(allow), indent=2)


def write_schema(path: str, allow: Sequence[str]) -> None:
    """Write the schema to ``path``, in place of an older one and of nothing else."""
    if os.path.exists(path) and not _is_schema(path):
        what = "is there already and is no schema of specs"
        raise UserError(f"{path!r} {what}; remove it or choose another name")
    write_text(path, schema_text(allow) + "\n")


def write_spec(path: str, text: str, allow: Sequence[str]) -> str:
    """Write a spec and, beside it, the schema that its first line names; returns what was written, in words.

    A file that has the schema's name stays as it is, and one that is something else is not named.
    """
    schema = os.path.join(os.path.dirname(path), NAME)
    if os.path.exists(schema):
        is_ours = _is_schema(schema)
        write_text(path, MODELINE + text if is_ours else text)
        return path if is_ours else f"{path}, without a schema because {schema!r} is something else"
    content = schema_text(allow)
    write_text(path, MODELINE + text)
    try:
        write_text(schema, content + "\n")
    except UserError:
        os.unlink(path)  # all or nothing
        raise
    return f"{path} and {schema}"


def _is_schema(path: str) -> bool:
    """Whether the file at ``path`` was written here."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("title") == _TITLE
