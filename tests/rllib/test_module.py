"""Modules of RLlib: what they refuse, remote runners, plug-ins and classes of the user's, several agents."""

import re
import sys

import gymnasium
import numpy as np
import pytest
import ray
import torch
from gymnasium import spaces
from mpe2 import simple_spread_v3
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from ray.tune.registry import register_env

import composer
from composer.adapters import rllib
from composer.errors import SpecError
from tests.helpers.trainer_contract import CASES, assert_same_weights
from tests.rllib.running import agent, config_of, learned, start_ray

SEEN, CHOICES = spaces.Box(-1, 1, (3,)), spaces.Discrete(4)
TEMPLATES = {"version": 1, "policy": {"template": {}}, "critic": {"template": {}}}
PLUGIN = """
import torch
from perception_blocks import BLOCKS, PerceptionBlock

@BLOCKS.register("doubled")
class Doubled(PerceptionBlock):
    def __init__(self, in_shapes):
        super().__init__(in_shapes, out_shapes=in_shapes)

    def forward(self, x):
        return 2 * x


class Critic(torch.nn.Module):
    def __init__(self, obs_shapes):
        super().__init__()
        self.linear = torch.nn.Linear(obs_shapes["observation"][0], 1)

    def forward(self, inputs):
        return {"value": self.linear(inputs["observation"])}
"""


def built(spec, observation_space=SEEN, action_space=CHOICES, **model_config):
    module_spec = rllib.module_spec(spec, seed=0)
    module_spec.observation_space, module_spec.action_space = observation_space, action_space
    module_spec.model_config |= model_config
    return module_spec.build()


def test_two_remote_runners_learn_with_memory_a_block_and_a_class_of_the_users(
    tmp_path, monkeypatch
):
    (tmp_path / "rllib_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = {
        "version": 1,
        "policy": {
            "graph": {
                "twice": {"block": "doubled", "in": "observation"},
                "memory": {"block": "gru", "in": "twice", "hidden_units": 6},
            },
            "heads": {"in": "memory"},
        },
        "critic": {"_target_": "rllib_plugin.Critic"},
    }
    case = CASES["memory"]
    module_spec = rllib.module_spec(spec, allow=["rllib_plugin"], seed=0)
    config = config_of(case.make_env, module_spec, runners=2)
    ray.shutdown()  # so that the workers get the path
    ray.init(
        num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": ":".join([str(tmp_path), *sys.path])}},
    )  # fmt: skip
    register_env("of_a_test", lambda _: case.make_env())
    algo = rllib.checked(config).build_algo()
    before = {name: value.clone() for name, value in learned(algo).state_dict().items()}
    for _ in range(2):
        algo.train()
    after = learned(algo).state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    weights = algo.env_runner_group.foreach_env_runner(
        lambda runner: {k: v.numpy() for k, v in runner.module.model.state_dict().items()},
        local_env_runner=False,
    )
    assert len(weights) == 2
    for of_runner in weights:
        for name, value in after.items():
            np.testing.assert_array_equal(of_runner[name], value.numpy())
    learned(algo).save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors", allow=["rllib_plugin"])
    assert_same_weights(loaded, learned(algo))
    algo.stop()


class ParallelSpread:
    def __call__(self):
        return ParallelPettingZooEnv(simple_spread_v3.parallel_env(max_cycles=10))


@pytest.mark.parametrize("separate", [False, True])
def test_several_agents_share_a_module_or_have_their_own(separate):
    spec = {**TEMPLATES, "policy": {"template": {}, "separate": separate}}
    agents = ["agent_0", "agent_1", "agent_2"]
    modules, module_of = rllib.multi_module_spec(spec, agents, seed=0)
    assert module_of == {name: name if separate else "shared" for name in agents}
    config = config_of(ParallelSpread(), modules)
    config = config.env_runners(num_envs_per_env_runner=1).multi_agent(
        policies=set(module_of.values()),
        policy_mapping_fn=lambda agent, episode, **_: module_of[agent],
    )
    algo = rllib.checked(config).build_algo()
    first = {name: _weights(algo, name) for name in module_of.values()}
    algo.train()
    for name, before in first.items():
        after = _weights(algo, name)
        assert [key for key in before if torch.equal(before[key], after[key])] == []
    algo.stop()
    if separate:
        assert not torch.equal(*[next(iter(first[name].values())) for name in agents[:2]])


def _weights(algo, name):
    return {k: v.clone() for k, v in learned(algo, name).state_dict().items()}


def test_networks_of_agents_become_modules_by_their_names():
    network = {"template": {}}
    spec = {
        "version": 1,
        "policy": {"networks": {"wolf": network, "sheep": network}},
        "critic": {"networks": {"wolf": network, "sheep": network}},
    }
    modules, module_of = rllib.multi_module_spec(spec, ["wolf_0", "wolf_1", "sheep"], seed=0)
    assert module_of == {"wolf_0": "wolf", "wolf_1": "wolf", "sheep": "sheep"}
    assert list(modules.rl_module_specs) == ["wolf", "sheep"]
    texts = [module.model_config["composer"]["spec"] for module in modules.rl_module_specs.values()]
    assert all("networks" not in text for text in texts)
    with pytest.raises(SpecError) as error:
        rllib.multi_module_spec(spec, ["wolf_0", "cow"])
    assert sorted(str(error.value).splitlines()) == [
        "policy.networks.sheep: the network 'sheep' serves no actor; there is 'wolf_0', 'cow'",
        "policy.networks: no network serves 'cow'; there are networks for 'wolf', 'sheep'",
    ]


def test_critics_of_several_agents_are_refused():
    spec = {**TEMPLATES, "critic": {"kind": "shared_state", "template": {}}}
    message = "each module of RLlib sees its own agent, but a critic of kind 'shared_state' reads others; write kind: state"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rllib.multi_module_spec(spec, ["a", "b"])
    rllib.multi_module_spec({**spec, "critic": {"kind": "state", "template": {}}}, ["a", "b"])


NORMALIZED = {**TEMPLATES, "normalize": ["observation"]}


@pytest.mark.parametrize(
    ("spec", "lines"),
    [
        (
            {"version": 1, "policy": {"template": {}}},
            ["PPO needs the value of a state; add a critic such as critic: {kind: state, template: {}}"],
        ),
        (
            NORMALIZED,
            [
                "it counts no statistics, so that 'normalize' has nothing to do; leave it out, and wrap the environment in "
                "gymnasium.wrappers.NormalizeObservation"
            ],
        ),
        (
            {**TEMPLATES, "critic": {"template": {}, "normalize_value": True, "ensemble": 2}},
            [
                "PPO needs the value of a state once, but the critic gives 2; leave out 'ensemble'",
                "it tells a critic no returns, so that 'normalize_value' has nothing to count; leave it out",
            ],
        ),
        (
            {**TEMPLATES, "critic": {"kind": "state_action", "template": {}}},
            [
                "PPO needs the value of a state, but the critic is of kind 'state_action'; give it one such as "
                "critic: {kind: state, template: {}}"
            ],
        ),
    ],
)  # fmt: skip
def test_models_that_rllib_cannot_train_are_refused_with_all_reasons(spec, lines):
    with pytest.raises(ValueError, match="cannot train this model:") as error:
        built(spec)
    assert str(error.value).splitlines() == [
        "PPO of RLlib cannot train this model:", *(f"  {line}" for line in lines)
    ]  # fmt: skip
    built(TEMPLATES)


def test_settings_of_networks_beside_the_spec_are_refused():
    message = (
        "the network is the spec's, so that model_config has no place for 'fcnet_hiddens', 'use_lstm'; leave out "
        "model_config in rl_module(...), and give module_spec(..., max_seq_len=...) what memory needs"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        built(TEMPLATES, fcnet_hiddens=[64], use_lstm=True)
    message = "ComposedModule has no spec; make its RLModuleSpec with composer.adapters.rllib.module_spec(spec)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rllib.ComposedModule(observation_space=SEEN, action_space=CHOICES, model_config={})


def test_settings_of_the_config_that_do_twice_what_the_model_does_are_refused_at_once():
    wrong = (
        APPOConfig()
        .environment("CartPole-v1")
        .rl_module(
            rl_module_spec=rllib.module_spec(TEMPLATES, seed=0), model_config=DefaultModelConfig()
        )
    )
    with pytest.raises(ValueError, match="with these settings") as error:
        rllib.checked(wrong)
    assert str(error.value).splitlines() == [
        "RLlib cannot train a composed model with these settings:",
        "  APPO was not tried with composed models; use PPOConfig",
        "  normalize_actions=True, RLlib's default, scales actions that the model gives in the environment's bounds already; "
        "write config.environment(normalize_actions=False)",
        "  model_config has settings of RLlib's own networks; leave out model_config in config.rl_module(...)",
    ]  # fmt: skip
    wrong = PPOConfig().environment("CartPole-v1", normalize_actions=False)
    wrong = wrong.env_runners(observation_filter="MeanStdFilter")
    wrong = wrong.api_stack(
        enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False
    )
    with pytest.raises(ValueError, match="with these settings") as error:
        rllib.checked(wrong)
    assert str(error.value).splitlines()[1:] == [
        "  no module of it is composed; write config.rl_module(rl_module_spec=module_spec(spec))",
        "  the old API stack has no RLModules; leave out config.api_stack(...)",
        "  observation_filter='MeanStdFilter' is of the old API stack and has no effect; leave it out",
    ]
    right = PPOConfig().environment("CartPole-v1", normalize_actions=False)
    right = right.rl_module(rl_module_spec=rllib.module_spec(TEMPLATES, seed=0))
    assert rllib.checked(right) is right


def test_a_ready_model_is_refused_and_its_source_is_taken():
    model = composer.compose(TEMPLATES, observation_space=SEEN, action_space=CHOICES, seed=0)
    message = (
        "RLlib builds the model in every process: give its spec, such as model.source, and load the weights with "
        "module.model.load_weights(path)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rllib.module_spec(model)
    module_spec = rllib.module_spec(model.source, seed=0)
    module_spec.observation_space, module_spec.action_space = SEEN, CHOICES
    assert_same_weights(module_spec.build().model, model)


def test_observations_of_varying_size_are_refused():
    with pytest.raises(ValueError, match="RLlib stores observations of one size"):
        built(TEMPLATES, spaces.Sequence(spaces.Box(-1, 1, (2,))))


def test_the_environment_gets_numbers_within_its_bounds_and_rllib_those_that_were_drawn():
    box = spaces.Box(-0.1, 0.1, (2,))
    spec = {**TEMPLATES, "distributions": [{"action": "action", "distribution": "gaussian"}]}
    module = built(spec, SEEN, box)
    answer = module.forward_exploration({"obs": torch.zeros(64, 3)})
    drawn, taken = answer["actions"], answer["actions_for_env"]
    assert bool((drawn.abs() > 0.1).any())
    assert all(box.contains(row) for row in taken.numpy())
    torch.testing.assert_close(taken, drawn.clamp(-0.1, 0.1))
    distribution = module.get_train_action_dist_cls().from_logits(answer["action_dist_inputs"])
    torch.testing.assert_close(distribution.logp(drawn), answer["action_logp"])
    assert distribution.required_input_dim(box) == answer["action_dist_inputs"].shape[-1] == 4


def test_a_rollout_of_cartpole_improves():
    start_ray()
    make = lambda: gymnasium.make("CartPole-v1")  # noqa: E731
    algo = agent(
        make, rllib.module_spec(TEMPLATES, seed=0), lr=2e-3, vf_clip_param=1e4,
        train_batch_size_per_learner=1024, minibatch_size=128, num_epochs=8,
    )  # fmt: skip
    returns = [algo.train()["env_runners"]["episode_return_mean"] for _ in range(8)]
    algo.stop()
    assert returns[0] < 40 < 60 < returns[-1]


PARTS = {
    **TEMPLATES,
    "freeze": ["policy/heads"],
    "learning_rate_scale": {"critic": 0.1},
}


def test_frozen_parts_and_learning_rates_by_part_need_the_learner_that_checked_sets():
    make = lambda: gymnasium.make("CartPole-v1")  # noqa: E731
    algo = agent(make, rllib.module_spec(PARTS, seed=0))
    assert isinstance(algo.learner_group._learner, rllib.ComposedLearner)
    before = {name: value.clone() for name, value in learned(algo).named_parameters()}
    algo.train()
    same = {n for n, v in learned(algo).named_parameters() if torch.equal(v, before[n])}
    assert same == {name for name in before if name.startswith("policy.heads.")}
    algo.stop()
    algo = config_of(make, rllib.module_spec(PARTS, seed=0)).build_algo()
    message = (
        "'freeze' and 'learning_rate_scale' of the spec need the learner that rllib.checked(config) sets; build the "
        "algorithm with rllib.checked(config).build_algo()"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        algo.train()
    algo.stop()


def test_another_learner_is_refused_and_one_derived_from_ours_is_kept():
    class Other(PPOTorchLearner):
        pass

    class Derived(rllib.ComposedLearner):
        pass

    def config(learner):
        right = PPOConfig().environment("CartPole-v1", normalize_actions=False)
        right = right.rl_module(rl_module_spec=rllib.module_spec(TEMPLATES, seed=0))
        return right.learners(learner_class=learner)

    with pytest.raises(ValueError, match="with these settings") as error:
        rllib.checked(config(Other))
    assert str(error.value).splitlines()[1:] == [
        "  its learner Other does not know what the specs freeze; derive it from rllib.ComposedLearner, or leave out "
        "learner_class"
    ]
    assert rllib.checked(config(Derived)).learner_class is Derived
    assert rllib.checked(config(None)).learner_class is rllib.ComposedLearner


def test_previous_actions_and_rewards_are_those_of_the_environment():
    spec = {**TEMPLATES, "previous": ["action", "reward"]}
    make = lambda: composer.with_previous(gymnasium.make("CartPole-v1"))  # noqa: E731
    algo = agent(make, rllib.module_spec(spec, seed=0))
    algo.train()
    assert learned(algo).spec.previous == ("action", "reward")
    algo.stop()
    with pytest.raises(ValueError, match="previous"):
        built(spec)
