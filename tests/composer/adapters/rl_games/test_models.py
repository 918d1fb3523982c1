"""rl_games trains, runs, saves and restores a composed model, which stays the model that was composed."""

import contextlib
import io
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from rl_games.algos_torch import model_builder
from rl_games.algos_torch.models import ModelA2C

import composer
from composer.adapters.rl_games import register
from composer.adapters.rl_games.environments import GymnasiumEnvironments
from composer.adapters.rl_games.hosted import HostedActions, HostedObservations
from composer.spaces.tree import flatten_space
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.rl_games_agents import (
    ACTOR_CRITIC,
    ASYMMETRIC,
    CENTRAL,
    REMEMBERS,
    agent,
    config,
    of_environments,
    player,
    runner,
    trained,
)
from tests.helpers.sb3_agents import NESTED, Walk

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*numpy.core is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning"),
]
TEMPLATES = "version: 1\npolicy: {template: {}}\ncritic: {template: {}}\n"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # rl_games writes into the working directory


def differences(params):
    """The largest |log_prob in a rollout - log_prob in the update| for each minibatch at learning rate 0."""
    params["params"]["config"]["learning_rate"] = 0.0
    made = agent(params)
    seen, loss = [], made.actor_loss_func

    def spied(old, new, *rest):
        seen.append(float((old - new).detach().abs().max()))
        return loss(old, new, *rest)

    made.actor_loss_func = spied
    with contextlib.redirect_stdout(io.StringIO()):
        made.train()
    return seen


CASES = {
    "choices": (ACTOR_CRITIC, {"env": "CartPole-v1"}),
    "numbers": (ACTOR_CRITIC, {"env": "Pendulum-v1", "algorithm": "a2c_continuous"}),
    "gru": (REMEMBERS % "gru", {"env": "CartPole-v1"}),
    "lstm and numbers": (
        REMEMBERS % "lstm",
        {"env": "Place-v0", "algorithm": "a2c_continuous", "network": {"overrides": ["ignore=[]"]}},
    ),
    "normalised": (
        "normalize: [observation]\n" + ACTOR_CRITIC.replace("critic:", "critic:\n  normalize_value: true"),
        {"env": "CartPole-v1", "normalize_value": True, "max_epochs": 4},
    ),
    "asymmetric": (
        ASYMMETRIC,
        {"env": "Place-v0", "algorithm": "a2c_continuous", "use_experimental_cv": False,
         "central_value_config": CENTRAL},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_first_update_has_ratio_1(case):
    spec, settings = CASES[case]
    assert max(differences(config(spec, **settings))) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_every_weight_learns_and_none_is_redrawn(case):
    spec, settings = CASES[case]
    made = agent(config(spec, **settings))
    model = made.model.composed
    fresh = composer.compose(
        spec, observation_space=model.observation_space, action_space=model.action_space, seed=0
    )
    before = fresh.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    optimizers = [
        made.optimizer,
        *([made.central_value_net.optimizer] if made.has_central_value else []),
    ]
    trained_by = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(trained_by) == sorted(id(p) for p in model.parameters())
    with contextlib.redirect_stdout(io.StringIO()):
        made.train()
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []


def test_the_saved_model_is_the_trained_one(tmp_path):
    made = trained(config(REMEMBERS % "gru"))
    made.model.composed.save("trained.safetensors")
    again = composer.load("trained.safetensors").state_dict()
    assert all(torch.equal(v, again[n]) for n, v in made.model.composed.state_dict().items())


@pytest.mark.parametrize("case", ["gru", "asymmetric"])
def test_an_agent_is_restored_from_its_checkpoint_in_another_process(case):
    spec, settings = CASES[case]
    params = config(spec, **settings)
    made = trained(params)
    with contextlib.redirect_stdout(io.StringIO()):
        made.save("kept")
    made.model.composed.save("kept.safetensors")
    code = f"""
import warnings; warnings.simplefilter("ignore")
import torch, composer
from tests.helpers.rl_games_agents import agent, player
params = {params!r}
again, expected = agent(params), composer.load("kept.safetensors").state_dict()
again.restore("kept.pth")
assert again.epoch_num == 2
got = again.model.composed.state_dict()
assert all(torch.equal(value, got[name]) for name, value in expected.items())
acts = player(params)
acts.restore("kept.pth")
got = acts.model.composed.policy.state_dict()
assert all(torch.equal(value, got[name.removeprefix("policy.")]) for name, value in expected.items() if name.startswith("policy."))
"""
    path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path)
    assert done.returncode == 0, done.stderr


def test_a_player_acts_by_the_mode_of_the_distribution():
    for spec, env, algorithm in (
        (ACTOR_CRITIC, "CartPole-v1", "a2c_discrete"),
        (ACTOR_CRITIC, "Pendulum-v1", "a2c_continuous"),
    ):
        acts = player(config(spec, env, algorithm))
        model = acts.model.composed
        obs = torch.as_tensor(np.stack([model.observation_space.sample() for _ in range(5)]))
        acts.has_batch_dimension, acts.batch_size = True, 5
        action = acts.get_action(obs, is_deterministic=True)
        assert np.allclose(action, model.policy.act(obs, deterministic=True))


def test_a_player_carries_memory():
    acts = player(config(REMEMBERS % "gru"))
    model = acts.model.composed
    acts.has_batch_dimension, acts.batch_size = True, 3
    acts.reset()
    state = model.initial_state(3)
    for _ in range(4):
        obs = torch.randn(3, 4)
        acts.get_action(obs)
        _, _, state = model(obs, state)
        assert torch.allclose(acts.states[0][0], model.pack_state(state))


@pytest.mark.parametrize("several", [True, False])
def test_games_are_played_by_the_runner(several, capsys):
    params = config(ACTOR_CRITIC, player={"games_num": 2, "use_vecenv": several})
    player(params).run()
    assert "av reward" in capsys.readouterr().out


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(3, start=5),
        spaces.MultiDiscrete([2, 3]),
        spaces.Dict(go=spaces.Discrete(2), jump=spaces.MultiBinary(2)),
        spaces.Tuple([spaces.Discrete(2), spaces.MultiDiscrete([3, 2], start=[1, 0])]),
    ],
    ids=str,
)
@pytest.mark.parametrize("masked", [False, True])
def test_choices_of_every_kind_learn_by_themselves_and_masked(action_space, masked):
    def walk():
        env = Walk(NESTED if not masked else spaces.Box(-1, 1, (3,)), action_space)
        if masked:
            env.action_masks = lambda: np.ones(sum(_counts(action_space)), bool)
        return env

    spec = TEMPLATES if masked else "ignore: [note]\n" + TEMPLATES
    settings = of_environments(walk, use_action_masks=masked)
    settings["env_config"]["ignore"] = [] if masked else ["note"]
    assert max(differences(config(spec, **settings))) < 1e-5


def _counts(space):
    return [
        int(space.n)
        for space in getattr(HostedActions(flatten_space(space, "action")).space, "spaces", [space])
    ]


def test_masks_forbid_what_they_mask():
    taken = []

    def walk():
        env = Walk(spaces.Box(-1, 1, (3,)), spaces.Discrete(3))
        env.seen = taken
        env.action_masks = lambda: np.array([False, True, False])
        return env

    trained(config(ACTOR_CRITIC, **of_environments(walk, use_action_masks=True)))
    assert {int(action) for action in taken} == {1}


def test_numbers_of_several_boxes_are_clipped_for_the_environment_alone():
    action_space = spaces.Dict(
        arm=spaces.Box(-2, 4, (2, 1)),
        push=spaces.Box(-np.inf, np.inf, ()),
        turn=spaces.Box(0, 1, (2,)),
    )
    rule = "distributions: [{action: turn, distribution: gaussian}]\n"
    settings = of_environments(lambda: Walk(spaces.Box(-1, 1, (3,)), action_space))
    params = config(rule + TEMPLATES, algorithm="a2c_continuous", **settings)
    assert max(differences(params)) < 1e-5


def test_means_are_on_the_scale_where_bounds_are_1():
    action_space = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 4.0], np.float32))
    rule = "distributions: [{action: action, distribution: gaussian}]\n"
    model = composer.compose(
        rule + ACTOR_CRITIC, observation_space=spaces.Box(-1, 1, (3,)), action_space=action_space
    )
    distribution = model.policy.distribution(torch.zeros(5, 3))
    means, deviations = HostedActions(model.policy.action_tree).means(distribution, 5)
    assert torch.allclose(means * 2 + torch.tensor([0.0, 2.0]), distribution.mean, atol=1e-6)
    assert torch.allclose(deviations * 2, distribution.stddev)


def test_the_kl_is_of_the_distributions():
    for spec, env, algorithm in (
        (ACTOR_CRITIC, "CartPole-v1", "a2c_discrete"),
        (ACTOR_CRITIC, "Pendulum-v1", "a2c_continuous"),
    ):
        made = agent(config(spec, env, algorithm))
        model, shape = made.model, made.observation_space.shape
        given = {"is_train": False}
        first = model({**given, "obs": torch.randn(5, *shape)})
        second = model({**given, "obs": torch.randn(5, *shape)})
        assert torch.equal(model.kl(first, first), torch.zeros(5))
        assert bool((model.kl(first, second) > 0).all())


def test_images_arrive_as_the_environment_gives_them():
    image = spaces.Box(0, 255, (16, 16, 1), np.uint8)
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    reads = HostedObservations(flatten_space(image, "observation"), "observation")
    assert torch.equal(reads.read(pixels.float() / 255.0, (1,))["observation"], pixels)
    assert torch.equal(reads.read(pixels, (1,))["observation"], pixels)


def test_an_image_learns():
    spec = """
version: 1
policy:
  graph:
    scaled: {block: scale_image, in: observation, channels: last}
    flat: {block: flatten, in: scaled}
    latent: {block: dense, in: flat, hidden_units: [8]}
  heads: {in: latent}
  shares: [latent]
critic:
  graph:
    value: {block: linear_output, in: latent, output_units: 1}
"""
    image = spaces.Box(0, 255, (4, 4, 1), np.uint8)
    settings = of_environments(lambda: Walk(image, spaces.Discrete(2)))
    assert max(differences(config(spec, **settings))) < 1e-5


def test_normalisers_count_what_was_seen_between_rollouts():
    spec = "normalize: [observation]\n" + ACTOR_CRITIC.replace(
        "critic:", "critic:\n  normalize_value: true"
    )
    made = trained(config(spec, normalize_value=True, max_epochs=3))
    model = made.model.composed
    (normalizer,) = model.policy.observer.normalizers.values()
    # Two rollouts have been counted, each with the step after its last.
    assert int(normalizer.count) == 4 * 33 + 4 * 32
    assert (
        int(model.critic.value_normalizer.count) == 3 * 2 * 4 * 32
    )  # values and returns, as rl_games does


def test_values_are_learnt_on_the_normalised_scale():
    spec = ACTOR_CRITIC.replace("critic:", "critic:\n  normalize_value: true")
    made = agent(config(spec, normalize_value=True))
    model, obs = made.model.composed, torch.randn(6, 4)
    model.update_normalizers(returns=torch.tensor([100.0, 300.0]))
    acting = made.model({"is_train": False, "obs": obs})
    learning = made.model({"is_train": True, "obs": obs, "prev_actions": acting["actions"]})
    values = model.critic(obs)
    assert torch.allclose(acting["values"], values["value"])
    assert torch.allclose(learning["values"], values["normalized_value"], atol=1e-5)


def test_frozen_weights_stay():
    made = agent(config(ACTOR_CRITIC))
    weight = made.model.composed.policy.latent.linears[0].weight
    weight.requires_grad_(False)
    before = weight.clone()
    with contextlib.redirect_stdout(io.StringIO()):
        made.train()
    assert torch.equal(weight, before)


def test_spaces_stand_beside_the_spec_where_the_environment_has_others():
    bounds = {"type": "Box", "shape": [3], "dtype": "float32", "low": -1.0, "high": 1.0}
    action = {"type": "Box", "shape": [1], "dtype": "float32", "low": -2.0, "high": 2.0}
    network = {"observation_space": bounds, "action_space": action}
    made = agent(config(ACTOR_CRITIC, "Pendulum-v1", "a2c_continuous", network))
    assert made.model.composed.observation_space == spaces.Box(-1, 1, (3,))


def test_registering_twice_changes_no_other_network():
    networks, models = (
        dict(r) for r in (model_builder.NETWORK_REGISTRY, model_builder.MODEL_REGISTRY)
    )
    register()
    register()
    for registry, before in (
        (model_builder.NETWORK_REGISTRY, networks),
        (model_builder.MODEL_REGISTRY, models),
    ):
        assert {n: v for n, v in registry.items() if n != "composer"} == {
            n: v for n, v in before.items() if n != "composer"
        }
    made = model_builder.ModelBuilder().load(
        {
            "model": {"name": "discrete_a2c"},
            "network": {"name": "actor_critic", "mlp": {"units": [4]}},
        }
    )
    assert isinstance(made, ModelA2C)


def test_environments_begin_anew_and_say_what_was_cut_off():
    def make():
        return gymnasium.wrappers.TimeLimit(Walk(spaces.Box(-1, 1, (1,)), spaces.Discrete(2), 9), 2)

    envs = GymnasiumEnvironments(2, make=make, seed=0)
    envs.reset()
    dones, cut = [], []
    for _ in range(4):
        _, rewards, done, infos = envs.step(torch.tensor([0, 1]))
        assert rewards.tolist() == [1.0, 1.0]
        dones.append(done.tolist())
        cut.append(infos["time_outs"].tolist())
    assert dones == cut == [[False, False], [True, True]] * 2


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("spec", [ACTOR_CRITIC, REMEMBERS % "gru"], ids=["plain", "gru"])
def test_the_runner_trains_with_its_default_compilation(spec):
    made = runner(config(spec, torch_compile=True))
    with contextlib.redirect_stdout(io.StringIO()):
        made.run({"train": True})


def test_the_config_in_the_examples_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    params = yaml.safe_load((CONFIGS / "trainers" / "rl_games_cartpole.yaml").read_text())
    shorter = {"num_actors": 2, "horizon_length": 8, "minibatch_size": 8, "max_epochs": 1}
    params["params"]["config"] |= {**shorter, "train_dir": str(tmp_path)}
    params["params"]["torch_threads"] = 0
    trained(params)
