"""The pages about BenchMARL are true, as `tests.whole.test_docs` says of all others."""

import pytest

from tests.helpers.pages import ELSEWHERE, open_page
from tests.helpers.paths import ROOT
from tests.whole.test_docs import check_page

PAGES = [page for page, library in ELSEWHERE.items() if library == "benchmarl"]


@pytest.mark.parametrize("name", PAGES)
def test_the_examples_of_a_page_hold(name, tmp_path, capsys):
    with open_page(tmp_path) as page:
        check_page(ROOT / name, page, capsys)
