"""Every block with inputs of every kind and number, and settings of every kind: it is built, or says in words why not.

What it advises to put before it is put there, and then the advice is gone.
"""

import itertools
import re

import pytest
import torch

from perception_blocks.graph.graph import Graph, GraphError
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import Port
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import settings_of
from tests.whole.test_block_contract import SAMPLES, image, integers

KINDS = {
    "scalar": Port(()),
    "vector": Port((5,)),
    "window": Port((6, 4)),
    "rows": Port((3, 5)),
    "picture": Port((3, 16, 16)),
    "bytes": Port((16, 16, 3), torch.uint8, low=0, high=255, channels="last"),
    "screens": Port((2, 3, 16, 16)),
    "choice": integers(of=5),
    "choices": integers(2, of=(3, 4)),
    "tokens": integers(6, of=7),
    "set": Port((None, 4)),
    "links": integers(None, 2, of=9),
    "ram": image(8),
    "nodes": Port((None, 4), mask="present"),
    "present": Port((None,), torch.bool),
}
SETTINGS = {}
for sample in SAMPLES:
    SETTINGS.setdefault(sample.block, sample.settings)
WRONG = [
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "zzz",
    [],
    [0],
    [[1]],
    [None],
    {},
    {"a": 1},
]
WRONG += [[3, "x"], {"relu": {}}, {"zzz": {"a": 1}}, "torch.nn.Linear", [1] * 50, (2, 2, 2, 2)]


def problems(graph, outputs=("x",)):
    """Why the graph cannot be built: nothing if it can. Whatever is no GraphError passes through."""
    try:
        with torch.device("meta"):
            InferenceBlock(graph, outputs=list(outputs))
    except GraphError as error:
        return [problem.message for problem in error.problems]
    return []


def reading(block, names, settings, before=()):
    """A graph in which ``block`` reads ``names``; ``before`` are nodes as (name, block, inputs, settings)."""
    graph = Graph(KINDS, optional=KINDS)
    for name, kind, inputs, own in before:
        graph.add(name, kind, inputs, **own)
    graph.add("x", block, names, **settings)
    return graph


@pytest.mark.parametrize("block", list(BLOCKS))
def test_wrong_inputs_are_answered_in_words(block):
    pairs = itertools.product(KINDS, repeat=2)
    triples = zip(KINDS, [*KINDS][1:], [*KINDS][2:])
    for names in [(), *((kind,) for kind in KINDS), *pairs, *triples, tuple(KINDS)]:
        for message in problems(reading(block, names, SETTINGS[block])):
            assert re.search(r"\w{3} \w+ ", message), (names, message)
            assert not re.search(r"Error\b|object at|must be Tensor", message), (names, message)


@pytest.mark.parametrize("block", list(BLOCKS))
def test_wrong_settings_are_answered_in_words(block):
    sample = next(each for each in SAMPLES if each.block == block)
    inputs = {f"in{index}": port for index, port in enumerate(sample.ports)}
    for name, wrong in itertools.product(settings_of(BLOCKS.get(block))[0], WRONG):
        graph = Graph(inputs, optional=inputs)
        graph.add("x", block, [*inputs], **{**sample.settings, name: wrong})
        for message in problems(graph):
            assert re.search(r"\w{3} \w+ ", message), (name, wrong, message)


ADVISED = re.compile(r"\. ((?:Put|Add) .*)\.$")


@pytest.mark.parametrize("block", list(BLOCKS))
def test_what_is_put_before_a_block_helps(block):
    """As often as there is advice: it is never given twice, and in the end there is no complaint that has a way out."""
    pairs = [
        ("vector", "picture"),
        ("vector", "bytes"),
        ("bytes", "choice"),
        ("window", "rows"),
        ("choices", "vector"),
    ]
    for names in [
        *((kind,) for kind in KINDS if kind not in ("set", "links", "nodes", "present")),
        *pairs,
    ]:
        nodes = {"x": (block, names, SETTINGS[block])}
        seen = []
        while (found := advice(nodes)) and "in its place" not in found[1]:
            assert found not in seen, (names, seen)
            seen.append(found)
            assert len(seen) < 6, (names, seen)
            follow(*found, nodes)


def advice(nodes):
    """The node of the first problem that has advice, and what to put where."""
    graph = Graph(KINDS, optional=KINDS)
    for name, (kind, inputs, settings) in nodes.items():
        graph.add(name, kind, list(inputs), **settings)
    try:
        with torch.device("meta"):
            InferenceBlock(graph, outputs=["x"])
    except GraphError as error:
        for problem in error.problems:
            if found := ADVISED.search(problem.message):
                return problem.path[-1], found[1]
    return None


def follow(node, advised, nodes):
    """Put before ``node`` what is ``advised``."""
    block, reads, settings = nodes[node]
    for part in advised.split(", and "):
        kind = re.search(r"an? (\w+)(?: or \w+)? block", part)[1]
        after = re.findall(r"'(\w+)'", part)
        if kind == "concat":
            reads = (insert(kind, reads, nodes),)
        elif "each uint8 observation" in part:
            bytes_read = [name for name, port in KINDS.items() if port.dtype == torch.uint8]
            for name, (own, inputs, more) in [*nodes.items()]:
                inner = (insert(kind, (i,), nodes) if i in bytes_read else i for i in inputs)
                nodes[name] = (own, tuple(inner), more)
            return
        else:
            scaled = {name: name for name in reads}
            wanted = [
                n
                for n in reads
                if not after or n in after or any(n in nodes and nodes[n][1] == (a,) for a in after)
            ]
            scaled |= {name: insert(kind, (name,), nodes) for name in wanted}
            reads = tuple(scaled[name] for name in reads)
    nodes[node] = (block, reads, settings)


def insert(kind, inputs, nodes):
    name = f"n{len(nodes)}"
    nodes[name] = (kind, inputs, {"embedding_dim": 3} if kind == "embedding" else {})
    return name
