"""What a call advises instead of itself is called here; and every advice in the source is compared in some test."""

import ast
import contextlib
import io
import re
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import nn
from torchrl.envs import GymWrapper

import composer
from composer.adapters.tokens.gym_env import token_spaces
from composer.adapters.torchrl import to_torchrl
from composer.cli.commands import main
from composer.model_registry import ModelRegistry
from composer.policy.sequence_view import token_views
from composer.source.load import load_source
from composer.spaces.lookup import make_environment
from perception_blocks import Graph, InferenceBlock
from tests.helpers import actor_critics, structured_models
from tests.helpers.actor_critics import CHAINED, STACKED, observe
from tests.helpers.actor_critics import Sum as Sum  # a class of another module, named by this one
from tests.helpers.paths import CONFIGS, ROOT
from tests.whole.test_advice import ADVICE

SEEN = spaces.Box(-1, 1, (3,))
PAIR = spaces.Dict(m=spaces.Discrete(2), n=spaces.Discrete(3))
POLICY = {
    "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": 4}},
    "heads": {"in": "latent"},
}
GRU = {"block": "gru", "hidden_units": 4}
REMEMBERS = {"graph": {"memory": {"in": "observation", **GRU}}, "heads": {"in": "memory"}}
LATENT = {"graph": POLICY["graph"]}
SHARING = {"graph": {"value": {"block": "linear_output", "in": "latent", "output_units": 1}}}
OBSERVATIONS = np.zeros((2, 3), np.float32)


def composed(policy, critic=None, action=spaces.Discrete(2), seen=SEEN, **more):  # noqa: B008 - never changed
    """A model of one actor; ``more`` are other keys of the spec, or arguments of `compose`."""
    keywords = {key: more.pop(key) for key in ("allow", "limits") if key in more}
    spec = {"version": 1, "policy": policy, "critic": critic, **more}
    return composer.compose(spec, observation_space=seen, action_space=action, seed=0, **keywords)


def after():
    """A model whose second head reads what the first has drawn."""
    graph = {"both": {"block": "concat", "in": ["observation", "action/move"]}}
    heads = {"move": {"in": "observation"}, "use": {"in": "both"}}
    moves = spaces.Dict(move=spaces.Discrete(2), use=spaces.Discrete(3))
    return composed({"graph": graph, "heads": heads}, action=moves)


def advised(call, *arguments):
    """How the message of the ValueError that ``call`` raises says it is called instead."""
    with pytest.raises(ValueError, match="; call ") as caught:
        call(*arguments)
    return re.search(r"; call (\w+(?:\.\w+)?)\((.*?)\)", str(caught.value)).groups()


@pytest.mark.parametrize("memory", ["none", "policy", "critic"])
@pytest.mark.parametrize("kind", ["state", "state_action"])
def test_a_critic_is_called_as_it_says(memory, kind):
    """``critic.value`` is called as the critic is; what is said is said once, with all that it takes."""
    policy = {"graph": dict(POLICY["graph"]), "heads": {"in": "latent"}, "shares": ["latent"]}
    if memory == "policy":
        policy["graph"] = {"latent": {**GRU, "in": "observation"}}
    graph, reads = {}, ["latent"]
    if memory == "critic":
        graph["kept"], reads = {**GRU, "in": "latent"}, ["kept"]
    if kind == "state_action":
        reads.append("action/action")
    graph["both"] = {"block": "concat", "in": reads}
    graph["value"] = {"block": "linear_output", "in": "both", "output_units": 1}
    model = composed(policy, {"kind": kind, "graph": graph}, spaces.Box(-1, 1, (1,)))
    state = model.policy.initial_state(2)
    logits = (
        model.policy(OBSERVATIONS, state)[0] if memory == "policy" else model.policy(OBSERVATIONS)
    )
    given = {
        "observations": OBSERVATIONS, "action": torch.zeros(2, 1), "logits": logits,
        "state": model.critic.initial_state(2), "resets": torch.zeros(2, dtype=torch.bool),
    }  # fmt: skip
    for call in (model.critic, model.critic.value):
        name, arguments = advised(call, OBSERVATIONS)
        assert name == ("critic" if call is model.critic else "critic.value")
        words = [word for word in arguments.split(", ") if "=" not in word]
        keywords = dict(word.split("=") for word in arguments.split(", ") if "=" in word)
        call(
            *(given[word] for word in words), **{key: given[word] for key, word in keywords.items()}
        )


def test_a_policy_and_a_model_with_memory_are_called_as_they_say():
    policy = {"graph": {"latent": {**GRU, "in": "observation"}}, "heads": {"in": "latent"}}
    model = composed(policy, {"template": {}})
    given = {"observations": OBSERVATIONS, "resets": None}
    for call, owner in ((model, model), (model.policy, model.policy)):
        _, arguments = advised(call, OBSERVATIONS)
        values = {**given, "state": owner.initial_state(2)}
        call(*(values[word] for word in arguments.split(", ")))


def test_a_distribution_without_gradients_through_its_action_says_what_to_use():
    distribution = composed(POLICY).policy.distribution(OBSERVATIONS)
    with pytest.raises(ValueError, match=r"has no reparametrised sample; use sample\(\)"):
        distribution.rsample()
    distribution.sample()


def test_a_model_without_weights_says_how_to_get_them():
    spec = {"version": 1, "policy": POLICY}
    model = composer.compose(
        spec, observation_space=SEEN, action_space=spaces.Discrete(2), device="meta"
    )
    with pytest.raises(ValueError, match=r"call model.materialize\(device\) first"):
        model.policy(OBSERVATIONS)
    model.materialize("cpu")
    model.policy(OBSERVATIONS)


def built(**nodes):
    """The network of a graph over ``x`` of shape (3,), each node by its keywords."""
    graph = Graph({"x": (3,)})
    for name, keywords in nodes.items():
        graph.add(name, **keywords)
    return InferenceBlock(graph, [*nodes])


def by_actor(observations, critic):
    """A model with a network for each actor that sees ``observations``, and one ``critic``."""
    spec = {"version": 1, "policy": {"separate": True, "template": {}}, "critic": critic}
    moves = dict.fromkeys(observations, spaces.Discrete(2))
    return composer.compose(spec, observation_space=observations, action_space=moves, seed=0)


def delta_state(key):
    seen = {"pick": spaces.Dict({"at": SEEN}), "place": spaces.Dict({"at": SEEN, key: SEEN})}
    value = {"block": "linear_output", "output_units": 1}
    reads = {"block": "concat", "in": ["at", *{key: None, "prev_value": None}]}
    networks = {
        "pick": {"graph": {"value": {**value, "in": "at"}}},
        "place": {"graph": {"both": reads, "value": {**value, "in": "both"}}},
    }
    return by_actor(seen, {"kind": "delta_state", "networks": networks})


def shared_state(key):
    seen = {("a", i): spaces.Dict({key: SEEN}) for i in range(2)}
    seen["b", 0] = spaces.Dict({"c": SEEN})
    return by_actor(seen, {"kind": "shared_state", "stack": True, "template": {}})


def saved(block, **settings):
    graph = {"latent": {"block": block, "in": "observation", **settings}}
    model = composed({"graph": graph, "heads": {"in": "latent"}})
    model.save("model.safetensors")
    return model


class Scores(nn.Module):
    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, obs):
        return {"action": self.net(obs["observation"])}


class Acting(Scores):
    def act(self, obs):
        return {"action": torch.zeros(len(obs["observation"]), dtype=torch.long)}


class Switches(gymnasium.Env):
    """An environment of which only the spaces are asked for."""

    observation_space = SEEN

    def __init__(self, choices):
        self.action_space = spaces.MultiDiscrete(choices)


def in_torchrl(choices):
    env = Switches(choices)
    model = composed(POLICY, action=env.action_space)
    return to_torchrl(model, GymWrapper(env, categorical_action_encoding=True))


def command(*arguments):
    """Run ``composer`` with ``arguments``; ValueError of what it printed where it failed."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main([*map(str, arguments)])
    if status:
        raise ValueError(said.getvalue())


def bare_file():
    """The name of a new file with a spec that names no environment."""
    Path("agent.yaml").write_text("version: 1\npolicy: {template: {}}\ncritic: {template: {}}\n")
    return "agent.yaml"


def started_again():
    bare_file()
    command("init", "CartPole-v1", "-o", "other.yaml")
    Path("agent.yaml").unlink()
    command("init", "CartPole-v1", "-o", "agent.yaml")


def registered(*arguments, **keywords):
    """The record of a model that is registered so."""
    models = ModelRegistry()
    decorate = models.register("mine", *arguments, **keywords)
    return models.get("mine") if decorate is None else decorate(len)


def read_at_once(read):
    """The views of a token policy whose transformer gives what ``read`` says."""
    body = {"block": "transformer", "in": ["sequence", "sequence_mask"], "family": "gpt2", "n_layer": 1,
            "n_head": 1, "n_embd": 4, "read": read}  # fmt: skip
    graph = {"latent": body, "flat": {"block": "flatten", "in": "latent"}}
    seen, action = token_spaces(4, 3)
    policy = {"graph": graph, "heads": {"in": "flat"}}
    model = composed(policy, action=action, seen=seen, ignore=["observation", "action_mask"])
    return token_views(model.policy)


def of_squeezed(axis):
    """A model whose critic is a class that returns its value without ``axis``."""
    return composed(POLICY, {"_target_": Squeezing, "axis": axis})


class Squeezing(Sum):
    def __init__(self, obs_shapes, axis):
        super().__init__(obs_shapes)
        self.axis = axis

    def forward(self, inputs):
        value = super().forward(inputs)["value"]
        return {"value": value if self.axis is None else value.squeeze(self.axis)}


class Vectors:
    """A vector environment that does not say when it resets."""

    num_envs = 2


def reading_action(name, **more):
    """A model whose critic reads the action beside an observation called ``name``."""
    seen = spaces.Dict({"state": SEEN, name: SEEN})
    critic = {"kind": "state_action", "template": {}}
    return composed(TEMPLATE, critic, TORQUE, seen=seen, **more)


def each_valued(*names):
    """A model with a critic that reads actions for each of the actors called ``names``."""
    networks = {name: {"template": {}} for name in names}
    return actor_critics.compose(
        {"kind": "state_action", "networks": networks}, policy={"networks": networks},
        observations=dict.fromkeys(names, SEEN), actions=dict.fromkeys(names, spaces.Discrete(2)),
    )  # fmt: skip


def of_actors(*names, action=(), **policy):
    """A model of actors called ``names`` that see the same, by ``policy``."""
    return composer.compose(
        {"version": 1, "policy": policy or {"template": {}}},
        observation_space=dict.fromkeys(names, SEEN),
        action_space=dict.fromkeys(action or names, spaces.Discrete(2)),
    )


def of_sizes(**policy):
    """A model of two actors that see vectors of other sizes, by ``policy``."""
    return composer.compose(
        {"version": 1, "policy": policy},
        observation_space={"pick": SEEN, "place": spaces.Box(-1, 1, (4,))},
        action_space=dict.fromkeys(["pick", "place"], spaces.Discrete(2)),
    )


def counted(observations):
    composed(POLICY, normalize=["observation"]).update_normalizers(observations)


def in_torque(distribution):
    """The distribution of a continuous action, of the kind called ``distribution``."""
    return composed(
        POLICY, action=TORQUE, distributions=[{"action": "action", "distribution": distribution}]
    ).policy.distribution(OBSERVATIONS)


def in_one_call(model, masks):
    return model.policy.distributions(model.policy(OBSERVATIONS), masks)


def with_memory():
    return composed({"graph": {"latent": {**GRU, "in": "observation"}}, "heads": {"in": "latent"}})


def stepped(model):
    return model.policy(OBSERVATIONS, model.policy.initial_state(2))


def acted(last):
    """An action for what ``last``, reset or step, returned."""
    env = gymnasium.make("CartPole-v1")
    policy = composer.compose({"version": 1, "policy": TEMPLATE}, env=env).policy
    observation, _info = env.reset()
    if last == "step":
        observation, _reward, _terminated, _truncated, _info = env.step(0)
    policy.act(observation)
    env.close()


TORQUE = spaces.Box(-1, 1, (1,))
TEMPLATE = {"template": {}}
VARYING = spaces.Dict(s=spaces.Sequence(spaces.Sequence(SEEN)), x=SEEN)
TWO_NETWORKS = {"pick": TEMPLATE, "place": TEMPLATE}
NESTED = {"block": "graph", "graph": {"inner": {"block": "dense", "in": "x", "hidden_units": 4}}}
LEGAL = torch.ones(2)
VIEWS = {"kind": "shared_state", "template": {}}
DENSE = {"block": "dense", "inputs": "x", "hidden_units": 4}
SAME = {"same_as": "first", "inputs": "x"}
LINEAR = {"in_features": 3, "out_features": 4}
WIDE = spaces.MultiDiscrete([2] * 2_000 + [1_000_000])
SPLIT = spaces.Dict(few=spaces.MultiDiscrete([2] * 2_000), many=spaces.Discrete(1_000_000))
ADVISED_AND_DONE = {
    # --- models and their registry ---
    "a model without wrappers": (
        lambda: composed(POLICY).wrapped,
        "the spec has no 'wrap' in its policy; add one, or wrap model.policy with composer.model_wrap",
        lambda: (
            composed({**POLICY, "wrap": ["argmax_sample"]}).wrapped,
            composer.model_wrap(composed(POLICY).policy, "argmax_sample"),
        ),
    ),
    "a model of nothing": (
        lambda: registered(),
        "the model 'mine' has nothing to register; give its parts or a spec, or name the part that is decorated: "
        "register('mine', 'actor')",
        lambda: (
            registered(actor=len), registered(spec=CONFIGS / "token_gru.yaml"), registered("actor"),
        ),
    ),
    # --- trust ---
    "allow is a text": (
        lambda: composed(POLICY, allow="tests.helpers"),
        "allow is a list of modules, got the text 'tests.helpers'; write allow=['tests.helpers']",
        lambda: composed(POLICY, allow=["tests.helpers"]),
    ),
    "a class of another module": (
        lambda: composed(POLICY, {"_target_": f"{__name__}.Sum"}, allow=["tests.whole"]),
        "critic._target_: 'tests.whole.test_advice_of_calls.Sum' lives in 'tests.helpers.actor_critics', outside the "
        "allowed modules (tests.whole); name it by the module that defines it, and allow that one",
        lambda: composed(
            POLICY, {"_target_": "tests.helpers.actor_critics.Sum"}, allow=["tests.helpers.actor_critics"]
        ),
    ),
    # --- the command line ---
    "show without an environment": (
        lambda: command("show", bare_file()),
        "composer show: the spec names no environment; give one with --env ID",
        lambda: command("show", bare_file(), "--env", "CartPole-v1"),
    ),
    "init over a file": (
        lambda: command("init", "CartPole-v1", "-o", bare_file()),
        "composer init: 'agent.yaml' is there already; remove it or choose another name",
        started_again,
    ),
    # --- the spec and what is built of it ---
    "a graph in a template": (
        lambda: composed({"template": {"trunk": NESTED}}),
        "policy.template.trunk.block: a template is made of single blocks; describe a network of your own with "
        "'graph' instead",
        lambda: composed(
            {"graph": {"latent": {**NESTED, "in": {"x": "observation"}}}, "heads": {"in": "latent"}}
        ),
    ),
    "a value without its axis": (
        lambda: of_squeezed(-1),
        "critic._target_: the head 'value' has the shape (), but a critic needs (1,); leave its last axis, of "
        "size 1: no squeeze() or squeeze(-1)",
        lambda: of_squeezed(None),
    ),
    "an observation called as the action": (
        lambda: reading_action("action/action"),
        "critic: the observation 'action/action' is called as the action is that the critic reads; rename it, or "
        "name it under 'ignore'",
        lambda: (reading_action("torque"), reading_action("action/action", ignore=["action/action"])),
    ),
    "weights beyond the memory": (
        lambda: composed(POLICY, limits={"memory": 90}),
        "policy.graph.latent: 'policy/latent' needs 64 bytes of memory for its weights (all nodes 104 bytes), "
        "and there are 90 bytes; choose smaller sizes",
        lambda: composed(
            {"graph": {"latent": {**POLICY["graph"]["latent"], "hidden_units": 2}}, "heads": {"in": "latent"}},
            limits={"memory": 90},
        ),
    ),
    "one network of actors that see different things": (
        lambda: of_sizes(template={}),
        "policy: one network serves all actors, but the observation spaces of 'pick' and 'place' differ "
        "('observation': shape is (4,), expected (3,)); give them networks of their own under 'networks', or write "
        "separate: true",
        lambda: (of_sizes(networks=TWO_NETWORKS), of_sizes(separate=True, template={})),
    ),
    "separate agents that are not counted": (
        lambda: of_actors(("look", None), separate=True, template={}),
        "policy.separate: 'separate' needs a known number of agents; it is not known for 'look': leave it out",
        lambda: of_actors(("look", None)),
    ),
    "an actor called as a part of the critic": (
        lambda: each_valued("target", "other"),
        "critic.networks.target: 'target' is the name of a part of the critic itself; rename the step or agent",
        lambda: each_valued("aim", "other"),
    ),
    "networks of a critic of all": (
        lambda: actor_critics.compose({"kind": "shared_state", "networks": {"pick": TEMPLATE}}),
        "critic.networks: one network reads the observations of all actors; write it directly, without 'networks'",
        lambda: actor_critics.compose(VIEWS),
    ),
    "a stack of several shapes": (
        lambda: actor_critics.compose({**VIEWS, "stack": True}),
        "critic.stack: 'stack' needs values of one form, but 'view' of 'pick' and 'place/0' has the shapes (4,) and "
        "(3,); leave 'stack' out, or name other 'observations'",
        lambda: (
            actor_critics.compose(VIEWS),
            actor_critics.compose({**VIEWS, "stack": True, "observations": ["goal"]}),
        ),
    ),
    # --- policies and critics ---
    "the policy of a step of separate agents": (
        lambda: structured_models.pick_and_place("separate: true").policy["place"],
        "the actors of 'place' have separate networks; name one of 'place/0', 'place/1'",
        lambda: [
            structured_models.pick_and_place("separate: true").policy[name] for name in ("place/0", "place/1")
        ],
    ),
    "every place of a sequence at once": (
        lambda: read_at_once("all"),
        "the network cannot read a whole sequence at once: transformer 'latent' has read: all, so what follows sees "
        "all places at once; write read: last",
        lambda: read_at_once("last"),
    ),
    "returns for values that are not normalised": (
        lambda: composed(POLICY, TEMPLATE).update_normalizers(returns=[5.0]),
        "this critic does not normalise its values; write normalize_value: true in it",
        lambda: composed(POLICY, {**TEMPLATE, "normalize_value": True}).update_normalizers(returns=[5.0]),
    ),
    "an ensemble of values that build on one another": (
        lambda: actor_critics.compose({**CHAINED, "ensemble": 2}),
        "critic.ensemble: a value that builds on the one before is one number; leave 'ensemble' out",
        lambda: actor_critics.compose(CHAINED),
    ),
    "a value before the first step": (
        lambda: actor_critics.compose(CHAINED).critic(observe(), prev_value=torch.zeros(5, 1)),
        "the first step has no value before it; leave prev_value out",
        lambda: actor_critics.compose(CHAINED).critic(observe()),
    ),
    "who is present for a critic that does not read it": (
        lambda: actor_critics.compose(STACKED).critic(observe(), present={"pick": True}),
        "this critic does not read 'present'; leave it out of the call",
        lambda: actor_critics.compose(STACKED).critic(observe()),
    ),
    # --- distributions ---
    "log_prob of a dict": (
        lambda: composed(POLICY).policy.distribution(OBSERVATIONS).log_prob({"action": torch.zeros(2)}),
        "log_prob takes the tensor of one action, got a dict of 'action'; give the value of this action",
        lambda: composed(POLICY).policy.distribution(OBSERVATIONS).log_prob(torch.zeros(2)),
    ),
    "log_prob of what is deterministic": (
        lambda: in_torque("deterministic").log_prob(torch.zeros(2, 1)),
        "the action 'action' is deterministic, which has no log_prob; use 'squashed_gaussian'",
        lambda: in_torque("squashed_gaussian").log_prob(torch.zeros(2, 1)),
    ),
    "masks that are no dict": (
        lambda: in_one_call(composed(POLICY), masks=LEGAL),
        "masks must be a dict by action ('action'), got a Tensor; give {'action': mask}",
        lambda: in_one_call(composed(POLICY), masks={"action": LEGAL}),
    ),
    "logits and state where logits are needed": (
        lambda: with_memory().policy.distributions(stepped(with_memory())),
        "logits must be a dict by action ('action'), got a tuple; policy(observations) gives (logits, state) with "
        "memory: take its first",
        lambda: with_memory().policy.distributions(stepped(with_memory())[0]),
    ),
    # --- spaces and observations ---
    "what reset returns": (
        lambda: composed(POLICY).policy.act((OBSERVATIONS, {})),
        "'observation' must be numbers, got a tuple; its space is Box(-1.0, 1.0, (3,), float32); write observation, "
        "info = env.reset() and give the observation",
        lambda: acted("reset"),
    ),
    "what step returns": (
        lambda: composed(POLICY).policy.act((OBSERVATIONS, 1.0, False, False, {})),
        "'observation' must be numbers, got a tuple; its space is Box(-1.0, 1.0, (3,), float32); write observation, "
        "reward, terminated, truncated, info = env.step(action) and give the observation",
        lambda: acted("step"),
    ),
    "a row that is NaN": (
        lambda: counted(np.array([[0, 0, np.nan], [0, 0, 1]], np.float32)),
        "the observation 'observation' contains NaN or an infinite number, which the statistics cannot count; leave "
        "out that row",
        lambda: counted(np.array([[0, 0, 1]], np.float32)),
    ),
    "elements that vary in number and in size": (
        lambda: composed(TEMPLATE, seen=VARYING),
        "observation 's' is a Sequence space, whose elements would vary in number and in size, which is not "
        "supported; leave it out with ignore: [s]",
        lambda: composed(TEMPLATE, seen=VARYING, ignore=["s"]),
    ),
    "vectors that do not say when they reset": (
        lambda: composer.first_steps(Vectors()),
        "the vector environment, a Vectors, has no 'autoreset_mode' in its metadata; give first_steps(vector_env, "
        "autoreset_mode=...), one of 'NextStep', 'SameStep', 'Disabled'",
        lambda: [
            composer.first_steps(Vectors(), autoreset_mode=mode) for mode in ("NextStep", "SameStep", "Disabled")
        ],
    ),
    "two networks of one actor": (
        lambda: of_actors("agent_0", "agent_1", networks={"agent": TEMPLATE, "agent_1": TEMPLATE}),
        "policy.networks: 'agent_1' is served by 2 networks, 'agent', 'agent_1'; keep one of them",
        lambda: of_actors("agent_0", "agent_1", networks={"agent": TEMPLATE}),
    ),
    "two actors of one name": (
        lambda: of_actors(0, "0", action=[0]),
        "the observation spaces of 0 and '0' have the same name '0'; rename one",
        lambda: of_actors(0, "1"),
    ),
    "an actor that no file can hold": (
        lambda: of_actors("half\ud800"),
        "the actor 'half\\ud800' holds half of a surrogate pair, which no file can hold; rename it",
        lambda: of_actors("half"),
    ),
    "an observation that no file can hold": (
        lambda: composed(TEMPLATE, seen=spaces.Dict({"half\ud800": SEEN})),
        "'half\\ud800' in the observation space holds half of a surrogate pair, which no file can hold; rename it",
        lambda: composed(TEMPLATE, seen=spaces.Dict({"half": SEEN})),
    ),
    # --- graphs, sources and adapters ---
    "same_as of a same_as": (
        lambda: built(first=DENSE, second=SAME, third={**SAME, "same_as": "second"}),
        "node 'third': 'same_as' names 'second', which is itself 'same_as'; name 'first'",
        lambda: built(first=DENSE, second=SAME, third=SAME),
    ),
    "same_as with settings": (
        lambda: built(first=DENSE, second={**SAME, "hidden_units": 3}),
        "node 'second': a node with 'same_as' has the settings of 'first'; remove 'hidden_units'",
        lambda: built(first=DENSE, second=SAME),
    ),
    "a class by its path": (
        lambda: built(first={**LINEAR, "block": "torch.optim.nn.Linear", "inputs": "x"}),
        "node 'first': 'torch.optim.nn.Linear' is no registered block; from Python, give the class itself",
        lambda: built(first={**LINEAR, "block": nn.Linear, "inputs": "x"}),
    ),
    "spaces in two forms": (
        lambda: composer.compose({"version": 1, "policy": POLICY}, None, {"a": SEEN}, spaces.Discrete(2)),
        "observation_space is a mapping by actor, but action_space is one Space; give both in one form",
        lambda: composer.compose(
            {"version": 1, "policy": POLICY}, None, {"a": SEEN}, {"a": spaces.Discrete(2)}
        ),
    ),
    "one wide choice among many": (
        lambda: composed(POLICY, action=WIDE),
        "distribution 'multi_categorical' pads all choices of 'action' to the widest, which makes 2,001,000,000, "
        "more than 33,554,432; give the wide choice a Discrete of its own",
        lambda: composed(POLICY, action=SPLIT),
    ),
    "the value before": (
        lambda: delta_state("prev_value"),
        "critic.networks.place: 'prev_value' is the name of the previous value here; rename the other one",
        lambda: delta_state("before"),
    ),
    "two inputs of one name": (
        lambda: shared_state("b/0/c"),
        "critic: two inputs are called 'b/0/c': of 'a/0' and of 'b/0'; rename one",
        lambda: shared_state("other"),
    ),
    "a ready module": (
        lambda: saved(nn.Linear(3, 4)),
        "cannot be saved: 'Linear' at policy.graph.latent.block is a ready module; name its class, and its "
        "settings beside it",
        lambda: saved("torch.nn.Linear", **LINEAR),
    ),
    "a class that acts": (
        lambda: to_torchrl(composed({"_target_": Acting})),
        "the class 'Acting' defines act() itself, which has no distribution that a loss could differentiate; "
        "remove act() to train it with TorchRL",
        lambda: to_torchrl(composed({"_target_": Scores})),
    ),
    "heads that read actions, with TorchRL": (
        lambda: to_torchrl(after()),
        "TorchRL makes distributions of logits that it has stored, but the head 'use' reads the action of 'move'; use "
        "the trainer sb3, or a loop of your own with model.step",
        lambda: after().step(OBSERVATIONS).log_prob.sum().backward(),
    ),
    "logits of heads that read actions": (
        lambda: after().policy.distributions(after().policy(OBSERVATIONS)),
        "the head of action 'use' reads the action of 'move', so that its logits are not known before an action is; "
        "policy.distribution(observations) draws head after head, and policy(observations, actions=actions) gives "
        "all logits",
        lambda: after().policy(
            OBSERVATIONS, actions=after().policy.distribution(OBSERVATIONS).sample()
        ),
    ),
    "a row of heads that read actions": (
        lambda: after().policy.distribution(OBSERVATIONS).row(),
        "no row of numbers stands for a distribution whose heads read actions, for it needs the weights of the later "
        "heads; keep observations and actions, and evaluate them by policy.distribution(observations).log_prob(action)",
        lambda: after().policy.distribution(OBSERVATIONS).log_prob(after().step(OBSERVATIONS).action),
    ),
    "actions for heads that read none": (
        lambda: composed({"template": {}}).policy(OBSERVATIONS, actions={}),
        "no head of this policy reads an action, so its logits are the same for all; leave out 'actions'",
        lambda: composed({"template": {}}).policy(OBSERVATIONS),
    ),
    "a step of a class that acts": (
        lambda: composed({"_target_": Acting}).step(OBSERVATIONS),
        "the network class 'Acting' defines 'act', whose actions have no distribution; call "
        "model.policy.act(observations), or leave 'act' out of the class",
        lambda: (
            composed({"_target_": Acting}).policy.act({"observation": OBSERVATIONS}),
            composed({"_target_": Scores}).step(OBSERVATIONS),
        ),
    ),
    "a step with memory": (
        lambda: composed(REMEMBERS).step(OBSERVATIONS),
        "this model has memory; call model.step(observations, state=state, resets=resets), beginning with "
        "model.initial_state(batch_size)",
        lambda: composed(REMEMBERS).step(
            OBSERVATIONS, state=composed(REMEMBERS).initial_state(2), resets=np.zeros(2, bool)
        ),
    ),
    "a step of a critic of actions": (
        lambda: composed(POLICY, {"kind": "state_action", **LATENT}).step(OBSERVATIONS),
        "the critic of this model values actions, which step() and value() do not; call "
        "model(observations, action=action), or give the model a critic of kind: state",
        lambda: (
            composed(POLICY, {"kind": "state_action", **LATENT})(OBSERVATIONS, action=torch.zeros(2)),
            composed(POLICY, {"kind": "state", **LATENT}).step(OBSERVATIONS),
        ),
    ),
    "choices of several sizes in two axes": (
        lambda: in_torchrl([[2, 3], [3, 2]]),
        "'action' is a MultiDiscrete with choices of several sizes in 2 axes, which TorchRL cannot store; give the "
        "environment a MultiDiscrete of one axis, as gymnasium.wrappers.TransformAction and TransformObservation do",
        lambda: in_torchrl([2, 3, 3, 2]),
    ),
    "one mask for several actions": (
        lambda: composed(POLICY, action=PAIR).policy.act(OBSERVATIONS[0], mask=np.ones(2, bool)),
        "this policy has several actions: give mask as a dict of 'm', 'n'",
        lambda: composed(POLICY, action=PAIR).policy.act(
            OBSERVATIONS[0], mask={"m": np.ones(2, bool), "n": np.ones(3, bool)}
        ),
    ),
    "an unknown escape": (
        lambda: load_source('params: {name: "\\q"}\n'),
        "<spec>:1:17: this '\\' escape is unknown; write '\\\\', or use single quotes",
        lambda: [load_source(f"params: {{name: {text}}}\n") for text in ('"\\\\q"', "'\\q'")],
    ),
    "a key among list entries": (
        lambda: load_source("params:\n  - a\n  b: 3\n"),
        "<spec>:3:3: an entry of the list is expected here, starting with '-'; check the indentation",
        lambda: load_source("params:\n  - a\n  - b: 3\n"),
    ),
    "a namespace that no installed package has": (
        lambda: make_environment("NoSuchGames/Pong-v5"),
        "the environment 'NoSuchGames/Pong-v5' cannot be made: Namespace NoSuchGames not found. Have you installed "
        "the proper package for NoSuchGames?\n  If a package brings it, name that too: package:id, such as "
        "ale_py:ALE/Pong-v5",
        lambda: make_environment("ale_py:ALE/Pong-v5").close(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADVISED_AND_DONE)
def test_what_a_message_advises_can_be_done(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong, message, right = ADVISED_AND_DONE[case]
    with pytest.raises((ValueError, OSError, KeyError)) as caught:
        wrong()
    said = caught.value.args[0] if isinstance(caught.value, KeyError) else str(caught.value)
    assert said.removeprefix("environment: ").startswith(message)
    right()


# --- training ---

SHORT = ["--steps", "64", "--eval-episodes", "1", "--set-algorithm", "n_steps=64"]
CARTPOLE = [CONFIGS / "cartpole.yaml", *SHORT]


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """A function: ``composer train`` with some arguments fails with ``message``, in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def refuse(message, *arguments):
        with pytest.raises(ValueError, match=f"^composer train: {re.escape(message)}"):
            command("train", *arguments)

    return refuse


def test_what_a_new_run_advises_can_be_done(refused):
    bare = [bare_file(), *SHORT]
    refused("the spec names no environment; give one with --env ID", *bare, "-o", "run")
    new = [*bare, "--env", "CartPole-v1", "-o"]
    Path("run").mkdir()
    refused("'run' is there already; remove it or choose another folder", *new, "run")
    command("train", *new, "other")
    Path("run").rmdir()
    command("train", *new, "run")


def test_what_a_run_that_is_there_advises_can_be_done(refused):
    new = [*CARTPOLE, "-o", "run"]
    command("train", *new)
    refused(
        "there is a run in 'run' already; continue it with --resume run, or choose another folder",
        *new,
    )
    refused(
        "the run in 'run' has made its 64 steps; to continue, give a larger total: --steps",
        "--resume",
        "run",
    )
    command("train", "--resume", "run", "--steps", "128")
    more = ["--resume", "run", "--steps", "192"]
    message = "the run in 'run' is another one; leave out what differs, or begin a new run with -o:"
    refused(message, *more, "--seed", "3")
    command("train", *CARTPOLE, "--seed", "3", "-o", "other")
    shutil.move("run/curve.csv", "curve.csv")
    Path("run/curve.csv").symlink_to("../curve.csv")
    refused(
        "'run/curve.csv' is a link that leads out of the run's folder; put the file itself there",
        *more,
    )
    shutil.move("curve.csv", "run/curve.csv")
    command("train", *more)


def test_what_is_advised_where_memory_ends_can_be_done(refused, monkeypatch):
    reset = RolloutBuffer.reset

    def allocate(self):
        if self.buffer_size * self.n_envs > 64:
            raise MemoryError("Unable to allocate 29.8 GiB for an array")
        reset(self)

    monkeypatch.setattr(RolloutBuffer, "reset", allocate)
    message = (
        "there is not enough memory (Unable to allocate 29.8 GiB for an array); choose fewer --envs, or smaller "
        "settings of the algorithm"
    )
    refused(message, *CARTPOLE, "--envs", "2", "-o", "run")
    command("train", *CARTPOLE, "--envs", "1", "-o", "fewer")
    command("train", *CARTPOLE, "--envs", "2", "--set-algorithm", "n_steps=32", "-o", "smaller")


def test_what_is_advised_for_weights_that_are_nan_can_be_done(refused):
    dqn = [
        CONFIGS / "cartpole.yaml", "--set", "critic=null", "--set", "policy.graph.latent.activation=relu",
        *SHORT[:4], "--trainer", "torchrl", "--algorithm", "dqn", "--set-algorithm", "learning_starts=16",
    ]  # fmt: skip
    message = (
        "after 64 steps nothing is saved: 'policy.latent.linears.0.weight' is NaN or infinite; look for NaN in the "
        "observations, or choose smaller settings of the algorithm, such as learning_rate"
    )
    refused(message, *dqn, "--set-algorithm", "learning_rate=1e36", "-o", "run")
    command("train", *dqn, "--set-algorithm", "learning_rate=1e-3", "-o", "lower")


# --- export ---


def test_a_model_too_large_for_onnx_is_written_as_pt2(tmp_path, monkeypatch):
    monkeypatch.setattr("composer.export.checks.LARGEST_ONNX", 100)
    model = composed(POLICY)
    with pytest.raises(
        ValueError, match=r"GiB of weights do not fit into an \.onnx file; write a \.pt2 file"
    ):
        model.export(tmp_path / "model.onnx")
    model.export(tmp_path / "model.pt2")


# --- every advice is somewhere ---


def literals(path):
    """The texts in a module, each as its parts between what is filled in; docstrings and patterns are none."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    inner = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    inner |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    inner |= {
        id(part) for node in calls if ast.unparse(node.func) == "re.compile" for part in node.args
    }
    for node in nodes:
        if id(node) in inner:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield [node.value]
        elif isinstance(node, ast.JoinedStr):
            yield [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]


def test_every_advice_is_compared_in_some_test():
    here = Path(__file__)
    files = [p for p in (ROOT / "tests").rglob("*") if p.suffix in (".py", ".txt") and p != here]
    files += [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "composer").rglob("*.py"),
        *(ROOT / "perception_blocks").rglob("*.py"),
    ]
    said = "\n".join(p.read_text() for p in files if "tests" in p.parts or "docs" in p.parts)
    said += here.read_text().partition("# --- every advice")[0]
    said = re.sub(r'"\s*\n\s*f?r?"', "", said)
    said = re.sub(
        r"\s+", " ", re.sub(r"\\(.)", r"\1", said)
    ).lower()  # a sentence begins with a capital
    missing = []
    for path in files:
        for parts in literals(path) if path.suffix == ".py" and "tests" not in path.parts else ():
            text = "".join(parts)
            if ADVICE.search(text):
                pieces = [
                    re.sub(r"\s+", " ", p).strip()
                    for p in re.split(r"\0|\{\d*\}", text)
                    if len(p) > 3
                ]
                if not all(piece.lower() in said for piece in pieces):
                    missing.append(text)
    assert missing == []
