"""The token environments: how sequences grow and end, what they are worth, and that other libraries accept them."""

import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torchrl.envs.utils import check_env_specs

from composer.adapters.tokens.gym_env import TokenGym, token_spaces
from composer.adapters.tokens.torchrl_env import TokenEnv
from tests.helpers import fresh
from tests.helpers.paths import ROOT

SIZES = {"vocabulary_size": 4, "max_length": 4}
ACTIONS = [[2, 3], [3, 1], [2, 2]]


def play(env, steps):
    """What comes after each of the steps' actions."""
    fields, after = env.reset(), []
    for action in steps:
        after.append(env.step(fields.set("action", torch.tensor(action)))["next"])
        fields = after[-1].clone()
    return after


def test_sequences_grow_end_and_stay():
    env = TokenEnv(start_token=0, end_token=1, batch_size=2, **SIZES)
    first, second, third = play(env, ACTIONS)
    assert first["sequence"].tolist() == [[0, 2, 0, 0], [0, 3, 0, 0]]
    assert second["sequence"].tolist() == [[0, 2, 3, 0], [0, 3, 0, 0]]
    assert third["sequence"].tolist() == [[0, 2, 3, 0], [0, 3, 0, 0]]
    assert [s["terminated"].tolist() for s in (first, second, third)] == [
        [[False], [False]],
        [[False], [True]],
        [[False], [False]],
    ]
    assert [s["truncated"].tolist() for s in (first, second, third)] == [
        [[False], [False]],
        [[False], [False]],
        [[True], [True]],
    ]
    assert [s["done"].tolist() for s in (first, second, third)] == [
        [[False], [False]],
        [[False], [True]],
        [[True], [True]],
    ]
    assert second["sequence_mask"].int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert first["observation"].tolist() == [2, 3]


def test_the_fields_have_their_shapes_and_dtypes():
    fields = TokenEnv(batch_size=2, start_token=3, **SIZES).reset()
    assert fields["observation"].dtype == torch.int32
    assert fields["observation"].tolist() == [3, 3]
    assert fields["sequence"].tolist() == [[3, 0, 0, 0]] * 2
    assert fields["sequence_mask"].tolist() == [[True, False, False, False]] * 2
    assert fields["action_mask"].tolist() == [[True] * 4] * 2
    for name in ("done", "terminated", "truncated"):
        assert fields[name].shape == (2, 1)
        assert fields[name].dtype == torch.bool


def count_twos(sequence, mask):
    return ((sequence == 2) & mask).sum(-1)


def test_the_reward_is_zero_until_a_finished_sequence_is_judged_once():
    env = TokenEnv(batch_size=2, score=count_twos, **SIZES)
    rewards = [after["reward"].tolist() for after in play(env, [[2, 2], [2, 1], [3, 2]])]
    assert rewards == [[[0.0], [0.0]], [[0.0], [1.0]], [[2.0], [0.0]]]


def test_rows_begin_anew_alone():
    env = TokenEnv(batch_size=3, **SIZES)
    fields = env.reset()
    fields = env.step(fields.set("action", torch.tensor([2, 1, 3])))["next"]
    begun = env.reset(fields.set("_reset", fields["done"]))
    assert begun["sequence"].tolist() == [[0, 2, 0, 0], [0, 0, 0, 0], [0, 3, 0, 0]]
    after = env.step(begun.set("action", torch.tensor([2, 2, 2])))["next"]
    assert after["sequence"].tolist() == [[0, 2, 2, 0], [0, 2, 0, 0], [0, 3, 2, 0]]
    assert after["sequence_mask"].sum(-1).tolist() == [3, 2, 3]


def test_what_was_handed_out_stays_as_it_was():
    env = TokenEnv(batch_size=2, **SIZES)
    fields = env.reset()
    env.step(fields.clone().set("action", torch.tensor([2, 3])))
    assert fields["sequence"].tolist() == [[0, 0, 0, 0]] * 2
    assert fields["sequence_mask"].sum().item() == 2


@pytest.mark.filterwarnings("default")  # torchrl's own
@pytest.mark.parametrize("batch_size", [1, 3, (2, 3), ()])
def test_torchrl_accepts_it(batch_size):
    env = TokenEnv(batch_size=batch_size, score=count_twos, vocabulary_size=6, max_length=5)
    check_env_specs(env)
    rollout = env.rollout(9, break_when_any_done=False)
    assert rollout.batch_size == (*env.batch_size, 9)
    assert rollout["next", "done"].any()


def not_twice(sequence, mask):
    """The token before may not come again."""
    last = (sequence * mask).gather(-1, mask.sum(-1, keepdim=True) - 1)
    return torch.arange(4) != last


def test_an_action_mask_says_what_may_come_next():
    env = TokenEnv(batch_size=2, legal=not_twice, **SIZES)
    first, second = play(env, [[2, 3], [3, 1]])
    assert first["action_mask"].int().tolist() == [[1, 1, 0, 1], [1, 1, 1, 0]]
    assert second["action_mask"].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]  # one is finished


def refused(message, action):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        action()


@pytest.mark.parametrize("cls", [TokenEnv, TokenGym])
def test_rules_that_contradict_each_other_are_refused(cls):
    refused(
        "'start_token' must be a token below the vocabulary's size 4, got 4; "
        "'end_token' must be a token below the vocabulary's size 4, got -1",
        lambda: cls(vocabulary_size=4, max_length=4, start_token=4, end_token=-1),
    )
    sizes = (
        "'vocabulary_size' must be a whole number of at least 2, got '4'; "
        "'max_length' must be a whole number of at least 2, got 1"
    )
    refused(sizes, lambda: cls(vocabulary_size="4", max_length=1))
    refused(sizes, lambda: token_spaces("4", 1))
    refused(
        "'score' must be a function of sequence and sequence_mask, got 3",
        lambda: cls(vocabulary_size=4, max_length=4, score=3),
    )
    refused(
        "'start_token' and 'end_token' must differ, both are 1",
        lambda: cls(vocabulary_size=4, max_length=4, start_token=1),
    )


def test_what_the_environment_cannot_use_is_refused():
    env = TokenEnv(batch_size=2, **SIZES)
    refused(
        "'action' is 4 in row 1 at step 2, but the vocabulary has 4 tokens",
        lambda: play(env, [[2, 3], [3, 4]]),
    )
    refused(
        "'action' must hold one token for each row, whole numbers (2,), got torch.float32 (2,)",
        lambda: play(env, [[2.5, 3.0]]),
    )
    refused(
        "'action' must hold one token for each row, whole numbers (1,), got torch.float64 (1,)",
        lambda: TokenGym(**SIZES).step(np.float64(2.5)),
    )
    refused(
        "'action' must hold one token for each row, whole numbers (1,), got torch.int64 (4,)",
        lambda: TokenGym(**SIZES).step(np.array([0, 0, 1, 0])),
    )
    stuck = TokenEnv(
        batch_size=2, legal=lambda s, m: (s[:, 1] != 3)[:, None].expand(-1, 4), **SIZES
    )
    refused(
        "'action_mask' is all false in row 1: 'legal' allows no token after [0, 3]",
        lambda: play(stuck, [[2, 3]]),
    )
    flat = TokenEnv(batch_size=2, legal=lambda s, m: m.any(-1), **SIZES)
    refused("'legal' must give an action_mask of shape (2, 4), got (2,)", flat.reset)
    none = TokenEnv(batch_size=2, legal=lambda s, m: None, **SIZES)
    refused("'legal' must give an action_mask of shape (2, 4), got a NoneType", none.reset)


@pytest.mark.parametrize(
    ("score", "actions", "message"),
    [
        (
            lambda s, m: s, [[2, 1]],
            "'score' must give one number for each sequence (row 1), the shape (1,), got (1, 4)",
        ),
        (
            lambda s, m: s.sum(), [[1, 2, 1]],
            "'score' must give one number for each sequence (rows 0, 2), the shape (2,), got ()",
        ),
        (
            lambda s, m: None, [[2, 1]],
            "'score' must give one number for each sequence (row 1), the shape (1,), got a NoneType",
        ),
        (
            lambda s, m: torch.where(s[:, 1] == 3, float("nan"), 1.0), [[2, 2, 3], [1, 2, 1]],
            "'score' gives nan for row 2, [0, 3]; it must be a finite number",
        ),
        (
            lambda s, m: m.sum(-1) / 0, [[2, 1]],
            "'score' gives inf for row 1, [0]; it must be a finite number",
        ),
    ],
)  # fmt: skip
def test_scores_that_are_no_numbers_are_refused(score, actions, message):
    env = TokenEnv(batch_size=len(actions[0]), score=score, **SIZES)
    refused(message, lambda: play(env, actions))


def never_twice(sequence, sequence_mask):
    """All tokens but the one that was said last."""
    last = sequence.gather(-1, sequence_mask.sum(-1, keepdim=True) - 1)
    return torch.arange(4) != last


def test_an_action_that_the_mask_forbids_is_refused():
    env = TokenEnv(batch_size=2, legal=never_twice, **SIZES)
    message = "'action' is 3 in row 1 at step 2, which 'action_mask' forbids after [0, 3]"
    refused(message, lambda: play(env, [[2, 3], [3, 3]]))
    play(env, [[2, 1], [3, 3]])  # of a finished row nothing is asked
    one = TokenGym(legal=never_twice, **SIZES)
    one.reset()
    message = "'action' is 0 in row 0 at step 1, which 'action_mask' forbids after [0]"
    refused(message, lambda: one.step(0))
    assert one.step(2)[0]["sequence"].tolist() == [0, 2, 0, 0]  # nothing was written


@pytest.mark.parametrize("batch", [64, (2, 3), 0])
def test_a_random_rollout_keeps_to_the_mask(batch):
    def legal(sequence, sequence_mask):
        return torch.tensor([False, True, True, False]).expand(len(sequence), 4)

    env = TokenEnv(batch_size=batch, legal=legal, **SIZES)
    if batch == 64:
        check_env_specs(env)
    actions = env.rollout(3, break_when_any_done=False)["action"]
    assert set(actions.unique().tolist()) - {0, 3} == ({1, 2} if batch else set())
    assert env.rand_action()["action"].shape == env.batch_size


def test_what_is_legal_is_asked_once_a_step():
    asked = []

    def legal(sequence, sequence_mask):
        asked.append(len(sequence))
        return torch.ones(len(sequence), 4)

    play(TokenEnv(batch_size=2, legal=legal, **SIZES), [[2, 3], [3, 2]])
    assert asked == [2, 2, 2]  # with the reset


def test_the_gymnasium_view_follows_the_same_rules():
    env = TokenGym(score=count_twos, **SIZES)
    check_env(env, skip_render_check=True)
    batch = TokenEnv(batch_size=1, score=count_twos, **SIZES)
    expected = play(batch, [[2], [3], [2]])
    observation, _ = env.reset()
    assert (observation["observation"], observation["sequence"].tolist()) == (0, [0, 0, 0, 0])
    for action, fields in zip([2, 3, 2], expected, strict=True):
        observation, reward, terminated, truncated, _ = env.step(np.int64(action))
        for name, value in observation.items():
            assert np.array_equal(value, fields[name][0]), name
        assert reward == fields["reward"].item()
        assert (terminated, truncated) == (fields["terminated"].item(), fields["truncated"].item())


def test_gymnasium_makes_it_by_its_id():
    env = gymnasium.make("composer.adapters.tokens.gym_env:Tokens-v0", **SIZES)
    assert (env.observation_space, env.action_space) == token_spaces(4, 4)
    env.close()


def test_a_missing_library_names_the_extra():
    code = (
        "import sys; sys.modules['torchrl'] = None\n"
        "from perception_blocks.registry import MissingExtraError\n"
        "try: import composer.adapters.tokens.torchrl_env\n"
        "except MissingExtraError as error: print(error)"
    )
    done = fresh.run(code, ROOT)
    expected = (
        "TokenEnv needs 'torchrl'; install it with: pip install \"perception-composer[torchrl]\""
    )
    assert done.stdout.strip() == expected
