"""The data of a spec becomes a typed ModelSpec; what is wrong with its structure is told in words (see test_bad_specs)."""

import random
import re
import textwrap
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from composer.errors import SpecError
from composer.source.dump import dump_yaml
from composer.source.load import load_source
from composer.spec.model_spec import DistributionRule, ModelSpec, NodeSpec
from composer.spec.read import read_spec
from perception_blocks.registry import BLOCKS

FULL = """\
version: 1
environment: my_envs:Maze-v0
params: {width: 64}
distributions:
  - {action: steer, distribution: beta}
ignore: [mission]
texts: {hint: {max_length: "${params.width}", charset: abc}, more: {max_length: 8}}
normalize: [inventory]
policy:
  graph:
    latent_screen: {block: vgg_conv_dense, in: screen, hidden_channels: [8, 16], init: orthogonal}
    frames: {block: my_nets.Frames, in: {x: screens}, each: 1, out: [frames, _]}
    again: {same_as: latent_screen, in: frames, each: 1}
    core:
      block: graph
      in: {features: latent_screen}
      out: [hidden]
      graph:
        hidden: {block: dense, in: features, hidden_units: ["${params.width}"]}
    latent: {block: concat, in: [hidden, again]}
  heads:
    move: {in: latent}
    in: {block: dense, in: latent}
  shares: [latent_screen]
  observations: [screen, screens, inventory]
  action_mask: {move: legal_moves}
  wrap: [hidden_state, {action_noise: {scale: 0.1}}]
  separate: true
  init: {body: orthogonal}
critic:
  kind: state_action
  _target_: my_nets.Critic
  hidden_units: [64]
  ensemble: 2
  stack: true
  normalize_value: true
"""
SMALL = {
    "version": 1,
    "policy": {"graph": {"a": {"block": "dense", "in": "observation"}}, "heads": {"in": "a"}},
}


def read(spec, allow=()) -> ModelSpec:
    return read_spec(load_source(spec), allow)


def with_policy(**policy) -> dict:
    return {"version": 1, "policy": policy}


def message_of(spec) -> str:
    with pytest.raises(SpecError) as caught:
        read(spec)
    return str(caught.value)


def test_everything_in_a_spec_is_read():
    spec = read(FULL, ["my_nets", "my_envs"])
    assert (spec.version, spec.environment, spec.params) == (1, "my_envs:Maze-v0", {"width": 64})
    assert spec.distributions == (
        DistributionRule(("distributions", 0), {"action": "steer", "distribution": "beta"}),
    )
    assert (spec.ignore, spec.normalize) == (("mission",), ("inventory",))
    assert spec.texts == {"hint": {"max_length": 64, "charset": "abc"}, "more": {"max_length": 8}}
    policy = spec.policy
    assert policy.action_mask == {"move": "legal_moves"}
    assert policy.wrap == ("hidden_state", {"action_noise": {"scale": 0.1}})
    assert (policy.separate, policy.shares) == (True, ("latent_screen",))
    critic = spec.critic
    assert critic is not None
    assert (critic.kind, critic.ensemble, critic.stack) == ("state_action", 2, True)
    assert (critic.normalize_value, critic.shared) == (True, ("latent_screen",))
    assert critic.networks[None].target == "my_nets.Critic"
    assert critic.networks[None].arguments == {"hidden_units": [64]}


def test_nodes_are_read():
    network = read(FULL, ["my_nets", "my_envs"]).policy.networks[None]
    graph = network.graph
    assert graph is not None
    path = ("policy", "graph")
    assert graph["latent_screen"] == NodeSpec(
        (*path, "latent_screen"),
        "latent_screen",
        "vgg_conv_dense",
        ("screen",),
        init="orthogonal",
        settings={"hidden_channels": [8, 16]},
    )
    assert graph["frames"] == NodeSpec(
        (*path, "frames"), "frames", "my_nets.Frames", {"x": "screens"}, ("frames", "_"), each=1
    )
    assert (graph["frames"].reads, graph["frames"].writes) == (("screens",), ("frames",))
    assert graph["again"] == NodeSpec(
        (*path, "again"), "again", None, ("frames",), each=1, same_as="latent_screen"
    )
    core = graph["core"]
    assert (core.block, core.inputs, core.out) == (
        "graph",
        {"features": "latent_screen"},
        ("hidden",),
    )
    assert core.graph is not None
    assert core.graph["hidden"].settings == {"hidden_units": [64]}
    assert core.graph["hidden"].path == (*path, "core", "graph", "hidden")
    assert network.observations == ("screen", "screens", "inventory")
    assert network.init == {"body": "orthogonal"}


def test_heads_are_one_for_each_action():
    heads = read(FULL, ["my_nets", "my_envs"]).policy.networks[None].heads
    assert heads is not None
    assert heads.default is None
    assert {name: (node.block, node.inputs) for name, node in heads.actions.items()} == {
        "move": ("linear_output", ("latent",)),
        "in": ("dense", ("latent",)),
    }


@pytest.mark.parametrize("inputs", ["a", ["a", "b"]])
def test_heads_are_one_for_all_when_in_names_values(inputs):
    graph = {"a": {"block": "dense", "in": "x"}, "b": {"block": "dense", "in": "x"}}
    spec = read(with_policy(graph=graph, heads={"in": inputs, "init_scale": 0.01}))
    heads = spec.policy.networks[None].heads
    assert heads is not None
    assert heads.default == NodeSpec(
        ("policy", "heads"),
        "",
        "linear_output",
        tuple(inputs),
        settings={"init_scale": 0.01},
    )
    assert heads.actions == {}


@pytest.mark.parametrize("as_list", [True, False])
def test_networks_are_a_list_by_step_or_a_mapping_by_agent(as_list):
    network = SMALL["policy"]
    networks = [network, network] if as_list else {"0": network, "1": network}
    spec = read(with_policy(networks=networks, separate=True))
    assert list(spec.policy.networks) == ["0", "1"]
    step = 1 if as_list else "1"
    assert spec.policy.networks["1"].path == ("policy", "networks", step)


def test_a_nested_graph_may_name_its_ends_inside_and_out():
    inner = {"h": {"block": "dense", "in": "x"}, "m": {"block": "dense", "in": "x"}}
    core = {"block": "graph", "in": "x", "out": {"left": "h", "right": "m"}, "graph": inner}
    join = {"block": "concat", "in": ["left", "right"]}
    spec = read(with_policy(graph={"core": core, "join": join}, heads={"in": "join"}))
    node = (spec.policy.networks[None].graph or {})["core"]
    assert (node.inputs, node.writes) == ({"x": "x"}, ("left", "right"))
    assert node.inner_outputs == ("h", "m")


def test_a_critic_needs_no_heads_and_null_is_no_critic():
    critic = {"graph": {"v": {"block": "dense", "in": "observation"}}}
    spec = read({**SMALL, "critic": critic})
    assert spec.critic is not None
    assert spec.critic.networks[None].heads is None
    assert read({**SMALL, "critic": None}).critic is None


def test_python_objects_are_blocks_and_classes():
    module = nn.Linear(4, 2)
    graph = {
        "a": {"block": nn.LayerNorm, "in": "x", "normalized_shape": 4},
        "b": {"block": module, "in": "a"},
        "c": {"block": nn.functional.relu, "in": "b"},
    }
    spec = read({**with_policy(graph=graph, heads={"in": "c"}), "critic": {"_target_": nn.Linear}})
    nodes = spec.policy.networks[None].graph or {}
    assert [node.block for node in nodes.values()] == [nn.LayerNorm, module, nn.functional.relu]
    assert spec.critic is not None
    assert spec.critic.networks[None].target is nn.Linear


def test_problems_of_a_mapping_are_named_by_their_path():
    node = {"block": "dense", "in": "x", "each": "all"}
    assert message_of(with_policy(graph={"a": node}, heads={"in": "a"}, wrp=[])) == (
        "policy.wrp: 'wrp' is not a key of a policy; did you mean 'wrap'?\n"
        "policy.graph.a.each: 'each' must be a whole number of at least 1, got the text 'all'"
    )


def test_a_block_that_an_allowed_module_registers_is_known(tmp_path, monkeypatch):
    text = """
    from perception_blocks.registry import BLOCKS
    BLOCKS.register("spec_test_block", "nowhere:Block")
    """
    (tmp_path / "spec_test_nets.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(BLOCKS, "_entries", dict(BLOCKS._entries))
    graph = {"a": {"block": "spec_test_block", "in": "x"}}
    spec = with_policy(graph=graph, heads={"in": "a"})
    assert message_of(spec).startswith("policy.graph.a.block: unknown block 'spec_test_block'")
    assert read(spec, ["spec_test_nets"]).version == 1


def test_an_allowed_module_that_cannot_be_imported_hides_no_other_problem():
    graph = {"a": {"block": "spectral_block", "in": "x"}}
    with pytest.raises(SpecError) as caught:
        read({**with_policy(graph=graph, heads={"in": "a"}), "critic": 3}, ["nowhere_nets"])
    assert str(caught.value) == (
        "policy.graph.a.block: unknown block 'spectral_block'; an allowed module might have it, but "
        "there is no module 'nowhere_nets'; start in its folder, or add it to PYTHONPATH (for an editor: to composer.path)\n"
        "critic: 'critic' must be a mapping with a 'graph', a '_target_' or a 'template', got the number 3"
    )


def test_the_resolved_spec_reads_back_as_the_same():
    spec = read(FULL, ["my_nets", "my_envs"])
    again = read(spec.source.to_yaml(), ["my_nets", "my_envs"])
    assert (again.policy, again.critic, again.params) == (spec.policy, spec.critic, {})


def test_a_spec_of_five_thousand_blocks_is_read_fast():
    nodes = {
        f"n{i}": {"block": "dense", "in": f"n{i - 1}", "hidden_units": [8, 8]} for i in range(5000)
    }
    text = dump_yaml(with_policy(graph=nodes, heads={"in": "n4999"}))
    started = time.process_time()
    assert len(read(text).policy.networks[None].graph or {}) == 5000
    assert time.process_time() - started < 5


# --- mutations of good specs ---

WORDS = [
    "graph",
    "in",
    "block",
    "heads",
    "dense",
    "null",
    "3",
    "[]",
    "{}",
    "${params.x}",
    "*a",
    "&a",
    "!!t",
    "no",
]


@given(
    st.integers(0, len(FULL) - 1), st.integers(0, 6), st.text(max_size=4) | st.sampled_from(WORDS)
)
@settings(max_examples=300)
def test_a_mutated_spec_is_a_model_spec_or_a_spec_error(start, length, inserted):
    text = FULL[:start] + inserted + FULL[start + length :] + "\n"
    try:
        assert isinstance(read(text, ["my_nets", "my_envs"]), ModelSpec)
    except SpecError as error:
        assert_positions_are_within(text, error)


@given(st.integers(0, 2**32))
@settings(max_examples=100)
def test_a_spec_with_words_exchanged_is_a_model_spec_or_a_spec_error(seed):
    random_ = random.Random(seed)
    parts = re.split(r"(\w+)", FULL)
    for _ in range(3):
        parts[random_.randrange(1, len(parts), 2)] = random_.choice(WORDS)
    text = "".join(parts)
    try:
        assert isinstance(read(text, ["my_nets", "my_envs"]), ModelSpec)
    except SpecError as error:
        assert_positions_are_within(text, error)


def assert_positions_are_within(text: str, error: SpecError) -> None:
    lines = re.split("\r\n|[\n\r\x85\u2028\u2029]", text)
    for problem in error.problems:
        position = problem.position
        assert position is not None
        assert position.line is not None
        assert position.column is not None
        assert 1 <= position.line <= len(lines)
        assert 1 <= position.column <= len(lines[position.line - 1]) + 1


@given(st.data())
@settings(max_examples=100)
def test_a_wrong_value_anywhere_is_reported_at_that_value(data):
    """Whatever is put at a key of known type, a problem points exactly at it or at something it broke."""
    key = data.draw(
        st.sampled_from(["separate", "ensemble", "stack", "kind", "normalize_value", "wrap"])
    )
    text = re.sub(rf"(?m)^(  {key}: ).*$", r"\g<1>{wrong: value}", FULL)
    line = next(i for i, row in enumerate(text.splitlines(), 1) if row.startswith(f"  {key}:"))
    with pytest.raises(SpecError) as caught:
        read(text, ["my_nets", "my_envs"])
    assert str(caught.value).startswith(f"<spec>:{line}:{len(key) + 5}: {key!r} must be ")


@pytest.mark.parametrize("count", [30, 1_000, 5_000])
def test_however_much_is_wrong_the_message_can_be_read(count):
    """Each message lists all keys of a spec: not so many are shown that nobody reads them."""
    text = "version: 1\n" + "".join(f"k{index}: 1\n" for index in range(count))
    with pytest.raises(SpecError) as caught:
        read_spec(load_source(text))
    assert len(caught.value.problems) == count + 1
    shown, _, more = str(caught.value).partition("\n... and ")
    assert len(shown) <= 18_000
    left = int(more.split()[0].replace(",", "")) if more else 0
    assert len(shown.splitlines()) + left == count + 1
    assert bool(left) == (count > 30)
