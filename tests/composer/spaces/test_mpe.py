"""The particle environments of PettingZoo, which are a package of their own (MPE2), by id and as objects."""

import pytest
from mpe2 import simple_speaker_listener_v4, simple_tag_v3

import composer
from composer.spaces.lookup import make_environment

NETWORK = (
    "{graph: {latent: {block: dense, in: observation, hidden_units: [8]}}, heads: {in: latent}}"
)


def spec(*groups: str, separate: str = "") -> str:
    networks = "\n".join(
        f"    {name}: {NETWORK[:-1]}, separate: {str(name == separate).lower()}}}"
        for name in groups
    )
    return f"version: 1\npolicy:\n  networks:\n{networks}\n"


@pytest.mark.parametrize(
    ("module", "groups", "separate"),
    [
        (simple_speaker_listener_v4, ("speaker", "listener"), ""),
        (simple_tag_v3, ("adversary", "agent"), "adversary"),
    ],
)
@pytest.mark.parametrize("kind", ["parallel", "aec"])
def test_an_episode_is_played_to_its_end(module, groups, separate, kind):
    env = module.parallel_env(max_cycles=15) if kind == "parallel" else module.env(max_cycles=15)
    model = composer.compose(spec(*groups, separate=separate), env=env, seed=0)
    assert isinstance(model.policy, composer.StructuredPolicy)
    assert [group.name for group in model.policy.groups] == list(groups)
    if kind == "aec":
        env.reset(seed=0)
        for agent in env.agent_iter():
            observation, _, terminated, truncated, _ = env.last()
            over = terminated or truncated
            env.step(None if over else model.policy.act({agent: observation})[agent])
        return
    observations, _ = env.reset(seed=0)
    while env.agents:
        actions = model.policy.act(observations)
        assert all(env.action_space(agent).contains(a) for agent, a in actions.items())
        observations, *_ = env.step(actions)


def test_a_particle_environment_is_made_by_its_id():
    env = make_environment("pettingzoo:mpe/simple_tag_v3")
    assert env.possible_agents == ["adversary_0", "adversary_1", "adversary_2", "agent_0"]
    with pytest.raises(composer.SpecError) as caught:
        make_environment("pettingzoo:mpe/simple_tog_v3")
    assert str(caught.value) == (
        "the environment 'pettingzoo:mpe/simple_tog_v3' cannot be made: there is no 'mpe/simple_tog_v3'; "
        "did you mean 'mpe/simple_tag_v3'?"
    )
