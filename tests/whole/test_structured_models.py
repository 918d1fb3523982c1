"""Models of several actors as a whole: saved, copied, moved, normalised; distributions and actions."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import composer
from composer.network.network import share_of
from composer.summary.table import summarize
from tests.helpers.structured_models import (
    AGENT,
    MEMORY,
    PLACE,
    SEPARATE,
    SHARED,
    agents,
    crowd,
    observations,
    pick_and_place,
    same,
)

# --- the whole model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pick_and_place, agents, crowd])
@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_a_loaded_model_is_the_same(make, separate, tmp_path):
    model = make() if make is crowd else make(separate=separate)
    model.save(tmp_path / "model.safetensors")
    loaded = composer.load(tmp_path / "model.safetensors")
    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == model.action_space
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values())
    )


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_whole_and_its_own(separate, again):
    model = pick_and_place(separate)
    other = again(model)
    seen, state = observations(model), model.policy.initial_state()
    before = model.policy(seen, state)[0]
    assert all(same(before[key], other.policy(seen, state)[0][key]) for key in seen)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(same(before[key], model.policy(seen, state)[0][key]) for key in seen)
    assert all(not own["move"].any() for own in other.policy(seen, state)[0].values())


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_materializing_equals_composing_directly(separate):
    direct = pick_and_place(separate)
    model = pick_and_place(separate, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    model.materialize()
    assert all(
        torch.equal(a, b) for a, b in zip(direct.state_dict().values(), model.state_dict().values())
    )


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_weights_go_through_state_dict(separate):
    model, other = agents(separate=separate), agents(separate=separate, seed=9)
    other.load_state_dict(model.state_dict())
    seen = observations(model)
    assert all(same(model.policy(seen)[key], other.policy(seen)[key]) for key in seen)
    weights = model.state_dict()
    weights["policy.stranger"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"policy\.stranger"):
        other.load_state_dict(weights)


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_a_model_moves_to_another_dtype(separate):
    model = pick_and_place(separate).double()
    assert model.policy.dtype == torch.float64
    logits, _ = model.policy(observations(model), model.policy.initial_state())
    assert {own["move"].dtype for own in logits.values()} == {torch.float64}
    assert model.policy["place", 1].dtype == torch.float64


def test_the_model_gives_logits_by_actor():
    model = agents()
    logits, values = model(observations(model))
    assert (list(logits), values) == (["agent_0", "agent_1", "agent_2", "agent_3"], {})


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_normalisers_are_of_each_network(separate):
    spec = AGENT.replace("policy:", "normalize: [observation]\npolicy:")
    model = agents(spec, separate, number=2)
    seen = {"agent_0": np.full((8, 3), 5.0), "agent_1": np.full((8, 3), -5.0)}
    model.update_normalizers(seen)
    means = [value for name, value in model.state_dict().items() if name.endswith("mean")]
    expected = [[5.0] * 3, [-5.0] * 3] if separate else [[0.0] * 3]
    assert [mean.tolist() for mean in means] == expected
    again = agents(spec, separate, number=2)
    again.merge_normalizers(model)
    after = [value for name, value in again.state_dict().items() if name.endswith("mean")]
    assert [mean.tolist() for mean in after] == expected


def test_parameters_of_distributions_are_of_each_agent():
    spec = AGENT.replace(
        "policy:",
        "distributions: [{action: action, distribution: gaussian, log_std: learned}]\npolicy:",
    )
    model = agents(spec, SEPARATE, number=2, action=Box(-np.inf, np.inf, (2,)))
    names = [name for name in model.state_dict() if "distributions" in name]
    assert [name.split(".")[1] for name in names] == ["0", "1"]
    again = agents(spec, SEPARATE, number=2, action=Box(-np.inf, np.inf, (2,)), seed=5)
    again.load_state_dict(model.state_dict())


def test_distributions_by_actor_have_log_probs_of_their_actions():
    model = pick_and_place(SEPARATE)
    seen, state = observations(model, (4,)), model.policy.initial_state(4)
    actions, _ = model.policy.act(seen, state)
    distributions, _ = model.policy.distribution(seen, state)
    taken = model.policy.from_environment(actions)
    assert list(distributions) == list(taken) == list(seen)
    for key, distribution in distributions.items():
        assert distribution.log_prob(taken[key]).shape == (4,)
        assert distribution.log_prob(taken[key]).isfinite().all()


def test_the_same_generator_draws_the_same_actions():
    model = agents(separate=SEPARATE)
    seen = observations(model, (6,))
    first, second = (
        model.policy.act(seen, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert all(np.array_equal(first[key], second[key]) for key in seen)


def test_deterministic_actions_are_modes():
    model = agents()
    seen = observations(model)
    actions = model.policy.act(seen, deterministic=True)
    assert all(actions[k] == int(v["action"].argmax()) for k, v in model.policy(seen).items())


def test_tensors_in_tensors_out_for_each_actor():
    model = agents()
    actions = model.policy.act({"agent_0": torch.ones(2, 3), "agent_1": np.ones((2, 3))})
    assert isinstance(actions["agent_0"], torch.Tensor)
    assert isinstance(actions["agent_1"], np.ndarray)


def test_masks_are_by_actor():
    model = agents()
    seen = observations(model, (50,))
    only = np.zeros((50, 5), bool)
    only[:, 2] = True
    actions = model.policy.act(seen, mask={"agent_1": only})
    assert set(actions["agent_1"]) == {2}
    assert set(actions["agent_0"]) > {2}


# --- what it looks like -----------------------------------------------------------------------------------------------


def test_the_summary_has_each_group_and_says_whom_it_is_for():
    assert (
        pick_and_place(SEPARATE).summary()
        == """\
node          block          shape                parameters   share  FLOPs  notes             line
policy/pick   graph                                                                            7:9
  target      one_hot        () -> (4,)                                                        7:17
  latent      concat         (5,) + (4,) -> (9,)                                               8:17
  hidden      dense          (9,) -> (8,)                 80  10.0 %    144                    9:17
  heads/move  linear_output  (8,) -> (3,)                 27   3.4 %     48                    10:14
policy/place  2 x graph                                                                        14:9
  latent      dense          (3,) -> (8,)                 64   8.0 %     48                    14:17
  memory      gru            (8,) -> (6,)                576  71.7 %    504  carries h (1, 6)  15:17
  heads/move  linear_output  (6,) -> (4,)                 56   7.0 %     48                    16:14

parameters  803 (policy/pick 107, policy/place 696)
FLOPs       792 for one observation

output      shape
pick/move   (3,)   categorical
place/move  (4,)   squashed_gaussian

policy/pick acts for 'pick'
policy/place acts for 'place/0', 'place/1', one network each"""
    )


def test_the_summary_counts_every_parameter():
    for model in (pick_and_place(), pick_and_place(SEPARATE), agents(), agents(separate=SEPARATE)):
        count = sum(parameter.numel() for parameter in model.parameters())
        assert summarize(model).parameters == summarize(model.policy).parameters == count


def test_the_summary_says_why_agents_run_one_by_one():
    spaces = {"agent_0": Box(-1, 1, (3,)), "agent_1": Box(-1, 1, (4,))}
    model = composer.compose(
        AGENT.replace("SEPARATE", SEPARATE),
        observation_space=spaces, action_space=dict.fromkeys(spaces, Discrete(2)), seed=0,
    )  # fmt: skip
    assert summarize(model).remarks == tuple(
        f"policy/{index} acts for 'agent_{index}'; they run one by one: the observation spaces of 'agent_0' and "
        "'agent_1' differ ('observation': shape is (4,), expected (3,))"
        for index in range(2)
    )


def test_the_picture_has_a_frame_for_each_group(tmp_path):
    text = composer.draw(pick_and_place(SEPARATE), tmp_path / "model.dot").read_text()
    titles = re.findall(r'<b>(policy[^<]*)</b></font><font point-size="10">   ([^<]*)</font>', text)
    assert titles == [
        ("policy/pick", "107 parameters for 'pick'"),
        ("policy/place", "696 parameters for 'place/0', 'place/1', one network each"),
    ]
    inputs = ["pick/camera", "pick/goal", "place/observation"]
    assert all(f"<b>{name}</b>" in text for name in inputs)


def test_an_agents_own_policy_is_drawn_alone(tmp_path):
    policy = agents(separate=SEPARATE).policy["agent_1"]
    assert composer.draw(policy, tmp_path / "agent.mmd").stat().st_size > 0


def test_a_model_begins_with_a_state_for_agents_that_are_not_counted():
    spec = (
        MEMORY.replace("SEPARATE", "init: orthogonal")
        + "critic: {template: {memory: {block: gru, hidden_units: 2}}}\n"
    )
    key = ("look", None)
    model = composer.compose(
        spec, observation_space={key: PLACE}, action_space={key: Discrete(2)}, seed=0
    )
    state = model.initial_state(3, actors=[("look", 7)])
    assert list(state) == ["policy/look/7/memory/h", "critic/look/7/memory/h"]
    logits, values, after = model({("look", 7): np.zeros((3, 3))}, state)
    assert logits.keys() == values.keys() == {("look", 7)}
    assert after.keys() == state.keys()


@pytest.mark.parametrize("separate", [SHARED, SEPARATE])
def test_actors_take_the_state_of_the_whole_model(separate):
    spec = MEMORY.replace("SEPARATE", separate or "init: orthogonal")
    spec += "critic: {template: {memory: {block: gru, hidden_units: 2}}}\n"
    keys = ["a", "b"] if separate else [("look", None), "rest"]  # how many look is not known
    model = composer.compose(
        spec,
        observation_space=dict.fromkeys(keys, PLACE),
        action_space=dict.fromkeys(keys, Discrete(2)),
        seed=0,
    )
    present = ["a", "b"] if separate else [("look", 7), "rest"]
    whole = model.initial_state(3, actors=present)
    whole = {name: torch.randn_like(value) for name, value in whole.items()}
    seen = dict.fromkeys(present, np.ones((3, 3), np.float32))
    for role, part in (("policy", model.policy), ("critic", model.critic)):
        outputs, after = part(seen, share_of(role, whole))
        again, carried = part(seen, whole)
        torch.testing.assert_close(again, outputs)
        torch.testing.assert_close(
            carried, whole | {f"{role}/{name}": value for name, value in after.items()}
        )
    _, carried = model.policy.act(seen, whole)
    assert carried.keys() == whole.keys()


def test_a_model_of_one_has_no_actors_to_begin_with():
    model = composer.compose("version: 1\npolicy: {template: {}}\n", env="CartPole-v1")
    message = "'actors' is for steps and agents, of which this model has none"
    with pytest.raises(ValueError, match=f"^{message}$"):
        model.initial_state(actors=["a"])
