"""How much a spec, a file or a space may ask for. More is refused in words, before anything of that size is made.

The numbers in a spec may be anybody's; only the caller can raise a limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from perception_blocks.words import hint

__all__ = ["GivenLimits", "Limits", "above", "how_to_raise", "limits_from"]


@dataclass(frozen=True)
class Limits:
    """``copies`` are the networks of one ensemble, ``layers`` what a class that is named by its path may be asked for.

    ``nodes`` and ``tensors`` are those that are built for a whole model, copies included. A space has at most ``parts``
    spaces in it, ``numbers`` in one of its values and ``choices`` of one integer; an environment at most ``actors``.
    ``memory`` is how many bytes all weights may take where they are made; None is what the device has.
    """

    copies: int = 1_000
    layers: int = 1_000
    nodes: int = 20_000
    tensors: int = 50_000
    actors: int = 10_000
    parts: int = 10_000
    numbers: int = 2**25  # an image in 4K with four channels has fewer
    choices: int = 2**31
    memory: int | None = None


GivenLimits: TypeAlias = Limits | Mapping[str, int] | None
"""``{"copies": 5_000}``: those that are given; the others have their defaults."""


def limits_from(given: GivenLimits) -> Limits:
    """The limits that a caller gives. Raises ValueError for unknown names and for what is no count."""
    if given is None or isinstance(given, Limits):
        return given or Limits()
    if not isinstance(given, Mapping):
        raise ValueError(f"limits is a mapping such as {{'copies': 5000}}, got {given!r}")
    known = [field.name for field in fields(Limits)]
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"there is no limit {name!r}{hint(name, known)}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"the limit {name!r} is a whole number of at least 1, got {value!r}")
    return Limits(**given)


def above(limits: Limits, name: str, key: str, value: int) -> str | None:
    """What is wrong with the ``value`` of ``key``, which counts against the limit ``name``; None if nothing is."""
    most = getattr(limits, name)
    if value <= most:
        return None
    return f"{key!r} is {value}, but the limit of {name} is {most:,}; {how_to_raise(name, value)}"


def how_to_raise(name: str, value: Any) -> str:
    """The end of a message about a limit: how the caller allows ``value``."""
    return f"if it is meant, allow it: limits={{'{name}': {value}}} or --limit {name}={value}"
