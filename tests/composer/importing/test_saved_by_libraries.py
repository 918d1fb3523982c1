"""Checkpoints as rl_games and skrl themselves write them, with their running statistics, as models of equal outputs."""

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box, Discrete

import composer
from composer.importing import read_checkpoint
from tests.helpers.foreign import drawn, imported

SEEN, PUSH = Box(-np.inf, np.inf, (5,)), Box(-np.inf, np.inf, (3,))
X = torch.linspace(-2, 2, 35).reshape(7, 5)


def model_of(folder, text, path, actions):
    result = imported(folder, text)
    model = composer.compose(result.spec, observation_space=SEEN, action_space=actions, seed=0)
    weights = read_checkpoint(path)
    report = composer.adopt_weights(model, weights.tensors, result.weights, strict=True)
    assert report.skipped == []
    return model.eval(), weights


def close(ours, theirs):
    torch.testing.assert_close(ours.reshape(theirs.shape), theirs, rtol=1e-5, atol=1e-5)


RL_GAMES = """
params:
  algo: {name: a2c_continuous}
  model: {name: continuous_a2c_logstd}
  network:
    name: actor_critic
    separate: %s
    space: {continuous: {mu_activation: None, sigma_activation: None, fixed_sigma: True,
            mu_init: {name: default}, sigma_init: {name: const_initializer, val: 0}}}
    mlp: {units: [16, 8], activation: elu, initializer: {name: default}, d2rl: %s}
    %s
  config: {normalize_input: True, normalize_value: True}
"""


@pytest.mark.parametrize(
    ("separate", "d2rl", "memory"),
    [
        (False, False, ""),
        (True, True, ""),
        (False, False, "rnn: {name: lstm, units: 6, layers: 2, layer_norm: True}"),
        (True, False, "rnn: {name: gru, units: 6, layers: 1, before_mlp: True}"),
    ],
)
def test_a_checkpoint_of_rl_games(separate, d2rl, memory, tmp_path):
    from rl_games.algos_torch import models, network_builder, torch_ext

    text = RL_GAMES % (separate, d2rl, memory)
    builder = network_builder.A2CBuilder()
    builder.load(yaml.safe_load(text)["params"]["network"])
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit.script
        theirs = models.ModelA2CContinuousLogStd(builder).build(
            {
                "actions_num": 3,
                "input_shape": (5,),
                "num_seqs": 1,
                "value_size": 1,
                "normalize_value": True,
                "normalize_input": True,
            }
        )
        drawn(theirs).train()
        theirs.running_mean_std(torch.randn(40, 5) * 3 + 1)
        theirs.value_mean_std(torch.randn(40, 1) * 9 + 5)
        theirs.eval()
        state = {
            "model": theirs.state_dict(),
            "epoch": 3,
            "frame": 4096,
            "optimizer": torch.optim.Adam(theirs.parameters()).state_dict(),
            "last_mean_rewards": np.float64(17.5),
            "env_state": None,
        }
        torch_ext.save_checkpoint(str(tmp_path / "last"), state)
    model, weights = model_of(tmp_path, text, tmp_path / "last.pth", PUSH)
    assert weights.others == ["epoch", "frame", "optimizer", "last_mean_rewards", "env_state"]
    states = theirs.get_default_rnn_state()
    if states is not None:
        states = tuple(state.repeat(1, len(X), 1) for state in states)
    with torch.no_grad():
        expected = theirs(
            {"obs": X.clone(), "is_train": False, "rnn_states": states, "seq_length": 1}
        )
        start = (model.initial_state(len(X)),) if model.has_memory else ()
        logits, values, *_ = model(X, *start)
    close(logits["action"], expected["mus"])
    close(values["value"], expected["values"])
    close(model.policy.get_parameter("distributions.action.log_std").exp(), expected["sigmas"][0])


SKRL = """
models:
  separate: False
  policy:
    class: CategoricalMixin
    network: [{name: net, input: OBSERVATIONS, layers: [16, 8], activations: elu}]
    output: ACTIONS
  value:
    class: DeterministicMixin
    network: [{name: net, input: OBSERVATIONS, layers: [16, 8], activations: elu}]
    output: ONE
agent:
  class: PPO
  observation_preprocessor: RunningStandardScaler
  value_preprocessor: RunningStandardScaler
"""


def test_an_agent_that_skrl_saved(tmp_path):
    from skrl.agents.torch.ppo import PPO, PPO_CFG
    from skrl.resources.preprocessors.torch import RunningStandardScaler
    from skrl.utils.model_instantiators.torch import shared_model

    actions = Discrete(3)
    room = {
        "observation_space": SEEN,
        "state_space": SEEN,
        "action_space": actions,
        "device": "cpu",
    }
    given = yaml.safe_load(SKRL)["models"]
    parameters = [
        {k: v for k, v in given[role].items() if k != "class"} for role in ("policy", "value")
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's lazy layers
        shared = shared_model(
            **room,
            structure=["CategoricalMixin", "DeterministicMixin"],
            roles=["policy", "value"],
            parameters=parameters,
        )
        shared.init_state_dict(role="policy")
        shared.init_state_dict(role="value")
        drawn(shared)
        scaler = {
            "observation_preprocessor": RunningStandardScaler,
            "observation_preprocessor_kwargs": {"size": 5},
        }
        scaler |= {
            "value_preprocessor": RunningStandardScaler,
            "value_preprocessor_kwargs": {"size": 1},
        }
        config = PPO_CFG(**scaler)
        agent = PPO(models={"policy": shared, "value": shared}, memory=None, cfg=config, **room)
    observe, value = agent._observation_preprocessor, agent._value_preprocessor
    observe(torch.randn(40, 5) * 3 + 1, train=True)
    value(torch.randn(40, 1) * 9 + 5, train=True)
    agent.save(str(tmp_path / "agent.pt"))
    model, _ = model_of(tmp_path, SKRL, tmp_path / "agent.pt", actions)
    with torch.no_grad():
        seen = {"observations": observe(X), "states": observe(X)}
        logits, values = model(X)
        close(logits["action"], shared.compute(seen, role="policy")[0])
        close(values["value"], value(shared.compute(seen, role="value")[0], inverse=True))
