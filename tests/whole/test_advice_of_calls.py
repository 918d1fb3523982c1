"""What a call advises instead of itself is called here; and every advice in the source is compared in some test."""

import ast
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torchrl.envs import GymWrapper

import composer
from composer.adapters.torchrl import to_torchrl
from composer.source.load import load_source
from composer.spaces.lookup import make_environment
from perception_blocks import Graph, InferenceBlock
from tests.helpers.paths import ROOT
from tests.whole.test_advice import ADVICE

SEEN = spaces.Box(-1, 1, (3,))
PAIR = spaces.Dict(m=spaces.Discrete(2), n=spaces.Discrete(3))
POLICY = {
    "graph": {"latent": {"block": "dense", "in": "observation", "hidden_units": 4}},
    "heads": {"in": "latent"},
}
GRU = {"block": "gru", "hidden_units": 4}
SHARING = {"graph": {"value": {"block": "linear_output", "in": "latent", "output_units": 1}}}
OBSERVATIONS = np.zeros((2, 3), np.float32)


def composed(policy, critic=None, action=spaces.Discrete(2)):  # noqa: B008 - never changed
    spec = {"version": 1, "policy": policy, "critic": critic}
    return composer.compose(spec, observation_space=SEEN, action_space=action, seed=0)


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


DENSE = {"block": "dense", "inputs": "x", "hidden_units": 4}
SAME = {"same_as": "first", "inputs": "x"}
LINEAR = {"in_features": 3, "out_features": 4}
WIDE = spaces.MultiDiscrete([2] * 2_000 + [1_000_000])
SPLIT = spaces.Dict(few=spaces.MultiDiscrete([2] * 2_000), many=spaces.Discrete(1_000_000))
ADVISED_AND_DONE = {
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
    with pytest.raises((ValueError, OSError)) as caught:
        wrong()
    assert str(caught.value).removeprefix("environment: ").startswith(message)
    right()


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
    """The texts in a module, each as its parts between what is filled in; docstrings are none."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    inner = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    inner |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
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
