"""Generated texts as files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from composer.atomic import WriteError, replace_with
from composer.dataflow.algorithms.interfaces import Interface
from composer.dataflow.algorithms.rewards import texts_of
from composer.dataflow.context import Context
from composer.dataflow.data.samples import Sample
from composer.dataflow.running.schedule import RunError
from composer.source.files import as_argument, outside, real_path
from perception_blocks.reading import file_at
from perception_blocks.settings import SettingProblem, SettingsError

__all__ = ["WriteTexts"]


class WriteTexts(Interface):
    """Writes the texts of each iteration as ``texts/00000000.jsonl``, a row for each sequence.

    A row has the ``prompt`` and what follows it as ``completion``; without ``prompt_mask`` the whole ``text``. A call
    may read other values, such as ``rewards``: those with one number for each sequence are in its row. Every
    iteration has its own file, which appears whole. ``folder`` is relative to the current folder; unless given it is
    ``texts`` in the folder of the run, or in the current one where the run has none.

    Raises SettingsError for a folder that is neither below the current one nor where the caller lets the experiment
    read: a file of somebody else could write anywhere.
    """

    needs_model = False
    reads_any = True
    reads = {"evaluate": ("ids",)}
    optional = {"evaluate": ("prompt_mask",)}

    def __init__(self, *, folder: str | None = None) -> None:
        self.folder = folder
        if folder is not None:
            _refuse_elsewhere(folder)

    def evaluate(self, model: object, sample: Sample, context: Context) -> None:
        """Logs ``texts``, how many there are. Raises RunError where a file cannot be written."""
        rows = rows_of(sample, context.tokenizer)
        if self.folder is None:
            folder = Path(context.folder or "", "texts")
            real = os.path.join(real_path(context.folder or ""), "texts")
        else:
            folder, real = Path(self.folder), real_path(self.folder)
        path = folder / f"{context.iteration:08}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if outside(str(path), [real]):
            raise RunError(f"{str(path)!r} is a link that leads elsewhere; remove it")
        try:
            os.makedirs(folder, exist_ok=True)
            replace_with(path, lambda name: Path(name).write_text(text, encoding="utf-8"))
        except WriteError as error:
            raise RunError(str(error)) from error
        except OSError as error:
            raise RunError(f"{str(path)!r} cannot be written: {error.strerror}") from error
        context.log("texts", len(rows))


def _refuse_elsewhere(folder: str) -> None:
    """Raise SettingsError for a folder that the experiment may not write."""
    place = os.path.abspath(folder)
    if not outside(place, [real_path("")]):
        return
    try:
        file_at(place)
    except ValueError:
        entry = os.path.join(real_path(folder), "")
        message = (
            f"'folder': {folder!r} is not below the current folder; pass allow=[{entry!r}] or --allow "
            f"{as_argument(entry)} if the experiment may write there"
        )
        raise SettingsError([SettingProblem("folder", message)]) from None


def rows_of(sample: Sample, tokenizer: Any) -> list[dict[str, object]]:
    """The rows of a sample. Raises RunError where there is no tokenizer."""
    if tokenizer is None:
        raise RunError("no model has a vocabulary, by which tokens become texts")
    rows: list[dict[str, object]] = []
    for text in texts_of(sample, tokenizer, "write_texts"):
        if "prompt_mask" in sample.keys:
            rows.append({"prompt": text.prompt, "completion": text.completion})
        else:
            rows.append({"text": text.whole})
    for name in sorted(sample.keys - {"ids", "prompt_mask"}):
        values = sample.values(name)
        if values.shape == (len(rows),):
            for row, value in zip(rows, values.tolist(), strict=True):
                row[name] = value
    return rows
