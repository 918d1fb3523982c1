"""Values as numbers, quantiles and bins, and on the scale of the returns that were seen."""

import re

import pytest
import torch
from gymnasium import spaces
from torch import nn

import composer

STATE, MOVE, TORQUE = spaces.Box(-1, 1, (3,)), spaces.Discrete(2), spaces.Box(-1, 1, (2,))
QUANTILES = {"block": "quantile_value", "in": "latent", "num_quantiles": 4}
BINS = {"block": "categorical_value", "in": "latent", "num_bins": 3, "low": -1, "high": 3}
SYMLOG = {**BINS, "spacing": "symlog"}


def compose(critic, action=MOVE, **keywords):
    latent = {"block": "dense", "in": "observation", "hidden_units": 8}
    policy = {"graph": {"latent": latent}, "heads": {"in": "latent"}}
    if "_target_" not in critic:
        critic = {"graph": {"latent": latent}, **critic}
    return composer.compose(
        {"version": 1, "policy": policy, "critic": critic},
        observation_space=STATE, action_space=action, seed=0, **keywords,
    )  # fmt: skip


def batch():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def raw(critic):
    """What the head itself gives."""
    head = critic.get_submodule("heads").get_submodule(
        next(iter(critic.get_submodule("heads")._modules))
    )
    return head(critic.get_submodule("latent")(batch()))


def test_quantiles_are_read_as_their_mean():
    critic = compose({"heads": QUANTILES}).critic
    values = critic(batch())
    assert torch.equal(values["value_quantiles"], raw(critic))
    q1, q2, q3, q4 = values["value_quantiles"].unbind(-1)
    torch.testing.assert_close(values["value"], ((q1 + q2 + q3 + q4) / 4)[:, None])
    torch.testing.assert_close(critic.value(batch()), values["value"].squeeze(-1))


def test_bins_are_read_as_their_mean():
    critic = compose({"heads": BINS}).critic
    values = critic(batch())
    weights = values["value_logits"].exp() / values["value_logits"].exp().sum(-1, keepdim=True)
    expected = weights[:, 0] * -1.0 + weights[:, 1] * 1.0 + weights[:, 2] * 3.0
    torch.testing.assert_close(critic.value(batch()), expected)


def test_symexp_bins_are_averaged_and_then_put_on_the_scale_of_returns():
    head = {**BINS, "low": -3, "spacing": "symexp"}
    model = compose({"heads": head, "normalize_value": True})
    model.update_normalizers(returns=torch.tensor([900.0, 1000.0, 1100.0]))
    values = model.critic(batch())
    weights = values["value_logits"].softmax(-1)
    normalized = (weights[:, 2] - weights[:, 0]) * (torch.tensor(3.0).exp() - 1)
    deviation = (20_000 / 3) ** 0.5
    torch.testing.assert_close(model.critic.value(batch()), 1000 + deviation * normalized)


def test_symlog_bins_are_read_on_the_values_own_scale():
    critic = compose({"heads": SYMLOG}).critic
    values = critic(batch())
    weights = values["value_logits"].softmax(-1)
    mean = weights[:, 0] * -1.0 + weights[:, 1] * 1.0 + weights[:, 2] * 3.0
    expected = mean.sign() * (mean.abs().exp() - 1)
    torch.testing.assert_close(critic.value(batch()), expected)


@pytest.mark.parametrize("head", [BINS, {**BINS, "low": -3, "num_bins": 7, "spacing": "symexp"}])
def test_a_loss_on_bins_pulls_the_value_to_its_target(head):
    critic = compose({"heads": head}).critic
    head = critic.get_submodule("heads.value")
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.05)
    goal = torch.tensor([0.5, -1.0, 3.0, 2.0, 0.0])
    for _ in range(200):
        logits = critic(batch())["value_logits"]
        loss = nn.functional.cross_entropy(logits, head.two_hot(goal))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(critic.value(batch()), goal, atol=0.2, rtol=0)


@pytest.mark.parametrize(
    ("head", "name", "width"), [(QUANTILES, "quantiles", 4), (BINS, "logits", 3)]
)
def test_each_choice_has_a_distribution_of_its_own(head, name, width):
    critic = compose({"kind": "state_action", "heads": head}).critic
    values = critic(batch())
    assert {key: tuple(value.shape) for key, value in values.items()} == {
        "action_q_values": (5, 2),
        f"action_q_values_{name}": (5, 2, width),
    }
    one = critic.get_submodule("heads.action_q_values")
    torch.testing.assert_close(
        values["action_q_values"], one.to_scalar(values[f"action_q_values_{name}"])
    )


def test_a_value_of_an_action_in_quantiles_and_in_an_ensemble():
    graph = {
        "both": {"block": "concat", "in": ["observation", "action/action"]},
        "latent": {"block": "dense", "in": "both", "hidden_units": 8},
    }
    spec = {"kind": "state_action", "graph": graph, "heads": QUANTILES, "ensemble": 2}
    critic = compose(spec, TORQUE).critic
    values = critic(batch(), torch.zeros(5, 2))
    assert {key: tuple(value.shape) for key, value in values.items()} == {
        "q_value": (5, 2, 1),
        "q_value_quantiles": (5, 2, 4),
    }
    torch.testing.assert_close(values["q_value"], values["q_value_quantiles"].mean(-1, True))
    assert critic.value(batch(), torch.zeros(5, 2)).shape == (5, 2)


def test_a_graph_that_ends_in_a_value_block_needs_no_heads():
    latent = {"block": "dense", "in": "observation", "hidden_units": 8}
    critic = compose({"graph": {"latent": latent, "ends": QUANTILES}}).critic
    assert list(critic(batch())) == ["value", "value_quantiles"]
    assert "heads" not in critic._modules


def test_the_table_and_the_outputs_agree():
    model = compose({"heads": QUANTILES, "normalize_value": True})
    assert {name: port.shape for name, port in model.critic.out_ports.items()} == {
        name: tuple(value.shape[1:]) for name, value in model.critic(batch()).items()
    }
    assert "mean of its quantiles, on the scale of returns" in model.summary()


# --- on the scale of returns ---


def test_values_are_on_the_scale_of_the_returns_that_were_seen():
    model = compose({"normalize_value": True})
    before = model.critic(batch())
    torch.testing.assert_close(before["value"], before["normalized_value"])
    model.update_normalizers(returns=[[10.0, 20.0], [30.0, 40.0]])  # mean 25, variance 125
    values = model.critic(batch())
    assert torch.equal(values["normalized_value"], before["value"])
    torch.testing.assert_close(values["value"], before["value"] * 125**0.5 + 25.0)
    scaled = model.critic.value_normalizer(torch.tensor([25.0, 25.0 + 125**0.5]))
    torch.testing.assert_close(scaled, torch.tensor([0.0, 1.0]))


def test_statistics_of_returns_are_saved_and_merged_and_used_by_targets(tmp_path):
    spec = {"kind": "state_action", "normalize_value": True}
    model, other = compose(spec), compose(spec)
    model.update_normalizers(returns=torch.tensor([1.0, 3.0]))
    other.update_normalizers(returns=torch.tensor([5.0, 7.0]))
    model.merge_normalizers(other)
    normalizer = model.critic.value_normalizer
    assert (normalizer.mean.item(), normalizer.var.item()) == (4.0, 5.0)
    online = model.critic(batch())
    assert list(online) == ["action_q_values", "normalized_action_q_values"]
    assert torch.equal(model.critic.target(batch())["action_q_values"], online["action_q_values"])
    names = [name for name in model.state_dict() if "value_normalizer" in name]
    assert all(name.startswith("critic.value_normalizer.") for name in names)
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded.critic(batch()), online)
    torch.testing.assert_close(loaded.critic.target(batch()), model.critic.target(batch()))


def test_quantiles_stay_on_the_networks_scale():
    model = compose({"heads": QUANTILES, "normalize_value": True})
    model.update_normalizers(returns=[10.0, 30.0])
    values = model.critic(batch())
    assert torch.equal(values["value_quantiles"], raw(model.critic))
    expected = values["value_quantiles"].mean(-1, True) * 10.0 + 20.0
    torch.testing.assert_close(values["value"], expected)


def test_returns_without_normalize_value_are_refused():
    message = "this critic does not normalise its values; write normalize_value: true in it"
    with pytest.raises(ValueError, match=re.escape(message)):
        compose({}).update_normalizers(returns=[1.0])


# --- a user's class ---


class QuantileNet(nn.Module):
    def __init__(self, obs_shapes, names=("value", "value_quantiles")):
        super().__init__()
        self.names = names
        self.out = nn.Linear(*obs_shapes["observation"], 4)

    def forward(self, inputs):
        quantiles = self.out(inputs["observation"])
        return dict(zip(self.names, (quantiles.mean(-1, keepdim=True), quantiles)))


def test_a_class_may_return_the_quantiles_beside_its_value():
    critic = compose({"_target_": QuantileNet}).critic
    values = critic(batch())
    assert {key: tuple(value.shape) for key, value in values.items()} == {
        "value": (5, 1),
        "value_quantiles": (5, 4),
    }
    with pytest.raises(composer.SpecError, match="which is neither asked for nor shared"):
        compose({"_target_": QuantileNet, "names": ["value", "quantiles"]})
