"""Integers outside of their range: where a lookup fails, the network says which input held what."""

import re

import pytest
import torch

from perception_blocks.graph.graph import Graph
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import OutOfRangeError, Port

TOKEN = Port((), torch.int64, cardinality=8)
PAIR = Port((2,), torch.int64, cardinality=(3, 5))


def embedded(port, **settings):
    graph = Graph({"token": port, "near": (2,)})
    graph.add("vector", "embedding", "token", embedding_dim=4, **settings)
    graph.add("whole", "flatten", "vector")
    graph.add("latent", "concat", ["whole", "near"])
    return InferenceBlock(graph, ["latent"])


def refused(net, message, token):
    token = torch.tensor(token)
    leading = token.shape[: token.dim() - len(net.in_shapes["token"])]
    inputs = {"token": token, "near": torch.zeros(*leading, 2)}
    for run in (net, net.lower()):
        with pytest.raises(OutOfRangeError, match=f"^{re.escape(message)}$") as caught:
            run(inputs)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, IndexError)
        assert str(caught.value.__cause__) == "index out of range in self"


@pytest.mark.parametrize("value", [8, -1])
def test_a_value_beyond_its_range_is_told_with_its_input_and_its_reader(value):
    message = f"'token' holds {value}, but has 8 values, 0 to 7; it is read by embedding 'vector'"
    refused(embedded(TOKEN), message, [[0, 7], [value, 1]])
    refused(embedded(TOKEN), message, value)


def test_each_element_has_its_own_number_of_values():
    message = "'token' holds 5, but has 5 values, 0 to 4; it is read by embedding 'vector'"
    refused(embedded(PAIR), message, [[2, 4], [1, 5]])


def test_what_a_nested_network_reads_is_named_as_it_is_outside():
    inner = Graph({})
    inner.add("vector", "embedding", "x", embedding_dim=4)
    outer = Graph({"token": TOKEN})
    outer.add("words", inner, {"x": "token"}, out=["vector"])
    message = "'token' holds 9, but has 8 values, 0 to 7; it is read by graph 'words'"
    with pytest.raises(OutOfRangeError, match=f"^{re.escape(message)}$"):
        InferenceBlock(outer, ["vector"])({"token": torch.tensor([9])})


def test_an_index_error_of_another_reason_stays_what_it_is():
    class Fails(torch.nn.Module):
        def forward(self, x):
            if x.is_meta:
                return x
            raise IndexError("of my own")

    graph = Graph({"token": TOKEN})
    graph.add("latent", "embedding", "token", embedding_dim=4)
    graph.add("own", Fails, "latent")
    with pytest.raises(IndexError, match=r"^of my own$"):
        InferenceBlock(graph, ["own"])({"token": torch.tensor([1])})
