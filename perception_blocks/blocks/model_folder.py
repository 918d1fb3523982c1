"""A local folder as ``save_pretrained`` of Hugging Face's transformers writes it: data, of which no code ever runs.

It is JSON and safetensors. Whatever in it would lead elsewhere or name code is refused in words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from perception_blocks.port import Shape, format_shape
from perception_blocks.reading import file_at, json_in, require_regular
from perception_blocks.settings import SettingProblem, SettingsError
from perception_blocks.words import describe

__all__ = ["ModelFolder", "code_named_in", "misfits", "reason_of"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # of weights, as safetensors has them; others are quantized
_NAMES_OF_CLASSES = ("_class", "processor_type", "extractor_type")
_PROCESSORS = re.compile(r"(Tokenizer|Processor|FeatureExtractor|Backend)(Fast|Pil)?$")
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
        for file in sorted([*self.place.glob("*"), *self.place.glob("*/*")]):
            self._readable(str(file))  # which may be a link
            if not file.is_dir():
                self._refuse_code_in(file)

    def _refuse_code_in(self, file: Path) -> None:
        name = self._named(file.relative_to(self.place).as_posix())
        try:
            require_regular(file)
            code = code_named_in(file) if file.suffix == ".json" else None
        except ValueError as error:
            raise self._wrong(f"{name} cannot be read: {error}") from error
        if code:
            raise self._wrong(f"{name} has {code}")

    def stored_shapes(self) -> dict[str, Shape]:
        """The shapes of all tensors by their names; no tensor is read. Two files with one of them are an error."""
        shapes: dict[str, Shape] = {}
        homes: dict[str, Path] = {}
        for file in self.files:
            names = self._names_in(file)
            twice = [name for name in names if name in homes]
            if twice:
                raise self._wrong(
                    f"both {homes[twice[0]].name!r} and {file.name!r} in {self.path!r} hold {twice[0]}; remove the "
                    "file that is not of this model"
                )
            homes |= dict.fromkeys(names, file)
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in names}
        return shapes

    def require_floats(self, is_weight: Callable[[str], bool]) -> None:
        """Raise SettingsError for weights of another kind: quantized ones would be copied as if they were numbers."""
        for file in self.files:
            names = filter(is_weight, self._names_in(file))
            with safe_open(file, framework="pt") as opened:
                for name in names:
                    dtype = opened.get_slice(name).get_dtype()
                    if dtype not in FLOATS:
                        raise self._wrong(f"{self.path!r}: {other_dtype(name, dtype)}")

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
            raise self._wrong(f"{self._named(file.name)} cannot be read: {error}") from error

    def _json(self, file: Path) -> dict[str, Any]:
        name = self._named(file.name)
        try:
            values = json_in(file)
        except ValueError as error:
            raise self._wrong(f"{name} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise self._wrong(f"{name} must hold a mapping, got {describe(values)}")
        return values

    def _named(self, file: str) -> str:
        """A file of the folder as messages call it: below the path that the user wrote."""
        return repr(f"{self.path.rstrip('/')}/{file}")

    def _readable(self, path: str) -> str:
        try:
            return file_at(path)
        except ValueError as error:
            raise self._wrong(str(error)) from error

    def _wrong(self, message: str) -> ValueError:
        return SettingsError([SettingProblem(self._setting, f"{self._setting!r}: {message}")])


def reason_of(error: Exception) -> str:
    """Why transformers refuses a configuration: the last line of what it says, as a part of a message."""
    return str(error).strip().replace("`", "'").rpartition("\n")[2].strip().rstrip(".")


def misfits(name: str, stored: Any, tensor: Tensor) -> Iterator[str]:
    """Why what is ``stored``, a slice of safetensors, cannot be the weight ``tensor``."""
    shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
    if shape != tuple(tensor.shape):
        needed = format_shape(tensor.shape)
        yield f"{name} is {format_shape(shape)}, its config.json needs {needed}"
    elif tensor.is_floating_point() and dtype not in FLOATS:
        yield other_dtype(name, dtype)


def other_dtype(name: str, dtype: str) -> str:
    return f"{name} is of the dtype {dtype}, it must be one of {', '.join(FLOATS)}"


def code_named_in(file: Path) -> str | None:
    """What in a JSON file leads transformers to code of its own, or to another model; None where nothing does.

    Raises ValueError for a file that is no JSON.
    """
    named: list[str] = []

    def look(values: dict[str, Any]) -> None:
        if not isinstance(values.get("auto_map", 0), int):  # a vocabulary may have the word
            named.append(f"'auto_map', which names code of its own; {_CLASSES}")
        for key, value in values.items():
            if key.endswith(_NAMES_OF_CLASSES) and _is_no_processor(value):
                named.append(f"{key!r}: {value!r}, which is no tokenizer or processor; remove it")

    json_in(file, hook=look)
    return named[0] if named else None


def _is_no_processor(name: object) -> bool:
    """Whether it is a class of the library that would do more than make tokens or pixels, such as a model."""
    if not isinstance(name, str) or _PROCESSORS.search(name):
        return False
    import transformers  # whose names are known without importing what they stand for

    return bool({name, name.removesuffix("Fast"), name.removesuffix("Pil")} & {*dir(transformers)})
