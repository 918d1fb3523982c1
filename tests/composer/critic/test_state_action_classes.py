"""Critics of actions that are a user's own class."""

import re

import pytest
import torch
from torch import nn

from composer import SpecError
from tests.composer.critic.test_state_action import (
    MOVE,
    OF_ACTION,
    POLICY,
    batch,
    compose,
    tensors,
    torques,
)


class QNet(nn.Module):
    """One value of state and action; with ``looks`` it does what cannot be batched."""

    def __init__(self, obs_shapes, hidden_units=8, looks=False):
        super().__init__()
        self.names, self.looks = list(obs_shapes), looks
        width = sum(shape[0] for shape in obs_shapes.values())
        self.body = nn.Sequential(nn.Linear(width, hidden_units), nn.Tanh())
        self.out = nn.Linear(hidden_units, 1)

    def forward(self, inputs):
        value = self.out(self.body(torch.cat([inputs[name] for name in self.names], dim=-1)))
        if self.looks and bool(value.sum() > 1e9):
            value = value * 2
        return {"q_value": value}


class ChoiceNet(nn.Module):
    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.out = nn.Linear(*obs_shapes["observation"], *action_logits_shapes["action"])

    def forward(self, inputs):
        return {"action_q_values": self.out(inputs["observation"])}


def test_a_class_reads_the_action_under_its_name():
    critic = compose({"kind": "state_action", "_target_": QNet}).critic
    assert list(critic.network.in_ports) == ["observation", "action/action"]
    expected = critic.network.module({"observation": batch(), "action/action": torques()})
    torch.testing.assert_close(critic(batch(), torques()), expected)
    assert torch.equal(critic.target(batch(), torques())["q_value"], expected["q_value"])


def test_a_class_gets_its_weights_later_and_its_target_with_them():
    spec = {"kind": "state_action", "_target_": QNet, "init": "orthogonal", "normalize_value": True}
    direct, later = compose(spec), compose(spec, device="meta")
    assert all(parameter.is_meta for parameter in later.critic.target.parameters())
    later.materialize(dtype=torch.float64)
    torch.testing.assert_close(tensors(later.to(torch.float32)), tensors(direct), rtol=0, atol=0)


def test_a_class_is_told_how_many_choices_there_are():
    critic = compose({"kind": "state_action", "_target_": ChoiceNet}, MOVE).critic
    assert critic(batch())["action_q_values"].shape == (5, 4)


@pytest.mark.parametrize("looks", [False, True])
def test_an_ensemble_of_a_class_says_why_where_it_is_not_batched(looks):
    spec = {"kind": "state_action", "_target_": QNet, "looks": looks, "ensemble": 2}
    model = compose(spec)
    critic = model.critic
    values = critic(batch(), torques())["q_value"]
    assert values.shape == (5, 2, 1)
    assert not torch.isclose(values[:, 0], values[:, 1]).any()
    ensemble = critic.get_submodule("ensemble")
    assert ensemble.why_looped is not None or not looks
    alone = ensemble.copy_of(1)({"observation": batch(), "action/action": torques()})
    torch.testing.assert_close(values[:, 1], alone["q_value"])
    assert torch.equal(critic.target(batch(), torques())["q_value"], values)
    later = compose(spec, device="meta").materialize()
    torch.testing.assert_close(tensors(later), tensors(model), rtol=0, atol=0)
    summary = model.summary()
    looped = "the copies of 'critic/ensemble' run one by one: "
    assert (f"{looped}{ensemble.why_looped}" in summary) == (ensemble.why_looped is not None)
    assert (
        "the critic has a target copy of as many parameters (114); update_targets(tau)" in summary
    )


class WrongNet(QNet):
    def forward(self, inputs):
        return {"q": super().forward(inputs)["q_value"].repeat(1, 2)}


def test_what_a_class_returns_is_checked():
    with pytest.raises(SpecError, match=re.escape("WrongNet returned no 'q_value'")):
        compose({"kind": "state_action", "_target_": WrongNet})


@pytest.mark.parametrize("name", ["shared", "reader", "actions", "copies", "observer", "masks"])
def test_nodes_and_children_of_a_class_may_be_called_as_attributes_of_ours_are(name):
    policy = {"graph": {name: POLICY["graph"]["latent"]}, "heads": {"in": name}}
    graph = {name: OF_ACTION["graph"]["both"]}
    model = compose({"kind": "state_action", "graph": graph}, policy=policy)
    assert model.critic.value(batch(), torques()).shape == (5,)
    assert model.policy.act(batch()).shape == (5, 2)

    class Named(QNet):
        def __init__(self, obs_shapes):
            super().__init__(obs_shapes)
            self.add_module(name, self.out)
            del self.out

        def forward(self, inputs):
            both = torch.cat([inputs[key] for key in self.names], dim=-1)
            return {"q_value": self._modules[name](self.body(both))}

    critic = compose({"kind": "state_action", "_target_": Named}).critic
    assert critic.value(batch(), torques()).shape == (5,)
    assert f"{name}.weight" in critic.state_dict()
