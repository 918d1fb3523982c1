"""Whole sequences in TorchRL: training modules equal inference ones, padding counts in no loss, shared weights learn."""

import re

import pytest
import torch
from torchrl.envs import TransformedEnv
from torchrl.envs.libs.gym import GymEnv
from torchrl.envs.utils import check_env_specs
from torchrl.objectives import A2CLoss, ClipPPOLoss, ReinforceLoss
from torchrl.objectives.value import GAE

import composer
from composer.adapters.tokens import TokenEnv, sample_sequences, token_modules, token_spaces
from composer.adapters.torchrl import primers, to_torchrl
from composer.policy import token_views

SIZE, LENGTH, ROWS = 6, 9, 8
BODIES = {
    "gru": {"block": "gru", "in": "token", "hidden_units": 12},
    "lstm": {"block": "lstm", "in": "token", "hidden_units": 12},
    "gpt2": {
        "block": "transformer", "in": ["sequence", "sequence_mask"], "family": "gpt2",
        "n_layer": 1, "n_head": 2, "n_embd": 16,
    },
}  # fmt: skip
TOKEN = {"token": {"block": "embedding", "in": "observation", "embedding_dim": 8}}
LOSSES = {"ppo": ClipPPOLoss, "a2c": A2CLoss, "reinforce": ReinforceLoss}
every_body = pytest.mark.parametrize("name", BODIES)


def composed(name, shared=True):
    body = {**(TOKEN if BODIES[name]["in"] == "token" else {}), "latent": BODIES[name]}
    value = {"value": {"block": "linear_output", "in": "latent", "output_units": 1}}
    unread = ["observation"] if name == "gpt2" else ["sequence", "sequence_mask"]
    spec = {
        "version": 1,
        "ignore": ["action_mask", *unread],
        "policy": {
            "graph": body,
            "heads": {"in": "latent"},
            "shares": ["latent"] if shared else [],
        },
        "critic": {"graph": value if shared else body | value},
    }
    observation_space, action_space = token_spaces(SIZE, LENGTH)
    return composer.compose(
        spec, observation_space=observation_space, action_space=action_space, seed=0
    ).eval()


def length_of(sequence, mask):
    return mask.sum(-1).float()


def environment(model, **more):
    env = TokenEnv(
        vocabulary_size=SIZE, max_length=LENGTH, batch_size=ROWS, score=length_of, **more
    )
    return TransformedEnv(env, primers(model))


def sampled(model, **more):
    env = environment(model, **more)
    heat = "temperature" if "temperature" in more else None
    modules = token_modules(model, env, temperature_key=heat)
    torch.manual_seed(0)
    return modules, sample_sequences(env, modules.collecting)


@every_body
def test_training_reads_at_once_what_inference_saw_step_by_step(name):
    model = composed(name)
    modules, data = sampled(model)
    mask = data["mask"]
    assert 1 < mask.sum(-1).min() < mask.sum(-1).max() == data.shape[1]
    fresh = data.select("observation", "mask")
    logits = modules.actor_training(fresh.clone())["logits"]
    torch.testing.assert_close(logits[mask], data["logits"][mask], atol=1e-5, rtol=1e-5)
    sequence = data["sequence"][:, -1]
    whole, _, judge, _ = token_views(model.policy, model.critic)
    again = whole(sequence, data["sequence_mask"][:, -1])["action"][:, : data.shape[1]]
    torch.testing.assert_close(logits[mask], again[mask], atol=1e-5, rtol=1e-5)
    values = modules.critic_training(fresh.clone())["state_value"]
    judged = judge(sequence, data["sequence_mask"][:, -1])["value"][:, : data.shape[1]]
    torch.testing.assert_close(values[mask], judged[mask], atol=1e-5, rtol=1e-5)


@every_body
def test_padding_and_what_stands_in_it_change_nothing(name):
    modules, data = sampled(composed(name))
    row = int(data["mask"].sum(-1).argmin())
    steps = int(data["mask"][row].sum())
    alone = data[row : row + 1, :steps].select("observation")  # without a mask: all are steps
    padded = data.select("observation", "mask")
    padded["observation"] = torch.where(padded["mask"], padded["observation"], 5)
    torch.testing.assert_close(
        modules.actor_training(alone)["logits"][0],
        modules.actor_training(padded)["logits"][row, :steps],
    )


def test_a_sequence_ends_with_its_end_token_and_is_worth_something_once():
    _, data = sampled(composed("gru"))
    mask, ended = data["mask"], data["next", "terminated"].squeeze(-1)
    lengths = mask.sum(-1)
    for row, steps in enumerate(lengths.tolist()):
        last = data["action"][row, steps - 1].item()
        assert mask[row].tolist() == [step < steps for step in range(data.shape[1])]
        assert (last == 1) == bool(ended[row, steps - 1])
        assert 1 not in data["action"][row, : steps - 1].tolist()
        assert data["next", "reward"][row].sum() == steps  # counted without the end, with the start
        assert data["next", "done"][row, steps - 1 :].all()
    assert torch.equal(data["collector", "mask"].squeeze(-1), mask)


@every_body
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_count_real_tokens_alone_and_train_the_model(name, loss):
    model = composed(name)
    modules, data = sampled(model)
    GAE(gamma=0.9, lmbda=0.9, value_network=modules.critic_training, shifted=True)(data)
    module = LOSSES[loss](modules.actor_training, modules.critic_training)
    losses = module(data.clone())
    key = "loss_actor" if loss == "reinforce" else "loss_objective"
    log_prob = modules.actor_training.get_dist(data.clone()).log_prob(data["action"])
    advantage = data["advantage"].squeeze(-1)
    ratio = (log_prob - data["action_log_prob"]).exp() if loss == "ppo" else log_prob
    expected = -(ratio * advantage)[data["mask"]].mean()
    torch.testing.assert_close(losses[key], expected)
    spoilt = data.clone()
    spoilt["advantage"] = torch.where(data["mask"].unsqueeze(-1), data["advantage"], 1e6)
    torch.testing.assert_close(module(spoilt)[key], expected)
    losses[key].backward()
    assert all(p.grad is not None for p in model.policy.parameters())
    model.zero_grad()
    values = module(data.clone())
    values["loss_value" if loss == "reinforce" else "loss_critic"].backward()
    assert all(p.grad is not None for p in model.critic.parameters())


@pytest.mark.parametrize("shared", [True, False])
def test_a_step_of_an_optimizer_changes_training_and_inference(shared):
    model = composed("gpt2", shared)
    modules, data = sampled(model)
    before = modules.actor_inference(data[:, 0].clone())["logits"].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modules.actor_training.get_dist(data.clone()).log_prob(data["action"]).sum().backward()
    optimizer.step()
    after = modules.actor_inference(data[:, 0].clone())["logits"]
    assert not torch.equal(after, before)
    at_once = modules.actor_training(data.select("observation", "mask"))["logits"]
    torch.testing.assert_close(at_once[:, 0], after, atol=1e-5, rtol=1e-5)


def test_shifted_advantages_read_each_sequence_once():
    modules, data = sampled(composed("gpt2"))
    GAE(gamma=0.9, lmbda=0.9, value_network=modules.critic_training, shifted=True)(data)
    values = modules.critic_training(data.select("observation", "mask"))["state_value"]
    later = data["mask"][:, 1:]
    torch.testing.assert_close(data["next", "state_value"][:, :-1][later], values[:, 1:][later])
    expected = torch.zeros(ROWS)
    for step in reversed(range(data.shape[1])):  # the recursion of the paper, row by row
        real, over = data["mask"][:, step], data["next", "terminated"][:, step, 0]
        done = data["next", "done"][:, step, 0]
        follows = torch.where(over, 0.0, data["next", "state_value"][:, step, 0])
        error = data["next", "reward"][:, step, 0] + 0.9 * follows - values[:, step, 0]
        expected = torch.where(done, error, error + 0.9 * 0.9 * expected)
        torch.testing.assert_close(data["advantage"][real, step, 0], expected[real])


@every_body
def test_one_hot_tokens_give_the_numbers_of_indices(name):
    _, data = sampled(composed(name))
    modules, one_hot = sampled(composed(name), encoding="one_hot")
    assert one_hot["observation"].shape == (*data.shape, SIZE)
    assert one_hot["sequence"].shape == (*data.shape, LENGTH, SIZE)
    assert torch.equal(one_hot["action"].argmax(-1), data["action"])
    torch.testing.assert_close(one_hot["logits"], data["logits"])
    again = modules.actor_training(one_hot.select("observation", "mask"))["logits"]
    mask = one_hot["mask"]
    torch.testing.assert_close(again[mask], data["logits"][mask], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("default")  # torchrl's own
@pytest.mark.parametrize("batch_size", [3, (2, 3), ()])
def test_torchrl_accepts_one_hot_tokens_and_a_temperature(batch_size):
    env = TokenEnv(
        batch_size=batch_size, score=length_of, vocabulary_size=6, max_length=5,
        encoding="one_hot", temperature=0.5,
    )  # fmt: skip
    check_env_specs(env)
    rollout = env.rollout(9, break_when_any_done=False)
    assert (rollout["observation"].sum(-1) == 1).all()


def test_the_temperature_divides_the_logits_in_training_too():
    model = composed("gru")
    env = environment(model, temperature=0.5)
    modules = token_modules(model, env, temperature_key="temperature")
    fields = env.reset()
    fields["temperature"][0] = 2.0
    acted = modules.actor_inference(fields.clone())
    heat = fields["temperature"]
    assert heat.tolist() == [[2.0]] + [[0.5]] * (ROWS - 1)
    expected = (acted["logits"] / heat).log_softmax(-1)
    chosen = expected.gather(-1, acted["action"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(acted["action_log_prob"], chosen)
    after = env.step(acted)["next"]
    assert torch.equal(after["temperature"], heat)  # steps carry it on
    torch.manual_seed(0)
    data = sample_sequences(env, modules.collecting)
    log_prob = modules.actor_training.get_dist(data.clone()).log_prob(data["action"])
    mask = data["mask"]
    torch.testing.assert_close(log_prob[mask], data["action_log_prob"][mask], atol=1e-5, rtol=1e-5)
    plain = modules.actor_training.get_dist(data.exclude("temperature"))
    assert not torch.allclose(plain.log_prob(data["action"])[mask], log_prob[mask])


def test_a_finished_row_keeps_its_temperature_when_it_begins_anew():
    env = TokenEnv(vocabulary_size=4, max_length=4, batch_size=2, temperature=0.5)
    fields = env.reset()
    fields["temperature"][1] = 3.0
    after = env.step(fields.set("action", torch.tensor([2, 1])))["next"]
    begun = env.reset(after.set("_reset", after["done"]))
    assert begun["temperature"].tolist() == [[0.5], [3.0]]


def test_the_log_probability_of_a_sequence_sums_over_its_tokens():
    model = composed("gpt2")
    training, _ = token_views(model.policy)
    sequence = torch.tensor([[0, 2, 3, 1, 0], [0, 4, 1, 5, 5]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]).bool()
    logits = training(sequence, mask)["action"].log_softmax(-1)
    expected = [
        sum(logits[row, step, sequence[row, step + 1]] for step in range(steps))
        for row, steps in enumerate((3, 2))
    ]
    torch.testing.assert_close(training.log_prob(sequence, mask), torch.stack(expected))
    short = training.log_prob(sequence[1:, :3])
    torch.testing.assert_close(short, expected[1].unsqueeze(0))


def refused(message, call, *args, **more):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(*args, **more)


def test_wrong_use_is_told():
    model = composed("gru")
    modules, data = sampled(model)
    refused(
        "the TensorDict lacks 'observation': the token before each step of (B, T); "
        "sample_sequences(env, policy) and TokenDataset write it",
        modules.actor_training, data.select("sequence"),
    )  # fmt: skip
    refused(
        "the modules for training read whole sequences, 'observation' of (B, T); got (8,); use the modules for "
        "inference for single steps",
        modules.actor_training, data[:, 0],
    )  # fmt: skip
    refused(
        "sample_sequences takes a TokenEnv, or a TransformedEnv of one, got a GymEnv",
        sample_sequences, GymEnv("CartPole-v1"),
    )  # fmt: skip
    refused(
        "temperature_key is 'heat', which the environment does not have; it has 'observation', 'sequence', "
        "'sequence_mask', 'action_mask'",
        to_torchrl, model, TokenEnv(vocabulary_size=SIZE, max_length=LENGTH), temperature_key="heat",
    )  # fmt: skip


def test_what_an_environment_is_not_given_is_told():
    sizes = {"vocabulary_size": 4, "max_length": 4}
    refused(
        "encoding must be 'categorical' or 'one_hot', got 'onehot'; did you mean 'one_hot'?",
        TokenEnv, **sizes, encoding="onehot",
    )  # fmt: skip
    refused(
        "temperature must be positive and finite, got 0; a deterministic policy takes mode()",
        TokenEnv, **sizes, temperature=0,
    )  # fmt: skip
    env = TokenEnv(**sizes, encoding="one_hot", batch_size=2)
    fields = env.reset()
    for action, got in ((torch.zeros(2, 4), "a row without exactly one"), (torch.ones(2), "(2,)")):
        refused(
            f"'action' must be one-hot, (2, 4), got {got}",
            env.step, fields.clone().set("action", action.long()),
        )  # fmt: skip


def test_a_temperature_is_for_one_action():
    from gymnasium.spaces import Box, Dict, Discrete

    model = composer.compose(
        {"version": 1, "policy": {"graph": {"x": {"block": "dense", "in": "observation", "hidden_units": [4]}},
                                  "heads": {"in": "x"}}},
        observation_space=Box(-1, 1, (2,)), action_space=Dict(a=Discrete(2), b=Discrete(3)), seed=0,
    )  # fmt: skip
    refused(
        "temperature_key is for one action; this model has 'a', 'b'; leave it out",
        to_torchrl, model, temperature_key="temperature",
    )  # fmt: skip
