"""Networks as models of BenchMARL: every way it shares and centralises, training, and what is refused."""

import copy
import pickle
import re

import pytest
import torch
from benchmarl.algorithms import IppoConfig, IsacConfig, MappoConfig  # type: ignore[import-not-found]
from benchmarl.environments import VmasTask  # type: ignore[import-not-found]
from benchmarl.experiment import Experiment, ExperimentConfig  # type: ignore[import-not-found]
from tensordict import TensorDict
from torchrl.data import Composite, Unbounded

from composer.adapters.benchmarl import ComposedModelConfig
from composer.errors import SpecError

AGENTS, FEATURES, WIDTH, BATCH = 3, 5, 4, 7
SPEC = """
version: 1
network:
  graph:
    flat: {block: flatten, in: observation}
    latent: {block: dense, in: flat, hidden_units: [8], activation: tanh}
  heads: {in: latent}
"""
DEEP_SET = SPEC.replace("flat: {block: flatten, in", "flat: {block: deep_set, hidden_units: 8, in")


def model_of(spec=SPEC, *, has_agents=True, centralised=False, share_params=True, seed=0):
    shape = (AGENTS, FEATURES) if has_agents else (FEATURES,)
    inputs = Composite(observation=Unbounded(shape), shape=shape[:-1])
    if has_agents:
        inputs = Composite(agents=inputs)
    leaf = Unbounded((WIDTH,) if share_params and centralised else (AGENTS, WIDTH))
    key = "value" if share_params and centralised else ("agents", "logits")
    outputs = Composite({key: leaf}) if isinstance(key, str) else Composite(
        agents=Composite(logits=leaf, shape=(AGENTS,))
    )  # fmt: skip
    return ComposedModelConfig(spec, seed=seed).get_model(
        input_spec=inputs, output_spec=outputs, agent_group="agents", input_has_agent_dim=has_agents,
        n_agents=AGENTS, centralised=centralised, share_params=share_params, device="cpu", action_spec=Composite(),
    )  # fmt: skip


def answer(model, observation):
    key = model.in_keys[0]
    batch = list(observation.shape[:1])
    data = TensorDict({}, batch)
    data.set(key, observation)
    return model(data).get(model.out_key)


@pytest.mark.parametrize("share_params", [True, False])
@pytest.mark.parametrize("centralised", [True, False])
@pytest.mark.parametrize("has_agents", [True, False])
def test_every_way_to_share_and_to_centralise(has_agents, centralised, share_params):
    if not has_agents and not centralised:
        return
    model = model_of(has_agents=has_agents, centralised=centralised, share_params=share_params)
    shape = (BATCH, AGENTS, FEATURES) if has_agents else (BATCH, FEATURES)
    x = torch.randn(shape)
    output = answer(model, x)
    is_one = share_params and centralised
    assert output.shape == ((BATCH, WIDTH) if is_one else (BATCH, AGENTS, WIDTH))
    assert len(model.networks) == (1 if share_params else AGENTS)
    if is_one:
        return
    for agent in range(AGENTS):
        network = model.networks[0 if share_params else agent]
        seen = x if centralised else x[:, agent]
        torch.testing.assert_close(output[:, agent], network({"observation": seen})["logits"])
    alone = not centralised
    changed = x.clone()
    changed[:, -1] += 1
    differs = (answer(model, changed) != output).flatten(2).any(-1).any(0).tolist()
    assert differs == ([False, False, True] if alone else [True] * AGENTS)


def test_a_centralised_network_may_see_the_agents_as_a_set():
    model = model_of(DEEP_SET, centralised=True)
    x = torch.randn(BATCH, AGENTS, FEATURES)
    torch.testing.assert_close(answer(model, x), answer(model, x[:, [2, 0, 1]]))


def test_the_config_survives_copies_and_the_seed_decides_the_weights():
    config = ComposedModelConfig(SPEC, seed=1)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    first, again, other = (model_of(share_params=False, seed=seed) for seed in (0, 0, 1))
    x = torch.randn(BATCH, AGENTS, FEATURES)
    torch.testing.assert_close(answer(first, x), answer(again, x), rtol=0, atol=0)
    assert not torch.equal(answer(first, x), answer(other, x))
    weights = [network.state_dict()["latent.linears.0.weight"] for network in first.networks]
    assert not torch.equal(weights[0], weights[1])


def test_what_does_not_fit_is_told_with_its_place():
    message = (
        "<spec>:5:35: block 'latent' gets (3, 5) from 'observation'; dense takes one vector (features,). Put a flatten "
        "block before it."
    )
    spec = SPEC.replace("    flat: {block: flatten, in: observation}\n", "").replace(
        "in: flat", "in: observation"
    )
    model_of(spec)
    with pytest.raises(SpecError) as error:
        model_of(spec, centralised=True)
    assert str(error.value).partition(": ")[2] == message.partition(": ")[2]
    memory = SPEC.replace("block: dense", "block: gru").replace("[8], activation: tanh", "8")
    message = (
        "BenchMARL asks for the form of a memory before it says what the network reads, so that a spec with memory has "
        "no place there; leave the memory out, or use BenchMARL's GruConfig"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model_of(memory)


@pytest.mark.parametrize(
    ("algorithm", "share_params"),
    [(MappoConfig, True), (IppoConfig, False), (IsacConfig, True)],
)
def test_an_experiment_trains_policy_and_critic(algorithm, share_params, tmp_path):
    config = ExperimentConfig.get_from_yaml()
    config.save_folder, config.loggers, config.create_json = str(tmp_path), [], False
    config.evaluation, config.render, config.share_policy_params = False, False, share_params
    config.max_n_iters, config.max_n_frames = 2, None
    config.on_policy_collected_frames_per_batch = config.off_policy_collected_frames_per_batch = 120
    config.on_policy_n_envs_per_worker = config.off_policy_n_envs_per_worker = 4
    config.on_policy_n_minibatch_iters, config.on_policy_minibatch_size = 2, 60
    config.off_policy_train_batch_size, config.off_policy_n_optimizer_steps = 32, 2
    config.off_policy_memory_size = 1000
    spec = SPEC.replace("in: observation", "in: both")
    critic = SPEC
    if algorithm is IsacConfig:
        both = "    both: {block: concat, in: [observation, action]}\n    flat"
        critic = spec.replace("    flat", both)
    experiment = Experiment(
        task=VmasTask.BALANCE.get_from_yaml(), algorithm_config=algorithm.get_from_yaml(),
        model_config=ComposedModelConfig(SPEC), critic_model_config=ComposedModelConfig(critic),
        seed=0, config=config,
    )  # fmt: skip
    losses = list(experiment.losses.values())
    before = [{name: p.detach().clone() for name, p in loss.named_parameters()} for loss in losses]
    experiment.run()
    for loss, old in zip(losses, before, strict=True):
        still = [
            name
            for name, p in loss.named_parameters()
            if p.requires_grad and torch.equal(p, old[name])
        ]
        assert still == []
    experiment.close()
