"""A local folder as ``save_pretrained`` of Hugging Face's transformers writes it: data, of which no code ever runs.

It is JSON and safetensors. Whatever in it would lead elsewhere or name code is refused in words.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from perception_blocks.port import Shape
from perception_blocks.reading import file_at
from perception_blocks.settings import SettingProblem, SettingsError
from perception_blocks.words import describe

__all__ = ["ModelFolder", "json_in"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_CLASSES = "register the classes in a module that you allow, and remove it"


class ModelFolder:
    """``config.json``, and weights in one or several safetensors files.

    Raises SettingsError for the ``setting`` that names it, where the folder is any other.
    """

    def __init__(self, path: str, setting: str = "checkpoint") -> None:
        self.path = path  # as the user wrote it
        self._setting = setting
        self.place = Path(self._readable(path))
        if not self.place.is_dir():
            raise self._wrong(f"there is no folder {path!r}; nothing is downloaded")
        config = self.place / "config.json"
        if not config.is_file():
            adapters = (self.place / "adapter_config.json").is_file()
            advice = "; it holds LoRA adapters, which 'path' of 'lora' names" if adapters else ""
            raise self._wrong(f"the folder {path!r} has no config.json{advice}")
        self.files = self._weight_files()
        if not self.files:
            kept = "; other formats can run code" if any(self.place.glob("*.bin")) else ""
            raise self._wrong(f"the folder {path!r} has no *.safetensors file{kept}")
        for file in (config, *self.files):  # which may be links
            self._readable(str(file))
        self._values = self._json(config)

    def refuse_code(self) -> None:
        """Raise SettingsError where a file names code, or weights are stored in a form that only code can read."""
        if "auto_map" in self._values:
            raise self._wrong(
                f"{self._named('config.json')} has 'auto_map', which names code of its own; {_CLASSES}"
            )
        for key in ("attn_implementation", "_attn_implementation"):
            if "/" in str(self._values.get(key, "")):
                word = self._values[key]
                raise self._wrong(
                    f"{self._named('config.json')} has {key!r}: {word!r}, code that would be downloaded; remove it"
                )
        if "quantization_config" in self._values:
            raise self._wrong(
                f"{self._named('config.json')} has 'quantization_config'; quantized weights are not read: save the "
                "model without it"
            )
        for file in sorted(self.place.glob("*.json")):
            self._readable(str(file))
            if file.name != "config.json" and "auto_map" in json_in(file):
                raise self._wrong(
                    f"{self._named(file.name)} has 'auto_map', which names code of its own; {_CLASSES}"
                )

    def stored_shapes(self) -> dict[str, Shape]:
        """The shapes of all tensors by their names; no tensor is read."""
        shapes: dict[str, Shape] = {}
        for file in self.files:
            names = self._names_in(file)
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in names}
        return shapes

    def all_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the files, one after the other, by its name."""
        for file in self.files:
            names = self._names_in(file)
            with safe_open(file, framework="pt") as opened:
                yield from ((name, opened.get_tensor(name)) for name in names)

    def tensors_called(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Those of `all_tensors` whose names are among ``names``; the others are not read."""
        for file in self.files:
            wanted = [name for name in self._names_in(file) if name in names]
            with safe_open(file, framework="pt") as opened:
                yield from ((name, opened.get_tensor(name)) for name in wanted)

    def _weight_files(self) -> list[Path]:
        """``model.safetensors``, or what its index lists, or else all there are: a folder may hold other models too."""
        whole, index = self.place / WEIGHTS, self.place / INDEX
        if whole.is_file() or not index.is_file():
            every = sorted(file for file in self.place.glob("*.safetensors") if file.is_file())
            return [whole] if whole in every else every
        self._readable(str(index))
        listed = self._json(index).get("weight_map")
        if not isinstance(listed, Mapping) or not listed:
            raise self._wrong(f"{self._named(INDEX)} has no 'weight_map'")
        names = sorted({str(name) for name in listed.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise self._wrong(
                    f"{self._named(INDEX)} names {name!r}, which is no safetensors file of the folder"
                )
            if not (self.place / name).is_file():
                raise self._wrong(f"{self._named(INDEX)} names {name!r}, which is not there")
        return [self.place / name for name in names]

    def _names_in(self, file: Path) -> list[str]:
        try:
            with safe_open(file, framework="pt") as opened:
                return list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise self._wrong(f"{str(file)!r} cannot be read: {error}") from error

    def _json(self, file: Path) -> dict[str, Any]:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:
            raise self._wrong(f"{str(file)!r} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise self._wrong(f"{str(file)!r} must hold a mapping, got {describe(values)}")
        return values

    def _named(self, file: str) -> str:
        return repr(f"{self.path.rstrip('/')}/{file}")

    def _readable(self, path: str) -> str:
        try:
            return file_at(path)
        except ValueError as error:
            raise self._wrong(str(error)) from error

    def _wrong(self, message: str) -> ValueError:
        return SettingsError([SettingProblem(self._setting, f"{self._setting!r}: {message}")])


def json_in(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where it holds none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
