"""docs/editors.svg is what the language server says of the spec in it."""

import os
from xml.etree import ElementTree

from lsprotocol import types as lsp

from tests.helpers.editor_picture import drawn
from tests.helpers.paths import ROOT

WHOLE = {"start": {"line": 0, "character": 0}, "end": {"line": 99, "character": 0}}
PICTURE = ROOT / "docs" / "editors.svg"
SPEC = """\
version: 1
environment: CartPole-v1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: [64, 64]}
    narrow: {block: dnse, in: latent, hidden_units: 16}
  heads: {in: narrow}
critic:
  graph:
    value: {block: dense, in: observation, hidden_units: 64}
"""


def test_the_picture_of_the_page_is_what_the_server_says(editor, uri):
    """WRITE_GOLDEN=1 draws it anew."""
    diagnostics = editor.open(uri, SPEC)
    hints = editor.ask(lsp.TEXT_DOCUMENT_INLAY_HINT, uri, range=WHOLE)
    (fix,) = [a for a in editor.fixes(uri) if a.edit and "'dense'" in a.title][:1]
    assert [editor.under(uri, each.range) for each in diagnostics] == ["dnse"]
    picture = drawn(SPEC, diagnostics, hints, fix.title)
    if os.environ.get("WRITE_GOLDEN"):
        PICTURE.write_text(picture, encoding="utf-8")
    assert PICTURE.read_text(encoding="utf-8") == picture
    ElementTree.fromstring(picture)
