"""What a message of the adapters, wrappers, checkpoints, blocks and export advises is done here, and succeeds.

A case is a call that raises, how its message begins, and the calls that the message advises.
"""

import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from safetensors.torch import save_file
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.env_util import make_vec_env
from tensordict import TensorDict
from torch import nn
from torchrl.envs import RenameTransform, TransformedEnv
from torchrl.envs.libs.gym import GymEnv, GymWrapper
from torchrl.objectives import ClipPPOLoss, SACLoss
from transformers import GPT2Config, GPT2Model

import composer
from composer.adapters.torchrl import primers, to_torchrl
from composer.checkpoint.weights import load_weights
from composer.training.session import train
from perception_blocks import Graph, InferenceBlock, Port
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.measure import measure
from perception_blocks.registry import BLOCKS, Registry
from tests.helpers.sb3_agents import ACTOR, CARTPOLE, DETERMINISTIC, TWINS, VALUES, Walk, agent
from tests.helpers.torchrl_models import (
    ACTION_VALUES,
    DENSE,
    MASKED,
    TEMPLATES,
    Playground,
    compose,
    remembering,
    rollout,
)

SEEN = spaces.Box(-1, 1, (3,))
CHOICE = spaces.Discrete(2)
NUMBERS = spaces.Box(-1, 1, (2,))


class Masking(Playground):
    def action_masks(self):
        return np.array([True, False, True])


def registered(name, action=CHOICE, make=Playground, **observations):
    """The id of an environment of this file, by which ``train`` creates it."""
    if f"{name}-v0" not in gymnasium.registry:
        gymnasium.register(f"{name}-v0", lambda: make(action, spaces.Dict(observations)))
    return f"{name}-v0"


# --- Stable-Baselines3 ---

SETS = Walk(spaces.Dict(x=SEEN, items=spaces.Sequence(SEEN, stack=True)), CHOICE)
PADDED = TransformObservation(
    SETS,
    lambda seen: {**seen, "items": np.resize(seen["items"], (4, 3))},
    spaces.Dict(x=SEEN, items=spaces.Box(-1, 1, (4, 3))),
)
SETS_SPEC = "version: 1\npolicy: {template: {}}\ncritic: {template: {}}\n"
WITHOUT_MASKS = registered("AdvisedMasks", spaces.Discrete(3), **MASKED.spaces)
WITH_MASKS = registered("AdvisedMaskable", spaces.Discrete(3), Masking, **MASKED.spaces)
APPLIED = {"template": {}, "action_mask": {"action": "action_mask"}}


def trained(environment, trainer, algorithm, out="run", policy=None, critic=None, **settings):
    spec = {"version": 1, "environment": environment, "policy": policy or {"template": {}}}
    spec["critic"] = critic or {"template": {}}
    options = {"algorithm": algorithm, "settings": settings, "envs": 1, "eval_episodes": 1}
    return train(spec, out, trainer=trainer, steps=32, **options)


SB3 = {
    "vector environments of gymnasium": (
        lambda: agent(PPO, CARTPOLE, gymnasium.make_vec("CartPole-v1", num_envs=2)),
        "Stable-Baselines3 has vector environments of its own; make one of them instead of gymnasium's: "
        "stable_baselines3.common.env_util.make_vec_env(id, n_envs)",
        lambda: agent(PPO, CARTPOLE, make_vec_env("CartPole-v1", 2)).learn(64),
    ),
    "noise that is held": (
        lambda: agent(PPO, ACTOR + VALUES, Walk(SEEN, NUMBERS), use_sde=True),
        "use_sde holds the noise of actions for several steps, which only the distribution gsde has; write "
        "distribution: gsde for a Box action under 'distributions', or leave use_sde out",
        lambda: agent(
            PPO, ACTOR + VALUES + "distributions: [{space: box, distribution: gsde}]\n", Walk(SEEN, NUMBERS),
            use_sde=True,
        ).learn(32),
    ),
    "another number of critics": (
        lambda: agent(
            TD3, DETERMINISTIC + ACTOR + TWINS, Walk(SEEN, NUMBERS), policy_kwargs={"n_critics": 1}
        ),
        "n_critics is 1, but the critic of the spec has ensemble: 2; write ensemble: 1",
        lambda: agent(
            TD3, DETERMINISTIC + ACTOR + TWINS.replace("ensemble: 2", "ensemble: 1"), Walk(SEEN, NUMBERS),
            policy_kwargs={"n_critics": 1},
        ).learn(32),
    ),
    "observations that vary in size": (
        lambda: agent(PPO, SETS_SPEC, SETS),
        "Stable-Baselines3 stores observations of one size, but these vary: 'items' (?, 3), 'items:mask' (?,); "
        "pad them in a wrapper of the environment, or name them under 'ignore'",
        lambda: agent(PPO, SETS_SPEC, PADDED).learn(32),
        lambda: agent(PPO, "ignore: [items]\n" + SETS_SPEC, SETS).learn(32),
    ),
    "masks of the environment": (
        lambda: trained(WITHOUT_MASKS, "sb3", "maskable_ppo"),
        "maskable_ppo asks the environment for its masks, but 'AdvisedMasks-v0' has no action_masks(); define it "
        "there, or use ppo, which applies the action_mask of the spec",
        lambda: trained(WITH_MASKS, "sb3", "maskable_ppo", n_steps=16, batch_size=16),
        lambda: trained(WITHOUT_MASKS, "sb3", "ppo", "other", APPLIED, n_steps=16, batch_size=16),
    ),
}  # fmt: skip

# --- TorchRL ---

Q_VALUES = {"kind": "state_action", "template": {}}
SHARED = {
    "graph": {
        "both": {"block": "concat", "in": ["latent", "action/action"]},
        "value": {"block": "linear_output", "in": "both", "output_units": 1},
    },
    "kind": "state_action",
}
SHARING = {
    **DENSE,
    "graph": {"latent": {**DENSE["graph"]["latent"], "in": "x"}},
    "shares": ["latent"],
}
UNSHARED = {
    **SHARED,
    "graph": {**SHARED["graph"], "both": {"block": "concat", "in": ["x", "action/action"]}},
}
NORMALIZED = {**Q_VALUES, "normalize_value": True}
AIM = registered("AdvisedAim", NUMBERS, x=SEEN)
UNDERSCORE = registered("AdvisedUnderscore", _x=SEEN)
RENAMED = registered("AdvisedRenamed", x=SEEN)
PPO_STEPS = {"frames_per_batch": 16, "minibatch_size": 16}
SAC_STEPS = {"frames_per_batch": 8, "learning_starts": 8}
SAC_SB3 = {"learning_starts": 8, "batch_size": 8}


def played(model, env, **keywords):
    """One rollout of the model, and the loss of PPO on it."""
    modules = to_torchrl(model, env, loss=ClipPPOLoss, **keywords)
    data = rollout(env, modules.collecting, 10)
    return ClipPPOLoss(modules.actor_training, modules.critic_training)(data)


def remembered(wrap):
    model = compose(remembering())
    env = wrap(GymEnv("CartPole-v1"), model)
    return rollout(env, to_torchrl(model, env).actor_inference)


def seen_under(key, **keywords):
    model = compose({"environment": "CartPole-v1", "policy": DENSE})
    modules = to_torchrl(model, **keywords)
    return modules.actor_inference(TensorDict({key: torch.zeros(2, 4)}, [2]))


def clashing(rename):
    env = Playground(CHOICE, spaces.Dict(logits=SEEN, action=spaces.Discrete(3)))
    model = compose(TEMPLATES, env=env)
    wrapped = GymWrapper(env, categorical_action_encoding=True)
    if not rename:
        return played(model, wrapped)
    keys = {"logits": "seen", "action": "before"}
    return played(
        model, TransformedEnv(wrapped, RenameTransform([*keys], [*keys.values()])), keys=keys
    )


def counted(**keywords):
    env = Playground(spaces.Discrete(3, start=2))
    return played(compose(TEMPLATES, env=env), GymWrapper(env, **keywords))


def adopted(advised):
    critic = {**ACTION_VALUES, "ensemble": 3}
    model = compose({"environment": "Pendulum-v1", "policy": DENSE, "critic": critic})
    modules = to_torchrl(model, loss=SACLoss)
    copies = list(modules.critic_copies)
    loss = (
        SACLoss(modules.actor_training, qvalue_network=copies, num_qvalue_nets=len(copies))
        if advised
        else SACLoss(modules.actor_training, qvalue_network=copies[0])
    )
    modules.adopt(loss)


TORCHRL = {
    "memory that the environment does not carry": (
        lambda: remembered(lambda env, model: env),
        "the TensorDict lacks 'recurrent_state_actor_h', 'recurrent_state_actor_c', 'is_init': the actor has memory, "
        "which the environment must carry from step to step; use TransformedEnv(env, primers(model)), with primers of "
        "composer.adapters.torchrl",
        lambda: remembered(lambda env, model: TransformedEnv(env, primers(model))),
    ),
    "an observation under another key": (
        lambda: seen_under("pixels"),
        "the TensorDict lacks 'observation', which the actor reads; if an observation has another key there, say so "
        "in to_torchrl(..., keys={name: key})",
        lambda: seen_under("pixels", keys={"observation": "pixels"}),
    ),
    "observations under keys that are written": (
        lambda: clashing(rename=False),
        "the modules write 'logits', 'action' themselves, which are observations here; rename them in the environment "
        "with RenameTransform, and say so in to_torchrl(..., keys={name: key})",
        lambda: clashing(rename=True),
    ),
    "choices that do not count from 0": (
        lambda: counted(),
        "'action' counts from 2, which one-hot vectors do not tell; use an environment with "
        "categorical_action_encoding=True",
        lambda: counted(categorical_action_encoding=True),
    ),
    "a key with an underscore": (
        lambda: trained(UNDERSCORE, "torchrl", "ppo"),
        "ppo of torchrl cannot train this model:\n  its collector drops what begins with '_', such as the observation "
        "'_x'; rename it, or use the trainer sb3",
        lambda: trained(RENAMED, "torchrl", "ppo", **PPO_STEPS),
        lambda: trained(UNDERSCORE, "sb3", "ppo", "other", n_steps=16, batch_size=16),
    ),
    "a critic that reads what is shared": (
        lambda: trained(AIM, "torchrl", "sac", policy=SHARING, critic=SHARED),
        "sac of torchrl cannot train this model:\n  its loss trains copies of the critic alone, which cannot read "
        "'latent' of the policy; let the critic read observations instead, or use the trainer sb3",
        lambda: trained(AIM, "torchrl", "sac", policy=SHARING, critic=UNSHARED, **SAC_STEPS),
        lambda: trained(AIM, "sb3", "sac", "other", policy=SHARING, critic=SHARED, **SAC_SB3),
    ),
    "normalised values of single steps": (
        lambda: trained(AIM, "torchrl", "sac", critic=NORMALIZED),
        "sac of torchrl cannot train this model:\n  a replay buffer has no returns, so that 'normalize_value' has "
        "nothing to count; leave it out",
        lambda: trained(AIM, "torchrl", "sac", critic=Q_VALUES, **SAC_STEPS),
    ),
    "a loss that was not created from the copies": (
        lambda: adopted(advised=False),
        "this loss was not created from the critic_copies of this model; give it "
        "qvalue_network=list(modules.critic_copies) and as many num_qvalue_nets",
        lambda: adopted(advised=True),
    ),
}  # fmt: skip

# --- wrappers ---

VECTOR = spaces.Box(-1, 1, (2,))
HYBRID = spaces.Dict(kind=CHOICE, where=VECTOR)
GRU = {
    "graph": {"memory": {"block": "gru", "in": "observation", "hidden_units": 4}},
    "heads": {"in": "memory"},
}
ZEROS = torch.zeros(2, 3)


def policy(action=CHOICE, **keywords):
    part = keywords or {"template": {}}
    return compose({"policy": part}, observation_space=SEEN, action_space=action).policy


def wrapped(model, *names, **settings):
    for name in names:
        model = composer.model_wrap(model, name, **settings.get(name, {}))
    return model


def beside(name):
    """What is given to a policy with memory that nobody wrapped in 'hidden_state'."""
    model = policy(**GRU)
    state = [None, model.initial_state(2)]
    return [wrapped(model, name)({"observation": ZEROS, "prev_state": each}) for each in state]


WRAPPERS = {
    "a choice and a normal": (
        lambda: wrapped(policy(HYBRID), "argmax_sample"),
        "'argmax_sample' needs choices, got 'kind' (a choice), 'where' (a normal); use "
        "'hybrid_deterministic_argmax_sample'",
        lambda: wrapped(policy(HYBRID), "hybrid_deterministic_argmax_sample")(ZEROS),
    ),
    "a choice of normals": (
        lambda: wrapped(policy(VECTOR), "argmax_sample"),
        "'argmax_sample' needs choices, got 'action' (a normal); use 'deterministic_sample'",
        lambda: wrapped(policy(VECTOR), "deterministic_sample")(ZEROS),
    ),
    "normals of a choice": (
        lambda: wrapped(policy(), "deterministic_sample"),
        "'deterministic_sample' needs normals, logits {mu, sigma}, got 'action' (a choice); use 'argmax_sample'",
        lambda: wrapped(policy(), "argmax_sample")(ZEROS),
    ),
    "two that choose": (
        lambda: wrapped(policy(VECTOR), "deterministic_sample", "reparam_sample"),
        "'reparam_sample' would replace the action that a wrapper inside of it chooses; keep one of them",
        lambda: wrapped(policy(VECTOR), "deterministic_sample")(ZEROS),
        lambda: wrapped(policy(VECTOR), "reparam_sample")(ZEROS),
    ),
    "a memory without a state": (
        lambda: wrapped(policy(**GRU), "argmax_sample")(ZEROS),
        "this policy has memory: wrap it in 'hidden_state', or put 'prev_state' beside the observation",
        lambda: wrapped(policy(**GRU), "hidden_state", "argmax_sample", hidden_state={"state_num": 2})(ZEROS),
        lambda: beside("argmax_sample"),
    ),
}  # fmt: skip

# --- checkpoints ---

SAVED = {"environment": "CartPole-v1", "policy": {"template": {}}}


def read_damaged(replaced):
    model = compose(SAVED)
    model.save("copy.safetensors")
    data = Path("copy.safetensors").read_bytes()
    Path("model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    if replaced:
        shutil.copy("copy.safetensors", "model.safetensors")
    composer.load("model.safetensors")


def read_weights(source, **keywords):
    """Load all weights of another network from ``source``."""
    other, net = nn.Linear(3, 2), nn.Linear(3, 2)
    save_file(other.state_dict(), "net.safetensors")
    load_weights(net, source(other), strict=True, **keywords)
    assert torch.equal(net.weight, other.weight)


CHECKPOINTS = {
    "a damaged file": (
        lambda: read_damaged(replaced=False),
        "'model.safetensors' is damaged: the tensor 'policy.",
        lambda: read_damaged(replaced=True),
    ),
    "a file by position": (
        lambda: read_weights(lambda net: "net.safetensors", by="position"),
        "'net.safetensors' is a file, and safetensors files keep no order: load it by name, or give a mapping whose "
        "order is that of the module",
        lambda: read_weights(lambda net: "net.safetensors"),
        lambda: read_weights(lambda net: net.state_dict(), by="position"),
    ),
    "what holds a state_dict": (
        lambda: read_weights(lambda net: {"model": net.state_dict(), "step": 3}),
        "the weights hold what is no tensor at 'model', 'step'; give the state_dict itself",
        lambda: read_weights(lambda net: {"model": net.state_dict(), "step": 3}["model"]),
    ),
}

# --- blocks and graphs ---

SET = {"units": Port((None, 4), mask="units:mask")}
UNITS = {**SET, "units:mask": Port((None,), dtype=torch.bool)}
FIVE = {"units": Port((5, 4), mask="units:mask"), "units:mask": Port((5,), dtype=torch.bool)}
EDGES = [(5, 3), (7, 2)]  # nodes and edges of a graph
NORMALISES = {"conv": "GENConv", "hidden_units": 4}
HALF = spaces.Box(np.float32([0, 0, -np.inf]), np.float32([1, 1, 1]))
BOUNDS = "scale_image needs bounds, "


def built(inputs, **nodes):
    """The network of a graph over ``inputs``, each node by its block, its inputs and its settings."""
    graph = Graph(inputs)
    for name, (block, reads, settings) in nodes.items():
        graph.add(name, block, reads, **settings)
    return InferenceBlock(graph, [[*nodes][-1]])


def run_block(name, *shapes, **settings):
    """A registered block of those inputs, run once."""
    block = BLOCKS.get(name)([*shapes], **settings)
    inputs = [torch.zeros(2, *shape) for shape in shapes]
    if name == "message_passing":  # its second input is the numbers of nodes
        inputs[1] = inputs[1].long()
    block(*inputs)


def named_twice(name, **keywords):
    shapes = Registry("shape")
    shapes.register("round", "decimal:Decimal")
    shapes.register(name, "fractions:Fraction", **keywords)
    assert shapes.get(name).__name__ == "Fraction"


class Lazy(nn.Module):
    def __init__(self, unused):
        super().__init__()
        self.used, self.unused = nn.LazyLinear(2), unused

    def forward(self, x):
        return self.used(x)


def nested(*, outside=None, inside=None):
    inner = Graph({})
    inner.add("out", "linear_output", "x", output_units=2, **({"init": inside} if inside else {}))
    graph = Graph({"x": (3,)})
    graph.add("all", inner, {"x": "x"}, out=["out"], **({"init": outside} if outside else {}))
    return InferenceBlock(graph, ["out"])


def run_rows(**keywords):
    networks = [built({"x": (3,)}, y=("dense", "x", {"hidden_units": 4})) for _ in range(2)]
    return EnsembleBlock(networks, own_inputs=True)({"x": torch.zeros(2, 5, 3)}, **keywords)


def scaled(block, space, **settings):
    graph = {"scaled": {"block": block, "in": "observation", **settings}}
    graph["latent"] = {"block": "dense", "in": "scaled", "hidden_units": 4}
    spec = {"policy": {"graph": graph, "heads": {"in": "latent"}}}
    return compose(spec, observation_space=space, action_space=CHOICE).policy(
        np.zeros((2, 3), np.float32)
    )


def language(checkpoint, **settings):
    """A policy whose tokens go through a body of GPT-2, with its weights from a file or drawn."""
    config = {"n_layer": 1, "n_head": 1, "n_embd": 8}
    GPT2Model(GPT2Config(vocab_size=5, **config)).save_pretrained("gpt2")
    node = {"block": "transformer", "in": "observation", "family": "gpt2", **settings}
    if checkpoint:
        node["checkpoint"] = "gpt2"
    spec = {"policy": {"graph": {"latent": node}, "heads": {"in": "latent"}}}
    space = spaces.MultiDiscrete([5] * 6)
    return compose(spec, observation_space=space, action_space=CHOICE, allow=["./"])


def dropped(name):
    return (
        f"node 'latent': block {name!r} would drop the mask of 'units'; pool or attend first, or instead "
        "(masked_global_pooling, attention_pooling), or apply it to each element: each: 1"
    )


DENSE_4 = {"hidden_units": 4}
LSTM = ("lstm_last_step", "units", DENSE_4)
FLAT = ("flatten_dense", "units", DENSE_4)
MEAN = ("masked_global_pooling", "units", {})
ATTENDED = ("attention_pooling", "units", {})
BLOCK_CASES = {
    "a name that is taken": (
        lambda: named_twice("round"),
        "the shape name 'round' of fractions:Fraction is taken by decimal:Decimal; choose another, or pass replace=True",
        lambda: named_twice("square"),
        lambda: named_twice("round", replace=True),
    ),
    "a lazy layer that forward does not reach": (
        lambda: measure(Lazy(nn.LazyLinear(3)), [Port((4,))]),
        "forward of Lazy does not reach 'unused.weight', 'unused.bias'; give its lazy layer its sizes",
        lambda: measure(Lazy(nn.Linear(4, 3)), [Port((4,))]),
    ),
    "a mask that is dropped": (
        lambda: built(FIVE, latent=FLAT),
        dropped("flatten_dense"),
        lambda: built(FIVE, mean=MEAN, latent=("flatten_dense", "mean", DENSE_4)),
        lambda: built(FIVE, mean=ATTENDED, latent=("flatten_dense", "mean", DENSE_4)),
        lambda: built(FIVE, latent=("flatten_dense", "units", {**DENSE_4, "each": 1})),
    ),
    "a mask that is dropped by what reads sequences": (
        lambda: built(UNITS, latent=LSTM),
        dropped("lstm_last_step"),
        lambda: built(UNITS, latent=MEAN),
        lambda: built(UNITS, latent=ATTENDED),
    ),
    "a mask that is no input": (
        lambda: built(SET, pooled=("deep_set", "units", DENSE_4)),
        "node 'pooled': 'units' is masked by 'units:mask', which is not among the inputs; add it",
        lambda: built(UNITS, pooled=("deep_set", "units", DENSE_4)),
    ),
    "the init of a nested graph": (
        lambda: nested(outside="zeros"),
        "node 'all': a nested graph has no weights of its own; give 'init' to its nodes",
        lambda: nested(inside="zeros"),
    ),
    "no rows of an ensemble": (
        lambda: run_rows(rows=[]),
        "'rows' names no copy; leave it out to run all of them",
        lambda: run_rows(),
    ),
    "layers of nodes and of edges": (
        lambda: run_block("graph_network", (3, 3), hidden_units=4, edges=[[0, 1]], edge_units=[4, 4]),
        "graph_network has 1 hidden_units and 2 edge_units; give as many, one for each layer",
        lambda: run_block("graph_network", (3, 3), hidden_units=[4, 4], edges=[[0, 1]], edge_units=[4, 4]),
    ),
    "what has no bounds to scale by": (
        lambda: run_block("scale_image", (4,)),
        f"{BOUNDS}which its input does not have; give it low and high",
        lambda: run_block("scale_image", (4,), low=0, high=255),
    ),
    "an infinite bound to scale by": (
        lambda: scaled("scale_image", HALF),
        "policy.graph.scaled: scale_image needs bounds, but those of the space are infinite; give it low and high, or use a normalize block",
        lambda: scaled("scale_image", HALF, low=-1, high=1),
        lambda: scaled("normalize", HALF),
    ),
    "a residual of another width": (
        lambda: run_block("self_attention_seq", (4, 6), hidden_units=8, residual=True),
        "self_attention_seq cannot add its input of 6 features to its output of 8; leave out 'residual' or "
        "'hidden_units'",
        lambda: run_block("self_attention_seq", (4, 6), hidden_units=8),
        lambda: run_block("self_attention_seq", (4, 6), residual=True),
    ),
    "a norm over the whole batch": (
        lambda: run_block("message_passing", *EDGES, **NORMALISES),
        "convolution 'GENConv' with settings={} normalises over the nodes of all graphs of a batch and their padding; "
        "choose another norm, such as 'layer'",
        lambda: run_block("message_passing", *EDGES, **NORMALISES, settings={"norm": "layer"}),
    ),
    "features of edges that are not taken": (
        lambda: run_block("message_passing", *EDGES, (7, 2), conv="SAGEConv", hidden_units=4),
        "convolution 'SAGEConv' takes no features of edges, got (7, 2); leave them out, or choose one that takes them, "
        "such as 'GATv2Conv' or 'GINEConv'",
        lambda: run_block("message_passing", *EDGES, conv="SAGEConv", hidden_units=4),
        lambda: run_block("message_passing", *EDGES, (7, 2), conv="GATv2Conv", hidden_units=4),
        lambda: run_block("message_passing", *EDGES, (7, 2), conv="GINEConv", hidden_units=4),
    ),
    "settings beside a checkpoint": (
        lambda: language(True, n_embd=16),
        "policy.graph.latent.n_embd: a checkpoint brings its own configuration; leave out 'n_embd'",
        lambda: language(True),
    ),
    "an init beside a checkpoint": (
        lambda: language(True, init="orthogonal"),
        "policy.graph.latent.init: a checkpoint's weights are kept as they are; leave out 'init' or 'checkpoint'",
        lambda: language(True),
        lambda: language(False, init="orthogonal", n_layer=1, n_head=1, n_embd=8),
    ),
}  # fmt: skip

# --- export ---


def pairs(advised):
    """The best two choices, in a file or from the logits of one."""
    part = (
        {"template": {}}
        if advised
        else {"template": {}, "wrap": [{"combination_argmax_sample": {"shot_number": 2}}]}
    )
    model = compose({"policy": part}, observation_space=SEEN, action_space=spaces.Discrete(4))
    model.export("model.pt2")
    file = torch.export.load("model.pt2").module()
    observation = torch.randn(5, 3)
    pair = wrapped(model.policy, "combination_argmax_sample")(observation, shot_number=2)["action"]
    assert torch.equal(file({"observation": observation})["logits"].topk(2).indices, pair)


EXPORT = {
    "several choices at once": (
        lambda: pairs(advised=False),
        "'model.pt2' cannot be exported: the wrapper 'combination_argmax_sample' picks several choices at once, but an "
        "action is one of them; take them from the logits",
        lambda: pairs(advised=True),
    ),
}

ADVISED_AND_DONE = {**SB3, **TORCHRL, **WRAPPERS, **CHECKPOINTS, **BLOCK_CASES, **EXPORT}


@pytest.mark.filterwarnings("ignore")  # those of the libraries
@pytest.mark.parametrize("case", ADVISED_AND_DONE)
def test_what_a_message_advises_can_be_done(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong, message, *ways_out = ADVISED_AND_DONE[case]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        wrong()
    assert str(caught.value).startswith(message)
    for way_out in ways_out:
        way_out()
