"""A hook of mkdocs: draws the pictures of the pages from their own specs and code, so that none can be out of date.

Code that a page saves under a name (``<!-- file: agent.yaml -->``) is shown with that name above it.

``<!-- picture: agent.yaml: A policy and a critic -->`` becomes the diagram of the model that the spec describes. A spec
is one that the page saves, or one of configs/. The name of a value of the Python blocks above the mark does as well.
"""

import contextlib
import posixpath
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page as SitePage

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from rooms import rooms_as_dot  # noqa: E402

import composer  # noqa: E402
from composer.dataflow.calls.call_spec import read_experiment  # noqa: E402
from composer.dataflow.calls.experiment import is_experiment, registered_spec  # noqa: E402
from composer.dataflow.calls.overview import draw_experiment  # noqa: E402
from composer.diagram.render import render  # noqa: E402
from composer.source.load import load_source  # noqa: E402
from tests.helpers.pages import Page, Picture, items, open_page  # noqa: E402

CONFIG_MODULES = ["environments", "networks"]  # the folders of classes beside the specs in configs/


SAVED = re.compile(r"^<!-- file: (\S+) -->\s+```([\w-]+)$", re.M)


def on_startup(**kwargs: Any) -> None:
    sys.path.append(str(ROOT / "configs"))  # not above: mkdocs resets the path after loading a hook


def on_page_markdown(markdown: str, page: SitePage, config: MkDocsConfig, files: Files) -> str:
    return SAVED.sub(r'```\2 title="\1"', with_pictures(markdown, page, config, files))


def with_pictures(markdown: str, page: SitePage, config: MkDocsConfig, files: Files) -> str:
    parts = list(items(page.file.src_uri, markdown))
    pictures = [index for index, part in enumerate(parts) if isinstance(part, Picture)]
    if not pictures:
        return markdown
    runs_python = any(isinstance(part, Picture) and "." not in part.what for part in parts)
    with tempfile.TemporaryDirectory() as folder, open_page(Path(folder)) as examples:
        for index, part in enumerate(parts[: pictures[-1] + 1]):
            if isinstance(part, Picture):
                uri = (
                    f"pictures/{page.file.src_uri.removesuffix('.md')}-{pictures.index(index)}.svg"
                )
                svg = drawn(part, examples)
                files.append(File.generated(config, uri, content=svg))
                markdown = markdown.replace(part.mark, image(part, page.file.src_uri, uri), 1)
            elif part.language == "python" and (runs_python or part.file):
                with contextlib.redirect_stdout(None):
                    examples.run(part)
            else:
                examples.save(part)
    return markdown


def drawn(picture: Picture, examples: Page) -> str:
    """The picture as SVG. One of the file with the list of rooms is of the rooms."""
    if picture.what.endswith(".py"):
        return render(rooms_as_dot(), "svg").decode()
    subject: Any = examples.names.get(picture.what)
    if picture.what.endswith(".yaml"):
        allow = CONFIG_MODULES if picture.what.startswith("configs/") else examples.modules
        if is_experiment(load_source(picture.what, named=registered_spec).data):
            experiment = read_experiment(picture.what, allow=allow)
            return draw_experiment(experiment, examples.folder / "picture.svg").read_text()
        subject = composer.compose(picture.what, allow=allow, seed=0)
    return composer.draw(subject, examples.folder / "picture.svg").read_text()


def image(picture: Picture, page: str, uri: str) -> str:
    """The picture in Markdown; a click on it shows it alone, in its full size."""
    link = posixpath.relpath(uri, posixpath.dirname(page))
    return f"[![{picture.caption}]({link})]({link})"
