"""On the meta device nothing is drawn, norms keep the shape, and what is on the host stays real."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from perception_blocks.measure import MetaMode


def test_layers_are_made_without_values():
    with MetaMode():
        layer = nn.Linear(4, 3)
    assert (layer.weight.is_meta, layer.weight.shape) == (True, (3, 4))


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.LayerNorm((2, 8))])
def test_a_norm_keeps_shape_and_dtype(norm):
    with MetaMode():
        y = norm.to("meta")(torch.empty(5, 2, 8, dtype=torch.float64))
    assert (y.shape, y.dtype, y.is_meta) == ((5, 2, 8), torch.float64, True)


def test_a_norm_of_another_shape_is_refused_by_torch():
    with MetaMode(), pytest.raises(RuntimeError, match="normalized_shape"):
        nn.LayerNorm(8)(torch.empty(5, 7))


def test_what_is_on_the_host_is_drawn_and_normed_for_real():
    with MetaMode():
        drawn = nn.init.uniform_(torch.zeros(100, device="cpu"), 1, 2)
        normed = nn.functional.layer_norm(drawn, (100,))
    assert drawn.min() >= 1
    assert normed.mean().abs() < 1e-4


def test_measuring_a_norm_does_not_import_torchs_compiler():
    code = """
import sys, torch
from perception_blocks import Graph, InferenceBlock
graph = Graph({"x": (5, 8)})
graph.add("normed", torch.nn.LayerNorm, "x", normalized_shape=8)
assert InferenceBlock(graph, ["normed"]).out_shapes == {"normed": (5, 8)}
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
