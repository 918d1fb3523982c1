"""Checkpoints of sharded models: a folder with one safetensors file for each process, and JSON beside them.

Tensors have the names of ``named_parameters()`` and of persistent buffers, and ``optimizer.<name>.<key>`` what an
optimizer keeps of a parameter. Any number of processes reads what any other number wrote. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from composer.atomic import FOLDER_SUFFIX, PREFIX, WriteError, replace_with, temporary_folder
from composer.checkpoint.container import CheckpointError, write_file
from composer.checkpoint.file import fill, record_from
from composer.language.action_entry import action_model_of
from composer.parallel.launch import Mesh, start
from composer.parallel.layout import named_tensors
from composer.parallel.optimizer_state import groups_of, kept_by, states_to_fill, values_of
from composer.parallel.pieces import (
    FORMAT_VERSION,
    INDEX,
    OPTIMIZER,
    Pieces,
    aside_of,
    file_of,
    local_part,
    take_back,
)
from composer.parallel.plan import Plan
from composer.parallel.sharding import Sharding, refuse_together, write_whole
from composer.source.load import stored_source
from composer.trust import allow_list, import_allowed
from perception_blocks.port import format_shape
from perception_blocks.words import near_name

__all__ = ["consolidate", "load", "save"]


def save(
    folder: str | Path,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint of ``model`` and, where it is given, of its ``optimizer``; every process calls this.

    The folder appears whole or not at all; one that is there is replaced. The processes must see the same folder.
    ``extra`` is what `load` returns: numbers, texts, lists and dicts of these, such as the number of steps.

    Raises CheckpointError where it cannot be written.
    """
    mesh, target = start(), Path(os.path.abspath(folder))
    _require_weights(model)
    index = _index_of(mesh.size, model, optimizer, extra)
    temporary = target.parent / f"{PREFIX}{mesh.agreed(secrets.randbits(62)):x}{FOLDER_SUFFIX}"
    elsewhere = f"{str(target)!r} could not be written by another process"
    with contextlib.ExitStack() as stack:
        if mesh.is_first:
            with _told_together(mesh, elsewhere):
                _refuse_other_folder(target)
                stack.enter_context(temporary_folder(temporary))
        else:
            refuse_together(mesh, None, elsewhere)
        with _told_together(mesh, elsewhere):
            _write_pieces(temporary, mesh, model, optimizer)
            if mesh.is_first:
                text = json.dumps(index, allow_nan=False)
                replace_with(temporary / INDEX, lambda name: Path(name).write_text(text, "utf-8"))
        with _told_together(mesh, elsewhere):  # nobody goes on before the folder is in its place
            if mesh.is_first:
                _put_in_place(temporary, target)


def _require_weights(model: nn.Module) -> None:
    if any(tensor.is_meta for tensor in model.parameters()):
        raise ValueError("this model has no weights yet; call model.materialize() first")


@contextlib.contextmanager
def _told_together(mesh: Mesh, elsewhere: str) -> Iterator[None]:
    """An error in one process is one in all of them, which wait for one another; there it is called ``elsewhere``."""
    failed = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must not wait for this process
        failed = CheckpointError(str(error)) if isinstance(error, WriteError) else error
    refuse_together(mesh, failed, elsewhere)


def load(folder: str | Path, model: nn.Module, optimizer: Optimizer | None = None) -> Any:
    """Load the checkpoint in ``folder`` into ``model`` and ``optimizer``, whole or sharded; returns its ``extra``.

    Every process calls this. The optimizer gets what it kept of the parameters that had been stepped, and its settings.

    Raises CheckpointError for a folder that does not fit, with nothing changed, and for a damaged one.
    """
    mesh = start()
    _require_weights(model)
    with _told_together(mesh, f"{str(folder)!r} could not be read by another process"):
        pieces = Pieces(Path(folder))
        tensors = named_tensors(model)
        _refuse_other_tensors(pieces, tensors)
        kept = {} if optimizer is None else states_to_fill(pieces, model, optimizer)
        for name, tensor in {**tensors, **kept}.items():
            pieces.fill(name, tensor)
    return pieces.index["extra"]


def consolidate(folder: str | Path, path: str | Path, allow: Iterable[str] = ()) -> None:
    """Write the model in ``folder`` as the one file that ``model.save`` writes, which `composer.load` reads.

    Of an action model, a ``path`` that does not end in ``.safetensors`` becomes the folder that its ``save_pretrained``
    writes and ``from_pretrained`` reads. That needs the classes of the model: ``allow`` names the modules that register
    them, where this process has not imported them. Otherwise nothing that the spec names is imported.

    The whole model is in memory. The file or folder appears whole or not at all, and a folder that is there is kept. Of
    several processes the first writes.

    Raises CheckpointError for a damaged folder and where the result cannot be written, and SpecError for a module that
    is not allowed.
    """
    mesh = start()
    with _told_together(mesh, f"{str(path)!r} could not be written by the first process"):
        if mesh.is_first:
            _consolidate(Path(folder), Path(path), allow)


def _consolidate(folder: Path, path: Path, allow: Iterable[str]) -> None:
    pieces = Pieces(folder)
    index = pieces.index
    if not index["record"]:
        raise CheckpointError(
            f"{str(folder)!r} does not say how its model is composed: {index['why_no_record']}"
        )
    if index["record"].get("action_model") and path.suffix != ".safetensors":
        _write_pretrained(pieces, folder, path, allow)
        return
    whole = {name: pieces.whole(name) for name, _ in index["places"].values()}
    write_whole(
        path, whole, {key: (n, row) for key, (n, row) in index["places"].items()}, index["record"]
    )


def _write_pretrained(pieces: Pieces, folder: Path, path: Path, allow: Iterable[str]) -> None:
    """Compose the action model without weights, give it those of the checkpoint, and let it write its folder."""
    record = record_from(folder / INDEX, {**pieces.index["record"], "tied": {}})
    allow = allow_list(allow)
    import_allowed(allow)
    source = stored_source(record.spec, folder / INDEX)
    names = source.data.get("extensions")
    names = [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
    here = [name for name in names if name in sys.modules]  # to import those again runs nothing
    model = action_model_of(source, record, [*allow, *here], device="meta")
    from composer.language.action_files import require_free  # which imports transformers

    require_free(path)  # before the weights are read
    parameters = {name for name, _ in model.named_parameters()}
    whole: dict[str, Tensor] = {}
    for name, _ in pieces.index["places"].values():
        tensor = pieces.whole(name)
        whole[name] = nn.Parameter(tensor, False) if name in parameters else tensor
    state = {key: whole[name] for key, (name, _) in pieces.index["places"].items()}  # tied: one
    advice = "use the classes, and the version of transformers, that it was saved with"
    fill(model, state, strict=True, source="the checkpoint", advice=advice)
    model.load_state_dict(state, assign=True)
    model.save_pretrained(path)


# --- what stands beside the tensors -----------------------------------------------------------------------------------


def _index_of(
    processes: int, model: nn.Module, optimizer: Optimizer | None, extra: Any
) -> dict[str, Any]:
    """What a checkpoint says beside its tensors; all of it is JSON. Raises ValueError for an ``extra`` that is not."""
    try:
        extra = json.loads(json.dumps(extra, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"'extra' may hold numbers, texts, true, false, null, lists and dicts: {error}"
        ) from error
    sharding = getattr(model, "_sharding", None) or Sharding(model, Mesh(), Plan())
    record, why = {}, "it is no model of a spec"
    try:
        record = sharding.record
    except CheckpointError as error:
        why = str(error)
    return {
        "format_version": FORMAT_VERSION,
        "processes": processes,
        "record": record,
        "why_no_record": why,
        "places": sharding.places,
        "tensors": {n: (_dtype_of(t), list(t.shape)) for n, t in _tensors_of(model, optimizer)},
        "groups": [] if optimizer is None else groups_of(model, optimizer),
        "values": {} if optimizer is None else dict(values_of(model, optimizer)),
        "extra": extra,
    }


def _tensors_of(model: nn.Module, optimizer: Optimizer | None) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a checkpoint by name, as they lie on this process."""
    yield from named_tensors(model).items()
    if optimizer is not None:
        for name, key, value in kept_by(model, optimizer):
            if isinstance(value, Tensor):
                yield f"{OPTIMIZER}{name}.{key}", value


def _dtype_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# --- writing ----------------------------------------------------------------------------------------------------------


def _refuse_other_folder(target: Path) -> None:
    """Raise CheckpointError for a folder that holds something else; whatever was being replaced is taken back."""
    take_back(target)
    if target.exists() and not (target / INDEX).is_file():
        raise CheckpointError(
            f"{str(target)!r} is there and is no checkpoint of shards; choose another folder"
        )


def _write_pieces(folder: Path, mesh: Mesh, model: nn.Module, optimizer: Optimizer | None) -> None:
    """The parts of all tensors that this process is to write."""
    pieces: dict[str, Tensor] = {}
    places: dict[str, tuple[list[int], list[int]]] = {}  # where each piece begins, and its size
    for name, tensor in _tensors_of(model, optimizer):
        local, offset = local_part(tensor)
        if _writes(mesh, tensor) and (local.numel() or not tensor.numel()):
            pieces[name], places[name] = local, (offset, list(local.shape))
    write_file(folder / file_of(mesh.rank), pieces, {"pieces": places})


def _writes(mesh: Mesh, tensor: Tensor) -> bool:
    """Whether this is the process that writes its part of ``tensor``: the first of those that have the same one."""
    if not isinstance(tensor, DTensor):
        return mesh.is_first
    coordinate = tensor.device_mesh.get_coordinate()
    copies = [i for i, placement in enumerate(tensor.placements) if placement.is_replicate()]
    if coordinate is None or any(coordinate[axis] for axis in copies):
        return False
    names = tensor.device_mesh.mesh_dim_names or ()
    root = tensor.device_mesh._get_root_mesh()
    others = [name for name in root.mesh_dim_names or () if name not in names]
    return not any(root.get_local_rank(name) for name in others)


def _put_in_place(temporary: Path, target: Path) -> None:
    """One rename; what was there before is whole until then, and is taken back if this process is killed meanwhile."""
    aside = aside_of(target)
    try:
        if target.exists():
            os.rename(target, aside)
        os.rename(temporary, target)
    except OSError as error:
        take_back(target)
        raise CheckpointError(f"{str(target)!r} cannot be written: {error.strerror}") from error
    shutil.rmtree(aside, ignore_errors=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def _refuse_other_tensors(pieces: Pieces, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError with every difference between the model of the checkpoint and that with ``tensors``."""
    saved = {n: s for n, (_, s) in pieces.index["tensors"].items() if not n.startswith(OPTIMIZER)}
    lines = []
    for name, tensor in tensors.items():
        needed = format_shape(tensor.shape)
        if name not in saved:
            near = near_name(name, [other for other in saved if other not in tensors])
            lines.append(f"{name} {needed} is not in it" + (f"; it has {near!r}" if near else ""))
        elif tuple(saved[name]) != tuple(tensor.shape):
            lines.append(f"{name} is {format_shape(saved[name])} in it, the model needs {needed}")
    for name, shape in saved.items():
        if name not in tensors:
            lines.append(f"{name} {format_shape(shape)} is in it, the model has no such tensor")
    if lines:
        shown = "\n  ".join(lines)
        raise CheckpointError(f"the checkpoint does not fit this model\n  {shown}")
