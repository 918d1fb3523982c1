"""Names of states that a spec chooses: in TorchRL, in exported files, after loading; and names that are taken."""

import re

import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torchrl.envs import TransformedEnv
from torchrl.envs.libs.gym import GymEnv

import composer
from composer.adapters.torchrl import primers, to_torchrl

SPEC = """
version: 1
state_names: {policy/memory/h: hidden, critic/memory/h: remembered}
policy:
  graph: {memory: {block: lstm, in: observation, hidden_units: 8}}
  heads: {in: memory}
critic:
  graph:
    memory: {block: gru, in: observation, hidden_units: 4}
    value: {block: linear_output, in: memory, output_units: 1}
"""
PLAIN = "\n".join(line for line in SPEC.splitlines() if "state_names" not in line)


def composed(spec=SPEC):
    return composer.compose(
        spec, observation_space=Box(-10, 10, (4,)), action_space=Discrete(2), seed=0
    )


@torch.no_grad()
def rolled(spec):
    model = composed(spec)
    env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), primers(model))
    env.set_seed(0)
    torch.manual_seed(0)
    modules = to_torchrl(model)
    data = env.rollout(12, modules.collecting)
    return data, modules.actor_training(data.clone())


def test_torchrl_carries_the_states_under_their_names():
    data, at_once = rolled(SPEC)
    plain, _ = rolled(PLAIN)
    assert {"hidden", "recurrent_state_actor_c", "remembered"} <= set(data.keys())
    assert torch.equal(data["hidden"], plain["recurrent_state_actor_h"])
    assert data["hidden"].any()
    assert torch.equal(data["remembered"], plain["recurrent_state_critic"])
    assert torch.equal(data["logits"], plain["logits"])
    torch.testing.assert_close(at_once["logits"], data["logits"], atol=1e-5, rtol=1e-5)


def test_an_exported_file_has_the_names_and_a_loaded_model_too(tmp_path):
    model = composed()
    model.save(tmp_path / "model.safetensors")
    again = composer.load(tmp_path / "model.safetensors")
    assert list(again.state_shapes) == ["policy/memory/h", "policy/memory/c", "critic/memory/h"]
    again.export(tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert [value.name for value in session.get_inputs()] == [
        "observation", "hidden", "memory/c", "resets",
    ]  # fmt: skip
    assert [value.name for value in session.get_outputs()][2:] == ["next/hidden", "next/memory/c"]


@pytest.mark.parametrize(
    "name", ["logits", "is_init", "action", "reward", "next", "mask", "recurrent_state_critic"]
)
def test_a_key_that_torchrl_writes_is_no_name(name):
    model = composed(SPEC.replace("h: hidden, critic/memory/h: remembered", f"h: {name}"))
    message = (
        f"'state_names' calls 'policy/memory/h' {name!r}, a key that TorchRL writes; choose another"
    )
    for call in (primers, to_torchrl):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(model)
