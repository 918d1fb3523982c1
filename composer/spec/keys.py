"""The keys of a spec's sections, and where those belong that stand in another section."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

__all__ = ["BESIDE_MODEL", "CRITIC_KEYS", "KINDS", "NETWORK_FILE_KEYS", "NETWORK_KEYS"]
__all__ += [
    "ONE_OF_SEVERAL",
    "PARTS",
    "PLACES",
    "POLICY_KEYS",
    "POLICY_NETWORK_KEYS",
    "PREVIOUS",
    "RECALLED",
    "TEMPLATE_STAGES",
    "TOP_KEYS",
    "TOP_PLACES",
    "is_within",
]

TOP_KEYS = ("version", "environment", "params", "extends", "distributions", "ignore", "normalize")
TOP_KEYS += ("texts", "previous", "parallel", "extensions", "freeze", "weights")
TOP_KEYS += ("learning_rate_scale", "state_names", "policy", "critic", "model")
PARTS = ("policy", "critic")  # of a model; a path such as policy/screen begins with one
BESIDE_MODEL = ("version", "environment", "params", "extends", "extensions", "parallel", "model")
NETWORK_FILE_KEYS = ("version", "params", "extends", "extensions", "network")
KINDS = ("graph", "_target_", "template")
NETWORK_KEYS = (*KINDS, "heads", "observations", "init")
POLICY_NETWORK_KEYS = (*NETWORK_KEYS, "shares")
POLICY_KEYS = ("networks", "action_mask", "wrap", "separate")
CRITIC_KEYS = ("networks", "kind", "stack", "ensemble", "normalize_value", "separate")
ONE_OF_SEVERAL = ("separate",)  # more keys of one network among several
PREVIOUS = "previous"  # the key, and the name of the observations that it adds
RECALLED = ("action", "reward")  # what it may list
TEMPLATE_STAGES = ("by_name", "kinds", "trunk", "memory")

_SECTIONS = {
    "policy": (*POLICY_NETWORK_KEYS, *POLICY_KEYS),
    "critic": (*NETWORK_KEYS, *CRITIC_KEYS),
    "template": TEMPLATE_STAGES,
}


def _sections_of(key: str) -> str:
    return " or ".join(repr(name) for name, keys in _SECTIONS.items() if key in keys)


TOP_PLACES: Mapping[str, str] = MappingProxyType(dict.fromkeys(TOP_KEYS, "at the top of the spec"))
PLACES: Mapping[str, str] = MappingProxyType(
    {key: f"in {_sections_of(key)}" for keys in _SECTIONS.values() for key in keys} | TOP_PLACES
)


def is_within(path: str, outer: Iterable[str]) -> bool:
    """Whether a path or flat key is one of ``outer``, or lies below one of them.

    >>> is_within("arm/angle", ["arm"]), is_within("armour", ["arm"])
    (True, False)
    """
    return any(path == each or path.startswith(f"{each}/") for each in outer)
