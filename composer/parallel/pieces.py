"""The files of a checkpoint of shards, and its tensors, read piece by piece."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from composer.checkpoint.container import CheckpointError, read_piece, read_record

__all__ = ["FORMAT_VERSION", "INDEX", "OPTIMIZER", "Pieces", "aside_of", "file_of", "local_part"]
__all__ += ["take_back"]

FORMAT_VERSION = 1
INDEX = "checkpoint.json"
OPTIMIZER = "optimizer."


class Pieces:
    """The tensors of a checkpoint, read piece by piece. Raises CheckpointError for a folder that is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not folder.exists():
            take_back(Path(os.path.abspath(folder)))
        self.index = self._read_index()
        self._where: dict[str, list[tuple[Path, list[int], list[int]]]] = {}
        self._digests: dict[Path, dict[str, str]] = {}
        for rank in range(self.index["processes"]):
            path = folder / file_of(rank)
            record = read_record(path, FORMAT_VERSION)
            if record is None or not self._are_pieces(record.get("pieces")):
                raise self._damaged(f"{path.name!r} is not as it was saved")
            self._digests[path] = record["tensor_digests"]
            for name, (offset, size) in record["pieces"].items():
                self._where.setdefault(name, []).append((path, offset, size))

    def _read_index(self) -> dict[str, Any]:
        path = self._folder / INDEX
        try:
            index = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise CheckpointError(
                f"{str(self._folder)!r} is no checkpoint of shards: {INDEX!r} cannot be read: {error.strerror}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"{INDEX!r} cannot be read") from error
        kinds = {
            "processes": int, "record": dict, "why_no_record": str, "places": dict, "tensors": dict,
            "groups": list, "values": dict,
        }  # fmt: skip
        if not isinstance(index, dict) or not isinstance(index.get("format_version"), int):
            raise self._damaged(f"{INDEX!r} is not as it was saved")
        if index["format_version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"{str(self._folder)!r} has the format {index['format_version']}; "
                f"this version reads up to {FORMAT_VERSION}: upgrade perception-composer"
            )
        wrong = [key for key, kind in kinds.items() if not isinstance(index.get(key), kind)]
        if wrong or "extra" not in index or not _is_as_saved(index):
            raise self._damaged(f"{INDEX!r} is not as it was saved")
        return index

    def _are_pieces(self, pieces: object) -> bool:
        """Whether ``pieces`` say of tensors of the index where each piece begins, and its size."""
        tensors = self.index["tensors"]
        return isinstance(pieces, dict) and all(
            name in tensors
            and isinstance(place, list)
            and len(place) == 2
            and all(_is_shape(part) and len(part) == len(tensors[name][1]) for part in place)
            for name, place in pieces.items()
        )

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{str(self._folder)!r} is damaged: {what}; take a copy of the folder"
        )

    def fill(self, name: str, tensor: Tensor) -> None:
        """Read what this process has of ``tensor``."""
        local, offset = local_part(tensor)
        if local.numel():
            local.copy_(self._region(name, offset, list(local.shape)))

    def whole(self, name: str) -> Tensor:
        _, shape = self.index["tensors"][name]
        return self._region(name, [0] * len(shape), shape)

    def _region(self, name: str, offset: list[int], shape: list[int]) -> Tensor:
        """The part of a tensor that begins at ``offset``."""
        dtype, _ = self.index["tensors"][name]
        there = sum(math.prod(size) for _, _, size in self._where.get(name, ()))
        if there < math.prod(shape):  # before as much is allocated
            raise self._damaged(f"not all of {name!r} is there")
        region = torch.empty(shape, dtype=getattr(torch, dtype))
        filled = 0
        for path, begin, size in self._where.get(name, ()):
            ends = [
                (max(b, o), min(b + s, o + n)) for b, s, o, n in zip(begin, size, offset, shape)
            ]
            if any(first >= last for first, last in ends):
                continue
            piece = read_piece(path, name, self._digests[path])
            if list(piece.shape) != size or piece.dtype != region.dtype:
                raise self._damaged(f"a piece of {name!r} is not as it was saved")
            source = tuple(slice(f - b, e - b) for (f, e), b in zip(ends, begin))
            into = tuple(slice(f - o, e - o) for (f, e), o in zip(ends, offset))
            region[into] = piece[source]
            filled += piece[source].numel()
        if filled != region.numel():
            raise self._damaged(f"not all of {name!r} is there")
        return region


def _is_as_saved(index: Mapping[str, Any]) -> bool:
    """Whether what the parts of an index hold is of the form that `save` writes."""
    tensors = index["tensors"]
    return (
        all(_is_pair(of) and _is_dtype(of[0]) and _is_shape(of[1]) for of in tensors.values())
        and all(
            _is_pair(of) and _is_place(of[0], of[1], tensors) for of in index["places"].values()
        )
        and all(_is_group(group) for group in index["groups"])
    )


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2


def _is_dtype(name: object) -> bool:
    return isinstance(name, str) and isinstance(getattr(torch, name, None), torch.dtype)


def _is_shape(sizes: object) -> bool:
    return isinstance(sizes, list) and all(type(n) is int and 0 <= n < 2**63 for n in sizes)


def _is_place(name: object, row: object, tensors: Mapping[str, Any]) -> bool:
    """Of a tensor of a state_dict: the stored one, and the row in it or None."""
    if not isinstance(name, str) or name not in tensors:
        return False
    shape = tensors[name][1]
    return row is None or (type(row) is int and len(shape) > 0 and 0 <= row < shape[0])


def _is_group(group: object) -> bool:
    return (
        isinstance(group, dict)
        and isinstance(group.get("settings"), dict)
        and isinstance(group.get("names"), list)
        and all(isinstance(name, str) for name in group["names"])
    )


# --- where things lie ---


def file_of(rank: int) -> str:
    return f"shard-{rank:05}.safetensors"


def local_part(tensor: Tensor) -> tuple[Tensor, list[int]]:
    """What this process has of ``tensor``, and where it begins."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor, [0] * tensor.dim()
    mesh, placements = tensor.device_mesh, tensor.placements
    _, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    return tensor.to_local(), list(offset)


def aside_of(target: Path) -> Path:
    return target.parent / f".{target.name}.before"


def take_back(target: Path) -> None:
    """Put a checkpoint that was being replaced, as its process was killed, back in its place."""
    aside = aside_of(target)
    with contextlib.suppress(OSError):  # another process may do the same
        if target.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, target)
