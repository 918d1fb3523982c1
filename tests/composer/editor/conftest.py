import pytest

from tests.helpers.language_client import Editor
from tests.helpers.paths import ROOT


@pytest.fixture(scope="session")
def editor(tmp_path_factory):
    """One language server for all tests: it takes seconds to start."""
    settings = {"allow": ["environments"], "path": [str(ROOT / "configs")]}
    editor = Editor(str(tmp_path_factory.mktemp("lsp")), settings)
    yield editor
    assert editor.stop() == 0


@pytest.fixture
def uri(editor, tmp_path):
    """The address of a document that is closed after the test."""
    address = (tmp_path / "agent.yaml").as_uri()
    yield address
    if address in editor._versions:
        editor.close(address)
