"""What the pages show is true: their Python runs, their specs compose, their commands print what stands below them.

docs/contributing.md says how a page is written so that it can be run.
"""

import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import composer
from composer.cli.commands import main
from composer.source.load import load_source
from composer.spec.read import read_spec
from tests.helpers.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?:<!-- file: (?P<file>\S+) -->\s+)?```(?P<language>[\w-]+)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Example:
    """One fenced block of a page; ``file`` is the name it is saved under, if the page gives it one."""

    page: str
    line: int
    language: str
    text: str
    file: str | None


def examples(page: Path) -> Iterator[Example]:
    text = page.read_text()
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        yield Example(page.name, line, match["language"], match["text"], match["file"])


class Page:
    """Runs the examples of one page, in its own folder; Python blocks share their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, object] = {"__name__": "page"}
        self.modules: list[str] = []  # Python files that the page has saved

    def run(self, example: Example) -> None:
        if example.file:
            (self.folder / example.file).write_text(example.text)
        if example.file and example.language == "python":
            self.modules.append(Path(example.file).stem)
        elif example.language == "python":
            blank = "\n" * example.line  # a traceback then shows the line of the page
            exec(compile(blank + example.text, example.page, "exec"), self.names)
        elif example.language == "yaml":
            self.check_spec(example)

    def check_spec(self, example: Example) -> None:
        """Compose a whole spec; of one without environment check the structure, of a fragment that it can be read."""
        source = load_source(example.file or example.text)
        if "policy" not in source.data:
            return
        if "environment" in source.data:
            composer.compose(example.file or example.text, allow=self.modules)
        else:
            read_spec(source, allow=self.modules)


@pytest.fixture
def page(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = Page(tmp_path)
    yield page
    for name in page.modules:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_a_page_hold(path, page, capsys):
    for example in examples(path):
        if example.language == "console":
            check_commands(example, capsys)
        else:
            page.run(example)


def check_commands(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    """Run each ``$ composer ...``. It must print what stands below it (``...`` for anything), or else succeed."""
    capsys.readouterr()
    for part in re.split(r"^\$ ", example.text, flags=re.M)[1:]:
        command, _, want = part.partition("\n")
        program, *arguments = shlex.split(command)
        if program != "composer":
            continue
        status = main(arguments)
        printed = "".join(capsys.readouterr())
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        holds = doctest.OutputChecker().check_output(want.strip(), printed.strip(), flags)
        assert holds if want.strip() else status == 0, f"{example.page}: $ {command}\n{printed}"


def faces() -> list[str]:
    """The packages that have public names."""
    files = [
        file
        for name in ("composer", "perception_blocks")
        for file in (ROOT / name).rglob("__init__.py")
    ]
    names = [".".join(file.parent.relative_to(ROOT).parts) for file in files]
    return sorted(name for name in names if hasattr(importlib.import_module(name), "__all__"))


@pytest.mark.parametrize("face", faces())
def test_every_public_name_is_in_the_api_reference(face):
    page = (ROOT / "docs" / "api" / f"{face}.md").read_text()
    missing = [
        name
        for name in importlib.import_module(face).__all__
        if not re.search(rf"^(::: |`){face}\.{name}(?!\w)", page, re.M)
    ]
    assert missing == []
    # mkdocs refuses a name that is not there, but passes over a member of it
    for name, members in re.findall(
        r"^::: (\S+)\n(?:    .*\n)*?      members: \[(.*)\]", page, re.M
    ):
        documented = pkgutil.resolve_name(name)
        assert [m for m in members.split(", ") if not hasattr(documented, m)] == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / ".ci" / "mkdocs.yml").read_text()
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES[1:]]
    assert [page for page in pages if f": {page}" not in navigation] == []
