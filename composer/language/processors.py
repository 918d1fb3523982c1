"""The processor of an action model, which makes tokens and pixels: from a folder, and kept in a checkpoint."""

from __future__ import annotations

import base64
import binascii
import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from composer.errors import RefusedError
from composer.language.hf import HfModel, quiet
from composer.source.files import display_name
from perception_blocks.blocks.model_folder import code_named_in
from perception_blocks.registry import missing_extra

__all__ = ["offline", "processor_files", "processor_from", "processor_of_files"]
__all__ += ["tokenizer_of_folder"]

TEXTS = (".json", ".txt", ".jinja")
BINARY = (".model", ".spm", ".tiktoken")  # tables of tokenizers; kept in base64


def processor_from(entry: HfModel, place: str | Path | None, config: Any) -> Any:
    """The processor in the folder ``place``, or that of the model type itself; None where there is none.

    Raises ValueError where it cannot be made.
    """
    if place is None:
        make = getattr(entry.processor, "from_config", None)
        processor = None if make is None else make(config)
    elif entry.processor is None:
        return None
    else:
        with offline(), quiet():
            try:
                processor = entry.processor.from_pretrained(
                    str(place), local_files_only=True, trust_remote_code=False
                )
            except Exception as error:
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                raise ValueError(
                    f"the processor cannot be made from its files: {reason}"
                ) from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None:
        tokenizer.padding_side = "left"  # actions follow the prompt
    return processor


def tokenizer_of_folder(path: str, place: Path) -> Any:
    """The tokenizer in the folder ``place``, called ``path`` in messages, as ``save_pretrained`` writes it.

    No code of a folder runs, and nothing is downloaded. Raises RefusedError where it cannot be made, MissingExtraError
    without the extra 'llm'.
    """
    if not (place / "tokenizer_config.json").is_file():
        raise RefusedError(f"the folder {path!r} has no tokenizer: no tokenizer_config.json")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing_extra("a tokenizer", error, "llm") from error
    for file in sorted(place.glob("*.json")):
        try:
            code = code_named_in(file)
        except ValueError as error:
            raise RefusedError(f"{display_name(str(file))!r} cannot be read: {error}") from error
        if code:
            raise RefusedError(f"{display_name(str(file))!r} has {code}")
    with offline():
        try:
            return AutoTokenizer.from_pretrained(
                str(place), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise RefusedError(f"the tokenizer in {path!r} cannot be made: {reason}") from error


def processor_files(processor: Any) -> dict[str, str]:
    """What ``processor`` is saved as: texts by the names of their files; empty where it cannot be saved.

    Raises ValueError for files that a checkpoint does not keep.
    """
    if not hasattr(processor, "save_pretrained"):
        return {}
    with tempfile.TemporaryDirectory() as folder, quiet():
        processor.save_pretrained(folder)
        files = sorted(file for file in Path(folder).rglob("*") if not file.is_dir())
        lost = [file for file in files if not file.name.endswith((*TEXTS, *BINARY))]
        lost += [file for file in files if file.suffix == ".json" and code_named_in(file)]
        if lost:
            name = lost[0].relative_to(folder).as_posix()
            raise ValueError(
                f"the processor is saved with the file {name!r}, which is code or of a kind that a checkpoint does "
                "not keep; model.save_pretrained(folder) keeps it"
            )
        return {file.relative_to(folder).as_posix(): _as_text(file) for file in files}


def processor_of_files(entry: HfModel, files: Mapping[str, str], config: Any) -> Any:
    """The processor that `processor_files` saved. Raises ValueError where it cannot be made, or names code."""
    if not isinstance(files, Mapping):
        raise ValueError("the files of its processor must be a mapping from names to texts")
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            place = _written(Path(folder), name, text)
            if name.endswith(".json") and (code := code_named_in(place)):
                raise ValueError(f"{name!r} has {code}")
        return processor_from(entry, folder, config)


def _as_text(file: Path) -> str:
    if file.name.endswith(TEXTS):
        return file.read_text(encoding="utf-8")
    return base64.b64encode(file.read_bytes()).decode()


def _written(folder: Path, name: str, text: object) -> Path:
    """The file that a checkpoint keeps, in ``folder`` or one below it. Raises ValueError for any other."""
    parts = name.split("/")
    is_inside = len(parts) <= 2 and not {"", ".", ".."} & {*parts} and "\0" not in name
    if not (is_inside and name.endswith((*TEXTS, *BINARY)) and isinstance(text, str)):
        raise ValueError(f"{name!r} is no file of a processor")
    place = folder / name
    place.parent.mkdir(exist_ok=True)
    try:
        data = text.encode() if name.endswith(TEXTS) else base64.b64decode(text, validate=True)
        place.write_bytes(data)
    except (UnicodeEncodeError, binascii.Error, OSError) as error:
        raise ValueError(f"{name!r} cannot be read as a file of a processor: {error}") from error
    return place


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Hugging Face's libraries look for nothing outside, whatever the environment says."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
