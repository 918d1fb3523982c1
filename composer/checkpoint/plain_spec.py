"""The saved form of a spec: classes by their dotted paths, without files that blocks have read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from composer.checkpoint.container import CheckpointError
from composer.errors import Path as SpecPath
from composer.errors import format_path
from composer.network.groups import SeparateNetworks
from composer.network.module import NetworkModule
from composer.network.structured import StructuredModule
from perception_blocks.base_block import PerceptionBlock
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.registry import BLOCKS

__all__ = ["CheckpointError", "every_part", "plain_spec", "saved_spec"]


def plain_spec(data: object, path: SpecPath = ()) -> Any:
    """A spec's data with classes replaced by their dotted paths, so that it can be written.

    Raises CheckpointError, with the path in the spec, for a callable or module without an importable name.
    """
    if isinstance(data, Mapping):
        return {key: plain_spec(value, (*path, key)) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain_spec(value, (*path, index)) for index, value in enumerate(data)]
    if data is None or isinstance(data, (str, bool, int, float)):
        return data
    if isinstance(data, type):
        name = BLOCKS.name_of(data)
        if name is not None:
            return name
        if "<locals>" not in data.__qualname__ and data.__module__ != "__main__":
            return f"{data.__module__}.{data.__qualname__}"
        why = "is defined in a script or function; move it to a module"
    elif isinstance(data, nn.Module):
        why = "is a ready module; name its class, and its settings beside it"
    else:
        why = "has no registered name; register it and use the name"
    shown = getattr(data, "__qualname__", None) or type(data).__qualname__
    raise CheckpointError(f"cannot be saved: {shown!r} at {format_path(path)} {why}")


def saved_spec(data: object, module: nn.Module) -> Any:
    """`plain_spec` of ``data``, for ``module``, whose weights are saved beside it.

    It does not name what blocks read once, when they were built. Raises CheckpointError as `plain_spec` does.
    """
    blocks = [part for part in every_part(module) if isinstance(part, PerceptionBlock)]
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key != "weights"}
    return _without_files(plain_spec(data), [block for block in blocks if block.read_once])


def _without_files(data: object, blocks: Sequence[PerceptionBlock]) -> object:
    if isinstance(data, list):
        return [_without_files(value, blocks) for value in data]
    if not isinstance(data, dict):
        return data
    instead = next((instead for block in blocks for instead in _said_instead(block, data)), None)
    if instead is not None:
        data = {key: value for key, value in data.items() if key != "checkpoint"} | dict(instead)
    return {key: _without_files(value, blocks) for key, value in data.items()}


def _said_instead(
    block: PerceptionBlock, node: Mapping[str, object]
) -> Iterator[Mapping[str, object]]:
    """What a saved ``node`` says if it is the block's: another may read the same folder, or with other settings."""
    assert block.read_once is not None
    given, instead = block.read_once
    names = (BLOCKS.name_of(type(block)), type(block).__name__)  # the latter ends a dotted path
    if str(node.get("block")).rpartition(".")[2] in names and all(
        (node.get(key) or None) == (plain_spec(value) or None) for key, value in given.items()
    ):
        yield instead


def every_part(module: nn.Module) -> Iterator[nn.Module]:
    """All modules in a model, also the ones that are no children of another module."""
    parts = list(module.modules())
    # The only group of actors and the module of a network are no children: what stands for them has their children.
    parts += [g.module for part in parts if isinstance(part, StructuredModule) for g in part.groups]
    parts += [part.network.module for part in parts if isinstance(part, NetworkModule)]
    for part in parts:
        yield part
        if isinstance(part, SeparateNetworks) and part.ensemble is not None:
            yield from every_part(part.ensemble)
        elif isinstance(part, EnsembleBlock):  # its copies are no children where they are stacked
            yield from every_part(part.network)
