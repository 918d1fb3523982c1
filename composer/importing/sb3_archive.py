"""The zip of an agent of Stable-Baselines3: its JSON and its tensors. The pickles in it are not read."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

from composer.errors import Position, Problem, SpecError
from composer.source.files import display_name
from composer.source.values import MAX_SIZE
from perception_blocks.words import describe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["POLICY", "Sb3Archive"]

DATA, POLICY, VERSION = "data", "policy.pth", "_stable_baselines3_version"
MOST_BYTES = {DATA: 64 * 1024**2, POLICY: 16 * 1024**3, VERSION: 100}
PICKLED = (":serialized:", ":type:")  # keys of a pickle as text, beside which readable values stand


class Sb3Archive:
    """The file at ``path``, whose parts are read when they are asked for. Nothing of it is extracted or executed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.name = display_name(self.path)

    @cached_property
    def data(self) -> dict[str, Any]:
        """The JSON that describes the agent; pickles in it stay texts. Raises SpecError."""
        text = self._part(DATA)
        if text.count(b",") > MAX_SIZE:
            raise self.refusal(f"{DATA!r} in it has more than {MAX_SIZE:,} values")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.refusal(f"{DATA!r} in it is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise self.refusal(f"{DATA!r} in it is {describe(value)}, not a mapping")
        return {
            key: {k: v for k, v in inner.items() if k not in PICKLED}
            if isinstance(inner, dict) and key == "policy_kwargs"
            else inner
            for key, inner in value.items()
        }

    @cached_property
    def version(self) -> str:
        """The version of Stable-Baselines3 that saved it; empty where it does not say."""
        try:
            return self._part(VERSION).decode("ascii", "replace").strip()
        except SpecError:
            return ""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the policy by name. Raises CheckpointError for what is more than tensors."""
        from composer.checkpoint.first_weights import is_plain, read_mapping

        name = f"{self.name}, its {POLICY}"
        state = read_mapping(io.BytesIO(self._part(POLICY)), name)
        return {str(key): tensor for key, tensor in state.items() if is_plain(tensor)}

    def _part(self, name: str) -> bytes:
        """The part ``name``. Raises SpecError where it is missing, damaged or too large."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = [entry for entry in archive.infolist() if entry.filename == name]
                if len(entries) == 1 and _is_in_bounds(entries[0]):
                    return archive.read(entries[0])
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
            raise self.refusal(f"it cannot be read: {error}") from error
        except (zlib.error, RuntimeError) as error:  # of compressed and of encrypted parts
            raise self.refusal(f"{name!r} in it cannot be read: {error}") from error
        if not entries:
            reason = f"it has no part {name!r}; an agent that Stable-Baselines3 saved has one"
        elif len(entries) > 1:
            reason = f"it has {len(entries)} parts called {name!r}"
        else:
            reason = f"{name!r} in it would be {entries[0].file_size:,} bytes, too large to read"
        raise self.refusal(reason)

    def refusal(self, reason: str) -> SpecError:
        return SpecError([Problem(reason, (), Position(self.name, 1, 1))])


def _is_in_bounds(entry: zipfile.ZipInfo) -> bool:
    """Whether a part may be read. What is compressed 100 times is no accident: Stable-Baselines3 compresses nothing."""
    size = entry.file_size
    return size <= MOST_BYTES[entry.filename] and size <= max(1024**2, 100 * entry.compress_size)
