"""`composer train --trainer composer`: runs, their files, what is resumed, what is refused."""

import copy

import gymnasium
import numpy as np
import pettingzoo
import pytest
import torch
from gymnasium import spaces

import composer
from composer.training import resume, train
from composer.training.actors.settings import refuse
from composer.training.actors.trainer import ActorsTrainer
from composer.training.environment import JointEnvironment
from composer.training.session import TrainingError
from composer.training.trainer import Task
from tests.composer.training.actors.test_updates import spec
from tests.helpers.parallel_envs import Balance, Signs
from tests.helpers.structured_models import Crowd

SIGNS, BALANCE = "pettingzoo:tests/signs_v0", "pettingzoo:tests/balance_v0"
QUICK = {"n_steps": 12, "batch_size": 24, "n_epochs": 2, "sequence_length": 6}


@pytest.fixture(autouse=True)
def environments(monkeypatch):
    for name, kind in (("signs", Signs), ("balance", Balance)):
        monkeypatch.setitem(pettingzoo.parallel_registry, f"tests/{name}-v0", None)
        del pettingzoo.parallel_registry[f"tests/{name}-v0"]
        pettingzoo.register("parallel", f"tests/{name}-v0", entry_point=kind)


def balance(kind="shared_state", **more):
    graph = {"latent": {"block": "dense", "in": "observation", "hidden_units": 32}}
    both = {"all": {"block": "concat", "in": ["left_0/observation", "right_0/observation"]}}
    central = both | {"latent": {"block": "dense", "in": "all", "hidden_units": 32}}
    critic = {"kind": kind, "graph": central if kind == "shared_state" else dict(graph)}
    return {
        "version": 1,
        "environment": BALANCE,
        "policy": {"graph": graph, "heads": {"in": "latent"}},
        "critic": critic,
    } | more


@pytest.mark.parametrize("form", ["plain", "memory"])
@pytest.mark.parametrize("critic", ["central", "each"])
def test_a_run_of_actors_that_come_and_go(form, critic, tmp_path):
    outcome = train(
        {**spec(form, critic, normalize=True), "environment": SIGNS}, tmp_path / "run",
        trainer="composer", steps=48, envs=2, eval_episodes=3, settings=QUICK,
    )  # fmt: skip
    assert outcome.steps == 48
    assert outcome.evaluation is not None
    assert len(outcome.evaluation.returns) == 3
    assert all(1 <= length <= 9 for length in outcome.evaluation.lengths)
    model = composer.load(tmp_path / "run" / "model.safetensors")
    observed = model.policy.policies["a_0"].observer.normalizers
    assert 0 < int(observed["noise"].count) < 96  # of both of them, where they were there
    more = resume(tmp_path / "run", steps=72)
    assert more.steps == 72
    assert more.evaluation is not None


def test_what_is_saved_is_what_was_trained_and_is_restored(tmp_path):
    task = Task(spec="", environment=BALANCE, trainer="composer", settings=QUICK, envs=2)
    trainers = [ActorsTrainer(task, composer.compose(balance(), seed=seed)) for seed in (0, 1)]
    first, second = trainers
    seen = []

    def report(steps, episodes, metrics=None):
        seen.append((steps, metrics))
        return True

    first.learn(48, report)
    assert [steps for steps, _ in seen] == [*range(2, 49, 2), 48]
    metrics = [each for _, each in seen if each]
    names = {"loss/policy", "loss/value", "entropy", "kl", "clip_fraction", "explained_variance"}
    assert len(metrics) == 2
    assert all(each.keys() >= names for each in metrics)
    saved = copy.deepcopy(first.state())
    for trainer in trainers:
        trainer.restore(copy.deepcopy(saved), 48)
        weights = trainer.model.state_dict()
        assert all(torch.equal(weight, weights[name]) for name, weight in saved["model"].items())
        trainer.learn(96, lambda *arguments: True)
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name])


def test_the_first_update_is_numerically_one_of_the_collecting_model_through_a_whole_run(tmp_path):
    """At a learning rate too small to change anything, the divergence of every update is zero."""
    seen = []
    task = Task(
        spec="", environment=SIGNS, trainer="composer", envs=2,
        settings={**QUICK, "learning_rate": 1e-12},
    )  # fmt: skip
    trainer = ActorsTrainer(
        task, composer.compose({**spec("memory"), "environment": SIGNS}, seed=0)
    )
    trainer.learn(96, lambda steps, episodes, metrics=None: seen.append(metrics) or True)
    divergences = [abs(metrics["kl"]) for metrics in seen if metrics]
    assert len(divergences) == 4
    assert max(divergences) < 1e-7


def test_a_run_stops_where_it_is_told_to():
    task = Task(spec="", environment=BALANCE, trainer="composer", settings=QUICK)
    trainer = ActorsTrainer(task, composer.compose(balance(), seed=0))
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    made = []
    trainer.learn(96, lambda steps, episodes, metrics=None: made.append(steps) or steps < 5)
    assert made == [1, 2, 3, 4, 5]
    assert all(torch.equal(before[n], w) for n, w in trainer.model.state_dict().items())


LEARNED = {
    "n_steps": 16, "batch_size": 64, "n_epochs": 8, "learning_rate": 3e-3, "gamma": 0.0,
    "ent_coef": 0.01,
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_two_learn_to_balance_each_others_choices(seed, tmp_path):
    """Of 8 steps, paid 1 to each for the right sum: 16 at most, about 4 for guesses. The central critic sees both."""
    outcome = train(
        balance(), tmp_path / "run",
        trainer="composer", algorithm="mappo", steps=16_000, envs=16, seed=seed,
        settings=LEARNED, eval_episodes=50,
    )  # fmt: skip
    assert outcome.evaluation.mean >= 14


@pytest.mark.full
def test_actors_that_come_and_go_learn_what_they_must_remember(tmp_path):
    """Guesses are right in half of the steps: one of three choices is masked."""
    train(
        {**spec("memory", "each"), "environment": SIGNS}, tmp_path / "run",
        trainer="composer", algorithm="ippo", steps=16_000, envs=16, seed=5, eval_episodes=1,
        settings={"n_steps": 32, "batch_size": 256, "learning_rate": 5e-3, "gamma": 0.5},
    )  # fmt: skip
    model = composer.load(tmp_path / "run" / "model.safetensors")
    task = Task(spec="", environment=SIGNS, trainer="composer")
    trainer, env = ActorsTrainer(task, model), Signs()
    right = []
    for seed in range(100, 160):
        observations, _ = env.reset(seed=seed)
        state = None
        while env.agents:
            seen = {agent: observations[agent] for agent in env.agents}
            actions, state = trainer.act(seen, state, state is None, None)
            observations, rewards, *_ = env.step(actions)
            right += [reward for agent, reward in rewards.items() if agent != "b_0"]
    assert len(right) > 300
    assert sum(right) / len(right) >= 0.9


REFUSED = {
    "no critic": (
        balance() | {"critic": None}, "ppo",
        "ppo needs the value of a state; add one such as critic: {kind: shared_state, template: {}}",
    ),
    "a critic for each": (
        balance("state"), "mappo",
        "mappo needs a central critic, but the critic is of kind 'state'; give it one such as "
        "critic: {kind: shared_state, template: {}}, or use ppo or ippo",
    ),
    "a central critic": (
        balance(), "ippo",
        "ippo needs a critic for each actor, but the critic is of kind 'shared_state'; give it one such as "
        "critic: {kind: state, template: {}}, or use ppo or mappo",
    ),
    "a critic of actions": (
        balance("state_action"), "ppo",
        "ppo needs the value of a state, but the critic is of kind 'state_action'; give it one such as "
        "critic: {kind: shared_state, template: {}}",
    ),
    "a central critic of actions": (
        balance() | {"critic": {"kind": "shared_state_action", "template": {}}}, "mappo",
        "mappo needs a central critic, but the critic is of kind 'shared_state_action'; give it one such as "
        "critic: {kind: shared_state, template: {}}",
    ),
    "values that build on each other": (
        balance() | {"critic": {"kind": "delta_state", "networks": {
            "left": {"template": {}}, "right": {"template": {}}}}}
        | {"policy": {"networks": {"left": {"template": {}}, "right": {"template": {}}}}},
        "ppo",
        "ppo needs the value of a state, but the critic is of kind 'delta_state'; give it one such as "
        "critic: {kind: shared_state, template: {}}",
    ),
    "several values": (
        balance() | {"policy": {"networks": {"left": {"template": {}}, "right": {"template": {}}}}}
        | {"critic": {"kind": "state_action", "ensemble": 2, "networks": {
            "left": {"template": {}}, "right": {"template": {}}}}},
        "mappo",
        "mappo needs a central critic, but the critic is of kind 'state_action'; give it one such as "
        "critic: {kind: shared_state, template: {}}\n  mappo needs one value, but the critic gives 2; "
        "leave out 'ensemble'",
    ),
    "one actor": (
        {
            "version": 1, "environment": "CartPole-v1",
            "policy": {"template": {}}, "critic": {"template": {}},
        },
        "ppo",
        "it is of one actor, and this loop is for several: an environment of PettingZoo, such as "
        "pettingzoo:mpe/simple_spread_v3; use the trainer sb3 or torchrl",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "algorithm", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_refused(given, algorithm, message, tmp_path):
    given = {key: value for key, value in given.items() if value is not None}
    with pytest.raises(TrainingError) as refused:
        train(given, tmp_path / "run", trainer="composer", algorithm=algorithm, steps=10)
    expected = f"{algorithm} of composer cannot train this model:\n  {message}"
    assert str(refused.value) == expected
    assert not (tmp_path / "run").exists()


class Hearing(Balance):
    """Each of the two hears the others too, any number of them, or two if they are ``padded``."""

    def __init__(self, padded=False):
        super().__init__()
        self._padded = padded

    def observation_space(self, agent):
        voice = spaces.Box(-1, 1, (2,))
        heard = spaces.Box(-1, 1, (2, 2)) if self._padded else spaces.Sequence(voice, stack=True)
        return spaces.Dict(numbers=super().observation_space(agent), heard=heard)

    def _draw(self):
        heard = np.zeros((2, 2), np.float32)
        return {name: {"numbers": row, "heard": heard} for name, row in super()._draw().items()}


def refused(given, env):
    with pytest.raises(ValueError, match="cannot train") as caught:
        refuse(composer.compose(given, env=env, seed=0), "ippo")
    return str(caught.value).partition("\n  ")[2]


def learns(given, env, monkeypatch):
    """A rollout and an update of a spec in an environment."""
    monkeypatch.setattr(
        "composer.training.actors.trainer._environment", lambda task: JointEnvironment(env, "env")
    )
    task = Task(spec="", environment="env", trainer="composer", algorithm="ippo", settings=QUICK)
    seen = []
    trainer = ActorsTrainer(task, composer.compose(given, env=env, seed=0))
    trainer.learn(12, lambda steps, episodes, metrics=None: seen.append(metrics) or True)
    assert seen[-1]["loss/value"] > 0


def test_observations_that_vary_in_size_are_left_out_or_padded(monkeypatch):
    given = {"version": 1, "policy": {"template": {}}, "critic": {"kind": "state", "template": {}}}
    assert refused(given, Hearing()).splitlines()[0] == (
        "the observation 'heard' of 'left_0' varies in size, and a rollout has rows of one size; leave it out with "
        "ignore: [heard], or let the environment pad it to one size"
    )
    learns(given | {"ignore": ["heard"]}, Hearing(), monkeypatch)
    learns(given, Hearing(padded=True), monkeypatch)


def test_an_action_that_is_certain_is_refused(monkeypatch):
    def given(family):
        return spec(critic="each") | {
            "distributions": [{"action": "b/action", "distribution": family}]
        }

    assert refused(given("deterministic"), Signs()) == (
        "it learns from chances, but 'action' of 'b_0' is deterministic; write distribution: squashed_gaussian in its "
        "entry of 'distributions'"
    )
    learns(given("squashed_gaussian"), Signs(), monkeypatch)


@pytest.mark.parametrize("counts", [{"look": None}, {"look": 2}])
def test_steps_of_gymnasium_are_not_trained_here(counts, tmp_path, monkeypatch):
    class Made(Crowd):  # gymnasium.make asks for the two spaces
        agent_counts = counts
        observation_space, action_space = spaces.Dict(Crowd.observation_spaces), spaces.Discrete(2)

    monkeypatch.setitem(gymnasium.registry, "Crowd-v0", None)
    del gymnasium.registry["Crowd-v0"]
    gymnasium.register("Crowd-v0", Made)
    networks = {step: {"template": {}} for step in Crowd.observation_spaces}
    given = {
        "version": 1,
        "environment": "Crowd-v0",
        "policy": {"networks": networks},
        "critic": {"networks": networks},
    }
    with pytest.raises(TrainingError) as caught:
        train(given, tmp_path / "run", trainer="composer", algorithm="ippo", steps=10)
    assert str(caught.value) == (
        "'Crowd-v0' is no environment of PettingZoo, and only those are trained here, such as "
        "pettingzoo:mpe/simple_spread_v3"
    )


SETTINGS = {
    "near": ({"learning_rat": 1.0}, "'learning_rat' is not a setting of mappo; did you mean 'learning_rate'?"),
    "value": ({"n_epochs": 0}, "'n_epochs' must be a positive integer, got 0"),
    "sequences": (
        {"n_steps": 100, "sequence_length": 30},
        "'sequence_length' 30 does not divide 'n_steps' 100: sequences are cut from a rollout; set n_steps=90 or 120",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), SETTINGS.values(), ids=SETTINGS)
def test_wrong_settings_are_told(settings, message, tmp_path):
    with pytest.raises(TrainingError) as refused:
        train(
            balance(), tmp_path / "run",
            trainer="composer", algorithm="mappo", steps=10, settings=settings,
        )  # fmt: skip
    assert str(refused.value) == message


def test_environments_in_other_processes_are_refused(tmp_path):
    with pytest.raises(TrainingError) as refused:
        train(balance(), tmp_path / "run", trainer="composer", steps=10, subprocess=True)
    assert str(refused.value) == (
        "--subprocess: the environments of several agents run in this process; leave it out"
    )


def test_agents_that_take_turns_are_refused(tmp_path):
    given = {
        "version": 1,
        "environment": "pettingzoo:classic/tictactoe_v3",
        "policy": {"template": {}},
        "critic": {"template": {}},
    }
    with pytest.raises(TrainingError) as refused:
        train(given, tmp_path / "run", trainer="composer", steps=10)
    assert str(refused.value) == (
        "the agents of 'pettingzoo:classic/tictactoe_v3' take turns (AEC), and only environments in which all act at "
        "once (parallel) are trained; write its loop with model.policy.act"
    )


def test_a_central_critic_of_actors_that_leave_must_read_who_is_present(tmp_path):
    given = {**spec(), "environment": SIGNS}
    graph = given["critic"]["graph"]
    graph["all"] = {"block": "concat", "in": graph["all"]["in"][:-1]}
    with pytest.raises(TrainingError) as refused:
        train(given, tmp_path / "run", trainer="composer", steps=10, settings=QUICK)
    assert str(refused.value) == (
        "'a_1' is absent, but the central critic reads the observations of all actors; let its network read "
        "'present', which is 0 for those who are absent: their observations are then zeros"
    )
