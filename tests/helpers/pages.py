"""The examples and pictures of a page of the documentation: run by its test, drawn for the site.

docs/contributing.md says how a page is written.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import gymnasium

import composer
from composer.dataflow.calls.call_spec import read_experiment
from composer.dataflow.calls.experiment import is_experiment, registered_spec
from composer.source.load import load_source
from composer.spec.read import read_spec
from tests.helpers.paths import CONFIGS, ROOT

FENCE = re.compile(
    r"^(?:<!-- file: (?P<file>\S+) -->\s+)?```(?P<language>[\w-]+)\n(?P<text>.*?)^```$", re.M | re.S
)
PICTURE = re.compile(r"^<!-- picture: (?P<what>\S+): (?P<caption>.+) -->$", re.M)

# Pages whose libraries do not go together with the others: tests/<library> runs them, in an environment of its own.
ELSEWHERE = {
    "docs/rllib.md": "rllib",
    "docs/coming-from/rllib.md": "rllib",
    "docs/benchmarl.md": "benchmarl",
}


@dataclass(frozen=True)
class Example:
    """One fenced block of a page; ``file`` is the name it is saved under, if the page gives it one."""

    page: str
    line: int
    language: str
    text: str
    file: str | None


@dataclass(frozen=True)
class Picture:
    """A mark that stands for a picture of ``what``: a spec's file, or a value of the Python blocks above it."""

    mark: str
    what: str
    caption: str


def items(page: str, text: str) -> Iterator[Example | Picture]:
    """The examples and pictures of a page, in its order."""
    marks = [*FENCE.finditer(text), *PICTURE.finditer(text)]
    for match in sorted(marks, key=re.Match.start):
        if match.re is PICTURE:
            yield Picture(match[0], match["what"], match["caption"])
        else:
            line = text.count("\n", 0, match.start("text"))
            yield Example(page, line, match["language"], match["text"], match["file"])


class Page:
    """Runs the examples of one page, in its own folder; Python blocks share their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, object] = {"__name__": "page"}
        self.modules: list[
            str
        ] = []  # Python files that the page has saved, which its specs may name

    def run(self, example: Example) -> None:
        self.save(example)
        if example.file and example.language == "python":
            self.modules.append(Path(example.file).stem)
        elif example.language == "python":
            blank = "\n" * example.line  # a traceback then shows the line of the page
            exec(compile(blank + example.text, example.page, "exec"), self.names)
        elif example.language == "yaml":
            self.check_spec(example)

    def save(self, example: Example) -> None:
        if example.file:
            (self.folder / example.file).write_text(example.text)

    def check_spec(self, example: Example) -> None:
        """Compose a whole spec; of one without environment check the structure, of a fragment that it can be read.

        An experiment with a version is checked whole.
        """
        source = load_source(example.file or example.text, named=registered_spec)
        if is_experiment(source.data) and "version" in source.data:
            read_experiment(example.file or example.text, allow=self.modules)
        if "policy" not in source.data:
            return
        if "environment" in source.data:
            composer.compose(example.file or example.text, allow=self.modules)
        else:
            read_spec(source, allow=self.modules)

    def has(self, picture: Picture) -> bool:
        """Whether there is what the picture is of."""
        files = [self.folder / picture.what, ROOT / picture.what]
        return picture.what in self.names or any(file.exists() for file in files)


@contextlib.contextmanager
def open_page(folder: Path) -> Iterator[Page]:
    """A page in ``folder``, which has a copy of configs/, and is the current and importable one until it is closed."""
    shutil.copytree(CONFIGS, folder / "configs")
    path, page = sys.path.copy(), Page(folder)
    with contextlib.chdir(folder):
        sys.path.insert(0, str(folder))
        try:
            yield page
        finally:
            sys.path[:] = path
            gone = {name for name, module in [*sys.modules.items()] if _lies_in(module, folder)}
            for name in gone:
                del sys.modules[name]  # the next page has a folder of its own
            for name, spec in [
                *gymnasium.registry.items()
            ]:  # and registers its environments itself
                if _module_of(spec.entry_point) in gone:
                    del gymnasium.registry[name]
            for entry in [entry for entry in sys.path_importer_cache if not os.path.isabs(entry)]:
                del sys.path_importer_cache[entry]  # "configs" was that of this folder


def _module_of(entry_point: object) -> str:
    if isinstance(entry_point, str):
        return entry_point.partition(":")[0]
    return getattr(entry_point, "__module__", "")


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Also a package without a file, as configs/encoders is one: its submodules are its attributes."""
    known = vars(module) if isinstance(module, ModuleType) else {}
    places = [known.get("__file__"), *(known.get("__path__") or ())]
    return any(str(place).startswith(f"{folder}{os.sep}") for place in places)
