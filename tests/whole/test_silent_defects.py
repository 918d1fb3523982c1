"""Wrong results without an error, found in libraries before this one: each test fails where such a one comes back.

The numbers are those of the project's list; each docstring says what was wrong there.
"""

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import composer
from composer.errors import SpecError
from perception_blocks import Graph, InferenceBlock
from perception_blocks.blocks.adjacency import GraphConvBlock
from perception_blocks.blocks.attention import MultiHeadAttentionBlock
from perception_blocks.blocks.attention_conv import SelfAttentionConvBlock
from perception_blocks.blocks.conv import StridedConvDenseBlock
from perception_blocks.blocks.heads import CategoricalValueBlock
from perception_blocks.blocks.pooling import MaskedGlobalPoolingBlock

VECTOR, MOVE = spaces.Box(-1, 1, (4,)), spaces.Discrete(4)
STATE = np.array([0.1, -0.2, 0.3, -0.4], np.float32)
SPEC = """version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: 8}
  heads: {in: latent}
critic:
  graph:
    latent: {block: dense, in: observation, hidden_units: 8}
"""


@pytest.fixture(autouse=True)
def _same_numbers_each_time():
    torch.manual_seed(0)


def compose(text=SPEC, observation=VECTOR, action=MOVE):
    return composer.compose(text, observation_space=observation, action_space=action, seed=0)


def messages(text, observation=VECTOR, action=MOVE):
    with pytest.raises(SpecError) as caught:
        compose(text, observation, action)
    return str(caught.value)


def test_1_a_sample_is_attended_with_its_own_mask_in_every_head():
    """Masks were repeated in the wrong order: with several heads, samples got each other's."""
    block = MultiHeadAttentionBlock([(3, 8)] * 3 + [(3,)], num_heads=4).eval()
    x = torch.randn(5, 3, 8)
    mask = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 1, 0]]).bool()
    together = block(x, x, x, mask)
    for sample, row, y in zip(x, mask, together, strict=True):
        keys = sample[row]  # what is masked is taken away altogether
        torch.testing.assert_close(block(sample, keys, keys), y, atol=1e-6, rtol=1e-5)


def test_2_the_first_key_can_be_masked():
    """The first key was never masked, so that no row was ever empty."""
    block = MultiHeadAttentionBlock([(3, 8)] * 3 + [(3,)], num_heads=2).eval()
    query, x = torch.randn(3, 8), torch.randn(3, 8)
    other = x.clone()
    other[0] = 9.0
    mask = torch.tensor([False, True, True])
    torch.testing.assert_close(block(query, x, x, mask), block(query, other, other, mask))
    nothing = block(query, x, x, torch.zeros(3, dtype=torch.bool))
    assert nothing.abs().max() == 0


def test_3_a_masked_pixel_is_not_looked_at():
    """The mask of self-attention over images was added as 0 and 1: it shifted scores and masked nothing."""
    block = SelfAttentionConvBlock([(4, 2, 3), (2, 3)], return_weights=True).eval()
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]]).bool()
    _, weights = block(torch.randn(5, 4, 2, 3), mask.expand(5, 2, 3))
    assert weights[..., ~mask.flatten()].abs().max() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 6))


def test_4_a_mean_is_a_mean_and_of_nothing_it_is_zero():
    """Without a mask "mean" was the sum, and a set that was masked altogether gave NaN."""
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(MaskedGlobalPoolingBlock([(3, 4)])(x), x.mean(dim=-2))
    mask = torch.tensor([[True, True, False], [False] * 3])
    pooled = MaskedGlobalPoolingBlock([(3, 4), (3,)])(x, mask)
    torch.testing.assert_close(pooled, torch.stack([x[0, :2].mean(0), torch.zeros(4)]))


def test_5_a_convolution_over_sequences_keeps_the_samples_apart():
    """1-d convolution and dense layers flattened the batch with the features."""
    block = StridedConvDenseBlock(
        [(3, 16)], hidden_channels=[4], hidden_kernels=[3], hidden_units=[5]
    )
    x = torch.randn(7, 3, 16)
    together = block(x)
    assert together.shape == (7, 5)
    torch.testing.assert_close(together, torch.stack([block(sample) for sample in x]))


def test_6_the_weight_of_an_edge_counts():
    """Weights of edges were dropped: a graph of weak links gave what one of strong links gives."""
    block = GraphConvBlock([(3, 4), (3, 3)], hidden_units=[5], activation="identity", bias=False)
    x = torch.randn(3, 4)
    adjacency = torch.tensor([[0.0, 3.0, 0.0], [3.0, 0.0, 0.5], [0.0, 0.5, 0.0]])
    weights = adjacency + torch.eye(3)
    sums = weights.sum(-1)
    expected = (weights / (sums[:, None] * sums[None]).sqrt()) @ block.linears[0](x)
    torch.testing.assert_close(block(x, adjacency), expected)
    assert not torch.allclose(block(x, adjacency), block(x, (adjacency > 0).float()))


def test_7_a_misspelt_head_is_no_input_of_the_critic():
    """A head whose name was no action's became a value for the critic, and the action had none."""
    text = SPEC.replace("heads: {in: latent}", "heads: {actoin: {in: latent}}")
    assert messages(text) == (
        "<spec>:5:3: there is no head for the action 'action'\n"
        "<spec>:5:11: 'actoin' is no action; did you mean 'action'?"
    )
    critic: Any = compose().critic
    assert [*critic.network.in_ports] == ["observation"]


def test_8_a_head_has_the_width_of_its_action():
    """Nobody compared a head with its action: five logits for four actions sampled an action that is not there."""
    text = SPEC.replace("{in: latent}", "{in: latent, output_units: 5}")
    assert messages(text) == (
        "<spec>:5:10: the head 'action' has the shape (5,), but its distribution 'categorical' needs (4,)"
    )


def test_9_pixels_do_not_become_actions():
    """A convolution that was not flattened gave logits for each pixel."""
    text = """version: 1
policy:
  graph:
    seen: {block: strided_conv, in: observation, hidden_channels: [4]}
  heads: {in: seen}
"""
    assert messages(text, spaces.Box(0, 1, (3, 16, 16))) == (
        "<spec>:5:15: block 'heads/action' gets (4, 14, 14) from 'seen'; linear_output takes one vector (features,). "
        "Put a flatten block before it."
    )


def test_9_an_observation_that_nobody_reads_is_an_error():
    """An observation that no network read disappeared; a line on the terminal was all that told of it."""
    text = SPEC.replace("in: observation", "in: state")
    assert messages(text, spaces.Dict(state=VECTOR, goal=VECTOR)) == (
        "<spec>:2:1: the observation 'goal' is read by no network; name it under 'ignore' if that is meant"
    )


def test_10_a_critic_over_several_agents_reads_what_the_policy_shares_of_each():
    """A critic of several agents that read shared values stacked them along the wrong axis."""
    text = """version: 1
policy:
  graph:
    seen: {block: dense, in: observation, each: 1, hidden_units: [5]}
    all: {block: flatten, in: seen}
  heads: {in: all}
  shares: [seen]
critic:
  graph:
    each_agent: {block: dense, in: seen, each: 1, hidden_units: [6]}
    all: {block: flatten, in: each_agent}
"""
    model = compose(text, spaces.Box(-1, 1, (3, 4)))
    agents = torch.randn(7, 3, 4)
    logits, values = model(agents)
    assert logits["seen"].shape == (7, 3, 5)
    critic = model.critic.get_submodule
    by_agent = [critic("each_agent")(logits["seen"][:, index]) for index in range(3)]
    expected = critic("heads.value")(torch.cat(by_agent, dim=-1))
    torch.testing.assert_close(values["value"], expected)


def test_10_a_stacked_critic_has_its_actors_first_also_of_what_policies_share():
    """Shared values of several agents were stacked along another axis than their observations."""
    text = """version: 1
policy:
  graph:
    latent: {block: dense, in: observation, hidden_units: 5}
  heads: {in: latent}
  shares: [latent]
critic:
  kind: shared_state
  stack: true
  graph:
    both: {block: concat, in: [observation, latent]}
    flat: {block: flatten, in: both}
    value: {block: linear_output, in: flat, output_units: 1}
"""
    actors = {"a": VECTOR, "b": VECTOR, "c": VECTOR}
    model = compose(text, actors, dict.fromkeys(actors, MOVE))
    seen = {name: torch.randn(7, 4) for name in actors}
    logits, values = model(seen)
    rows = [torch.cat([seen[name], logits[name]["latent"]], dim=-1) for name in actors]
    expected = model.critic.get_submodule("value")(torch.stack(rows, dim=1).flatten(1))
    torch.testing.assert_close(values["value"], expected)


@pytest.mark.parametrize(
    "space", [spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-2, 3, (3,)), MOVE]
)
def test_11_a_temperature_below_one_sharpens(space):
    """The temperature was added to the logarithm of the deviation: below one it widened, above it narrowed."""
    policy = compose(action=space).policy
    cold, as_is, hot = (
        spread(policy.distribution(STATE, temperature=temperature))
        for temperature in (0.5, 1.0, 2.0)
    )
    assert cold < as_is < hot


def spread(distribution):
    """How far a distribution's samples lie apart; of one over choices, how even they are."""
    if not distribution.sample().is_floating_point():
        return distribution.entropy().detach()
    return torch.stack([distribution.sample() for _ in range(500)]).std(dim=0).mean()


def test_12_log_prob_and_entropy_are_sums_over_dimensions():
    """They were means: the gradient of a policy with many actions was too small by their number."""
    distribution = compose(action=spaces.Box(-np.inf, np.inf, (3,))).policy.distribution(STATE)
    normal = torch.distributions.Normal(distribution.mean, distribution.stddev)
    action = distribution.sample()
    torch.testing.assert_close(distribution.log_prob(action), normal.log_prob(action).sum(-1))
    torch.testing.assert_close(distribution.entropy(), normal.entropy().sum(-1))


@pytest.mark.parametrize("family", ["squashed_gaussian", "beta"])
def test_12_a_density_on_the_actions_own_scale_integrates_to_one(family):
    """The scale of a bounded action was left out of the density, which then integrated to the width of the bounds."""
    text = SPEC + f"distributions:\n  - {{action: action, distribution: {family}}}\n"
    policy = compose(text, action=spaces.Box(-2.0, 8.0, (1,))).policy
    points = torch.linspace(-2.0, 8.0, 20001)[1:-1, None]
    states = torch.from_numpy(STATE).expand(len(points), 4)
    density = policy.distribution(states).log_prob(points).exp()
    assert float(torch.trapezoid(density.detach(), points[:, 0])) == pytest.approx(1.0, abs=1e-3)


def test_13_an_action_begins_where_its_space_does():
    """``start`` was ignored: an action space of 5, 6, 7 got 0, 1, 2."""
    space = spaces.Discrete(3, start=5)
    policy = compose(action=space).policy
    actions = [policy.act(STATE) for _ in range(30)]
    assert all(space.contains(action) for action in actions)
    assert len(set(map(int, actions))) > 1
    assert policy.from_environment(np.int64(6)).item() == 1


def test_13_an_action_keeps_its_axes():
    """Boxes of more than one axis were flattened, or their log-probabilities summed over one axis only."""
    space = spaces.Box(-1, 1, (2, 3))
    policy = compose(action=space).policy
    assert space.contains(policy.act(STATE))
    states = torch.from_numpy(STATE).expand(5, 4)
    distribution = policy.distribution(states)
    assert distribution.log_prob(distribution.sample()).shape == (5,)


def test_14_an_extra_input_does_not_shadow_a_computed_value():
    """An observation called like a node took the place of what the node computes."""
    graph = Graph({"observation": (4,)})
    graph.add("latent", "dense", "observation", hidden_units=[8])
    graph.add("logits", "linear_output", "latent", output_units=2)
    net = InferenceBlock(graph, ["logits"])
    x = torch.randn(3, 4)
    shadowed = net({"observation": x, "latent": torch.full((3, 8), 99.0)})["logits"]
    torch.testing.assert_close(shadowed, net({"observation": x})["logits"])
    space = spaces.Dict(state=VECTOR)
    model = compose(SPEC.replace("in: observation", "in: state"), space)
    message = "'latent' is not in the observation space"
    with pytest.raises(ValueError, match=re.escape(message)):
        model.policy({"state": STATE, "latent": np.zeros(8, np.float32)})


TWINS = """version: 1
policy:
  graph: {latent: {block: dense, in: observation, hidden_units: 8}}
  heads: {in: latent}
critic:
  graph:
    twins:
      block: ensemble
      copies: 2
      in: {x: observation}
      out: [q]
      graph: {q: {block: dense, in: x, hidden_units: 8}}
    both: {block: flatten, in: q}
"""


def test_15_twin_critics_differ_and_targets_do_not():
    """Twins were copies with the same weights, targets were drawn anew, and so were weights at every look at them."""
    model = compose(TWINS)
    weights = model.state_dict()
    twin = "critic.twins.{}.q.linears.0.weight"
    assert not torch.isclose(weights[twin.format(0)], weights[twin.format(1)]).any()
    target = copy.deepcopy(model)
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in weights.items())
    before = {name: tensor.clone() for name, tensor in weights.items()}
    _ = (model.critic, model.policy, model.summary(), repr(model), model.parameters())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_15_twins_of_a_critic_differ_and_its_targets_begin_as_copies():
    """The same of critics with an ensemble: targets did not begin with the weights of the critic."""
    text = """version: 1
policy:
  graph: {latent: {block: dense, in: observation, hidden_units: 8}}
  heads: {in: latent}
critic:
  kind: state_action
  ensemble: 2
  graph: {latent: {block: dense, in: observation, hidden_units: 8}}
"""
    critic = compose(text).critic
    values = critic(STATE)["action_q_values"]
    assert not torch.isclose(values[..., 0, :], values[..., 1, :]).any()
    assert torch.equal(critic.target(STATE)["action_q_values"], values)
    before = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    _ = (critic.target, list(critic.target.parameters()), repr(critic))
    assert all(torch.equal(tensor, before[name]) for name, tensor in critic.state_dict().items())


def test_16_a_critic_of_bins_values_every_sample():
    """The value of the first sample was taken for all of a batch, in a critic too."""
    heads = "  heads: {block: categorical_value, in: latent, num_bins: 5, low: -2, high: 2}\n"
    critic = compose(SPEC + heads).critic
    many = torch.randn(6, 4)
    alone = torch.stack([critic.value(one) for one in many])
    torch.testing.assert_close(critic.value(many), alone)
    assert len(set(alone.tolist())) == 6


def test_16_every_sample_has_a_value_of_its_own():
    """The value of the first sample was taken for all of a batch."""
    block = CategoricalValueBlock([(4,)], num_bins=5, low=-2.0, high=2.0)
    logits = torch.full((3, 5), -100.0)
    logits[[0, 1, 2], [0, 2, 4]] = 100.0
    torch.testing.assert_close(block.to_scalar(logits), torch.tensor([[-2.0], [0.0], [2.0]]))


def test_17_shapes_have_the_order_of_the_outputs():
    """The shapes of several outputs came sorted by name, not in the order in which the outputs were named."""
    graph = Graph({"observation": (4,)})
    for name, units in (("zebra", 3), ("ant", 5), ("mole", 2)):
        graph.add(name, "dense", "observation", hidden_units=[units])
    names = ["zebra", "ant", "mole"]
    net = InferenceBlock(graph, names)
    assert list(net.out_shapes.items()) == [("zebra", (3,)), ("ant", (5,)), ("mole", (2,))]
    outputs = net({"observation": torch.randn(6, 4)})
    assert [(name, tensor.shape[1:]) for name, tensor in outputs.items()] == list(
        net.out_shapes.items()
    )
    block = MultiHeadAttentionBlock([(2, 8), (3, 4), (3, 6)], num_heads=2, return_weights=True)
    y, weights = block(torch.randn(2, 8), torch.randn(3, 4), torch.randn(3, 6))
    assert [y.shape, weights.shape] == block.out_shapes


@pytest.mark.parametrize("block", ["graph_conv", "graph_attention"])
def test_18_the_weights_of_a_graph_are_drawn(block):
    """Weights of graph blocks were what the memory happened to hold: huge, NaN, or another each time."""
    text = f"""version: 1
policy:
  graph:
    linked: {{block: adjacency, in: [observation/nodes, observation/edge_links]}}
    nodes: {{block: {block}, in: [observation/nodes, linked], hidden_units: [64]}}
    latent: {{block: masked_global_pooling, in: nodes}}
  heads: {{in: latent}}
ignore: [observation/edges]
"""
    space = spaces.Graph(spaces.Box(-1, 1, (16,)), spaces.Box(0, 1, (1,)))
    models = []
    for _ in range(2):
        junk = [torch.full((64, 16), float("nan")) for _ in range(8)]  # what memory may hold
        del junk
        models.append(compose(text, space))
    later = composer.compose(
        text, observation_space=space, action_space=MOVE, seed=0, device="meta"
    ).materialize("cpu")
    for name, tensor in models[0].policy.named_parameters():
        assert tensor.detach().abs().max() <= 1.0, name
        assert "bias" in name or tensor.detach().abs().max() > 0.0, name
        assert torch.equal(tensor, models[1].policy.get_parameter(name)), name
        assert torch.equal(tensor, later.policy.get_parameter(name)), name
