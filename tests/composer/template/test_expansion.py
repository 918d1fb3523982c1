"""A template expands to the graph that a user could have written, and its mistakes are answered where they stand."""

import re

import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from composer.errors import Problems
from composer.source.load import load_source
from composer.spaces.tree import flatten_space
from composer.spec.read import read_spec
from composer.template.expansion import expand, identifier
from composer.template.kinds import kind_of_observation
from perception_blocks.port import Port

OBSERVATIONS = spaces.Dict(
    camera=spaces.Box(0, 255, (64, 64, 3), np.uint8),
    joints=spaces.Box(-1, 1, (7,)),
    gear=spaces.Discrete(5),
)
ACTIONS = spaces.Dict(move=spaces.Discrete(4), aim=spaces.Box(-1, 1, (2,)))


def compose(text, observations: spaces.Space = OBSERVATIONS, **keywords):
    return composer.compose(
        text, observation_space=observations, action_space=ACTIONS, seed=0, **keywords
    )


def spec_text(template, more="", critic=""):
    return f"version: 1\npolicy:\n  template: {template}\n{more}{critic}"


def nodes_of(template, ports, more=""):
    """The expanded graph as {node: (block, inputs, settings)}."""
    source = load_source(spec_text(template, more))
    problems = Problems(source)
    network = read_spec(source).policy.networks[None]
    expanded = expand(network, ports, problems)
    problems.raise_if_any()
    assert expanded is not None
    graph = expanded.graph or {}
    return {name: (node.block, node.reads, node.settings) for name, node in graph.items()}


TRUNK = ("dense", ("features",), {"hidden_units": [64, 64], "activation": "tanh"})


def test_an_empty_template_is_a_whole_network():
    ports = {
        "camera": Port((64, 64, 3), torch.uint8, low=0.0, high=255.0, channels="last"),
        "joints": Port((7,)),
        "gear": Port((), torch.int64, cardinality=5),
    }
    assert nodes_of("{}", ports) == {
        "camera_scaled": ("scale_image", ("camera",), {}),
        "camera_features": ("nature_cnn_dense", ("camera_scaled",), {"hidden_units": [256]}),
        "gear_features": ("one_hot", ("gear",), {}),
        "features": ("concat", ("camera_features", "joints", "gear_features"), {}),
        "latent": TRUNK,
    }


def test_one_vector_needs_no_concat():
    assert nodes_of("{}", {"observation": Port((4,))}) == {
        "latent": ("dense", ("observation",), {"hidden_units": [64, 64], "activation": "tanh"})
    }


def test_blocks_are_chosen_by_kind_and_by_name():
    template = """
    image: {block: vgg_conv_dense, hidden_channels: [8], hidden_units: 32}
    vector: {block: dense, hidden_units: 16}
    discrete: {block: embedding, embedding_dim: 3}
    by_name: {"*_far": {block: dense, hidden_units: 2}}
    trunk: {block: dense, hidden_units: 24}
    memory: {block: gru, hidden_units: 8}
"""
    ports = {
        "camera": Port((3, 64, 64), low=0.0, high=1.0),
        "near": Port((7,)),
        "wall_far": Port((7,)),
        "gear": Port((), torch.int64, cardinality=5),
    }
    assert nodes_of(template, ports) == {
        "camera_features": (
            "vgg_conv_dense",
            ("camera",),
            {"hidden_channels": [8], "hidden_units": 32},
        ),
        "near_features": ("dense", ("near",), {"hidden_units": 16}),
        "wall_far_features": ("dense", ("wall_far",), {"hidden_units": 2}),
        "gear_features": ("embedding", ("gear",), {"embedding_dim": 3}),
        "features": (
            "concat",
            ("camera_features", "near_features", "wall_far_features", "gear_features"),
            {},
        ),
        "latent": ("dense", ("features",), {"hidden_units": 24}),
        "memory": ("gru", ("latent",), {"hidden_units": 8}),
    }


def test_a_kind_can_be_given_where_a_space_misleads():
    ports = {
        "map": Port((9, 9)),
        "map_of_bytes": Port((4, 4), torch.uint8, low=0.0, high=255.0),
        "rows": Port((3, 64, 64), low=0.0, high=1.0),
    }
    nodes = nodes_of("{kinds: {'map*': image, rows: vector}}", ports)
    assert [(name, block) for name, (block, _, _) in nodes.items()] == [
        ("map_scaled", "scale_image"),
        ("map_features", "strided_conv_dense"),
        ("map_of_bytes_scaled", "scale_image"),
        ("map_of_bytes_features", "strided_conv_dense"),
        ("rows_flat", "flatten"),
        ("features", "concat"),
        ("latent", "dense"),
    ]


def test_a_map_of_numbers_taken_for_an_image_runs():
    observations = spaces.Dict(map=spaces.Box(-1, 1, (9, 9)), joints=spaces.Box(-1, 1, (7,)))
    model = compose(spec_text("{kinds: {map: image}}"), observations)
    assert ACTIONS.contains(model.policy.act(observations.sample()))
    assert model.policy.get_submodule("map_features").in_shapes == [(1, 9, 9)]


UNITS = spaces.Dict(
    units=spaces.Sequence(spaces.Dict(kind=spaces.Discrete(4), at=spaces.Box(-1, 1, (2,)))),
    net=spaces.Graph(spaces.Box(-1, 1, (3,)), spaces.Box(0, 1, (1,))),
    hint=spaces.Text(6),
)


def test_sets_texts_and_graphs_become_vectors():
    assert nodes_of("{}", flatten_space(UNITS, "observation").ports) == {
        "hint_embedded": ("embedding", ("hint",), {"embedding_dim": 32}),
        "hint_placed": ("positional_encoding", ("hint_embedded",), {}),
        "hint_features": ("attention_pooling", ("hint_placed",), {"num_heads": 4}),
        "net_matrix": ("adjacency", ("net/nodes", "net/edge_links"), {"directed": False}),
        "net_features": ("graph_conv", ("net/nodes", "net_matrix"), {"hidden_units": [64, 64]}),
        "net_pooled": ("masked_global_pooling", ("net_features",), {}),
        "net_edges_features": ("deep_set", ("net/edges",), {"hidden_units": [64]}),
        "units_kind_features": ("one_hot", ("units/kind",), {}),
        "units_elements": ("concat", ("units_kind_features", "units/at"), {}),
        "units_features": ("deep_set", ("units_elements",), {"hidden_units": [64]}),
        "features": (
            "concat",
            ("units_features", "net_pooled", "net_edges_features", "hint_features"),
            {},
        ),
        "latent": TRUNK,
    }


def test_blocks_for_sets_texts_and_graphs_are_chosen_and_end_in_a_vector():
    template = """
    text: {block: transformer_encoder, num_heads: 2}
    graph: {block: graph_attention, hidden_units: [8]}
    discrete: {block: embedding, embedding_dim: 3}
    by_name:
      net/nodes: {block: dense, hidden_units: 5}
      net/edges: {block: dense, hidden_units: 6, each: 1}
      units*: {block: point_net}
"""
    nodes = nodes_of(template, flatten_space(UNITS, "observation").ports)
    assert {name: node[:2] for name, node in nodes.items() if name.startswith(("hint", "net"))} == {
        "hint_embedded": ("embedding", ("hint",)),
        "hint_placed": ("positional_encoding", ("hint_embedded",)),
        "hint_features": ("transformer_encoder", ("hint_placed",)),
        "hint_pooled": ("masked_global_pooling", ("hint_features",)),
        "net_element_features": ("dense", ("net/nodes",)),
        "net_matrix": ("adjacency", ("net_element_features", "net/edge_links")),
        "net_features": ("graph_attention", ("net_element_features", "net_matrix")),
        "net_pooled": ("masked_global_pooling", ("net_features",)),
        "net_edges_features": ("dense", ("net/edges",)),
        "net_edges_pooled": ("masked_global_pooling", ("net_edges_features",)),
    }
    assert nodes["units_kind_features"] == ("embedding", ("units/kind",), {"embedding_dim": 3})
    assert nodes["units_features"] == ("point_net", ("units_elements",), {})
    without = template.replace("      units*: {block: point_net}\n", "")
    without += "    set: {block: attention_pooling, num_seeds: 2}\n"
    nodes = nodes_of(without, flatten_space(UNITS, "observation").ports)
    assert nodes["units_flat"] == ("flatten", ("units_features",), {})
    for text in ("{}", template, without):
        model = compose(spec_text(text), UNITS)
        assert ACTIONS.contains(model.policy.act(UNITS.sample()))


def test_null_leaves_the_trunk_out():
    assert nodes_of("{trunk: null}", {"a": Port((2,)), "b": Port((3,))}) == {
        "features": ("concat", ("a", "b"), {})
    }


def test_what_a_chosen_block_leaves_of_an_image_is_flattened():
    template = "{image: {block: strided_conv, hidden_channels: [4]}}"
    nodes = nodes_of(template, {"camera": Port((3, 64, 64), low=0.0, high=1.0)})
    assert nodes["flat"] == ("flatten", ("features",), {})


def test_names_that_are_taken_get_a_number():
    ports = {"a": Port((2,)), "a b": Port((2, 2)), "a-b": Port((2, 2)), "features": Port((1,))}
    assert list(nodes_of("{}", ports)) == ["a_b_flat", "a_b_flat_2", "features_2", "latent"]


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        (Port((84, 84, 4), torch.uint8), "image"),
        (Port((4, 64, 64, 3), torch.uint8), "image"),
        (Port((84, 84), torch.uint8), "image"),
        (Port((3, 64, 64)), "image"),
        (Port((5, 5, 3), torch.uint8), "image"),
        (Port((2, 3, 3), torch.uint8), "vector"),
        (Port((4, 8), torch.uint8), "vector"),
        (Port((128,), torch.uint8), "vector"),
        (Port((84, 84)), "vector"),
        (Port((2, 84, 84, 3)), "vector"),
        (Port((None, 84, 84)), "vector"),
        (Port(()), "vector"),
        (Port((), torch.int64, cardinality=3), "discrete"),
        (Port((2, 2), torch.int64, cardinality=(3, 3, 2, 2)), "discrete"),
    ],
)
def test_kinds_are_told_by_shape_and_dtype(port, kind):
    assert kind_of_observation(port) == kind


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("speed", "speed"),
        ("robot/arm 0", "robot_arm_0"),
        ("0", "part_0"),
        ("é", "part"),
        ("", "part"),
    ],
)
def test_a_key_becomes_an_identifier(key, name):
    assert identifier(key) == name


# --- as a part of a spec ---


def test_a_template_is_composed_drawn_and_saved_like_a_graph(tmp_path):
    critic = "critic:\n  template: {trunk: {block: dense, hidden_units: 8}}\n"
    model = compose(spec_text("{memory: {block: lstm, hidden_units: 16}}", critic=critic))
    assert model.policy.has_memory
    assert model.critic is not None
    assert not model.critic.has_memory
    action, _ = model.policy.act(OBSERVATIONS.sample(), model.policy.initial_state())
    assert ACTIONS.contains(action)
    assert "camera_features" in model.summary()
    model.draw(tmp_path / "model.dot")
    assert "camera_features" in (tmp_path / "model.dot").read_text()
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    assert all(
        torch.equal(tensor, loaded.state_dict()[name])
        for name, tensor in model.state_dict().items()
    )


def test_a_template_has_the_weights_of_the_graph_it_stands_for():
    graph = """version: 1
policy:
  graph:
    camera_scaled: {block: scale_image, in: camera}
    camera_features: {block: nature_cnn_dense, in: camera_scaled, hidden_units: [256]}
    gear_features: {block: one_hot, in: gear}
    features: {block: concat, in: [camera_features, gear_features, joints]}
    latent: {block: dense, in: features, hidden_units: [64, 64], activation: tanh}
  heads: {in: latent}
"""
    template, written = compose(spec_text("{}")).state_dict(), compose(graph).state_dict()
    assert template.keys() == written.keys()
    assert all(torch.equal(template[name], written[name]) for name in written)


def test_heads_may_read_any_value_of_the_template():
    heads = "  heads: {move: {in: latent}, aim: {in: features, init_scale: 0.1}}\n"
    model = compose(spec_text("{}", heads))
    assert model.policy.logits_shapes == {"move": (4,), "aim": (4,)}


def test_a_critic_reads_what_the_policys_template_shares():
    critic = "critic:\n  graph:\n    latent: {block: dense, in: features, hidden_units: 8}\n"
    model = compose(spec_text("{}", "  shares: [features]\n", critic))
    assert model.critic is not None
    assert list(model.critic.network.in_ports) == ["features"]  # type: ignore[union-attr]


def test_a_template_reads_what_its_network_may_see():
    model = compose(spec_text("{}", "  observations: [joints]\n", "critic:\n  template: {}\n"))
    assert list(model.policy.network.in_ports) == ["joints"]
    assert model.critic is not None
    assert len(model.critic.network.in_ports) == 3


# --- mistakes ---

KEYS = (
    "'image', 'vector', 'discrete', 'set', 'text', 'graph', 'by_name', 'kinds', 'trunk', 'memory'"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            spec_text("{imag: {block: dense}}"),
            "3:14: 'imag' is not a key of a template; did you mean 'image'?",
        ),
        (
            spec_text("{colour: red}"),
            f"3:14: 'colour' is not a key of a template; its keys are {KEYS}",
        ),
        (spec_text("[dense]"), "3:13: 'template' must be a mapping, got a list"),
        (
            spec_text("{trunk: dense}"),
            "3:21: 'trunk' must be a mapping such as {block: dense, hidden_units: 64}, got the text 'dense'",
        ),
        (
            spec_text("{trunk: {block: dens, hidden_units: 3}}"),
            "3:29: unknown block 'dens'; did you mean 'dense'?",
        ),
        (spec_text("{memory: {hidden_units: 3}}"), "3:14: 'memory' has no 'block'"),
        (
            spec_text("{trunk: {block: dense, in: joints, hidden_units: 3}}"),
            "3:36: 'in' has no place in a template, which wires its blocks itself",
        ),
        (
            spec_text("{trunk: {block: graph, graph: {a: {block: flatten, in: x}}}}"),
            "3:29: a template is made of single blocks; describe a network of your own with 'graph' instead",
        ),
        (
            spec_text("{by_name: {'cam*': 3}}"),
            "3:32: 'cam*' must be a mapping such as {block: dense, hidden_units: 64}, got the number 3",
        ),
        (
            spec_text("{by_name: {'rada*': {block: dense, hidden_units: 3}}}"),
            "3:24: 'rada*' matches no observation; there is 'camera', 'joints', 'gear'",
        ),
        (
            spec_text("{set: {block: deep_set, hidden_units: 3}}"),
            "3:14: no observation takes its block from 'set'; there is 'camera' (image), 'joints' (vector), 'gear' (discrete)",
        ),
        (
            spec_text("{image: {block: nature_cnn_dense}, by_name: {'cam*': {block: nature_cnn_dense}}}"),
            "3:14: no observation takes its block from 'image'; "
            "there is 'camera' (image), 'joints' (vector), 'gear' (discrete); by_name comes first",
        ),
        (
            spec_text("{by_name: {'j*': {block: flatten}, joints: {block: dense, hidden_units: 3}}}"),
            "3:48: 'joints' changes nothing: what it matches is matched by a pattern before it",
        ),
        (
            spec_text("{kinds: {'g*': discrete, gear: discrete}}"),
            "3:38: 'gear' changes nothing: what it matches is matched by a pattern before it, or no single value",
        ),
        (
            spec_text("{kinds: {camera: pixels, joints: imge}}"),
            "3:30: 'pixels' is no kind of observation that can be given; known are 'image', 'vector', 'discrete'",
        ),
        (
            spec_text("{kinds: {camera: pixels, joints: imge}}"),
            "3:46: 'imge' is no kind of observation that can be given; did you mean 'image'?",
        ),
        (
            spec_text("{kinds: {joints: image}}"),
            "3:30: 'joints' cannot be taken for an 'image': it has the shape (7,), not two or more axes of known size",
        ),
        (
            spec_text("{kinds: {gear: vector}}"),
            "3:28: 'gear' cannot be taken for 'vector': it holds integers that name or count",
        ),
        (
            spec_text("{kinds: {joints: discrete}}"),
            "3:30: 'joints' cannot be taken for 'discrete': it holds numbers, no integers",
        ),
        (
            spec_text("{kinds: {'rada*': image}}"),
            "3:22: 'rada*' matches no observation; there is 'camera', 'joints', 'gear'",
        ),
        (
            spec_text("{kinds: [camera]}"),
            "3:21: 'kinds' must be a mapping from names of observations to 'image', 'vector', 'discrete', got a list",
        ),
        (
            spec_text("{}", "  shares: [featurs]\n"),
            "4:12: the template makes no value 'featurs' to share; did you mean 'features'?",
        ),
        (
            spec_text("{trunk: {block: dense, hidden_unit: 3}}"),
            "3:36: 'hidden_unit' is not a setting of block 'dense'; did you mean 'hidden_units'?",
        ),
        (
            spec_text("{}", "  heads: {in: latnt}\n"),
            "4:15: 'heads/move' reads 'latnt', which is neither an input nor a node's output; did you mean 'latent'?",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_answered_at_their_place(text, message):
    with pytest.raises(composer.SpecError) as error:
        compose(text)
    assert f"<spec>:{message}" in str(error.value).splitlines()


def test_a_block_that_does_not_fit_is_answered_at_the_template():
    text = spec_text("{vector: {block: vgg_conv_dense, hidden_channels: [4], hidden_units: 8}}")
    with pytest.raises(composer.SpecError) as error:
        compose(text)
    assert str(error.value) == (
        "<spec>:3:22: block 'joints_features' gets (7,) from 'joints'; vgg_conv takes (channels, height, width). "
        "A vector goes into a dense block."
    )


def test_nothing_to_read_is_answered():
    with pytest.raises(composer.SpecError) as error:
        compose(spec_text("{}"), spaces.Box(0, 1, (0,)))
    assert str(error.value) == "<spec>:3:13: a template needs an observation to read, there is none"


def test_what_one_of_several_agents_gets_has_an_effect():
    """Agents with networks of their own may see different things by one template."""
    seen = {"tall": spaces.Box(0, 255, (36, 36, 3), np.uint8), "small": spaces.Box(-1, 1, (3,))}
    moves = dict.fromkeys(seen, spaces.Discrete(2))
    image = {"block": "strided_conv_dense", "hidden_channels": [4], "hidden_units": 8}
    policy = {"separate": True, "template": {"image": image}}
    spec = {"version": 1, "policy": policy}
    model = composer.compose(spec, observation_space=seen, action_space=moves, seed=0)
    assert set(model.policy.policies) == {"tall", "small"}
    message = "no observation takes its block from 'set'; there is 'observation' (image)"
    with pytest.raises(composer.SpecError, match=re.escape(message)):
        composer.compose(
            {"version": 1, "policy": {"separate": True, "template": {"set": image}}},
            observation_space=seen,
            action_space=moves,
        )
