"""Agents, models and the Runner of composer.adapters.skrl: settings, statistics, and what is refused."""

import copy
import re

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TransformAction
from skrl.agents.torch.a2c import A2C
from skrl.agents.torch.ppo import PPO, PPO_CFG, PPO_RNN
from skrl.agents.torch.sac import SAC
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.trainers.torch import SequentialTrainer

import composer
from composer.adapters.skrl import Runner, agent, models
from tests.helpers.paths import CONFIGS

DENSE = "{block: dense, in: observation, hidden_units: [8]}"
PLAIN = f"""
version: 1
policy:
  graph: {{latent: {DENSE}}}
  heads: {{in: latent}}
critic:
  graph: {{latent: {DENSE}}}
"""
MEMORY = PLAIN.replace(
    "dense, in: observation, hidden_units: [8]", "gru, in: observation, hidden_units: 4"
)
SILENT = {"write_interval": 0, "checkpoint_interval": 0}
LATE, SAME = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP


class Short(gymnasium.Env):
    """Episodes of five steps, with any spaces."""

    def __init__(self, seen=spaces.Box(-1, 1, (3,)), taken=spaces.Discrete(2)):  # noqa: B008
        self.observation_space, self.action_space = copy.deepcopy(seen), copy.deepcopy(taken)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = 5
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.left -= 1
        return self.observation_space.sample(), 1.0, self.left == 0, False, {}


def env(*spaces_of, envs=2, mode=SAME, wrap=lambda env: env):
    vector = SyncVectorEnv([lambda: wrap(Short(*spaces_of))] * envs, autoreset_mode=mode)
    return wrap_env(vector, wrapper="gymnasium", verbose=False)


def train(trained, wrapped, steps):
    cfg = {"timesteps": steps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}  # fmt: skip
    SequentialTrainer(cfg=cfg, env=wrapped, agents=trained).train()


def refused(message, call, *arguments, **keywords):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(*arguments, **keywords)


def test_the_model_is_one_module_in_both_roles():
    made = models(PLAIN, env(), seed=0)
    assert made["policy"] is made["value"]
    expected = composer.compose(
        PLAIN, observation_space=spaces.Box(-1, 1, (3,)), action_space=spaces.Discrete(2), seed=0
    )
    weights = made["policy"].model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in expected.state_dict().items())


def test_a_model_that_is_given_is_trained_itself():
    model = composer.compose(
        PLAIN, observation_space=spaces.Box(-1, 1, (3,)), action_space=spaces.Discrete(2), seed=0
    )
    trained = agent(PPO, model, env(), cfg={"rollouts": 8, "experiment": SILENT})
    before = copy.deepcopy(model.state_dict())
    train(trained, env(), 8)
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_statistics_count_each_rollout_and_its_returns(algorithm):
    spec = "normalize: [observation]\n" + PLAIN.replace(
        "critic:", "critic:\n  normalize_value: true"
    )
    wrapped = env()
    trained = agent(algorithm, spec, wrapped, cfg={"rollouts": 8, "experiment": SILENT}, seed=0)
    train(trained, wrapped, 16)
    model = trained.policy.model
    counts = [int(block.count) for block in model.policy.observer.normalizers.values()]
    assert counts == [32]
    assert int(model.critic.value_normalizer.count) == 32


def test_the_policys_pass_serves_the_value_once():
    wrapped = env()
    policy = models(PLAIN, wrapped, seed=0)["policy"]
    inputs = {"observations": torch.rand(2, 3)}
    with torch.no_grad():
        policy.act(inputs, role="policy")
        value, _ = policy.act(inputs, role="value")
        policy.model.critic.get_submodule("latent.linears.0").weight.mul_(2.0)
        other, _ = policy.act(inputs, role="value")
    assert not torch.equal(value, other)


@pytest.mark.parametrize(
    ("rollouts", "envs", "mini_batches", "length"), [(16, 2, 1, 16), (16, 2, 4, 8), (12, 1, 2, 6)]
)
def test_sequences_are_as_long_as_fits(rollouts, envs, mini_batches, length):
    cfg = {"rollouts": rollouts, "mini_batches": mini_batches}
    trained = agent(PPO, MEMORY, env(envs=envs), cfg=cfg)
    assert trained.policy.sequence_length == length


# --- the Runner ---

CONFIG = """
seed: 7
models: {spec: SPEC}
memory: {class: RandomMemory, memory_size: -1}
agent:
  class: PPO
  rollouts: 8
  mini_batches: 2
  learning_epochs: 1
  learning_rate_scheduler: KLAdaptiveLR
  experiment: {write_interval: 0, checkpoint_interval: 0}
trainer: {class: SequentialTrainer, timesteps: 16, headless: true, disable_progressbar: true, close_environment_at_exit: false}
"""


@pytest.mark.parametrize("spec", [PLAIN, MEMORY], ids=["without memory", "memory"])
def test_a_runner_trains_what_its_config_names(spec, tmp_path):
    (tmp_path / "agent.yaml").write_text(spec)
    cfg = yaml.safe_load(CONFIG.replace("SPEC", str(tmp_path / "agent.yaml")))
    runner = Runner(env(), cfg)
    model = runner.agent.policy.model
    assert model.seed == 7
    before = copy.deepcopy(model.state_dict())
    runner.run("train")
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    runner.run("eval")


def test_the_example_trains(monkeypatch):
    monkeypatch.chdir(CONFIGS)
    cfg = yaml.safe_load((CONFIGS / "trainers" / "skrl_cartpole.yaml").read_text())
    cfg["agent"]["rollouts"], cfg["trainer"]["timesteps"] = 8, 8
    cartpole = gymnasium.make_vec(
        "CartPole-v1", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": SAME}
    )
    Runner(wrap_env(cartpole, wrapper="gymnasium", verbose=False), cfg).run("train")


def test_a_runner_without_a_spec_is_skrls():
    cfg = yaml.safe_load(CONFIG.replace("spec: SPEC", "separate: false"))
    net = {"name": "net", "input": "OBSERVATIONS", "layers": [4], "activations": "elu"}
    cfg["models"]["policy"] = {"class": "CategoricalMixin", "network": [net], "output": "ACTIONS"}
    cfg["models"]["value"] = {"class": "DeterministicMixin", "network": [net], "output": "ONE"}
    Runner(env(), cfg).run("train")


def test_a_runner_refuses_what_the_spec_says_with_every_reason():
    cfg = yaml.safe_load(CONFIG.replace("spec: SPEC", "spec: x, separate: false, sed: 1"))
    cfg["agent"]["class"] = "SAC"
    refused(
        "skrl cannot train this model:\n  models.separate is said by the spec; leave it out\n"
        "  models.sed is no setting; did you mean 'seed'?\n"
        "  agent.class 'SAC' does not train a composed model; write PPO or A2C",
        Runner, env(), cfg,
    )  # fmt: skip


# --- what is refused ---


def test_an_agent_that_wants_other_networks():
    refused(
        "a composed model is trained by PPO and A2C of skrl, not by SAC, which wants networks of its own forms in other "
        "roles; use PPO or A2C, or composer.adapters.sb3 or composer.adapters.torchrl for SAC, TD3 and DQN",
        agent, SAC, PLAIN, env(),
    )  # fmt: skip


def test_preprocessors_beside_what_the_spec_does():
    scaler = {"observation_preprocessor": RunningStandardScaler, "value_preprocessor": RunningStandardScaler}  # fmt: skip
    choices = spaces.Dict(observation=spaces.Box(-1, 1, (3,)), kind=spaces.Discrete(3))
    template = "version: 1\npolicy: {template: {}}\ncritic: {template: {}}\n"
    spec = "normalize: [observation]\n" + template
    refused(
        "PPO of skrl cannot train this model:\n"
        "  observation_preprocessor would normalise again what the spec's 'normalize' does; leave out one of the two\n"
        "  observation_preprocessor would scale 'kind', whose numbers are choices or bytes; leave it out, and write "
        "normalize: [...] in the spec for the observations that need it\n"
        "  value_preprocessor keeps the scale of values outside of the model; leave it out, and write "
        "normalize_value: true under 'critic'",
        agent, PPO, spec, env(choices), cfg=scaler,
    )  # fmt: skip
    scaled = PLAIN.replace("critic:", "critic:\n  normalize_value: true")
    refused(
        "PPO of skrl cannot train this model:\n  value_preprocessor would scale again what 'normalize_value' does; "
        "leave it out",
        agent, PPO, scaled, env(), cfg={"value_preprocessor": RunningStandardScaler},
    )  # fmt: skip
    wrapped = env(choices)
    spec = spec.replace("critic: {", "critic: {normalize_value: true, ")
    train(agent(PPO, spec, wrapped, cfg={"rollouts": 8, "experiment": SILENT}), wrapped, 8)


def test_sequences_that_do_not_fit():
    cfg = {"rollouts": 16, "mini_batches": 4}
    refused(
        "PPO of skrl cannot train this model:\n  sequence_length 5 does not divide 16 steps of 2 environments in 4 "
        "mini-batches; give one of 8, 4, 2, 1",
        agent, PPO, MEMORY, env(), cfg=cfg, sequence_length=5,
    )  # fmt: skip
    agent(PPO, MEMORY, env(), cfg=cfg, sequence_length=4)
    refused(
        "PPO of skrl cannot train this model:\n  16 steps of 2 environments in 5 mini-batches cannot be cut into "
        "sequences of one length; let mini_batches divide rollouts times environments",
        agent, PPO, MEMORY, env(), cfg={"rollouts": 16, "mini_batches": 5},
    )  # fmt: skip
    refused(
        "PPO of skrl cannot train this model:\n  sequence_length is for models with memory, which this one has not; "
        "leave it out",
        agent, PPO, PLAIN, env(), sequence_length=4,
    )  # fmt: skip


def test_a_memory_of_another_length_and_a_model_without_a_critic():
    memory = RandomMemory(memory_size=4, num_envs=2, device="cpu")
    refused(
        "PPO of skrl cannot train this model:\n  PPO needs the value of a state; add a critic such as "
        "critic: {kind: state, template: {}}\n"
        "  the memory has 4 steps, but rollouts is 8; make both the same",
        agent, PPO, PLAIN.partition("critic:")[0], env(), cfg={"rollouts": 8}, memory=memory,
    )  # fmt: skip
    spec = PLAIN.partition("critic:")[0] + "critic: {kind: state, template: {}}"
    agent(PPO, spec, env(), cfg={"rollouts": 4}, memory=memory)


def test_spaces_that_skrl_has_not_are_refused_with_ways_out_that_work():
    refused(
        "skrl cannot train this model:\n"
        "  the observation 'flags' is MultiBinary(2), which skrl does not store; give a Box from 0 to 1, as "
        "gymnasium.wrappers.TransformObservation does\n"
        "  the action 'action' is MultiBinary(2), which skrl does not store; give MultiDiscrete([2, ...]), as "
        "gymnasium.wrappers.TransformAction does",
        models, PLAIN, env(spaces.Dict(flags=spaces.MultiBinary(2)), spaces.MultiBinary(2)),
    )  # fmt: skip

    def chosen(inner):
        to = spaces.MultiDiscrete([2, 2])
        return TransformAction(inner, lambda action: np.asarray(action, np.int8), to)

    wrapped = env(spaces.Box(-1, 1, (3,)), spaces.MultiBinary(2), wrap=chosen)
    train(agent(PPO, PLAIN, wrapped, cfg={"rollouts": 8, "experiment": SILENT}), wrapped, 8)


def test_a_discrete_action_among_others():
    taken = spaces.Dict(move=spaces.Discrete(3), steer=spaces.Box(-1, 1, (2,)))
    refused(
        "skrl cannot train this model:\n  the action 'move' is a Discrete among others, which skrl gives the environment "
        "as an array; give the environment MultiDiscrete([3]), as gymnasium.wrappers.TransformAction does",
        models, PLAIN, env(spaces.Box(-1, 1, (3,)), taken),
    )  # fmt: skip
    other = spaces.Dict(move=spaces.MultiDiscrete([3]), steer=spaces.Box(-1, 1, (2,)))
    wrapped = env(spaces.Box(-1, 1, (3,)), other)
    train(agent(PPO, PLAIN, wrapped, cfg={"rollouts": 8, "experiment": SILENT}), wrapped, 8)


def test_a_late_reset_with_memory():
    refused(
        "skrl cannot train this model:\n  the environment resets in a step of its own, whose observation would get into "
        "the memory; make it with autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP",
        models, MEMORY, env(mode=LATE),
    )  # fmt: skip
    models(PLAIN, env(mode=LATE))


def test_a_policy_that_reads_the_state():
    wrapped = env()
    wrapped._env.state_space = spaces.Box(-1, 1, (2,))
    template = "version: 1\npolicy: {template: {}}\ncritic: {template: {}}\n"
    refused(
        "skrl cannot train this model:\n  the policy reads 'state', which is for the critic alone; write "
        "observations: [observation] under 'policy', or give states=False",
        models, template, wrapped,
    )  # fmt: skip
    private = template.replace("policy: {", "policy: {observations: [observation], ")
    assert models(private, wrapped)["policy"].num_states == 2
    assert models(template, wrapped, states=False)["policy"].num_states == 0


def test_skrls_own_agents_of_models_with_memory():
    wrapped = env()
    message = "composer.adapters.skrl.agent(PPO, spec, env) makes one that does"
    made = models(MEMORY, wrapped, sequence_length=8)
    arguments = {
        "models": made, "memory": RandomMemory(memory_size=8, num_envs=2, device="cpu"), "device": "cpu",
        "observation_space": wrapped.observation_space, "action_space": wrapped.action_space,
        "cfg": PPO_CFG(rollouts=8, experiment=SILENT),
    }  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(f"{message} not")):
        train(PPO_RNN(**arguments), wrapped, 8)
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        train(PPO(**arguments), wrapped, 8)


@pytest.mark.parametrize("name", ["init_parameters", "init_weights", "init_biases"])
def test_weights_are_not_drawn_anew(name):
    policy = models(PLAIN, env())["policy"]
    refused(
        f"{name} would draw the weights anew, which begin as the spec says; write init under 'policy' and 'critic' of "
        "the spec, and leave out the call",
        getattr(policy, name),
    )  # fmt: skip


def test_numbers_that_are_no_choice():
    policy = models(PLAIN.replace(DENSE, "{block: one_hot, in: observation}"), env(spaces.Discrete(3)))["policy"]  # fmt: skip
    with pytest.raises(ValueError, match=r"'observation' is 7"):
        policy.act({"observations": torch.tensor([[7.0]])}, role="policy")
