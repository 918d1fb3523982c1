"""What a message of the adapters, wrappers, checkpoints and blocks advises is done here, and works."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.env_util import make_vec_env
from tensordict import TensorDict
from torchrl.envs import RenameTransform, TransformedEnv
from torchrl.envs.libs.gym import GymEnv, GymWrapper
from torchrl.objectives import ClipPPOLoss, SACLoss

from composer.adapters.torchrl import primers, to_torchrl
from composer.training.session import train
from tests.helpers import torchrl_models
from tests.helpers.sb3_agents import ACTOR, CARTPOLE, DETERMINISTIC, TWINS, VALUES, Walk, agent
from tests.helpers.torchrl_models import DENSE, MASKED, TEMPLATES, Playground, remembering, rollout

SEEN = spaces.Box(-1, 1, (3,))
CHOICE = spaces.Discrete(2)
NUMBERS = spaces.Box(-1, 1, (2,))


class Masking(Playground):
    def action_masks(self):
        return np.array([True, False, True])


def registered(name, action=CHOICE, make=Playground, **observations):
    """The id of an environment that is registered here."""
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
    "noise of the library": (
        lambda: agent(PPO, ACTOR + VALUES, Walk(SEEN, NUMBERS), use_sde=True),
        "use_sde explores with noise of Stable-Baselines3's own policies; the distributions of a composed model "
        "explore by themselves: leave it out",
        lambda: agent(PPO, ACTOR + VALUES, Walk(SEEN, NUMBERS)).learn(32),
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


def composed(spec, **keywords):
    return torchrl_models.compose(spec, **keywords)


def played(model, env, **keywords):
    """One rollout of the model, and the loss of PPO on it."""
    modules = to_torchrl(model, env, loss=ClipPPOLoss, **keywords)
    data = rollout(env, modules.collecting, 10)
    return ClipPPOLoss(modules.actor_training, modules.critic_training)(data)


def remembered(wrap):
    model = composed(remembering())
    env = wrap(GymEnv("CartPole-v1"), model)
    return rollout(env, to_torchrl(model, env).actor_inference)


def seen_under(key, **keywords):
    model = composed({"environment": "CartPole-v1", "policy": DENSE})
    modules = to_torchrl(model, **keywords)
    return modules.actor_inference(TensorDict({key: torch.zeros(2, 4)}, [2]))


def clashing(rename):
    env = Playground(CHOICE, spaces.Dict(logits=SEEN, action=spaces.Discrete(3)))
    model = composed(TEMPLATES, env=env)
    wrapped = GymWrapper(env, categorical_action_encoding=True)
    if not rename:
        return played(model, wrapped)
    keys = {"logits": "seen", "action": "before"}
    return played(
        model, TransformedEnv(wrapped, RenameTransform([*keys], [*keys.values()])), keys=keys
    )


def counted(**keywords):
    env = Playground(spaces.Discrete(3, start=2))
    return played(composed(TEMPLATES, env=env), GymWrapper(env, **keywords))


def adopted(advised):
    critic = {**torchrl_models.ACTION_VALUES, "ensemble": 3}
    model = composed({"environment": "Pendulum-v1", "policy": DENSE, "critic": critic})
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

ADVISED_AND_DONE = {**SB3, **TORCHRL}


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
