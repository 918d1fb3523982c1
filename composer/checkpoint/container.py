"""The container of a checkpoint: a safetensors file with a digest of every tensor and one of the header.

Equal contents give equal bytes: the order is fixed, and no time or path is in it. A digest detects damage, not intent:
a person who changes a file on purpose can change its digests too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from composer.atomic import WriteError, replace_with
from composer.errors import RefusedError
from composer.source.files import not_a_file

__all__ = ["FORMAT", "CheckpointError", "read_piece", "read_record", "read_tensors"]
__all__ += ["write_file"]

FORMAT = "perception-composer"
MOST_BYTES = 100_000_000  # of a header, which safetensors has as its own limit
TENSORS, HEADER = "tensor_digests", "header_digest"  # where the digests are in the header
_LOGGER = logging.getLogger(__name__)
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_Result = TypeVar("_Result")
Kinds = Mapping[str, tuple[str, list[int]]]  # of each tensor, its dtype and shape


class CheckpointError(RefusedError):
    """A checkpoint cannot be saved or loaded; the message says why and what to do."""


# --- writing ----------------------------------------------------------------------------------------------------------


def write_file(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: Mapping[str, object]
) -> None:
    """Write ``tensors``, and ``record`` as JSON beside them; the file appears whole or not at all.

    Raises CheckpointError where it cannot be written.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    unknown = [name for name, tensor in stored.items() if tensor.dtype not in _NAMES]
    if unknown:
        what = f"{unknown[0]!r} is {stored[unknown[0]].dtype}"
        raise CheckpointError(f"cannot be saved: {what}, which safetensors has no name for")
    stored = dict(sorted(stored.items(), key=lambda item: (-item[1].itemsize, item[0])))
    digests = {name: _digest(tensor) for name, tensor in stored.items()}
    record = {"format": FORMAT, **record}
    texts = {key: json.dumps(value, allow_nan=False) for key, value in record.items()}
    texts[TENSORS] = json.dumps(digests)
    kinds = {name: (_NAMES[tensor.dtype], list(tensor.shape)) for name, tensor in stored.items()}
    texts[HEADER] = json.dumps(_header_digest(texts, kinds))
    header = _header(texts, stored)
    if len(header) > MOST_BYTES:
        size = f"{len(header):,} bytes beside its weights"
        raise CheckpointError(f"cannot be saved: the model has {size}, more than {MOST_BYTES:,}")

    def write(temporary: str) -> None:
        with open(temporary, "wb") as file:
            _write(file, header, stored)

    try:
        replace_with(path, write)
    except WriteError as error:
        raise CheckpointError(str(error)) from error


def _header(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(texts)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        kind = _NAMES[tensor.dtype]
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    padding = b" " * (-len(header) % 8)  # the tensors begin at a multiple of 8 bytes
    return header + padding


def _write(file: BinaryIO, header: bytes, tensors: Mapping[str, Tensor]) -> None:
    file.writelines([len(header).to_bytes(8, "little"), header])
    file.writelines(map(_bytes, tensors.values()))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _header_digest(texts: Mapping[str, str], kinds: Kinds) -> str:
    """The digest of all texts but itself, and of the name, dtype and shape of each tensor."""
    covered = {key: text for key, text in texts.items() if key != HEADER}
    return hashlib.sha256(json.dumps([covered, kinds], sort_keys=True).encode()).hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def read_record(path: str | os.PathLike[str], newest: int) -> dict[str, Any] | None:
    """The record that `write_file` wrote; None for a safetensors file of another library.

    Raises CheckpointError for any other file, for a format beyond ``newest``, and for a header that has changed since
    it was saved. A header without digests, from an older version of this library, passes.
    """
    texts, kinds = _read(path, _header_of)
    if not _is_ours(texts):
        return None
    version = _loaded(path, "format_version", texts.get("format_version", "1"))
    if isinstance(version, int) and version > newest:
        raise CheckpointError(
            f"{os.fspath(path)!r} has the format {version}; "
            f"this version reads up to {newest}: upgrade perception-composer"
        )
    _check_header(path, texts, kinds)
    return {key: _loaded(path, key, text) for key, text in texts.items()}


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of any safetensors file by name. Raises CheckpointError for a tensor that has changed since."""
    tensors, (texts, kinds) = _read(path, lambda file: (_tensors_of(file), _header_of(file)))
    if not _is_ours(texts):
        return tensors
    if _check_header(path, texts, kinds):
        _check_tensors(path, _loaded(path, TENSORS, texts[TENSORS]), tensors)
    else:
        _LOGGER.warning(
            "%r is of an older version and has no digests, by which damage would show; load the model and save it "
            "again to add them", os.fspath(path),
        )  # fmt: skip
    return tensors


def read_piece(path: str | os.PathLike[str], name: str, digests: object) -> Tensor:
    """One tensor. Raises CheckpointError unless it is as it was saved, by the file's own ``digests``."""
    tensor = _read(path, lambda file: file.get_tensor(name))
    _check_tensors(path, digests, {name: tensor})
    return tensor


def _header_of(file: safe_open) -> tuple[dict[str, str], Kinds]:
    """The texts beside the tensors, and the dtype and shape of each tensor."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    kinds = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    return file.metadata() or {}, kinds


def _tensors_of(file: safe_open) -> dict[str, Tensor]:
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _is_ours(texts: Mapping[str, str]) -> bool:
    return texts.get("format") == json.dumps(FORMAT)


def _loaded(path: str | os.PathLike[str], key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{key!r} in its header cannot be read") from error


def _check_header(path: str | os.PathLike[str], texts: Mapping[str, str], kinds: Kinds) -> bool:
    """Whether there are digests. Raises CheckpointError if the header has changed since it was saved."""
    if TENSORS not in texts and HEADER not in texts:
        return False
    if TENSORS not in texts or texts.get(HEADER) != json.dumps(_header_digest(texts, kinds)):
        raise _damaged(path, "its header is not as it was saved")
    return True


def _check_tensors(
    path: str | os.PathLike[str], digests: object, tensors: Mapping[str, Tensor]
) -> None:
    if not isinstance(digests, dict):
        raise _damaged(path, f"{TENSORS!r} in its header is {digests!r}")
    wrong = [name for name, tensor in tensors.items() if digests.get(name) != _digest(tensor)]
    if wrong:
        more = f" and {len(wrong) - 5} others" if len(wrong) > 5 else ""
        what = "the tensor {}{} is" if len(wrong) == 1 else "the tensors {}{} are"
        shown = what.format(", ".join(map(repr, wrong[:5])), more)
        raise _damaged(path, f"{shown} not as saved")


def _damaged(path: str | os.PathLike[str], what: str) -> CheckpointError:
    return CheckpointError(f"{os.fspath(path)!r} is damaged: {what}; take a copy of the file")


def _read(path: str | os.PathLike[str], use: Callable[[safe_open], _Result]) -> _Result:
    name = os.fspath(path)
    if "\0" in name:
        raise CheckpointError(f"there is no file {name!r}")
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(not_a_file(name, name, "a checkpoint"))
        if not stat.S_ISREG(mode):  # a pipe would block
            raise CheckpointError(f"{name!r} is not a regular file")
        with safe_open(name, framework="pt") as file:
            return use(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {name!r}") from error
    except SafetensorError as error:
        if name.endswith((".yaml", ".yml")):
            raise CheckpointError(
                f"{name!r} is a spec, not a checkpoint; composer.compose makes a model from it"
            ) from error
        raise CheckpointError(
            f"{name!r} is no safetensors file, or a damaged one: {error}"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{name!r} cannot be read: {reason}") from error
