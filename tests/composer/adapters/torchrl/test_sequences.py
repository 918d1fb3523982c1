"""Off-policy learning with memory: sequences of a replay buffer, in which episodes end, after some steps of burn-in."""

import re

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import SerialEnv, TransformedEnv
from torchrl.envs.libs.gym import GymEnv
from torchrl.objectives import DQNLoss, SACLoss, SoftUpdate

from composer.adapters.torchrl.models import primers, to_torchrl
from composer.adapters.torchrl.sequences import EpisodeSequences
from tests.helpers.torchrl_models import compose, remembering, rollout

CHOICES = {"environment": "CartPole-v1", "policy": remembering()["policy"]}
MOTIONS = {
    "environment": "Pendulum-v1",
    "policy": remembering("gru")["policy"],
    "critic": {
        "kind": "state_action",
        "ensemble": 2,
        "graph": {
            "memory": {"block": "lstm", "in": "observation", "hidden_units": 8},
            "both": {"block": "concat", "in": ["memory", "action/action"]},
            "latent": {"block": "dense", "in": "both", "hidden_units": [16]},
        },
    },
}
LENGTH, BURN_IN = 12, 4


def collected(model, burn_in=BURN_IN, steps=60, loss=DQNLoss):
    """Modules of ``model``, and what they collected before its weights were changed: states are stale."""
    env = TransformedEnv(
        SerialEnv(3, lambda: GymEnv(model.spec.environment, categorical_action_encoding=True)),
        primers(model),
    )
    modules = to_torchrl(model, env, loss=loss, burn_in=burn_in)
    data = rollout(env, modules.collecting if modules.q_actor is None else modules.q_actor, steps)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return modules, data


def rows_of(data):
    """All sequences of `LENGTH` steps, as a sampler gives them: one after the other."""
    starts = range(data.shape[1] - LENGTH + 1)
    return torch.cat([data[:, start : start + LENGTH] for start in starts])


def laid_out(rows, burn_in=BURN_IN):
    return EpisodeSequences(LENGTH, burn_in).forward(rows.reshape(-1))


# --- the places of steps ---


def drawn_rows(count=200):
    torch.manual_seed(0)
    starts = torch.rand(count, LENGTH, 1) < 0.3
    clock = torch.arange(count * LENGTH).reshape(count, LENGTH, 1).float()
    following = {"observation": clock + 1, "is_init": torch.zeros_like(starts), "reward": clock}
    following["observation"][:, :-1][starts[:, 1:]] += 0.5  # what an episode ends with
    fields = {"observation": clock, "is_init": starts, "next": following}
    return TensorDict(fields, batch_size=[count, LENGTH])


@pytest.mark.parametrize("burn_in", [0, 1, 5, LENGTH - 1])
def test_the_next_observation_of_each_step_is_the_observation_of_the_step_after(burn_in):
    rows = drawn_rows()
    laid = laid_out(rows, burn_in)
    learned = laid["collector", "mask"].squeeze(-1)
    assert not learned[:, :burn_in].any()
    assert torch.equal(learned.sum(1), torch.full((len(rows),), LENGTH - burn_in))
    assert torch.equal(laid["observation"][learned], rows["observation"][:, burn_in:].flatten(0, 1))
    assert torch.equal(laid["next", "reward"][learned], laid["observation"][learned])
    last = learned.float().cumsum(1).argmax(1)
    for row, end in zip(laid, last, strict=True):
        for key in ("observation", "is_init"):
            assert torch.equal(row["next", key][:end], row[key][1 : end + 1])


def test_a_buffer_gives_sequences_that_cross_episodes_and_its_own_end():
    model = compose(CHOICES)
    modules, data = collected(model, steps=48)
    buffer = modules.sequence_buffer(3 * 32, sequence_length=LENGTH, batch_size=20 * LENGTH + 1)
    for part in data.split(16, 1):
        buffer.extend(part)
    assert len(buffer) == 3 * 32
    sample = buffer.sample()
    assert sample.shape[0] == 20
    assert sample["is_init"][:, 1:].any()
    kept = {tuple(step.tolist()) for step in data[:, -32:]["observation"].flatten(0, 1)}
    mask = sample["collector", "mask"].squeeze(-1)
    assert {tuple(step.tolist()) for step in sample["observation"][mask]} <= kept


# --- values and gradients ---


def by_steps(rows, step, state_of, reset):
    """Values of each step after burn-in and of the observation after it, by a plain loop."""
    values, next_values = [], []
    for row in rows:
        ends = row["is_init"].squeeze(-1)[1:]
        begin = int(ends[:BURN_IN].sum())  # rows that end while they warm up begin that much later
        state, after = state_of(row[begin]), state_of(row[begin]["next"])
        for t in range(begin, LENGTH):
            if t > begin and row["is_init"][t]:
                state = after = reset
                _, after = step(row["observation"][t], after)
            value, state = step(row["observation"][t], state)
            next_value, after = step(row["next", "observation"][t], after)
            if t >= BURN_IN:
                values.append(value)
                next_values.append(next_value)
    return torch.stack(values), torch.stack(next_values)


def policy_state(data):
    return {f"memory/{name}": data[f"recurrent_state_actor_{name}"] for name in "hc"}


def policy_step(model):
    def step(observation, state):
        logits, after = model.policy(observation, state)
        return logits["action"], after

    return step


def test_values_over_sequences_and_their_loss_are_those_of_a_loop_over_steps():
    model = compose(CHOICES)
    modules, data = collected(model)
    rows = rows_of(data)
    assert rows["is_init"][:, 1:BURN_IN].any()
    assert rows["is_init"][:, BURN_IN:].any()
    laid = laid_out(rows)
    mask = laid["collector", "mask"].squeeze(-1)
    loss = DQNLoss(modules.q_actor_training, loss_function="l2", action_space="categorical")
    loss.make_value_estimator(gamma=0.9)
    SoftUpdate(loss, tau=0.5)
    with torch.no_grad():  # a target of other weights
        for weight in loss.target_value_network_params.values(True, True):
            weight.add_(0.1 * torch.randn_like(weight))
    other = compose(CHOICES)
    weights = loss.target_value_network_params.flatten_keys(".").to_dict()
    ends = {
        name: next(w for key, w in weights.items() if key.endswith(name))
        for name, _ in other.policy.named_parameters()
    }
    other.policy.load_state_dict(ends)

    reset = model.policy.initial_state()
    with torch.no_grad():
        values, best = by_steps(rows, policy_step(model), policy_state, reset)
        _, targets = by_steps(rows, policy_step(other), policy_state, reset)
        at_once = modules.q_actor_training(laid.clone())["action_value"][mask]
    assert torch.allclose(at_once, values, atol=1e-5)
    learned = laid[mask]
    chosen = values.gather(-1, learned["action"].unsqueeze(-1)).squeeze(-1)
    following = targets.gather(-1, best.argmax(-1, keepdim=True)).squeeze(-1)
    goes_on = 1 - learned["next", "terminated"].squeeze(-1).float()
    target = learned["next", "reward"].squeeze(-1) + 0.9 * goes_on * following
    assert torch.allclose(loss(laid)["loss"], ((chosen - target) ** 2).mean(), rtol=1e-4)


def test_each_copy_of_a_critic_goes_on_from_its_own_state():
    model = compose(MOTIONS)
    _modules, data = collected(model, loss=SACLoss)
    data["is_init"][:, 20] = True
    names = list(data.keys())
    for key in [name for name in names if name.startswith("recurrent")]:
        data[key][:, 20] = 0
    rows = rows_of(data)
    laid = laid_out(rows)
    mask = laid["collector", "mask"].squeeze(-1)
    with torch.no_grad():
        state = {
            f"ensemble/memory/{name}": laid[f"recurrent_state_critic_{name}"][:, 0] for name in "hc"
        }
        starts = laid["is_init"].squeeze(-1).clone()
        starts[:, 0] = False
        values, _ = model.critic.unroll(laid["observation"], laid["action"], state, starts)
        adapted = to_torchrl(model, burn_in=BURN_IN)
        for index, copy in enumerate(adapted.critic_copies):
            value = copy(laid.clone())["state_action_value"]
            assert torch.allclose(value[mask], values["q_value"][:, :, index][mask], atol=1e-5)


@pytest.mark.parametrize("burn_in", [0, BURN_IN])
def test_gradients_flow_through_the_learned_part_alone(burn_in):
    model = compose(CHOICES)
    modules, data = collected(model, burn_in)
    laid = laid_out(rows_of(data), burn_in)
    seen = laid["observation"].clone().requires_grad_()
    values = modules.q_actor_training(laid.set("observation", seen))["action_value"]
    (gradient,) = torch.autograd.grad(values[:, burn_in:].sum(), seen)
    reached = gradient.abs().sum((0, 2)) > 0
    assert not reached[:burn_in].any()
    assert reached[burn_in:].all()


def test_sac_learns_from_sequences_and_the_model_takes_its_critics():
    model = compose(MOTIONS)
    modules, data = collected(model, loss=SACLoss)
    buffer = modules.sequence_buffer(1000, sequence_length=LENGTH, batch_size=8 * LENGTH)
    buffer.extend(data)
    loss = SACLoss(
        modules.actor_training, list(modules.critic_copies), num_qvalue_nets=2, deactivate_vmap=True
    )
    loss.make_value_estimator(gamma=0.9)
    SoftUpdate(loss, tau=0.5)
    losses = loss(buffer.sample())
    total = losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]
    total.backward()
    weights = [w for w in loss.parameters() if w.requires_grad]
    assert all(w.grad is not None and w.grad.any() for w in weights if w.dim() > 1)
    with torch.no_grad():
        for weight in loss.qvalue_network_params.values(True, True):
            if weight.is_floating_point():
                weight.add_(1.0)
    before = [weight.clone() for weight in model.critic.online.parameters()]
    modules.adopt(loss)
    changed = zip(before, model.critic.online.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in changed)


# --- what is refused ---


def test_lengths_that_leave_nothing_to_learn_are_refused():
    modules = to_torchrl(compose(CHOICES), burn_in=12)
    with pytest.raises(
        ValueError, match=r"^burn_in must be smaller than sequence_length, which is 12, got 12: "
    ):
        modules.sequence_buffer(100, sequence_length=12, batch_size=12)
    plain = compose({**CHOICES, "policy": {"template": {}}})
    message = "burn_in is for models with memory, got 3 for one without; leave it out"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        to_torchrl(plain, burn_in=3)
    assert to_torchrl(plain).burn_in == 0


def test_a_critic_that_remembers_actions_is_refused():
    graph = {
        "both": {"block": "concat", "in": ["observation", "action/action"]},
        "memory": {"block": "gru", "in": "both", "hidden_units": 8},
    }
    model = compose({**MOTIONS, "critic": {"kind": "state_action", "graph": graph}})
    message = (
        "SACLoss cannot train this model:\n  the memory of its critic reads the action, but each step is valued with "
        "other actions than the one taken; let the memory read observations, and join the action to what it gives"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        to_torchrl(model, loss=SACLoss)


def test_a_loss_that_calls_the_copies_all_at_once_is_told_to_call_them_one_by_one():
    modules, data = collected(compose(MOTIONS), burn_in=0, loss=SACLoss)
    loss = SACLoss(modules.actor_training, list(modules.critic_copies), num_qvalue_nets=2)
    SoftUpdate(loss, tau=0.005)
    with pytest.raises(ValueError, match=r", by vmap, .*; create it with deactivate_vmap=True$"):
        loss(data)
