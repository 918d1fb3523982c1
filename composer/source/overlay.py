"""One document laid over another (`extends`), and single values over a document (``--set a.b=3``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from composer.errors import Path, Problem, format_path
from composer.source.values import Located, node_at
from perception_blocks.words import describe, did_you_mean, listing

__all__ = ["merge", "set_value"]

# Keys that decide what a mapping is; its other keys are the settings of that.
_SCALAR_KINDS = ("block", "same_as", "_target_")
_MAPPING_KINDS = ("graph", "template", "networks")
# Mappings whose keys are the user's names, which may be any of the above.
_NAMESPACES = ("graph", "heads", "networks", "params", "models", "calls")
# Each says where one of the `models` of an experiment comes from; a new one takes the place of the old one.
_MODELS = "models"
_ORIGINS = ("decoder", "checkpoint", "spec", "model_type", "like")


def merge(base: Located, over: Located, name: str = "", parent: str = "") -> Located:
    """``over`` laid over ``base``.

    Mappings are merged key by key, all else is replaced, null removes a key. A mapping that is another thing than its
    base (another `block` or `_target_`, a `graph` instead of a `template`) replaces it wholly: the settings of the old
    one would not fit the new.
    """
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    replaced = name not in _NAMESPACES and _is_another_thing(base, over)
    merged = {} if replaced else dict(base.value)
    if parent == _MODELS:
        merged = _without_origin(merged, over.value)
    for key, child in over.value.items():
        if child.value is None and key in base.value:
            merged.pop(key, None)
        elif key not in merged:
            merged[key] = child
        else:
            merged[key] = merge(merged[key], child, key, name).under_key_of(child)
    return over.with_value(merged)


def _without_origin(model: dict[str, Located], over: Mapping[str, Located]) -> dict[str, Located]:
    """A model of an experiment without its origin, if ``over`` has another one."""
    if not any(key in over and over[key].value is not None for key in _ORIGINS):
        return model
    return {key: value for key, value in model.items() if key not in _ORIGINS or key in over}


def _is_another_thing(base: Located, over: Located) -> bool:
    old = {key for key in (*_SCALAR_KINDS, *_MAPPING_KINDS) if key in base.value}
    new = {key for key in (*_SCALAR_KINDS, *_MAPPING_KINDS) if key in over.value}
    if old and new - old and not _is_nested_graph(over):
        return all(over.value[key].value is not None for key in new - old)
    return any(
        over.value[key].value not in (None, base.value[key].value)
        for key in _SCALAR_KINDS
        if key in old & new
    )


def _is_nested_graph(node: Located) -> bool:
    block = node.value.get("block")
    return block is not None and block.value == "graph"


def set_value(root: Located, path: Path, value: Located, problems: list[Problem]) -> Located:
    """``root`` with the value at ``path`` replaced; null removes a key.

    The last key may be new, those before it may not.
    """
    parent, exists = node_at(root, _indexed(root, path[:-1]))
    if not exists or not isinstance(parent.value, dict | list):
        problems.append(Problem(_no_such_parent(root, path), path, value.position))
        return root
    if isinstance(parent.value, list) and not _is_index(path[-1], parent.value):
        message = f"there is no entry {path[-1]!r} in {format_path(path[:-1])!r}{_entries(parent)}"
        problems.append(Problem(message, path, value.position))
        return root
    if path[0] == _MODELS and len(path) == 3 and isinstance(parent.value, dict):
        rest = _without_origin(parent.value, {str(path[-1]): value})
        root = _with_child(
            root, _MODELS, _with_child(root.value[_MODELS], path[1], parent.with_value(rest))
        )
    return _replace(root, path, value)


def _with_child(node: Located, key: str | int, child: Located) -> Located:
    return node.with_value({**node.value, str(key): child})


def _replace(node: Located, path: Path, value: Located) -> Located:
    if not path:
        return value
    part = path[0]
    if isinstance(node.value, list):
        parts = list(node.value)
        parts[int(part)] = _replace(parts[int(part)], path[1:], value)
        return node.with_value(parts)
    children = dict(node.value)
    removed = {key: by for key, by in (node.removed or {}).items() if key != path[0]}
    key = str(part)
    if len(path) > 1:
        children[key] = _replace(children[key], path[1:], value)
    elif value.value is None:
        children.pop(key, None)
        removed[key] = value.position
    else:
        children[key] = Located(value.value, value.position, value.position)
    changed = node.with_value(children)
    changed.removed = removed or None
    return changed


def _indexed(root: Located, path: Path) -> Path:
    """``path`` with the numbers that index a list as int."""
    parts: list[str | int] = []
    for part in path:
        parent, _ = node_at(root, tuple(parts))
        is_list = isinstance(parent.value, list)
        parts.append(int(part) if is_list and _is_index(part, parent.value) else part)
    return tuple(parts)


def _is_index(part: str | int, values: Sequence[Located]) -> bool:
    digits = str(part)
    return digits.isdecimal() and len(digits) < 10 and int(digits) < len(values)


def _no_such_parent(root: Located, path: Path) -> str:
    """Why nothing can be set at ``path``: its first missing part, or a value on the way that holds no others."""
    node = root
    for index, part in enumerate(path[:-1]):
        here = f"in {format_path(path[:index])!r}" if index else "in the spec"
        if isinstance(node.value, dict) and part in node.value:
            node = node.value[str(part)]
        elif isinstance(node.value, list) and _is_index(part, node.value):
            node = node.value[int(part)]
        elif isinstance(node.value, dict):
            known = f"; its keys are {listing(node.value)}" if node.value else ""
            near = did_you_mean(str(part), node.value)
            if not near and index == len(path) - 2:  # the next to last
                known += f"; set a new one whole: {format_path(path[:-1])}={{{path[-1]}: ...}}"
            return f"there is no {part!r} {here}" + (near or known)
        elif isinstance(node.value, list):
            return f"there is no entry {part!r} {here}{_entries(node)}"
        else:
            break
    else:
        index = len(path) - 1
    return f"{format_path(path[:index])!r} is {describe(node.value)}; nothing can be set inside it"


def _entries(node: Located) -> str:
    count = len(node.value)
    return f", which has {count} {'entry' if count == 1 else 'entries'}, counted from 0"
