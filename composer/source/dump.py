"""Plain data -> YAML that is read back as the same."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import yaml

from composer.errors import Path, format_path
from composer.source.params import escape_params
from composer.source.scalars import parse_scalar
from perception_blocks.words import describe

__all__ = ["dump_flow", "dump_yaml"]

_BaseDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_BaseDumper):
    """Writes text in quotes wherever YAML 1.1 or 1.2 would read it as something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def text(self, data: str) -> yaml.ScalarNode:
        plain_value = None
        with contextlib.suppress(ValueError):
            plain_value = parse_scalar(data)
        style = None if isinstance(plain_value, str) else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.text)


def dump_yaml(data: object, texts: Mapping[str, str] = MappingProxyType({})) -> str:
    """``data`` (dicts, lists, texts, numbers, true, false, null) as YAML that `load_source` reads back as the same.

    ``texts`` has what is written in place of some texts. Raises ValueError for anything else, by its path.
    """
    return _dump(data, texts, flow=None, width=100)  # innermost mappings and lists on one line


def dump_flow(data: Mapping[str, object]) -> str:
    """``data`` as YAML on one line: ``{block: dense, in: observation}``. Raises ValueError as `dump_yaml` does."""
    return _dump(data, {}, flow=True, width=2**31 - 1).strip()  # never breaks a line


def _dump(data: object, texts: Mapping[str, str], flow: bool | None, width: int) -> str:
    settings = {"sort_keys": False, "allow_unicode": True, "width": width}
    plain_data = _writable(data, (), texts)
    return yaml.dump(plain_data, Dumper=_Dumper, default_flow_style=flow, **settings)


def _writable(value: object, path: Path, texts: Mapping[str, str]) -> object:
    if isinstance(value, Mapping):
        return {key: _writable(child, (*path, key), texts) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(child, (*path, index), texts) for index, child in enumerate(value)]
    if isinstance(value, str):
        return escape_params(texts.get(value, str(value)))
    if value is None or type(value) in (bool, int, float):
        return value
    where = f"{format_path(path)!r} is" if path else "the value is"
    raise ValueError(f"{where} {describe(value)}, which YAML cannot hold")
