"""The first weights of parts of a model, from files that a spec names under `weights`.

A file is safetensors, one of our checkpoints, or a ``state_dict`` of torch.save, which is read with ``weights_only``:
no code of a file runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO, Literal, TypeGuard

import torch
from torch import Tensor, nn

from composer.checkpoint.container import CheckpointError
from composer.checkpoint.file import read_safetensors
from composer.checkpoint.torch_file import (
    ZIP,
    MoreThanTensorsError,
    OtherTensorsError,
    read_torch_file,
)
from composer.network.paths import ModelPart
from composer.source.files import not_a_file
from perception_blocks.base_block import PerceptionBlock
from perception_blocks.port import format_shape
from perception_blocks.reading import require_regular
from perception_blocks.words import few_of, listing, near_name

__all__ = ["INSIDE", "PICKLE", "FirstWeights", "has_nan", "is_plain", "match_weights"]
__all__ += ["read_mapping", "read_weights", "start_of"]

INSIDE = "#"  # after a file, before the path of a part in it: trained.safetensors#policy/screen
PICKLE = b"\x80"  # how an old file of torch.save begins
NOT_SAFE = (
    "it holds more than tensors, and reading that could run code; save its weights alone: "
    "torch.save(module.state_dict(), path)"
)
NOT_DENSE = "a tensor in it is sparse, quantized or without numbers; save dense ones of the CPU"
MOST_LINES = 12  # of differences in one message


@dataclass(frozen=True)
class FirstWeights:
    """What a part at ``path`` gets from ``file``: ``names`` maps its tensors to those of the file.

    ``by`` position: the names of the file are others, and its layers were taken in order. ``left`` are the names in
    the file that the part has no tensor for.
    """

    path: str
    file: str
    by: Literal["name", "position"]
    names: Mapping[str, str]
    left: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)  # of the file, by name

    def __str__(self) -> str:
        by = " by position" if self.by == "position" else ""
        lines = [f"{self.path}: {_counted(self.names)} of {self.file!r}{by}"]
        if self.by == "position":
            lines += [f"{ours} is {theirs} there" for ours, theirs in self.names.items()]
        if self.left:
            lines.append(f"not used: {few_of(self.left)}")
        return "\n  ".join(lines)

    def fill(self, model: nn.Module) -> None:
        """Copy the tensors into ``model``, whose names in its state_dict they have."""
        state = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for ours, theirs in self.names.items():
                state[ours].copy_(self.tensors[theirs])


def _counted(names: Mapping[str, str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


# --- files ---


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a file by name, in the file's order. Raises CheckpointError for what is not weights alone."""
    name = os.fspath(path)
    if start_of(name).startswith((ZIP, PICKLE)):
        return _state_dict(name)
    return read_safetensors(name)


def start_of(name: str) -> bytes:
    """The first bytes of the file called ``name``, by which its kind is known. Raises CheckpointError for no file."""
    if os.path.isdir(name):
        raise CheckpointError(not_a_file(name, name, "a file of weights"))
    if not os.path.exists(name):
        raise CheckpointError(f"there is no file {name!r}")
    try:
        require_regular(name)  # a pipe would block
        with open(name, "rb") as file:
            return file.read(len(ZIP))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name!r} cannot be read: {error}") from error


def _state_dict(name: str) -> dict[str, Tensor]:
    value = read_mapping(name, name)
    wrong = [key for key, tensor in value.items() if not is_plain(tensor)]
    if wrong:
        inner = [k for k in wrong if isinstance(value[k], Mapping) and value[k]]
        advice = (
            f"save what {str(inner[0])!r} holds in a file of its own"
            if inner
            else "save the state_dict alone"
        )
        raise CheckpointError(f"{name!r} holds what is no tensor at {few_of(wrong)}; {advice}")
    return {str(key): tensor for key, tensor in value.items() if is_plain(tensor)}


def read_mapping(
    source: str | BinaryIO, name: str, *, numpy: bool = False
) -> Mapping[object, object]:
    """The mapping in ``source``, a file of torch.save that messages call ``name``.

    With ``numpy`` it may hold values of numpy, which are not read. Raises CheckpointError for a file that is damaged,
    that could run code, or that holds something else than a mapping.
    """
    try:
        value = read_torch_file(source, numpy=numpy)
    except MoreThanTensorsError as error:
        why = NOT_DENSE if isinstance(error, OtherTensorsError) else NOT_SAFE
        raise CheckpointError(f"{name!r} cannot be read: {why}") from error
    except Exception as error:  # torch raises many kinds for foreign pickles
        is_refused = "weights_only" in str(error) or "Unsupported" in str(error)
        why = NOT_SAFE if is_refused else "it is damaged, or no state_dict"
        raise CheckpointError(f"{name!r} cannot be read: {why}") from error
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise CheckpointError(
            f"{name!r} holds a {kind}, and no state_dict, which maps names to tensors"
        )
    return value


def is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor with numbers of its own, no fewer than its shape says."""
    if not isinstance(value, Tensor) or value.is_quantized:
        return False
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


# --- which tensor goes where ---


def match_weights(
    part: ModelPart,
    state: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    file: str,
    inside: str,
) -> FirstWeights:
    """What ``part`` of a model with this ``state`` gets of the ``tensors`` in ``file``, of the part ``inside`` it.

    By name where all names are there; else layer by layer in their order, if all shapes fit. Raises CheckpointError
    with each tensor that does not fit.
    """
    if not part.tensors:
        raise CheckpointError(f"{part.path!r} has no weights that a file could give")
    whole = {name: name for names in part.tensors.values() for name in names}
    if not inside and all(_fits(state[name], tensors.get(name)) for name in whole):
        return _of_numbers(FirstWeights(part.path, file, "name", whole, (), tensors))
    below = _below(tensors, inside, part.path, file)  # name below the part -> name in the file
    others = _names_of_others(part, below)
    named = {ours: below.get(others.get(ours, ours)) for ours in part.tensors}
    needed = {ours: state[names[0]] for ours, names in part.tensors.items()}
    differences = [
        ours
        for ours, tensor in needed.items()
        if not _fits(tensor, None if (theirs := named[ours]) is None else tensors[theirs])
    ]
    by: Literal["name", "position"] = "name"
    if differences:
        placed = _in_order(needed, {n: tensors[theirs] for n, theirs in below.items()})
        if placed is None:
            lines = [
                _difference(ours, needed[ours], named[ours], tensors, below)
                for ours in differences[:MOST_LINES]
            ]
            more = len(differences) - MOST_LINES
            lines += [f"and {more} more"] if more > 0 else []
            raise CheckpointError(
                f"the weights in {file!r} do not fit {part.path!r}; give the node the settings of the network that "
                "they are from, or name a part of the file after '#'\n  " + "\n  ".join(lines)
            )
        by, named = "position", {ours: below[theirs] for ours, theirs in placed.items()}
    names = {full: str(named[ours]) for ours, fulls in part.tensors.items() for full in fulls}
    used = set(names.values())
    left = tuple(name for name in below.values() if name not in used)
    return _of_numbers(FirstWeights(part.path, file, by, names, left, tensors))


def _of_numbers(weights: FirstWeights) -> FirstWeights:
    """``weights``, none of which is NaN. Raises CheckpointError."""
    wrong = [
        name for name in dict.fromkeys(weights.names.values()) if has_nan(weights.tensors[name])
    ]
    if wrong:
        raise CheckpointError(
            f"the weights in {weights.file!r} are NaN at {few_of(wrong)}: their training has failed; take those of an "
            "earlier step"
        )
    return weights


def has_nan(tensor: Tensor) -> bool:
    return bool(tensor.isnan().any())


def _names_of_others(part: ModelPart, names: Iterable[str]) -> Mapping[str, str]:
    """By the tensors of ``part``: those of the ``names`` in a file that its block knows by other names."""
    block = part.modules[0]
    return block.names_in_file(names) if isinstance(block, PerceptionBlock) else {}


def _below(tensors: Mapping[str, Tensor], inside: str, path: str, file: str) -> dict[str, str]:
    """The names in a file below the part ``inside`` it, or else below ``path`` where it has that part itself."""
    prefix = (inside or path).replace("/", ".") + "."
    below = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    if inside and not below:
        firsts = list(dict.fromkeys(name.rpartition(".")[0].replace(".", "/") for name in tensors))
        near = near_name(inside, firsts)
        hint = f"did you mean {near!r}?" if near else f"it has {few_of(firsts)}"
        raise CheckpointError(f"{file!r} has no part {inside!r}; {hint}")
    return below or {name: name for name in tensors}


def _fits(ours: Tensor, theirs: Tensor | None) -> bool:
    return (
        theirs is not None
        and theirs.shape == ours.shape
        and theirs.is_floating_point() == ours.is_floating_point()
    )


def _difference(
    ours: str,
    tensor: Tensor,
    theirs: str | None,
    tensors: Mapping[str, Tensor],
    below: Mapping[str, str],
) -> str:
    """Why ``theirs``, a name in the file or None, cannot be our ``tensor``."""
    needed = format_shape(tensor.shape)
    if theirs is None:
        same = (name for name in below if _fits(tensor, tensors[below[name]]))
        few = [*islice(same, 3)]
        hint = f"; of this shape it has {listing(few)}" if few else ""
        return f"{ours} {needed} is not in the file{hint}"
    got = tensors[theirs]
    if got.shape != tensor.shape:
        return f"{ours} is {format_shape(got.shape)} in the file, the model needs {needed}"
    return f"{ours} is {got.dtype} in the file, the model needs {tensor.dtype}"


def _in_order(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, str] | None:
    """For each of our tensors the name of theirs, layer by layer in order; None where kinds or shapes differ.

    Layers are ordered by the numbers in their names: safetensors files keep no order.
    """
    mine, others = _layers(ours), _layers(theirs)
    if len(mine) != len(others):
        return None
    placed = {}
    for (layer, kinds), (other, other_kinds) in zip(mine.items(), others.items(), strict=True):
        if kinds.keys() != other_kinds.keys():
            return None
        if not all(_fits(tensor, other_kinds[kind]) for kind, tensor in kinds.items()):
            return None
        placed |= {_joined(layer, kind): _joined(other, kind) for kind in kinds}
    return placed


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        layers.setdefault(layer, {})[kind] = tensor
    return dict(sorted(layers.items(), key=lambda layer: _natural(layer[0])))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 9 before 10; int() refuses a number of very many digits."""
    parts = [
        part.lstrip("0") if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))
    ]
    return [(len(part) if i % 2 else 0, part) for i, part in enumerate(parts)]


def _joined(layer: str, kind: str) -> str:
    return f"{layer}.{kind}" if layer else kind
