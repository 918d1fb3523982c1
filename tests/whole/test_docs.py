"""What the pages show is true: their Python runs, their specs compose, their commands print what stands below them.

docs/contributing.md says how a page is written so that it can be run.
"""

import doctest
import importlib
import itertools
import pkgutil
import re
import shlex

import pytest

from composer.cli.commands import main
from tests.helpers.pages import ELSEWHERE, Example, Picture, items, open_page
from tests.helpers.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HERE = [path for path in PAGES if path.relative_to(ROOT).as_posix() not in ELSEWHERE]


@pytest.fixture
def page(tmp_path):
    with open_page(tmp_path) as page:
        yield page


@pytest.mark.parametrize("path", HERE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_a_page_hold(path, page, capsys):
    check_page(path, page, capsys)


def check_page(path, page, capsys):
    """Run the examples of the page at ``path``. A text right below Python is what that prints."""
    examples = [*items(path.name, path.read_text())]
    for item, below in itertools.zip_longest(examples, examples[1:]):
        if isinstance(item, Picture):
            assert page.has(item), f"{path.name}: nothing to draw a picture of: {item.mark}"
        elif item.language == "console":
            check_commands(item, capsys)
        else:
            capsys.readouterr()
            page.run(item)
            if item.language == "python" and is_output(below, item):
                printed = capsys.readouterr().out
                assert agrees(below.text, printed), f"{path.name}:{below.line}\n{printed}"


def is_output(below: Example | Picture | None, example: Example) -> bool:
    """Whether ``below`` is a text with nothing but blank lines between it and ``example``."""
    if not isinstance(below, Example) or below.language != "text" or example.file:
        return False
    return below.line <= example.line + example.text.count("\n") + 3


def agrees(want: str, printed: str) -> bool:
    """Whether ``printed`` is what a page says, with ``...`` for anything."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(want.strip(), printed.strip(), flags)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_mark_of_a_page_is_understood(path):
    text = path.read_text()
    marks = re.findall(r"^ *<!-- *(?:file|picture)\b.*$", text, re.M)
    understood = [i for i in items(path.name, text) if isinstance(i, Picture) or i.file]
    assert len(marks) == len(understood), marks


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
        holds = agrees(want, printed) if want.strip() else status == 0
        assert holds, f"{example.page}: $ {command}\n{printed}"


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
