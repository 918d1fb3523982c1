"""Taking typed values out of a mapping of the spec; whatever is wrong is noted in words, and a default returned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from composer.errors import Path, Problems
from composer.limits import Limits, above
from perception_blocks.words import describe, listing, near_name

__all__ = ["Fields"]


class Fields:
    """The mapping at ``path``.

    Each method returns the value of ``key`` if it is there and of its type, else ``default``.
    """

    def __init__(self, values: Mapping[str, Any], path: Path, problems: Problems) -> None:
        self.values = values
        self.path = path
        self.problems = problems

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def at(self, key: str | int) -> Path:
        return (*self.path, key)

    def note(self, key: str, message: str, *, on_key: bool = False) -> None:
        """Note ``message`` at the value of ``key``, or at the key itself."""
        self.problems.add(self.at(key), message, key=on_key)

    def wrong(self, key: str, expected: str, fits: Callable[[object], bool] | None = None) -> None:
        """Note that the value of ``key`` is not what is ``expected``; ``fits`` says what would be."""
        value = self.values[key]
        from perception_blocks.settings import as_yaml  # for messages alone: it takes long

        meant = as_yaml(value, fits) if fits is not None and isinstance(value, str) else ""
        self.note(key, f"{key!r} must be {expected}, got {describe(value)}{meant}")

    def unknown(
        self,
        known: Collection[str],
        what: str,
        governing: str = "",
        elsewhere: Mapping[str, str] = MappingProxyType({}),
    ) -> set[str]:
        """Note each key that is not in ``known``; returns the keys that were probably meant.

        A key that ``governing`` was meant by says what the others are, so then they are not judged.
        ``elsewhere`` says of keys that have their place elsewhere what to write.
        """
        near_of = {key: near_name(key, known, "key") for key in self.values if key not in known}
        governed = governing in near_of.values()
        meant: set[str] = set()
        for key, near in near_of.items():
            if not governed or near == governing:
                hint = f"did you mean {near!r}?" if near else f"its keys are {listing(known)}"
                if key in elsewhere:
                    hint, near = f"did you mean {elsewhere[key]!r}?", None
                elif not near and "graph" in known and _is_node(self.values[key]):
                    hint = "a node belongs inside 'graph'"
                self.note(key, f"{key!r} is not a key of {what}; {hint}", on_key=True)
                meant |= {near} if near else set()
        return meant

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if key in self.values and not (isinstance(value, str) and value):
            self.wrong(key, "a text")
            return None
        return value

    def boolean(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.wrong(key, "true or false", lambda other: isinstance(other, bool))
            return default
        return value

    def count(self, key: str, default: int) -> int:
        """A whole number of at least 1."""
        if key not in self.values:
            return default
        value = self.values[key]
        if not _is_count(value):
            self.wrong(key, "a whole number of at least 1", _is_count)
            return default
        return value

    def copies(self, key: str, limits: Limits) -> int:
        """How many networks there are of one form."""
        value = self.count(key, 1)
        message = above(limits, "copies", key, value)
        if message:
            self.note(key, message)
            return 1
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, none of them twice."""
        value = self.values.get(key, [])
        if not isinstance(value, list):
            self.wrong(key, "a list of texts")
            return ()
        seen: dict[str, None] = {}
        for index, item in enumerate(value):
            if not isinstance(item, str):
                message = f"{key!r} must hold texts only, got {describe(item)}"
                self.problems.add((*self.path, key, index), message)
            elif item in seen:
                self.problems.add((*self.path, key, index), f"{item!r} is in {key!r} twice")
            else:
                seen[item] = None
        return tuple(seen)

    def mapping(self, key: str, expected: str = "a mapping") -> dict[str, Any]:
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            self.wrong(key, expected)
            return {}
        return value

    def text_mapping(self, key: str, expected: str) -> dict[str, str]:
        """A mapping from texts to texts."""
        value = self.mapping(key, expected)
        for name, item in value.items():
            if not isinstance(item, str):
                message = f"{key!r} must be {expected}, got {describe(item)} for {name!r}"
                self.problems.add((*self.path, key, name), message)
        return {name: item for name, item in value.items() if isinstance(item, str)}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_node(value: object) -> bool:
    return isinstance(value, dict) and "in" in value and ("block" in value or "same_as" in value)
