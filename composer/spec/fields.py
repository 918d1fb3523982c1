"""Typed values from a mapping of the spec; a value of another type is noted as a problem and replaced by a default."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TypeGuard

from composer.errors import Path, Problems
from composer.limits import Limits, above
from perception_blocks.words import Suggestion, describe, listing, near_name, suggest

__all__ = ["Fields", "is_count"]

NONE: Mapping[str, str] = MappingProxyType({})


class Fields:
    """The mapping at ``path``.

    Each method returns the value of ``key`` if it exists and has the right type, else a default.
    """

    def __init__(self, values: Mapping[str, object], path: Path, problems: Problems) -> None:
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
        """Note that the value of ``key`` is not what is ``expected``; ``fits`` accepts what would be."""
        value = self.values[key]
        from perception_blocks.settings import as_yaml  # for messages alone: it takes long

        meant = as_yaml(value, fits) if fits is not None and isinstance(value, str) else ""
        self.note(key, f"{key!r} must be {expected}, got {describe(value)}{meant}")

    def unknown(
        self,
        known: Collection[str],
        what: str,
        governing: str = "",
        elsewhere: Mapping[str, str] = NONE,
        places: Mapping[str, str] = NONE,
    ) -> set[str]:
        """Note each key that is not in ``known``; returns the keys that were probably meant.

        If one of them is ``governing``, which decides what the other keys are, only that one is noted. ``elsewhere``
        maps keys that belong elsewhere to what to write, ``places`` keys of other sections to where they belong.
        """
        near_of = {key: near_name(key, known, "key") for key in self.values if key not in known}
        governed = governing in near_of.values()
        meant: set[str] = set()
        for key, near in near_of.items():
            if not governed or near == governing:
                hint = suggest(key, near) if near else f"; its keys are {listing(known)}"
                if key in elsewhere:
                    hint, near = f"; did you mean {elsewhere[key]!r}?", None
                elif not near and "graph" in known and _is_node(self.values[key]):
                    hint = "; a node belongs inside 'graph'"
                elif key in places and near:
                    end = f"; did you mean {near!r}, or does it belong {places[key]}?"
                    hint = Suggestion(end, key, near)
                elif key in places:
                    hint = f"; it belongs {places[key]}"
                self.note(key, f"{key!r} is not a key of {what}" + hint, on_key=True)
                meant |= {near} if near else set()
        return meant

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if isinstance(value, str) and value:
            return value
        if key in self.values:
            self.wrong(key, "a text")
        return None

    def boolean(self, key: str) -> bool:
        value = self.values.get(key, False)
        if isinstance(value, bool):
            return value
        self.wrong(key, "true or false", lambda other: isinstance(other, bool))
        return False

    def count(self, key: str, default: int) -> int:
        """A whole number of at least 1."""
        value = self.values.get(key)
        if is_count(value):
            return value
        if key in self.values:
            self.wrong(key, "a whole number of at least 1", is_count)
        return default

    def copies(self, key: str, limits: Limits) -> int:
        """The number of networks of one form, within the limits."""
        value = self.count(key, 1)
        message = above(limits, "copies", key, value)
        if not message:
            return value
        self.note(key, message)
        return 1

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of different texts."""
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

    def mapping(self, key: str, expected: str = "a mapping") -> dict[str, object]:
        value = self.values.get(key, {})
        if isinstance(value, dict):
            return value
        self.wrong(key, expected)
        return {}

    def text_mapping(self, key: str, expected: str) -> dict[str, str]:
        """A mapping from texts to texts."""
        value = self.mapping(key, expected)
        for name, item in value.items():
            if not isinstance(item, str):
                message = f"{key!r} must be {expected}, got {describe(item)} for {name!r}"
                self.problems.add((*self.path, key, name), message)
        return {name: item for name, item in value.items() if isinstance(item, str)}


def is_count(value: object) -> TypeGuard[int]:
    """Whether it is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_node(value: object) -> bool:
    return isinstance(value, dict) and "in" in value and ("block" in value or "same_as" in value)
