"""Networks that are a user's own class: how they are made, and what they may return."""

import copy
import pickle
import random
import re
import traceback
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import composer
from perception_blocks import Graph, InferenceBlock

OBSERVATIONS = spaces.Dict(speed=spaces.Box(-1, 1, (4,)), gear=spaces.Discrete(3, start=1))
ACTIONS = spaces.Dict(move=spaces.Discrete(4), use=spaces.MultiBinary(3))
HERE = f"{__name__}."


def compose(policy, critic=None, **keywords) -> Any:  # users' modules have attributes of their own
    spec = {"version": 1, "policy": policy}
    if critic is not None:
        spec["critic"] = critic
    return composer.compose(
        spec, observation_space=OBSERVATIONS, action_space=ACTIONS, **{"seed": 0, **keywords}
    )


def problems_of(policy, critic=None):
    with pytest.raises(composer.SpecError) as error:
        compose(policy, critic)
    return str(error.value).splitlines()


def batch(*leading):
    return {
        "speed": torch.linspace(-1, 1, 4).expand(*leading, 4).clone(),
        "gear": torch.ones(leading, dtype=torch.int64),
    }


class Policy(nn.Module):
    """Plain PyTorch, and right."""

    def __init__(self, obs_shapes, action_logits_shapes, width: int = 8):
        super().__init__()
        self.gears = nn.Embedding(3, 2)
        self.body = nn.Linear(obs_shapes["speed"][0] + 2, width)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, n) for name, (n,) in action_logits_shapes.items()}
        )

    def forward(self, inputs):
        parts = [inputs["speed"], self.gears(inputs["gear"])]
        latent = torch.tanh(self.body(torch.cat(parts, -1)))
        return {name: head(latent) for name, head in self.heads.items()}


class Critic(nn.Module):
    def __init__(self, obs_shapes, width=8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(obs_shapes["speed"][0], width), nn.Linear(width, 1))

    def forward(self, inputs):
        return {"value": self.net(inputs["speed"])}


# --- a class is handed plain things, and sees one batch axis ---


def test_a_constructor_that_draws_from_numpy_or_python_follows_the_seed_and_moves_nothing():
    class Drawn(torch.nn.Module):
        def __init__(self, obs_shapes, action_logits_shapes):
            super().__init__()
            drawn = [np.random.normal(), random.random(), float(torch.rand(()))]
            self.drawn = torch.nn.Parameter(torch.tensor(drawn))

        def forward(self, inputs):
            return {"action": inputs["observation"][:, :2] + self.drawn.sum()}

    spec = {"version": 1, "environment": "CartPole-v1", "policy": {"_target_": Drawn}}
    before = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    first, second = (composer.compose(spec, seed=3).state_dict()["policy.drawn"] for _ in range(2))
    other = composer.compose(spec, seed=4).state_dict()["policy.drawn"]
    after = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()
    assert torch.equal(first, second)
    assert not (first == other).any()
    assert before == after


def test_a_class_from_python_needs_no_permission():
    model = compose({"_target_": Policy, "width": 6}, {"_target_": Critic})
    logits, values = model(OBSERVATIONS.sample())
    assert {name: tensor.shape for name, tensor in (logits | values).items()} == {
        "move": (4,),
        "use": (3,),
        "value": (1,),
    }
    assert ACTIONS.contains(model.policy.act(OBSERVATIONS.sample()))
    assert model.policy.body.out_features == 6


def test_a_class_by_its_path_needs_permission(tmp_path, monkeypatch):
    (tmp_path / "own_nets_a.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, obs_shapes):\n"
        "        super().__init__()\n"
        "        self.net = nn.Linear(4, 1)\n"
        "    def forward(self, inputs):\n"
        "        return {'value': self.net(inputs['speed'])}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    critic = {"_target_": "own_nets_a.Net"}
    assert problems_of({"_target_": Policy}, critic) == [
        "critic._target_: 'own_nets_a.Net' is outside the allowed modules (none); "
        "pass allow=['own_nets_a'] or --allow own_nets_a if you trust it"
    ]
    assert compose({"_target_": Policy}, critic, allow=["own_nets_a"]).critic is not None


class Curious(nn.Module):
    """Remembers what it was given, and empties it."""

    def __init__(self, obs_shapes, action_logits_shapes, sizes, options):
        super().__init__()
        self.given = copy.deepcopy((obs_shapes, action_logits_shapes, sizes, options))
        self.shapes: list[dict] = []
        self.net = nn.Linear(4, 7)
        obs_shapes.clear()
        action_logits_shapes.clear()
        sizes.clear()
        options["deep"].clear()

    def forward(self, inputs):
        self.shapes.append({name: tuple(x.shape) for name, x in inputs.items()})
        move, use = self.net(inputs["speed"]).split([4, 3], -1)
        return {"move": move, "use": use}


def test_a_class_gets_plain_containers_of_its_own():
    spec = {
        "_target_": Curious,
        "sizes": [1, 2],
        "options": {"deep": {"a": [1.5, "b", None, True]}},
    }
    before = copy.deepcopy(spec)
    model = compose(spec, device="meta").materialize()
    obs_shapes, logits_shapes, sizes, options = model.policy.network.module.given
    assert (obs_shapes, logits_shapes) == ({"gear": (), "speed": (4,)}, {"move": (4,), "use": (3,)})
    assert [type(x) for x in (obs_shapes, obs_shapes["speed"], logits_shapes, sizes)] == [
        dict,
        tuple,
        dict,
        list,
    ]
    assert (sizes, options) == (before["sizes"], before["options"])
    assert spec == before


@pytest.mark.parametrize("leading", [(), (1,), (5, 2), (0,)])
def test_a_class_always_sees_one_batch_axis(leading):
    model = compose({"_target_": Curious, "sizes": [], "options": {"deep": {}}})
    module = model.policy.network.module
    module.shapes.clear()
    logits = model.policy(batch(*leading))
    assert logits["move"].shape == (*leading, 4)
    rows = int(np.prod(leading))
    assert module.shapes == [{"gear": (rows,), "speed": (rows, 4)}]


def test_a_class_sees_only_what_the_spec_lets_it():
    class Blind(Critic):
        def forward(self, inputs):
            assert list(inputs) == ["speed"]
            return super().forward(inputs)

    compose({"_target_": Policy}, {"_target_": Blind, "observations": ["speed"]})


# --- what it returns is checked ---


class Returns(nn.Module):
    """Returns what ``change`` makes of right outputs."""

    def __init__(self, obs_shapes, action_logits_shapes, change):
        super().__init__()
        self.change = change
        self.net = nn.Linear(4, 7)

    def forward(self, inputs):
        move, use = self.net(inputs["speed"]).split([4, 3], -1)
        return self.change({"move": move, "use": use})


RETURNS = f"{HERE}Returns returned"


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda out: {"move": out["move"]}, [f"{RETURNS} no 'use'"]),
        (
            lambda out: {"moves": out["move"], "use": out["use"]},
            [f"{RETURNS} no 'move'; did you mean 'moves'?"],
        ),
        (
            lambda out: {**out, "features": out["move"]},
            [f"{RETURNS} 'features', which is neither asked for nor shared; it must return 'move', 'use'"],
        ),
        (
            lambda out: {"move": out["use"], "use": out["use"]},
            ["the head 'move' has the shape (3,), but its distribution 'categorical' needs (4,)"],
        ),
        (
            lambda out: {"move": out["use"], "use": out["move"]},
            [
                "the head 'move' has the shape (3,), but its distribution 'categorical' needs (4,)",
                "  the head 'use' has the shape (4,), but its distribution 'bernoulli' needs (3,)",
            ],
        ),
        (lambda out: out["move"], [f"{RETURNS} a Tensor; forward must return a dict with 'move', 'use'"]),
        (lambda out: None, [f"{RETURNS} a NoneType; forward must return a dict with 'move', 'use'"]),
        (
            lambda out: (out["move"], out["use"]),
            [f"{RETURNS} a tuple; forward must return a dict with 'move', 'use'"],
        ),
        (
            lambda out: {**out, "use": out["use"].tolist() if not out["use"].is_meta else [0.0]},
            [f"output 'use' of {HERE}Returns returned a value of type list; a tensor is needed"],
        ),
        (
            lambda out: {**out, "move": out["move"].mean(0)},
            [
                f"output 'move' of {HERE}Returns returned (4,) for a batch of 11; the first axis of the output "
                "must be the batch axis of the input"
            ],
        ),
        (lambda out: {}, [f"{RETURNS} no 'move'", f"  {HERE}Returns returned no 'use'"]),
    ],
)  # fmt: skip
def test_wrong_outputs_are_answered_together(change, messages):
    (first, *more) = problems_of({"_target_": Returns, "change": change})
    assert [first, *more] == [f"policy._target_: {messages[0]}", *messages[1:]]


class ReturnsValue(Critic):
    def __init__(self, obs_shapes, change):
        super().__init__(obs_shapes)
        self.change = change

    def forward(self, inputs):
        return self.change(super().forward(inputs)["value"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {"vlaue": v}, f"{HERE}ReturnsValue returned no 'value'; did you mean 'vlaue'?"),
        (
            lambda v: v,
            f"{HERE}ReturnsValue returned a Tensor; forward must return a dict with 'value'",
        ),
        (
            lambda v: {"value": v.squeeze(-1)},
            "the head 'value' has the shape (), but a critic needs (1,); leave its last axis, of size 1: "
            "no squeeze() or squeeze(-1)",
        ),
    ],
)
def test_a_critic_returns_one_value(change, message):
    assert problems_of({"_target_": Policy}, {"_target_": ReturnsValue, "change": change}) == [
        f"critic._target_: {message}"
    ]


# --- how it is constructed ---


class NoShapes(nn.Module):
    def __init__(self, width=3):
        super().__init__()


@pytest.mark.parametrize(
    ("policy", "messages"),
    [
        (
            {"_target_": Policy, "widht": 3},
            ["policy.widht: 'widht' is not a setting of class 'Policy'; did you mean 'width'?"],
        ),
        (
            {"_target_": Curious, "options": {"deep": {}}},
            ["policy._target_: class 'Curious' needs the setting 'sizes'"],
        ),
        (
            {"_target_": NoShapes},
            [
                "policy._target_: class 'NoShapes' must take 'obs_shapes' and 'action_logits_shapes' in its "
                "constructor: the composer passes them"
            ],
        ),
        (
            {"_target_": Policy, "width": "wide"},
            ["policy.width: 'width' must be an integer, got 'wide'"],
        ),
        (
            {"_target_": 3},
            ["policy._target_: '_target_' must be the dotted path of a class, such as my_nets.Policy, got the number 3"],
        ),
        (
            {"_target_": dict},
            ["policy._target_: '_target_' is an nn.Module class or its dotted path, got <class 'dict'>"],
        ),
        (
            {"_target_": Policy, "init": "orthogonl"},
            ["policy.init: unknown initialiser 'orthogonl'; did you mean 'orthogonal'?"],
        ),
    ],
)  # fmt: skip
def test_wrong_constructor_arguments_are_answered(policy, messages):
    assert problems_of(policy) == messages


class Squeezes(Policy):
    def forward(self, inputs):
        return {name: logits.squeeze() for name, logits in super().forward(inputs).items()}


class TakesTwo(Policy):
    def forward(self, inputs, hidden):  # type: ignore[override]
        return super().forward(inputs)


class RemembersOnlyOne(Policy):
    state_shapes: ClassVar = {"h": (3,)}

    def forward(self, inputs, state):  # type: ignore[override]
        return super().forward(inputs), state


@pytest.mark.parametrize(
    ("cls", "messages"),
    [
        (
            Squeezes,
            [
                f"{start}output '{name}' of {HERE}Squeezes returned ({width},) for a batch of 1; the first axis "
                "of the output must be the batch axis of the input, of a single sample too: squeeze(-1) keeps it, "
                "squeeze() does not"
                for start, name, width in (("policy._target_: ", "move", 4), ("  ", "use", 3))
            ],
        ),
        (
            TakesTwo,
            [
                f"policy._target_: {HERE}TakesTwo is called with one dict of tensors: forward(inputs, hidden) does not "
                "take one input: missing a required argument: 'hidden'"
            ],
        ),
        (
            RemembersOnlyOne,
            [
                f"policy._target_: {HERE}RemembersOnlyOne is called with (observations, state, resets): "
                "forward(inputs, state) does not take 3 inputs: too many positional arguments"
            ],
        ),
    ],
)  # fmt: skip
def test_a_forward_that_cannot_be_used_is_refused(cls, messages):
    assert problems_of({"_target_": cls}) == messages


class Lazy(Policy):
    """Its sizes follow from its first forward."""

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__(obs_shapes, action_logits_shapes)
        self.body = nn.LazyLinear(8)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layers_have_their_weights_once_composed(tmp_path):
    model = compose({"_target_": Lazy}, seed=5)
    weights = dict(model.named_parameters())
    assert weights["policy.body.weight"].shape == (8, 6)
    path = tmp_path / "lazy.safetensors"
    model.save(path)
    later = compose({"_target_": Lazy}, seed=5, device="meta").materialize()
    for other in (later, composer.load(path, allow=[__name__]), copy.deepcopy(model)):
        for name, weight in other.named_parameters():
            assert torch.equal(weight, weights[name]), name


class LoadsWeights(Policy):
    weights: ClassVar = {}

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__(obs_shapes, action_logits_shapes)
        self.load_state_dict(self.weights)


def test_weights_that_a_class_loads_are_there_and_cost_no_warning():
    LoadsWeights.weights = compose({"_target_": Policy}, seed=1).policy.state_dict()
    model = compose({"_target_": LoadsWeights}, device="meta")
    assert all(weight.is_meta for weight in model.policy.parameters())
    model.materialize()
    for name, weight in model.policy.state_dict().items():
        assert torch.equal(weight, LoadsWeights.weights[name])
    meta = nn.Linear(2, 2, device="meta")
    with pytest.warns(UserWarning, match="copying from a non-meta parameter"):
        meta.load_state_dict(nn.Linear(2, 2).state_dict())


RAISED = rf"raised at {re.escape(__file__)}:\d+"


class BreaksInInit(Policy):
    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__(obs_shapes, action_logits_shapes)
        raise RuntimeError("no licence found")


class BreaksInForward(Policy):
    no_such_layer: Any  # never set

    def forward(self, inputs):
        return self.no_such_layer(inputs)


@pytest.mark.parametrize(
    ("cls", "error", "text"),
    [
        (BreaksInInit, RuntimeError, "no licence found"),
        (BreaksInForward, AttributeError, "no_such_layer"),
    ],
)
def test_an_error_inside_a_class_keeps_its_traceback_and_says_where_the_spec_names_it(
    cls, error, text, tmp_path, monkeypatch
):
    with pytest.raises(error, match=text) as caught:
        compose({"_target_": cls})
    (note,) = caught.value.__notes__
    assert re.fullmatch(rf"in policy \({re.escape(HERE + cls.__name__)}\), {RAISED}", note)
    assert any(
        frame.filename == __file__ and frame.name != "compose"
        for frame in traceback.extract_tb(caught.tb)
    )

    path = tmp_path / "agent.yaml"
    path.write_text(f"version: 1\npolicy:\n  _target_: {HERE}{cls.__name__}\n")
    with pytest.raises(error) as caught:
        composer.compose(
            path, observation_space=OBSERVATIONS, action_space=ACTIONS, allow=[__name__]
        )
    (note,) = caught.value.__notes__
    name = re.escape(HERE + cls.__name__)
    assert re.fullmatch(rf"in .*agent\.yaml:3:3: policy \({name}\), {RAISED}", note)


# --- weights ---


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_a_seed_gives_the_same_weights_and_moves_no_random_state():
    torch.manual_seed(7)
    states = random_states()
    first = compose({"_target_": Policy}, {"_target_": Critic})
    second = compose({"_target_": Policy}, {"_target_": Critic})
    other = compose({"_target_": Policy}, {"_target_": Critic}, seed=1)
    later = compose({"_target_": Policy}, {"_target_": Critic}, device="meta").materialize()
    assert equal(weights(first), weights(second))
    assert equal(weights(first), weights(later))
    assert not equal(weights(first), weights(other))
    assert random_states() == states


def random_states():
    return torch.get_rng_state().tolist(), pickle.dumps(np.random.get_state()), random.getstate()


class Pretrained(Critic):
    def __init__(self, obs_shapes):
        super().__init__(obs_shapes)
        first: Any = self.net[0]
        nn.init.constant_(first.weight, 0.25)


def test_only_an_init_in_the_spec_draws_a_class_anew():
    kept = compose({"_target_": Policy}, {"_target_": Pretrained})
    drawn = compose({"_target_": Policy}, {"_target_": Pretrained, "init": "orthogonal"})
    assert (kept.critic.net[0].weight == 0.25).all()
    weight = drawn.critic.net[0].weight
    assert torch.allclose(weight.T @ weight, torch.eye(4), atol=1e-5)
    again = compose(
        {"_target_": Policy}, {"_target_": Pretrained, "init": "orthogonal"}, device="meta"
    )
    assert torch.equal(again.materialize().critic.net[0].weight, weight)


class Normed(Critic):
    def __init__(self, obs_shapes):
        super().__init__(obs_shapes)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, inputs):
        return {"value": self.net(self.norm(inputs["speed"]))}


def test_composing_moves_no_statistics_and_keeps_the_mode():
    critic = compose({"_target_": Policy}, {"_target_": Normed}).critic
    assert critic.training
    assert critic.norm.training
    assert critic.norm.num_batches_tracked == 0
    assert (critic.norm.running_mean == 0).all()
    critic(batch(8))
    assert critic.norm.num_batches_tracked == 1
    critic.eval()
    assert critic(batch())["value"].shape == (1,)
    assert critic(batch(5, 2))["value"].shape == (5, 2, 1)
    assert critic.norm.num_batches_tracked == 1


# --- blocks inside, sharing ---


class WithBlocks(nn.Module):
    def __init__(self, obs_shapes, action_logits_shapes, share=False):
        super().__init__()
        graph = Graph({"speed": obs_shapes["speed"]})
        graph.add("latent", "dense", "speed", hidden_units=[5])
        for action, (width,) in action_logits_shapes.items():
            graph.add(action, "linear_output", "latent", output_units=width)
        self.net = InferenceBlock(graph, [*action_logits_shapes, *(["latent"] if share else [])])

    def forward(self, inputs):
        return self.net(inputs)


def test_a_class_with_blocks_inside_is_drawn(tmp_path):
    model = compose({"_target_": WithBlocks})
    model.draw(tmp_path / "net.dot")
    assert "latent" in (tmp_path / "net.dot").read_text()
    assert "latent" in model.summary()


SHARED_CRITIC = {"graph": {"value": {"block": "linear_output", "in": "latent", "output_units": 1}}}


def test_a_critic_reads_what_a_class_shares():
    model = compose({"_target_": WithBlocks, "share": True, "shares": ["latent"]}, SHARED_CRITIC)
    _, values = model(batch(2))
    values["value"].sum().backward()
    assert model.policy.net.latent.linears[0].weight.grad.abs().sum() > 0
    assert list(model.critic.network.in_ports) == ["latent"]


def test_a_class_must_return_what_it_is_to_share():
    assert problems_of({"_target_": WithBlocks, "shares": ["latent"]}, SHARED_CRITIC)[0] == (
        f"policy._target_: {HERE}WithBlocks returned no 'latent'"
    )


def test_a_class_may_read_what_a_graph_shares():
    class Reader(nn.Module):
        def __init__(self, obs_shapes):
            super().__init__()
            self.net = nn.Linear(obs_shapes["latent"][0], 1)

        def forward(self, inputs):
            return {"value": self.net(inputs["latent"])}

    graph = {"latent": {"block": "dense", "in": "speed", "hidden_units": 5}}
    policy = {"graph": graph, "heads": {"in": "latent"}, "shares": ["latent"]}
    model = compose(policy, {"_target_": Reader})
    assert model(batch(3))[1]["value"].shape == (3, 1)


def test_a_copy_a_pickle_and_a_file_hold_the_same_network(tmp_path):
    model = compose({"_target_": Policy, "width": 6}, {"_target_": Critic})
    model.save(tmp_path / "model.safetensors")
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        composer.load(tmp_path / "model.safetensors", allow=[__name__]),
    ):
        assert equal(weights(model), weights(twin))
        assert torch.equal(model(batch(2))[0]["move"], twin(batch(2))[0]["move"])
    with pytest.raises(composer.SpecError, match="is outside the allowed modules"):
        composer.load(tmp_path / "model.safetensors")
