"""Configs typed and deleted character by character: nothing fails, and the shapes of finished nodes stay known."""

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composer.editor.analysis import Analyser, Analysis
from composer.editor.environments import MadeSpaces, SpaceKeeper
from composer.errors import SpecError
from composer.spaces.lookup import made_spaces
from tests.helpers.paths import ROOT

CONFIGS = ROOT / "configs"
NAMES = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml"))
ALLOW = ("environments", "networks")
KNOWN = 0.99  # of the finished nodes
SLOWEST = 0.030  # seconds of the processor, of 95 of 100 checks


class Keeper(SpaceKeeper):
    """Environments are made here, once: a process for each takes seconds."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def of_environment(self, environment, allow, path, position):
        if environment not in self.made:
            try:
                self.made[environment] = MadeSpaces(*made_spaces(environment, path))
            except SpecError as error:
                self.made[environment] = error
        if isinstance(self.made[environment], SpecError):
            raise self.made[environment]
        return self.made[environment]


KEEPER = Keeper()


@pytest.fixture(autouse=True)
def beside_the_configs(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)


def look(analyser: Analyser, text: str, path: Path) -> Analysis:
    return analyser.analyse(text, str(path), allow=ALLOW)


def finished(whole: Analysis, line: int):
    """The nodes that end before ``line``; not a class or a template, which go on below their name."""
    for path, facts in whole.nodes.items():
        key, value = whole.index.span(path, key=True), whole.index.span(path)
        is_node = "graph" in path or path[-2:-1] == ("heads",)
        is_known = facts[0].outputs and not facts[0].guessed
        if is_node and is_known and key and value and (value.end.line or line) < line:
            yield path


def known_after_each(name: str, lengths) -> tuple[Counter, list[float]]:
    """How many finished nodes there were and how many were known, over texts of these lengths; and the times."""
    path = CONFIGS / f"{name}.yaml"
    text = path.read_text()
    whole = look(Analyser(KEEPER), text, path)
    analyser, counts, times = Analyser(KEEPER), Counter(), []
    for length in lengths(len(text)):
        start = time.process_time()
        analysis = look(analyser, text[:length], path)
        times.append(time.process_time() - start)
        nodes = list(finished(whole, text.count("\n", 0, length) + 1))
        known = [
            node for node in nodes if node in analysis.nodes and analysis.nodes[node][0].outputs
        ]
        counts += Counter(nodes=len(nodes), known=len(known))
    return counts, times


def typed(length):
    return range(0, length + 1)


def deleted(length):
    return range(length, -1, -1)


@pytest.mark.parametrize(("name", "step"), [("cartpole", 3), ("complex", 17), ("pick_place", 29)])
@pytest.mark.parametrize("lengths", [typed, deleted])
def test_finished_nodes_are_known(name, step, lengths):
    counts, _ = known_after_each(name, lambda length: lengths(length)[::step])
    assert counts["nodes"] > 0
    assert counts["known"] >= KNOWN * counts["nodes"]


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lengths", [typed, deleted])
def test_finished_nodes_are_known_after_every_character(name, lengths):
    counts, times = known_after_each(name, lengths)
    assert counts["known"] >= KNOWN * counts["nodes"]
    assert sorted(times)[int(0.95 * len(times))] < SLOWEST


WORDS = [
    "{", "}", "[", "]", ":", ": ", ",", "- ", "#", "&a ", "*a", "\n", "\n  ", "\n    ", "\t", "'", '"', "|", ">", "?",
    "${params.width}", "${", "block: dense", "in: latent", "in:", "graph:", "policy:", "critic:", "networks:",
    "same_as: latent", "each: 1", "template: auto", "_target_: os.system", "extends: x.yaml", "!!python/object:os", "é😀",
    "env=", "# composer: env=CartPole-v1\n", "version: 1\n", "1e999", "null", "~", "\x00", "\ufeff", "calls:", "model:",
]  # fmt: skip
EDIT = st.tuples(
    st.integers(0, 2000), st.integers(0, 40), st.lists(st.sampled_from(WORDS), max_size=4)
)


def edited(text: str, edits) -> str:
    for start, length, words in edits:
        at = start % (len(text) + 1)
        text = text[:at] + "".join(words) + text[at + length :]
    return text


ANY = Analyser(KEEPER)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["cartpole", "complex_shared", "knights_archers", "complex_template"]),
    st.lists(EDIT, max_size=4),
)
def test_no_text_is_an_exception(name, edits):
    path = CONFIGS / f"{name}.yaml"
    analysis = look(ANY, edited(path.read_text(), edits), path)
    assert analysis.problems or analysis.unknown or analysis.stage == "shapes"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), max_size=12))
def test_no_random_text_is_an_exception(parts):
    look(ANY, "".join(parts), CONFIGS / "random.yaml")
