"""Files of torch.save as they are read: what is in them are tensors and plain data, and no more than the file has.

No code of a file runs. ``weights_only`` of torch alone would let a file of a few bytes fill the memory.
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch

__all__ = ["ZIP", "MoreThanTensorsError", "NotRead", "OtherTensorsError", "read_torch_file"]

ZIP = b"PK\x03\x04"  # how such a file begins; those of old torch are pickles
PICKLES = 5  # of an old file: a mark, a version, about the machine, the value, and the names of its numbers
_MADE = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)|torch (\w+Storage|Size|device)|"
    r"torch\.storage UntypedStorage|torch (bool|u?int\d+|b?float\d+\w*|complex\d+)"
)
_OTHER_TENSORS = "torch._utils _rebuild_"
# What trainers save beside their tensors, such as the best return as a number of numpy.
_NUMPY = re.compile(
    r"numpy\.(_core|core)\.(multiarray (scalar|_reconstruct)|numeric _frombuffer)|"
    r"numpy (dtype|ndarray)|numpy\.dtypes \w+DType|_codecs encode"
)


class MoreThanTensorsError(ValueError):
    """A file names a class or a function that neither tensors nor plain data need."""


class OtherTensorsError(MoreThanTensorsError):
    """A file has tensors that are sparse, quantized or without numbers."""


class NotRead:
    """In the place of a value that is neither a tensor nor plain data: nothing is kept of it, and nothing called."""

    def __init__(self, *parts: object) -> None:
        """What a file gives to make the value."""

    def __setstate__(self, state: object) -> None:
        """What a file gives to complete the value."""


def read_torch_file(
    source: str | os.PathLike[str] | BinaryIO, *, whole: bool = False, numpy: bool = False
) -> Any:
    """What a file of torch.save holds, on the CPU; ``source`` is its path, or the open file.

    With ``whole``, its checksums are compared, too. With ``numpy``, it may hold values of numpy, each of which is a
    NotRead then.

    Raises MoreThanTensorsError for one that names other classes, and whatever torch raises for one that is damaged.
    """
    if not isinstance(source, (str, os.PathLike)):
        is_zip, left_out = _examined(source, whole, numpy)
        source.seek(0)
        return _loaded(source, left_out, mmap=False)
    with open(source, "rb") as file:
        is_zip, left_out = _examined(file, whole, numpy)
    return _loaded(source, left_out, mmap=is_zip and not whole)


def _loaded(source: str | os.PathLike[str] | BinaryIO, left_out: set[str], mmap: bool) -> Any:
    names = [(NotRead, name) for name in sorted(left_out)]
    with torch.serialization.safe_globals(names):  # type: ignore[arg-type]
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)


def _examined(file: BinaryIO, whole: bool, numpy: bool) -> tuple[bool, set[str]]:
    """Whether ``file`` is an archive, and the names of numpy in it. Raises for what must not be read."""
    is_zip = file.read(len(ZIP)) == ZIP
    file.seek(0)
    if is_zip:
        names = set(_names_in_archive(file, whole))
    else:
        names = {name for _ in range(PICKLES) for name in _names_in(file)}
    other = sorted(name for name in names if not _MADE.fullmatch(name))
    left_out = {name for name in other if numpy and _NUMPY.fullmatch(name)}
    for name in other:
        if name not in left_out:
            is_tensor = name.startswith(_OTHER_TENSORS)
            raise (OtherTensorsError if is_tensor else MoreThanTensorsError)(f"it makes {name!r}")
    return is_zip, {name.replace(" ", ".") for name in left_out if name != "_codecs encode"}


def _names_in_archive(file: BinaryIO, whole: bool) -> Iterator[str]:
    """Raise ValueError for an archive that torch has not written so, or that would be much larger in memory."""
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed")
        if whole and archive.testzip() is not None:
            raise ValueError("a checksum in it is wrong")
        names = [name.casefold() for name in archive.namelist()]  # torch does not mind the case
        (state,) = (name for name in archive.namelist() if name.casefold().endswith("/data.pkl"))
        if len(set(names)) < len(names):
            raise ValueError("it has two parts of one name")
        yield from _names_in(archive.read(state))


def _names_in(state: bytes | BinaryIO) -> Iterator[str]:
    """The classes and functions that a pickle names. Raises MoreThanTensorsError for names by other ways than torch's.

    More than tensors and plain data is refused, because a ``bytearray`` may be of any size.
    """
    for opcode, what, _ in pickletools.genops(state):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ"):
            raise MoreThanTensorsError("it names a class in a way that torch does not")
        if opcode.name == "GLOBAL":
            yield str(what)
