"""One safe file for a model: its weights, and in the header the spec, the spaces and what else rebuilds it.

The format is safetensors: nothing in it is ever executed.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from composer.checkpoint import container as checkpoint_file
from composer.checkpoint.container import CheckpointError, write_file
from composer.checkpoint.plain_spec import every_part
from composer.limits import GivenLimits
from composer.source.files import as_argument
from composer.spaces.json_form import Json, spaces_from_json
from composer.spaces.lookup import is_by_actor
from composer.spec.keys import PARTS
from composer.spec.model_spec import CRITICS
from perception_blocks.blocks.adapted import SCALES
from perception_blocks.blocks.lora import adapter_scales
from perception_blocks.port import format_shape
from perception_blocks.registry import BLOCKS
from perception_blocks.words import as_module_name, near_name

__all__ = ["LoadReport", "Record", "fill", "fill_whole", "foreign_modules", "is_dtype"]
__all__ += ["read_record", "read_tensors", "record_from", "record_of", "require_blocks"]
__all__ += ["require_whole", "restore_gradients", "write_checkpoint"]

VERSION = 1
OURS = ("torch.", "perception_blocks.", "composer.")
OF_TEXTS = ("tied", "blocks", "critics")  # fields of a Record that map texts to texts


@dataclass(frozen=True)
class Record:
    """The metadata of a checkpoint. ``spec`` is the resolved spec as YAML text."""

    spec: str
    observation_space: Json
    action_space: Json
    seed: int
    dtype: str
    modules: list[str]  # that provided blocks and classes, beside ours
    versions: dict[str, str]
    tied: dict[str, str]  # name -> the name under which the same tensor is stored
    blocks: dict[str, str]  # names that other modules than ours have registered -> their module
    critics: dict[str, str] = field(default_factory=dict)  # the same of kinds of critics
    action_model: Json = field(default_factory=dict)  # of one: the files of its processor
    gradients: Json = field(default_factory=dict)  # "frozen": names of parameters without
    adapter_scales: Json = field(default_factory=dict)  # by what LoRA's products are multiplied

    def spaces(self, limits: GivenLimits = None) -> tuple[Any, Any]:
        """Observation and action space, or both by actor. Raises CheckpointError where they cannot be read."""
        both = (self.observation_space, self.action_space)
        try:
            spaces = [spaces_from_json(space, limits) for space in both]
            if is_by_actor(spaces[0]) != is_by_actor(spaces[1]):
                raise ValueError("only one of them is by actor")
            return spaces[0], spaces[1]
        except ValueError as error:
            raise CheckpointError(f"the checkpoint's spaces cannot be read: {error}") from error


@dataclass
class LoadReport:
    """The names of the weights that were loaded, and a line with the reason for each that was skipped."""

    loaded: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{_counted(self.loaded, 'tensor')} loaded, {_counted(self.skipped, 'difference')}"
        return "\n  ".join([head, *self.skipped])


def _counted(things: list[str], word: str) -> str:
    return f"{len(things)} {word}" if len(things) == 1 else f"{len(things)} {word}s"


def write_checkpoint(
    path: str | os.PathLike[str],
    module: nn.Module,
    only: Collection[str] | None = None,
    **about: Any,
) -> None:
    """Write the state of ``module`` and what rebuilds it: ``about`` are the keywords of `record_of`.

    ``only`` are the names of the tensors that are written (None: all). The file appears whole or not at all.
    """
    state = module.state_dict(keep_vars=True)
    tensors, tied = _untied({n: t for n, t in state.items() if only is None or n in only})
    if any(tensor.is_meta for tensor in tensors.values()):
        raise CheckpointError(
            "cannot be saved: the model has no weights yet; call materialize first"
        )
    write_file(path, tensors, {**record_of(module, **about), "tied": tied})


def record_of(
    module: nn.Module,
    *,
    spec: str,
    observation_space: Json,
    action_space: Json,
    seed: int,
    dtype: torch.dtype,
    critics: Sequence[str] = (),
    action_model: Json | None = None,
    gradients: Json | None = None,
) -> dict[str, Any]:
    """What a checkpoint says beside its tensors, but for which of these are tied."""
    return {
        "format_version": VERSION,
        "spec": spec,
        "observation_space": observation_space,
        "action_space": action_space,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "modules": foreign_modules(module),
        "versions": _versions(),
        "blocks": _foreign_blocks(module),
        "critics": {
            n: home for n in critics if not (home := CRITICS.module_of(n)).startswith(OURS)
        },
        **({} if action_model is None else {"action_model": action_model}),
        **({} if gradients is None else {"gradients": gradients}),
        **({SCALES: scales} if (scales := adapter_scales(module)) else {}),
    }


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read the metadata of a checkpoint. Raises CheckpointError for a file that is damaged or no checkpoint."""
    values = checkpoint_file.read_record(path, VERSION)
    if values is None:
        raise CheckpointError(
            f"{os.fspath(path)!r} is a safetensors file, but not one that this library saved"
        )
    return record_from(path, values)


def record_from(path: str | os.PathLike[str], values: Mapping[str, Any]) -> Record:
    """The ``values`` in the file at ``path`` as a Record. Raises CheckpointError where they are of another form."""
    _require_types(path, values, {"format_version": int})
    optional = ("critics", "action_model", "gradients", SCALES)  # which other files have not
    values = {**{key: {} for key in optional}, **values}
    kinds = {name: get_origin(hint) or hint for name, hint in get_type_hints(Record).items()}
    _require_types(path, values, kinds)
    dtype = getattr(torch, values["dtype"], None)
    if not is_dtype(dtype):
        raise CheckpointError(f"{os.fspath(path)!r} is damaged: its dtype is {values['dtype']!r}")
    return Record(**{name: values[name] for name in kinds})


def is_dtype(value: object) -> bool:
    """Whether a model can have this dtype: PyTorch stores floats of 8 bits, but cannot calculate with them."""
    return isinstance(value, torch.dtype) and value.is_floating_point and value.itemsize > 1


def _require_types(
    path: str | os.PathLike[str], values: Mapping[str, object], kinds: Mapping[str, type]
) -> None:
    """Raise CheckpointError unless the header has ``values`` of these ``kinds``."""
    missing = [name for name in kinds if name not in values]
    if missing:
        raise CheckpointError(
            f"{os.fspath(path)!r} lacks {', '.join(map(repr, missing))} in its header"
        )
    for name, kind in kinds.items():
        value = values[name]
        texts = value.values() if isinstance(value, dict) and name in OF_TEXTS else ()
        if type(value) is not kind or not all(isinstance(text, str) for text in texts):
            shown = repr(value)[:80]
            raise CheckpointError(
                f"{os.fspath(path)!r} is damaged: {name!r} in its header is {shown}"
            )


def restore_gradients(module: nn.Module, record: Record) -> None:
    """Let the parameters of ``module`` be trained, or not, as when it was saved; others than those stay as they are."""
    if "frozen" not in record.gradients:
        return
    frozen = record.gradients["frozen"]
    if not isinstance(frozen, list):
        raise CheckpointError(
            f"the checkpoint is damaged: 'frozen' in its header is {frozen!r:.80}"
        )
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name not in frozen)


def require_blocks(record: Record) -> None:
    """Raise CheckpointError unless the blocks and kinds of critics of other modules are registered here."""
    for registry, provided in ((BLOCKS, record.blocks), (CRITICS, record.critics)):
        missing = {name: home for name, home in provided.items() if name not in registry}
        if not missing:
            continue
        names = ", ".join(f"{name!r} of the module {home!r}" for name, home in missing.items())
        homes = sorted(set(missing.values()))
        options = " ".join(f"--allow {as_argument(home)}" for home in homes)
        raise CheckpointError(
            f"the checkpoint was saved with {registry.kind}s that are not known here: {names}; install the "
            f"package that registers them, or import the module: allow={homes} or {options}"
        )


def require_whole(path: str | os.PathLike[str], record: Record) -> None:
    """Raise CheckpointError for a file with adapters only."""
    if record.action_model.get("adapters_only"):
        raise CheckpointError(
            f"{os.fspath(path)!r} has adapters only; compose the model from its spec and call "
            "model.load_weights(path), or name the file as 'path' of 'lora' there"
        )


def read_tensors(path: str | os.PathLike[str], record: Record) -> dict[str, Tensor]:
    """All tensors by state_dict name, tied ones included."""
    tensors = checkpoint_file.read_tensors(path)
    return tensors | {
        name: tensors[stored] for name, stored in record.tied.items() if stored in tensors
    }


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of any safetensors file by name; of a checkpoint, tied ones included."""
    try:
        record = read_record(path)
    except CheckpointError:  # of another library; a file of another kind is refused below
        return checkpoint_file.read_tensors(path)
    return read_tensors(path, record)


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    strict: bool,
    stored: Mapping[str, str] | None = None,
    source: str = "the file",
    advice: str = "strict=False loads what fits",
    nodes: Mapping[str, str] | None = None,
) -> LoadReport:
    """Copy ``tensors`` into ``module`` by name; ``stored`` has the names in the source that differ.

    Messages call the file or mapping of the tensors ``source``, and ``advice`` is the way out that they name. Raises
    CheckpointError with every difference, by name; without ``strict`` the tensors that fit are loaded and the others
    reported: of a node, or layer, all of its tensors or none. ``nodes`` maps names to their nodes. Nothing is copied
    into a module on "meta".
    """
    state = module.state_dict(keep_vars=True)
    tensors = _as_now(tensors, state)
    report = LoadReport()
    for name, tensor in state.items():
        other = (stored or {}).get(name, name)
        where = source if other == name else f"{source}, as {other!r}"
        if name not in tensors:
            near = near_name(name, _candidates(name, tensors, state))
            hint = f"; {source} has {near!r}" if near else ""
            report.skipped.append(f"{name} {format_shape(tensor.shape)} is not in {where}{hint}")
        elif tensors[name].shape != tensor.shape:
            got, needed = format_shape(tensors[name].shape), format_shape(tensor.shape)
            report.skipped.append(f"{name} is {got} in {where}, the model needs {needed}")
        elif tensors[name].is_floating_point() != tensor.is_floating_point():
            got, needed = tensors[name].dtype, tensor.dtype
            report.skipped.append(f"{name} is {got} in {where}, the model needs {needed}")
        else:
            report.loaded.append(name)
    report.skipped += [
        f"{name} {format_shape(tensor.shape)} is in {source}, the model has no such tensor"
        for name, tensor in tensors.items()
        if name not in state
    ]
    if not strict:
        _leave_out_halves(report, state, nodes or {})
    elif report.skipped:
        lines = "\n  ".join(report.skipped)
        raise CheckpointError(f"the weights do not fit this model; {advice}\n  {lines}")
    with torch.no_grad():
        for name in report.loaded:
            state[name].copy_(tensors[name])
    return report


def _candidates(name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """The tensors without a place that could be the one called ``name``: of its shape and network."""
    shape, first = state[name].shape, name.partition(".")[0]
    network = f"{first}." if first in PARTS else ""
    return [
        other
        for other, tensor in tensors.items()
        if other not in state and tensor.shape == shape and other.startswith(network)
    ]


def _leave_out_halves(
    report: LoadReport, state: Mapping[str, Tensor], nodes: Mapping[str, str]
) -> None:
    """Load nothing of a node of which something does not fit: a bias is of no use beside another weight."""
    owner = {name: nodes.get(name, name.rpartition(".")[0]) for name in state}
    loaded = set(report.loaded)
    broken = {owner[name] for name in state if name not in loaded}
    halves = [name for name in report.loaded if owner[name] in broken]
    report.loaded = [name for name in report.loaded if owner[name] not in broken]
    report.skipped += [
        f"{name} {format_shape(state[name].shape)} fits, but not all of {owner[name]!r} does"
        for name in halves
    ]


def fill_whole(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """`fill` from the checkpoint at ``path``, all or nothing, with advice for the command line."""
    record = read_record(path)
    require_whole(path, record)
    tensors = read_tensors(path, record)
    fill(module, tensors, strict=True, advice="leave out what changes it, such as --set or --env")


def _as_now(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` by today's names of modules: earlier names had quotes unchanged."""
    now = {name: name if name in state else as_module_name(name) for name in tensors}
    return {now[name] if now[name] in state else name: tensors[name] for name in tensors}


def _untied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and the other names of tied tensors."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        stored = first.setdefault(id(tensor), name)
        if stored == name:
            tensors[name] = tensor
        else:
            tied[name] = stored
    return tensors, tied


def foreign_modules(module: nn.Module) -> list[str]:
    """The Python modules of the classes in ``module`` that are neither ours nor torch's."""
    return sorted({cls.__module__ for cls in _foreign_classes(module)})


def _foreign_blocks(module: nn.Module) -> dict[str, str]:
    named = {BLOCKS.name_of(cls): cls.__module__ for cls in _foreign_classes(module)}
    return {name: named[name] for name in sorted(filter(None, named))}


def _foreign_classes(module: nn.Module) -> Iterator[type]:
    """The classes in a model that are neither ours nor torch's."""
    for part in every_part(module):
        if not type(part).__module__.startswith(OURS):
            yield type(part)


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("torch", "gymnasium", "safetensors")}
    return {"python": platform.python_version(), **versions}
