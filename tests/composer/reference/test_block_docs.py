"""The pages of docs/blocks: every block on one of them, in the words of its class, with an example that composes."""

import re
from dataclasses import replace

import pytest
import torch

from composer.reference import pages as block_pages
from composer.reference.help import documentation, example_of
from composer.reference.pages import FAMILIES, MARK, families, page_text
from composer.reference.words import MEANINGS
from composer.source.load import load_source
from perception_blocks import Graph, InferenceBlock, PerceptionBlock, Port
from perception_blocks.port import InputShapeError
from perception_blocks.registry import BLOCKS, MissingExtraError
from perception_blocks.settings import settings_of
from tests.helpers.paths import ROOT

FOLDER = ROOT / "docs" / "blocks"
OURS = [name for names in families().values() for name in names]
PAGES = ["index", *FAMILIES]


def block_of(name):
    """The class, or None where its library is not installed: its page keeps what it said."""
    try:
        return BLOCKS.get(name)
    except MissingExtraError:
        return None


def ports_of(example):
    """The example's inputs: numbers, or integers where the block wants them."""
    ports = [Port(shape) for shape in example.in_shapes.values()]
    for _ in ports:
        try:
            BLOCKS.get(example.block).check_ports(ports)
        except InputShapeError as error:
            wrong = {index: replace(ports[index], dtype=torch.int64) for index in error.got}
            ports = [wrong.get(index, port) for index, port in enumerate(ports)]
    return dict(zip(example.in_shapes, ports))


def without_out(node):
    return {key: value for key, value in node.items() if key != "out"}


HERE = [name for name in OURS if block_of(name)]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_the_classes_say(page):
    text = (FOLDER / f"{page}.md").read_text()
    assert text.count(MARK) == 1
    assert text == page_text(page, text), "run: python -m composer.reference.pages docs/blocks"


def test_every_block_is_on_exactly_one_page_and_in_the_index():
    pages = {page: (FOLDER / f"{page}.md").read_text() for page in FAMILIES}
    headings = [h for text in pages.values() for h in re.findall("^## (.*)$", text, re.M)]
    assert sorted(headings) == sorted(OURS)
    ours = [name for name in BLOCKS if BLOCKS.module_of(name).startswith("perception_blocks.")]
    assert sorted(OURS) == sorted(ours)
    listed = re.findall(r"^\| \[(\w+)\]", (FOLDER / "index.md").read_text(), re.M)
    assert listed == OURS


def test_there_is_no_page_without_a_family():
    assert sorted(path.stem for path in FOLDER.glob("*.md")) == sorted(PAGES)


def test_a_block_of_a_new_module_must_be_given_a_page(monkeypatch):
    monkeypatch.setitem(FAMILIES, "basic", "residual_dense")
    message = "the block 'dense' is in no family: name 'dense' in FAMILIES"
    with pytest.raises(LookupError, match=message):
        families()


@pytest.mark.parametrize("name", HERE)
def test_the_documentation_begins_with_one_sentence_and_its_shapes(name):
    first, _, more = documentation(BLOCKS.get(name)).partition("\n")
    assert first.endswith(".")
    assert len(first) < 120
    assert not more or more.startswith("\n")
    assert "``" in first


@pytest.mark.parametrize("name", HERE)
def test_every_setting_is_explained(name):
    block = BLOCKS.get(name)
    unexplained = [
        setting
        for setting in settings_of(block)[0]
        if setting not in MEANINGS and f"``{setting}``" not in documentation(block)
    ]
    assert unexplained == [], "say in composer/block_words.py what they mean"


def test_every_meaning_is_that_of_some_setting():
    known = {setting for name in HERE for setting in settings_of(BLOCKS.get(name))[0]}
    unused = sorted(MEANINGS.keys() - known)
    assert unused == [] or len(HERE) < len(OURS)


@pytest.mark.parametrize("name", HERE)
def test_the_example_of_a_block_composes_and_computes(name):
    example = example_of(name)
    assert example is not None, "its docstring shows none with plain values"
    node = load_source(f"graph:\n  {example}\n").data["graph"]["latent"]
    assert node.pop("block") == name
    ports = ports_of(example)
    graph = Graph(ports)
    graph.add("node", name, node.pop("in"), out=list(example.out_names), **without_out(node))
    net = InferenceBlock(graph, list(example.out_names)).eval()
    assert list(net.out_shapes.values()) == example.out_shapes
    assert net.state_shapes == {f"node/{key}": s for key, s in example.state_shapes.items()}
    sizes = {key: [6 if n is None else n for n in s] for key, s in example.in_shapes.items()}
    data = {key: torch.zeros(2, *size, dtype=ports[key].dtype) for key, size in sizes.items()}
    outputs = net(data)
    for output, shape in zip(outputs.values(), example.out_shapes):
        assert output.shape[0] == 2
        assert len(output.shape) == 1 + len(shape)


def test_writing_the_pages_keeps_what_is_above_the_mark(tmp_path):
    for page in PAGES:
        (tmp_path / f"{page}.md").write_text(f"# By hand: {page}\n\n{MARK}\nold\n")
    assert block_pages.main([str(tmp_path)]) == 0
    for page in PAGES:
        text = (tmp_path / f"{page}.md").read_text()
        assert text.startswith(f"# By hand: {page}\n\n{MARK}\n\n## ")
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        assert text.partition(MARK)[2] == (FOLDER / f"{page}.md").read_text().partition(MARK)[2]


def test_a_block_whose_library_is_missing_keeps_its_section(monkeypatch):
    text = (FOLDER / "memory.md").read_text()
    get = BLOCKS.get

    def without(name):
        if name in ("gru", "gtrxl"):
            raise MissingExtraError("needs 'nothing'")
        return get(name)

    index = (FOLDER / "index.md").read_text()
    monkeypatch.setattr(BLOCKS, "get", without)
    assert page_text("memory", text) == text
    assert page_text("index", index) == index
    bare = f"# By hand\n\n{MARK}\n"
    assert "\n## gru\n\nIt needs a library that is not installed here.\n" in page_text(
        "memory", bare
    )
    assert "| [gru](memory.md#gru) | |\n" in page_text("index", bare)


def test_plugins_are_on_no_page():
    class Foreign(PerceptionBlock):
        """Somebody else's."""

    BLOCKS.register("foreign", Foreign)
    try:
        assert "foreign" not in [name for names in families().values() for name in names]
    finally:
        del BLOCKS._entries["foreign"]
