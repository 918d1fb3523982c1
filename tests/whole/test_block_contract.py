"""What every registered block must hold, whatever it computes. A block without a sample here fails."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perception_blocks.base_block import MemoryBlock, PerceptionBlock
from perception_blocks.port import Port, as_port
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import settings_of
from tests.helpers.host_reads import NoHostReads
from tests.helpers.random_states import random_state

LEADING = [(), (1,), (5, 2), (0,)]


@dataclass
class Sample:
    """A way to build a block: its inputs and settings, and what it cannot do."""

    block: str
    inputs: list[Any]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def ports(self) -> list[Port]:
        return [as_port(value) for value in self.inputs]

    def build(self, **changes: Any) -> PerceptionBlock:
        block = BLOCKS.get(self.block)
        block.check_ports(self.ports)
        return block([port.shape for port in self.ports], **{**self.settings, **changes})

    def data(self, leading: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [values(port, leading, dtype) for port in self.ports]

    def __str__(self) -> str:
        """The test's id: the same in every process, so no address of a function in it."""
        named = {k: getattr(v, "__name__", v) for k, v in self.settings.items()}
        settings = ",".join(f"{k}={v}" for k, v in named.items())
        shapes = ",".join(str(port.shape) for port in self.ports)
        return f"{self.block}[{shapes}]({settings})".replace(" ", "")


def values(port: Port, leading: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    shape = (*leading, *(9 if size is None else size for size in port.shape))
    if port.is_integer:
        most = (
            port.cardinality if isinstance(port.cardinality, int) else min(port.cardinality or ())
        )
        return torch.randint(most, shape)
    if port.dtype == torch.uint8:
        return torch.randint(256, shape, dtype=torch.uint8)
    return torch.randn(shape, dtype=dtype)


def integers(*shape: int | None, of: Any) -> Port:
    return Port(shape, torch.int64, of)


def image(*shape: int) -> Port:
    return Port(shape, torch.uint8, low=0, high=255)


CONV = {"hidden_channels": [4, 5], "hidden_kernels": [3, 2], "strides": [2, 1]}
SAMPLES = [
    Sample("dense", [(3,)], {"hidden_units": [8, 4]}),
    Sample("dense", [(3,)], {"hidden_units": 4, "norm": "batch", "activation": "prelu"}),
    Sample("dense", [(3,)], {"hidden_units": [4], "norm": "rms", "dropout": 0.5, "bias": False}),
    Sample("dense", [(3,)], {"hidden_units": [4, 4], "norm": "layer", "last_activation": "tanh"}),
    Sample("linear_output", [(3,)], {"output_units": 2, "init_bias": [0.5, 1.0]}),
    Sample("linear_output", [(3,)], {"output_shape": [2, 3], "init_scale": 0.01}),
    Sample("flatten_dense", [(3, 4)], {"hidden_units": [5]}),
    Sample("flatten_dense", [()], {"hidden_units": [5]}),
    Sample("strided_conv", [(2, 9)], CONV),
    Sample("strided_conv", [(2, 9, 10)], CONV),
    Sample("strided_conv", [(2, 9, 8, 7)], CONV),
    Sample("strided_conv", [(2, None, 8)], CONV),
    Sample("strided_conv", [(2, 6, 7)], {**CONV, "padding": [[[1, 2], 0], "same"]}),
    Sample("strided_conv", [(2, 6, 7)], {**CONV, "padding": 1, "padding_mode": "reflect"}),
    Sample("strided_conv", [(9, 2)], {**CONV, "channels": "last"}),
    Sample("strided_conv", [(9, 10, 2)], {**CONV, "channels": "last", "padding": [0, [[0, 1], 0]]}),
    Sample("strided_conv_dense", [(9, 8, 7, 2)], {**CONV, "channels": "last", "hidden_units": 6}),
    Sample("strided_conv_dense", [(2, 9)], {**CONV, "hidden_units": [6]}),
    Sample("strided_conv_dense", [(2, 9, 10)], {**CONV, "hidden_units": 6}),
    Sample("strided_conv", [(9, 2)], {**CONV, "channels": "last", "norm": "batch"}),
    Sample("strided_conv_dense", [(2, 9, 10)], {**CONV, "hidden_units": 6, "norm": "batch"}),
    Sample(
        "vgg_conv_dense", [(2, 9)], {"hidden_channels": [3], "hidden_units": 6, "norm": "batch"}
    ),
    Sample("vgg_conv", [(2, 9, 10)], {"hidden_channels": [3, 4]}),
    Sample("vgg_conv_dense", [(2, 9, 10)], {"hidden_channels": [3], "hidden_units": [6]}),
    Sample("nature_cnn", [(2, 36, 40)], {"hidden_channels": [3, 4, 5]}),
    Sample("nature_cnn_dense", [(2, 36, 40)], {"hidden_channels": [3, 4, 5], "hidden_units": [6]}),
    Sample("flatten", [(2, 3, 4)]),
    Sample("flatten", [(2, 3, 4)], {"num_dims": 2}),
    Sample("flatten", [()]),
    Sample("permute", [(2, 3, 4)], {"axes": [2, 0, -2]}),
    Sample("permute", [(None, 3)], {"axes": [1, 0]}),
    Sample("channels_first", [(8, 9, 3)]),
    Sample("channels_first", [(None, 3)]),
    Sample("detach", [(2, 3)]),
    Sample("detach", [()]),
    Sample("concat", [(3,), (4,)]),
    Sample("concat", [(3, 2), (4, 2), (1, 2)], {"dim": -2}),
    Sample("one_hot", [integers(of=5)], {"num_embeddings": 5}),
    Sample("one_hot", [integers(2, 2, of=5)], {"num_embeddings": 5}),
    Sample("one_hot", [integers(2, 2, of=(3, 2, 4, 5))], {"num_embeddings": (3, 2, 4, 5)}),
    Sample("embedding", [integers(of=5)], {"num_embeddings": 5, "embedding_dim": 3}),
    Sample("embedding", [integers(2, of=(3, 2))], {"num_embeddings": [3, 2], "embedding_dim": 3}),
    Sample("lstm", [(3,)], {"hidden_units": 4}),
    Sample("lstm", [(3,)], {"hidden_units": 4, "num_layers": 2, "dropout": 0.5}),
    Sample("lstm", [(6, 3)], {"hidden_units": 4, "bidirectional": True, "num_layers": 2}),
    Sample("gru", [(3,)], {"hidden_units": 4}),
    Sample("gru", [(3,)], {"hidden_units": 4, "num_layers": 2, "layer_norm": True}),
    Sample("gru", [(None, 3)], {"hidden_units": 4}),
    Sample("lstm_last_step", [(6, 3)], {"hidden_units": 4}),
    Sample("lstm_last_step", [(6, 3)], {"hidden_units": 4, "bidirectional": True}),
    Sample("add", [(4,), (3, 4), (3, 1)]),
    Sample("multiply", [(3, 4), (3, 4)]),
    Sample("gated_sum", [(4,), (3, 4)]),
    Sample("gated_sum", [(4,), (4,), (4,)], {"gate": "softmax"}),
    Sample("correlation", [(5, 4), (4,)]),
    Sample("correlation", [(5, 4), (1, 4)], {"reduce": True}),
    Sample("slice", [(5, 4)], {"dim": 0, "index": -1}),
    Sample("slice", [(4,)], {"dim": -1, "index": 2}),
    Sample("multi_index_slice", [(5, 4)], {"dim": -2, "indices": [3, 0]}),
    Sample("repeat_to_match", [(1, 4), (6, 3)], {"dim": 0}),
    Sample("repeat_to_match", [(2, 1), (None, 3)], {"dim": -1}),
    Sample("residual_dense", [(3,)], {"hidden_units": 8}),
    Sample("residual_dense", [(3,)], {"hidden_units": 8, "form": "bronet", "activation": "prelu"}),
    Sample("noisy_dense", [(3,)], {"hidden_units": [8, 4]}),
    Sample("noisy_dense", [(3,)], {"hidden_units": 4, "bias": False, "norm": "layer"}),
    Sample("fourier_features", [(3,)], {"num_frequencies": 8}),
    Sample("fourier_features", [(3,)], {"learned": True, "include_input": True}),
    Sample("positional_encoding", [(6, 5)]),
    Sample("positional_encoding", [(None, 4)]),
    Sample("positional_encoding", [(6, 4)], {"learned": True}),
    Sample("positional_encoding", [(None, 4)], {"learned": True, "max_length": 12}),
    Sample("rnn", [(3,)], {"hidden_units": 4}),
    Sample("rnn", [(3,)], {"hidden_units": 4, "num_layers": 2, "nonlinearity": "relu"}),
    Sample("rnn", [(6, 3)], {"hidden_units": 4, "bidirectional": True, "layer_norm": True}),
    Sample("frame_stack", [(3,)]),
    Sample("frame_stack", [(2, 3, 4)], {"num_frames": 3, "axis": "first"}),
    Sample("frame_stack", [(2, 3)], {"num_frames": 2, "axis": "last"}),
    Sample("min_gru", [(3,)], {"hidden_units": 4}),
    Sample("min_gru", [(3,)], {"hidden_units": 4, "num_layers": 2, "layer_norm": True}),
    Sample("lru", [(3,)], {"hidden_units": 4}),
    Sample("lru", [(3,)], {"hidden_units": 4, "state_units": 6, "min_radius": 0.9}),
    Sample("gtrxl", [(3,)], {"hidden_units": 8, "num_heads": 2, "memory_length": 3}),
    Sample("gtrxl", [(3,)], {"hidden_units": 4, "num_layers": 1, "memory_length": 12}),
    Sample("decoder", [integers(of=5)], {"vocab_size": 5, "width": 8, "max_length": 12}),
    Sample(
        "decoder",
        [integers(of=5)],
        {
            "vocab_size": 5,
            "width": 12,
            "num_layers": 1,
            "num_kv_heads": 2,
            "head_dim": 4,
            "positions": "learned",
            "norm": "layer",
            "gated": False,
            "sliding_window": 3,
            "max_length": 600,
        },
    ),
    Sample("decoder", [integers(6, of=5)], {"vocab_size": 5, "width": 8, "norm": "rms_plus_one"}),
    Sample("decoder", [integers(None, of=5)], {"vocab_size": 5, "width": 8, "num_kv_heads": 1}),
    Sample("dueling", [(3,)], {"output_units": 2}),
    Sample("dueling", [(3,)], {"output_units": 4, "hidden_units": [8], "baseline": "max"}),
    Sample("value", [(3,)], {"init_scale": 0.1}),
    Sample("quantile_value", [(3,)], {"num_quantiles": 7}),
    Sample("quantile_value", [(3,)], {"output_units": 2, "num_quantiles": 7}),
    Sample("categorical_value", [(3,)], {"spacing": "symlog"}),
    Sample("categorical_value", [(3,)], {"spacing": "symexp", "num_bins": 255}),
    Sample("categorical_value", [(3,)], {"output_units": 2, "num_bins": 5, "low": 0}),
    Sample("action_masking", [(4,), integers(4, of=2)]),
    Sample("action_masking", [(3, 4), (4,)], {"debug": True}),
    Sample("functional", [(3,), (3,)], {"function": "add"}),
    Sample("functional", [(3, 4)], {"function": torch.sum, "dim": -1}),
    Sample("scale_image", [image(8, 9, 3)], {"low": 0, "high": 255}),
    Sample("scale_image", [image(3, 8, 9)], {"low": 0, "high": 255, "channels": "first"}),
    Sample("scale_image", [image(8, 9)], {"low": 0, "high": 255}),
    Sample("scale_image", [(2,)], {"low": (0.0, -1.0), "high": (1.0, 1.0)}),
    Sample("normalize", [(3, 2)]),
]
SETS = [(7, 3), integers(7, of=2)]  # elements, and which of them count
SAMPLES += [
    Sample("global_average_pooling", [(3, 5, 6)]),
    Sample("global_average_pooling", [(3, None)]),
    Sample("vgg_conv_gap", [(2, 9, 10)], {"hidden_channels": [3, 4]}),
    Sample("masked_global_pooling", SETS),
    Sample("masked_global_pooling", [(None, 3)], {"pooling": "max"}),
    Sample("masked_global_pooling", [(2, 4, 3), (2, 4)], {"dims": [-3, -2], "pooling": "sum"}),
    Sample("impala_cnn", [(2, 9, 10)], {"hidden_channels": [3, 4]}),
    Sample("impala_cnn", [(2, None)], {"hidden_channels": [3], "num_blocks": 1}),
    Sample("res_conv", [(2, 9, 10)], {"hidden_channels": [2, 4], "strides": [1, 2]}),
    Sample("res_conv", [(2, 9, 8)], {"hidden_channels": [4], "norm": "batch"}),
    Sample("res_conv", [(2, 9)], {"hidden_channels": [4], "hidden_kernels": 2, "norm": "layer"}),
]
SEEN, PAIRS = integers(7, of=2), integers(7, 7, of=2)  # keys of a set that may be attended to
QUERY_KEY_VALUE = [(4, 6), (7, 5), (7, 3)]
SAMPLES += [
    Sample("multi_head_attention", QUERY_KEY_VALUE, {"num_heads": 2}),
    Sample("multi_head_attention", [*QUERY_KEY_VALUE, SEEN], {"return_weights": True}),
    Sample("multi_head_attention", [*QUERY_KEY_VALUE, integers(2, 4, 7, of=2)], {"num_heads": 2}),
    Sample("multi_head_attention", [*QUERY_KEY_VALUE, integers(4, 7, of=2), SEEN]),
    Sample("self_attention_seq", [(None, 4)], {"num_heads": 2, "causal": True, "dropout": 0.5}),
    Sample("self_attention_seq", [(7, 4), SEEN], {"hidden_units": 6, "return_weights": True}),
    Sample("self_attention_seq", [(7, 4), PAIRS, SEEN], {"causal": True, "residual": True}),
    Sample("self_attention_seq", [(4,)], {"num_heads": 2, "return_weights": True}),
    Sample("self_attention_seq", [(7, 4), SEEN], {"init_gain": 0.0, "residual": True}),
    Sample("cross_attention", [(4,), (7, 3), SEEN], {"num_heads": 2}),
    Sample("cross_attention", [(4,), (None, 3)], {"return_weights": True, "residual": True}),
    Sample("cross_attention", [(5, 4), (7, 3), integers(5, 7, of=2)], {"bias": False}),
    Sample("transformer_encoder", [(7, 4)], {"num_layers": 2, "num_heads": 2, "causal": True}),
    Sample("transformer_encoder", [(7, 4), SEEN], {"dropout": 0.5, "activation": "gelu"}),
    Sample("self_attention_conv", [(9, 3, 4)]),
    Sample("self_attention_conv", [(2, 7), SEEN], {"return_weights": True}),
    Sample("self_attention_conv", [(2, None, 7)]),
    Sample("self_attention_conv", [(2, 1, 7), PAIRS], {"hidden_channels": 3, "init_gain": 0.5}),
]
SAMPLES += [
    Sample("deep_set", SETS, {"hidden_units": 4, "norm": "layer"}),
    Sample("deep_set", [(None, 3)], {"hidden_units": [4], "element_units": 5, "pooling": "max"}),
    Sample("attention_pooling", SETS, {"hidden_units": 4, "num_heads": 2, "num_seeds": 2}),
    Sample("attention_pooling", [(None, 3)], {"return_weights": True}),
    Sample("point_net", SETS, {"hidden_units": [4, 5], "feature_transform": True}),
    Sample("point_net", SETS, {"hidden_units": 4, "input_transform": True, "norm": "rms"}),
    Sample("point_net", [(None, 3)], {"pooling": "mean"}),
    Sample("point_net", SETS, {"hidden_units": [4, 5], "return_points": True}),
    Sample("point_net", [(7, 3)], {"hidden_units": 4, "norm": "batch", "feature_transform": True}),
]
NODES, NODE_SET = [(7, 3), PAIRS], [(7, 3), PAIRS, SEEN]
EDGES = {"edges": [[0, 1], [1, 2], [2, 0], [2, 3]]}
SAMPLES += [
    Sample("adjacency", [(5, 3), integers(7, 2, of=5)], {}),
    Sample("adjacency", [(5, 3), integers(7, 2, of=5), integers(7, of=2)], {"directed": False}),
    Sample("graph_conv", NODES, {"hidden_units": [5, 4], "learn_self_weight": True}),
    Sample("graph_conv", NODE_SET, {"hidden_units": 4, "self_weight": 2.0, "bias": False}),
    Sample("graph_conv", [(None, 3), integers(None, None, of=2)], {"hidden_units": 4}),
    Sample("graph_conv", NODES, {"hidden_units": [5, 4], "bias": [False, True]}),
    Sample("graph_attention", NODES, {"hidden_units": 4, "bias": False, "negative_slope": 0.1}),
    Sample("graph_attention", NODES, {"hidden_units": [6, 4], "num_heads": 2}),
    Sample("graph_attention", NODE_SET, {"hidden_units": 4, "return_weights": True}),
    Sample("graph_attention", NODES, {"hidden_units": 3, "num_heads": 2, "average_heads": True}),
    Sample("graph_network", [(5, 3), (4, 2)], {**EDGES, "hidden_units": [6, 4]}),
    Sample("graph_network", [(5, 3), (4, 2)], {**EDGES, "hidden_units": [6, 4], "norm": "layer"}),
    Sample("graph_network", [(5, 3)], {**EDGES, "hidden_units": 4, "directed": True}),
    Sample(
        "graph_network",
        [(5, 3), (4, 2)],
        {
            **EDGES,
            "hidden_units": 4,
            "edge_units": 2,
            "node_to_edge": "none",
            "edge_to_node": "max",
        },
    ),
]
EDGE_LIST = [(5, 4), integers(7, 2, of=5)]
GRAPH_MASKS = [integers(5, of=2), integers(7, of=2)]
SAMPLES += [
    Sample("message_passing", EDGE_LIST, {"conv": "GCNConv", "hidden_units": [6, 4]}),
    Sample("message_passing", EDGE_LIST, {"conv": "GINConv", "hidden_units": 4}),
    Sample(
        "message_passing",
        [*EDGE_LIST, *GRAPH_MASKS],
        {"conv": "SAGEConv", "hidden_units": 4, "settings": {"aggr": "max"}},
    ),
    Sample(
        "message_passing",
        [*EDGE_LIST, (7, 2), *GRAPH_MASKS],
        {"conv": "GATv2Conv", "hidden_units": 4, "settings": {"heads": 2}, "activation": "prelu"},
    ),
    Sample(
        "message_passing",
        [(None, 4), integers(None, 2, of=9), (None, 1)],
        {"conv": "GraphConv", "hidden_units": 4, "directed": False},
    ),
]
TOKENS = [integers(7, of=5), integers(7, of=2)]  # a sequence, and which tokens there are
SMALL = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
SAMPLES += [
    Sample("transformer", TOKENS, {"family": "gpt2", "vocab_size": 5, "n_positions": 9, **SMALL}),
    Sample("transformer", TOKENS[:1], {"family": "gpt2", "vocab_size": 5, "read": "all", **SMALL}),
    Sample(
        "transformer",
        [integers(None, of=5), integers(None, of=2)],
        {"family": "llama", "vocab_size": 5, "intermediate_size": 12, "read": "all", **SMALL},
    ),
    Sample(
        "transformer",
        TOKENS,
        {"family": "mamba", "vocab_size": 5, "num_hidden_layers": 2, "hidden_size": 8},
    ),
]
RESNET = {"embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1], "layer_type": "basic"}
VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
SAMPLES += [
    Sample("vision_model", [(2, 16, 18)], {"family": "resnet", **RESNET}),
    Sample("vision_model", [(3, 9, 16)], {"family": "resnet", "read": "map", **RESNET}),
    Sample("vision_model", [(2, 8, 12)], {"family": "vit", "patch_size": 4, **VIT}),
    Sample("vision_model", [(3, 8, 8)], {"family": "siglip_vision_model", "patch_size": 4, **VIT}),
    Sample(
        "preprocess_image", [image(9, 8, 3)], {"low": 0, "high": 255, "size": (6, 12), "crop": 5}
    ),
    Sample("preprocess_image", [image(1, 9, 8)], {"low": 0, "high": 255, "rgb": True, "std": 2}),
    Sample(
        "preprocess_image",
        [(3, None, None)],
        {"low": 0, "high": 1, "size": 4, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3]},
    ),
]
MEMORY = [s for s in SAMPLES if s.build().state_shapes]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)
memory_samples = pytest.mark.parametrize("sample", MEMORY, ids=str)


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def fits(real: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    """A varying axis may have any size."""
    return len(real) == len(declared) and all(d in (None, r) for r, d in zip(real, declared))


@pytest.mark.parametrize("name", list(BLOCKS))
def test_every_registered_block_has_a_sample(name):
    assert name in {sample.block for sample in SAMPLES}


@pytest.mark.parametrize("name", list(BLOCKS))
def test_every_block_and_setting_is_described(name):
    block = BLOCKS.get(name)
    assert inspect.getdoc(block) != inspect.getdoc(PerceptionBlock)
    assert ">>>" in (block.__doc__ or "")
    signature = inspect.signature(block.__init__)
    for setting in settings_of(block)[0].values():
        assert setting.annotation is not Any
        assert signature.parameters[setting.name].kind is inspect.Parameter.KEYWORD_ONLY


@every_sample
def test_declared_shape_is_the_real_shape(sample):
    block = sample.build().eval()
    for leading in LEADING:
        outputs = as_tuple(block(*sample.data(leading)))
        assert len(outputs) == len(block.out_shapes)
        for output, shape in zip(outputs, block.out_shapes):
            assert output.shape[: len(leading)] == leading
            assert fits(tuple(output.shape[len(leading) :]), shape), leading
            assert output.is_floating_point()


@every_sample
def test_declared_shape_is_the_real_shape_in_training(sample):
    block = sample.build().train()
    for leading in [(5, 2), (0,)]:
        for output, shape in zip(as_tuple(block(*sample.data(leading))), block.out_shapes):
            assert fits(tuple(output.shape[len(leading) :]), shape)


@every_sample
def test_batched_equals_one_by_one(sample):
    block = sample.build().eval()
    data = sample.data((5, 2))
    together = as_tuple(block(*data))
    for i, j in itertools.product(range(5), range(2)):
        alone = as_tuple(block(*(x[i, j] for x in data)))
        for one, many in zip(alone, together):
            torch.testing.assert_close(one, many[i, j], atol=1e-5, rtol=1e-5)


@every_sample
def test_running_a_block_leaves_it_as_it_was(sample):
    block = sample.build().eval()
    before = copy.deepcopy(block.state_dict())
    block(*sample.data((5,)))
    for name, tensor in block.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


@every_sample
def test_copies_compute_the_same_and_share_nothing(sample):
    block = sample.build().eval()
    data = sample.data((5,))
    for copied in (copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))):
        twin = copied(block)
        torch.testing.assert_close(twin(*data), block(*data))
        assert twin.out_shapes == block.out_shapes
        theirs = {tensor.data_ptr() for tensor in twin.parameters()}
        assert not theirs & {tensor.data_ptr() for tensor in block.parameters()}


@every_sample
def test_state_dict_carries_all_that_matters(sample):
    block, other = sample.build().eval(), sample.build().eval()
    other.load_state_dict(block.state_dict())
    data = sample.data((5,))
    torch.testing.assert_close(other(*data), block(*data))


@every_sample
def test_a_block_on_the_meta_device_allocates_nothing_and_can_come_back(sample):
    real = sample.build().eval()
    with torch.device("meta"):
        block = sample.build().eval()
    assert all(tensor.is_meta for tensor in block.state_dict().values())
    assert block.out_shapes == real.out_shapes
    block = block.to_empty(device="cpu")
    block.load_state_dict(real.state_dict())
    data = sample.data((5,))
    torch.testing.assert_close(block(*data), real(*data))


@every_sample
def test_a_block_follows_its_dtype(sample):
    block = sample.build().eval().bfloat16()
    for output in as_tuple(block(*sample.data((5,), torch.bfloat16))):
        assert output.dtype == torch.bfloat16


@every_sample
def test_drawing_depends_on_the_generator_alone_and_leaves_nothing_undrawn(sample):
    first, second = sample.build(), sample.build()
    for block in (first, second):
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.fill_(torch.nan)
        state = torch.random.get_rng_state()
        block.reset_parameters(torch.Generator().manual_seed(3))
        assert torch.equal(state, torch.random.get_rng_state())
    for (name, one), two in zip(first.state_dict().items(), second.state_dict().values()):
        assert torch.isfinite(one).all(), name
        assert torch.equal(one, two), name


@every_sample
def test_gradients_reach_every_parameter(sample):
    block = sample.build().train()
    outputs = as_tuple(block(*sample.data((6,))))
    if not list(block.parameters()):
        return
    torch.stack([output.square().sum() for output in outputs]).sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name


def compile_whole(
    sample: Sample,
    backend: str = "eager",
    dynamic: bool | None = None,
    leading: Sequence[tuple[int, ...]] = (),
) -> None:
    """Each ``leading`` is compiled anew, which takes long: by default it is one, with two axes for every other sample."""
    block = sample.build().eval()
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=dynamic)
    for axes in leading or [((5,), (3, 2))[SAMPLES.index(sample) % 2]]:
        data = sample.data(axes)
        torch.testing.assert_close(compiled(*data), block(*data), atol=1e-5, rtol=1e-5)


@pytest.mark.full
@pytest.mark.filterwarnings("default")  # of the compiler's own
@every_sample
def test_a_block_is_compiled_to_the_same_numbers(sample):
    if "compile" not in BLOCKS.get(sample.block).limits:
        compile_whole(sample, "inductor", dynamic=False, leading=[(5,), (3, 2)])


def export_with_a_dynamic_batch(sample: Sample) -> None:
    block = sample.build().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    leaves = tuple({0: batch} for _ in sample.inputs)
    arguments = inspect.signature(block.forward).parameters.values()
    several = any(p.kind is p.VAR_POSITIONAL for p in arguments)
    exported = torch.export.export(
        block, tuple(sample.data((4,))), dynamic_shapes=(leaves,) if several else leaves
    )
    data = sample.data((7,))
    torch.testing.assert_close(exported.module()(*data), block(*data), atol=1e-5, rtol=1e-5)


def vmap(sample: Sample) -> None:
    block = sample.build().eval()
    data = sample.data((5,))
    torch.testing.assert_close(torch.func.vmap(block)(*data), block(*data), atol=1e-5, rtol=1e-5)


def run_without_host_reads(sample: Sample) -> None:
    with torch.device("meta"):
        block = sample.build().eval()
    inputs = [value.to("meta") for value in sample.data((5,))]
    with NoHostReads():
        block(*inputs)


# What a wrapped library may make impossible; its block's class says so in `limits`, under these names.
ABILITIES = {
    "compile": compile_whole,
    "export": export_with_a_dynamic_batch,
    "vmap": vmap,
    "cuda_graph": run_without_host_reads,
}


# Of other libraries' code, whose numbers are right all the same.
@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:Dynamo detected a call")
@every_sample
@pytest.mark.parametrize("ability", ABILITIES)
def test_a_block_can_do_all_that_its_class_does_not_rule_out(sample, ability):
    if ability not in BLOCKS.get(sample.block).limits:
        ABILITIES[ability](sample)


LIMITS = [(name, limit) for name in BLOCKS for limit in BLOCKS.get(name).limits]


@pytest.mark.parametrize(("name", "limit"), LIMITS)
def test_a_limit_is_a_real_one(name, limit):
    """Some sample fails; a limit that is gone is to be taken off the class."""
    failed = 0
    for sample in [sample for sample in SAMPLES if sample.block == name]:
        try:
            ABILITIES[limit](sample)
        except Exception:
            failed += 1
    assert failed


@every_sample
def test_a_block_prints_on_its_first_line_what_it_reads(sample):
    block = sample.build()
    assert f"in_shapes={block.in_shapes}" in repr(block)


@every_sample
def test_out_ports_have_the_out_shapes(sample):
    block = sample.build()
    ports = block.out_ports(sample.ports)
    assert [port.shape for port in ports] == block.out_shapes


@every_sample
def test_an_unknown_setting_is_refused(sample):
    if settings_of(BLOCKS.get(sample.block))[1]:
        return  # it hands its settings on
    with pytest.raises(
        ValueError, match=f"'unheard_of' is not a setting of block '{sample.block}'"
    ):
        sample.build(unheard_of=1)


def stepwise(block: MemoryBlock, x: Tensor, state: Any, resets: Tensor | None) -> Any:
    axis = x.dim() - len(block.in_shapes[0]) - 1
    outputs = []
    for t in range(x.shape[axis]):
        reset = None if resets is None else resets[..., t]
        output, state = block.step(x.select(axis, t), state, reset)
        outputs.append(output)
    return torch.stack(outputs, dim=axis), state


@memory_samples
@pytest.mark.parametrize("with_resets", [False, True])
def test_step_by_step_equals_unroll(sample, with_resets):
    block = sample.build().eval()
    for leading in [(), (2,), (5, 2), (0, 2)]:
        check_unroll(block, sample, leading, with_resets)


def check_unroll(block, sample, leading, with_resets):
    (x,) = sample.data((*leading, 7))
    resets = torch.rand(*leading, 7) < 0.4 if with_resets else None
    state = random_state(block.state_shapes, *leading)
    trained = [*block.parameters(), *([x.requires_grad_()] if x.is_floating_point() else [])]
    results = []
    for run in (block.unroll, lambda *a: stepwise(block, *a)):
        block.zero_grad()
        output, end = run(x, state, resets)
        loss = output.square().sum() / max(1, output.numel())
        gradients = torch.autograd.grad(loss, trained)
        results.append((output, end, gradients))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


@memory_samples
def test_unroll_compiles_whole_with_resets(sample):
    block = sample.build().eval()
    torch.compiler.reset()
    (x,) = sample.data((5, 3))
    state = random_state(block.state_shapes, 5)
    resets = torch.rand(5, 3) < 0.4

    @torch.compile(fullgraph=True, backend="eager")
    def unroll(x, state, resets):
        return block.unroll(x, state, resets)

    for given in (None, resets):
        expected = block.unroll(x, state, given)
        torch.testing.assert_close(unroll(x, state, given), expected, atol=1e-5, rtol=1e-5)


@memory_samples
def test_a_block_with_memory_called_without_state_starts_from_zero(sample):
    block = sample.build().eval()
    assert isinstance(block, MemoryBlock)
    (x,) = sample.data((5,))
    expected, _ = block.step(x, block.initial_state(5))
    torch.testing.assert_close(block(x), expected)


@memory_samples
def test_a_reset_is_a_new_start(sample):
    block = sample.build().eval()
    (x,) = sample.data((2, 5))
    state = random_state(block.state_shapes, 2)
    resets = torch.zeros(2, 5, dtype=torch.bool)
    resets[1, 3] = True
    output, end = block.unroll(x, state, resets)
    fresh, fresh_end = block.unroll(x[1, 3:], block.initial_state())
    torch.testing.assert_close(output[1, 3:], fresh, atol=1e-5, rtol=1e-5)
    kept, _ = block.unroll(x[0], {n: s[0] for n, s in state.items()})
    torch.testing.assert_close(output[0], kept, atol=1e-5, rtol=1e-5)
    for name, tensor in fresh_end.items():
        torch.testing.assert_close(end[name][1], tensor, atol=1e-5, rtol=1e-5)


def test_a_block_is_an_nn_module():
    assert issubclass(PerceptionBlock, nn.Module)


def half(block: PerceptionBlock, data: list[Tensor], dtype: torch.dtype) -> Any:
    """As autocast runs it after a layer that gave ``dtype``."""
    with torch.autocast("cpu", dtype), torch.no_grad():
        return block(*(x.to(dtype) if x.dtype == torch.float32 else x for x in data))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's, of RMSNorm
@every_sample
def test_large_inputs_under_autocast_are_finite_where_the_output_has_numbers(sample):
    """float16 has no number above 65504: products that a softmax or a sine makes small must not be in it."""
    block = sample.build().eval()
    data = sample.data((5,))
    floats = [index for index, x in enumerate(data) if x.dtype == torch.float32]
    for scaled, positive in itertools.product([floats, floats[:1]], [True, False]):
        large = [1e4 * x if index in scaled else x for index, x in enumerate(data)]
        if positive:
            large = [x.abs() if x.dtype == torch.float32 else x for x in large]
        with torch.no_grad():
            exact = [y for y in as_tuple(block(*large)) if y.is_floating_point()]
        for dtype in (torch.float16, torch.bfloat16):
            if all((y.abs() < torch.finfo(dtype).max / 2).all() for y in exact):
                for y in as_tuple(half(block, large, dtype)):
                    assert y.isfinite().all(), (scaled, positive, dtype)
