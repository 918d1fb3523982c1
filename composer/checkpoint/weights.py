"""Copies other weights into a module, by name or by position, and reports what was left out and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from torch import Tensor, nn

from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import LoadReport, fill, read_safetensors
from perception_blocks.words import did_you_mean, few_of

__all__ = ["load_weights", "renamed"]

By = Literal["name", "position"]


def load_weights(
    module: nn.Module, source: object, *, by: By = "name", strict: bool = False, prefix: str = ""
) -> LoadReport:
    """Copy the weights of ``source`` that fit into ``module``; ``print`` the report to see the others, and why.

    ``source`` is a safetensors file or a mapping from names to tensors, such as a ``state_dict``. ``prefix`` takes the
    names below it only: ``"policy."`` for the policy of a saved model. By position, the first tensor goes to the first
    name of ``module.state_dict()`` and so on, whatever they are called; a safetensors file does not keep an order.

    Raises CheckpointError if no weight fits, and with ``strict`` if any weight is left out.
    """
    if by not in ("name", "position"):
        raise ValueError(
            f"'by' is 'name' or 'position', got {by!r}{did_you_mean(str(by), ['name', 'position'])}"
        )
    tensors = _below(prefix, _tensors(source, by))
    stored: dict[str, str] = {}
    if by == "position":
        stored, tensors = _by_position(module, tensors)
    held = "the mapping" if isinstance(source, Mapping) else "the file"
    report = fill(module, tensors, strict=strict, stored=stored, source=held)
    if not report.loaded:
        lines = "\n  ".join(report.skipped)
        raise CheckpointError(
            f"nothing of the weights fits: they are of another network\n  {lines}"
        )
    return report


def _by_position(
    module: nn.Module, tensors: dict[str, Tensor]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The name in the weights for each name of the module, and the tensors by the module's names; others come last."""
    stored = dict(zip(module.state_dict(), tensors))
    renamed = {here: tensors[name] for here, name in stored.items()}
    for position, name in enumerate(tensors):
        if position >= len(stored):
            renamed[f"{name} (at position {position})"] = tensors[name]
    return stored, renamed


def _tensors(source: object, by: By) -> dict[str, Tensor]:
    """``source`` as tensors by name, in its own order."""
    if isinstance(source, Mapping):
        wrong = [repr(name) for name, value in source.items() if not isinstance(value, Tensor)]
        if wrong:
            raise CheckpointError(
                f"the weights hold what is no tensor at {', '.join(wrong)}; give the state_dict itself"
            )
        return dict(source)
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise CheckpointError(
            f"weights are a safetensors file or a mapping of tensors, got a {kind}"
        )
    if by == "position":
        raise CheckpointError(
            f"{os.fspath(source)!r} is a file, and safetensors files keep no order: load it by name, or give a "
            "mapping whose order is that of the module"
        )
    return read_safetensors(source)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, by their names without it."""
    chosen = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if tensors and not chosen:
        near = did_you_mean(prefix, {name.partition(".")[0] + "." for name in tensors})
        raise CheckpointError(f"no name of the weights begins with {prefix!r}{near}")
    return chosen


def renamed(
    tensors: Mapping[str, Tensor], rename: Mapping[str, str], file: str, needed: Collection[str]
) -> dict[str, Tensor]:
    """``tensors`` with other names of nodes: ``{"old": "new"}`` in every network, or by paths ``policy/old``.

    ``needed`` are the names of a model's tensors. Raises CheckpointError for a node that the file or the model has not,
    and where two tensors would have one name.
    """
    names = {name: name for name in tensors}
    for old, new in rename.items():
        before, after = old.split("/"), new.split("/")
        if (len(before) > 1) != (len(after) > 1):
            raise CheckpointError(
                f"rename maps a node to a node or a path to a path, got {old!r} to {new!r}; write "
                "{'policy/old': 'policy/new'}"
            )
        matched = {name: _with_node(name, before, after) for name in tensors}
        if all(name == other for name, other in matched.items()) and old != new:
            near = _near_nodes(before[-1], tensors)
            raise CheckpointError(f"{file!r} has no node {old!r} to rename{near}")
        if all(name == _with_node(name, after, [""]) for name in needed):
            near = _near_nodes(after[-1], needed)
            raise CheckpointError(f"the model has no weights of a node {new!r}{near}")
        names |= {name: other for name, other in matched.items() if other != name}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise CheckpointError(
            f"with these new names {file!r} has {twice[0]!r} twice; rename the other node as well"
        )
    return {names[name]: tensor for name, tensor in tensors.items()}


def _near_nodes(node: str, names: Iterable[str]) -> str:
    """The end of a message about a ``node`` that is none of those of the tensors ``names``."""
    nodes = {part for name in names for part in name.split(".")[1:-2] if not part.isdigit()}
    return did_you_mean(node, nodes) or f"; it has {few_of(sorted(nodes))}"


def _with_node(name: str, before: list[str], after: list[str]) -> str:
    """``name`` of a tensor with the node ``before`` called ``after``: from its beginning, or wherever it is."""
    parts = name.split(".")
    if len(before) > 1:
        return ".".join([*after, *parts[len(before) :]]) if parts[: len(before)] == before else name
    if before[0] not in parts[:-1]:
        return name
    index = parts.index(before[0])
    return ".".join([*parts[:index], *after, *parts[index + 1 :]])
