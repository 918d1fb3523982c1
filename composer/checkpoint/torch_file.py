"""Files of torch.save as they are read: what is in them are tensors and plain data, and no more than the file has.

No code of a file runs. ``weights_only`` of torch alone would let a file of a few bytes fill the memory.
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from typing import Any, BinaryIO

import torch

__all__ = ["ZIP", "MoreThanTensorsError", "OtherTensorsError", "read_torch_file"]

ZIP = b"PK\x03\x04"  # how such a file begins; those of old torch are pickles
PICKLES = 5  # of an old file: a mark, a version, about the machine, the value, and the names of its numbers
_MADE = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)|torch (\w+Storage|Size|device)|"
    r"torch\.storage UntypedStorage|torch (bool|u?int\d+|b?float\d+\w*|complex\d+)"
)
_OTHER_TENSORS = "torch._utils _rebuild_"


class MoreThanTensorsError(ValueError):
    """A file names a class or a function that neither tensors nor plain data need."""


class OtherTensorsError(MoreThanTensorsError):
    """A file has tensors that are sparse, quantized or without numbers."""


def read_torch_file(path: str | os.PathLike[str], *, whole: bool = False) -> Any:
    """What a file of torch.save holds, on the CPU. With ``whole``, its checksums are compared, too.

    Raises MoreThanTensorsError for one that names other classes, and whatever torch raises for one that is damaged.
    """
    with open(path, "rb") as file:
        is_zip = file.read(len(ZIP)) == ZIP
        file.seek(0)
        if is_zip:
            _refuse_in_archive(file, whole)
        else:
            for _ in range(PICKLES):
                _refuse_more_than_tensors(file)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip and not whole)


def _refuse_in_archive(file: BinaryIO, whole: bool) -> None:
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
        _refuse_more_than_tensors(archive.read(state))


def _refuse_more_than_tensors(state: bytes | BinaryIO) -> None:
    """Raise MoreThanTensorsError for more than tensors and plain data: a ``bytearray`` may be of any size."""
    for opcode, what, _ in pickletools.genops(state):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ"):
            raise MoreThanTensorsError("it names a class in a way that torch does not")
        if opcode.name == "GLOBAL" and not _MADE.fullmatch(str(what)):
            is_tensor = str(what).startswith(_OTHER_TENSORS)
            raise (OtherTensorsError if is_tensor else MoreThanTensorsError)(f"it makes {what!r}")
