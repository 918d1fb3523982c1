"""Wrappers that choose actions: values by hand, masks, frequencies, and what is wrong with an input."""

import math
import re

import pytest
import torch
from torch import nn

import composer

LOGITS = torch.tensor([[1, 5, 3], [9, 2, 1]])
MASK = torch.tensor([[1, 0, 1], [0, 1, 1]])
MASKS = [MASK, MASK.bool(), MASK.float(), MASK.double()]


class Echo(nn.Module):
    """Returns what it is given."""

    def forward(self, data):
        return data


def wrap(name, **settings):
    return composer.model_wrap(Echo(), name, **settings)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def frequencies(actions, n):
    return torch.bincount(actions.flatten(), minlength=n) / actions.numel()


# --- argmax and multinomial -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float16, torch.float64])
def test_argmax_takes_the_largest_logit(dtype):
    assert wrap("argmax_sample")({"logit": LOGITS.to(dtype)})["action"].tolist() == [1, 0]


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: str(mask.dtype))
def test_masks_of_any_dtype_say_what_is_legal(mask):
    data = {"logit": LOGITS, "action_mask": mask}
    assert wrap("argmax_sample")(data)["action"].tolist() == [2, 1]
    drawn = wrap("multinomial_sample")({**data, "logit": LOGITS.expand(500, 2, 3)})["action"]
    assert not (drawn[:, 0] == 1).any()
    assert not (drawn[:, 1] == 0).any()


def test_a_list_of_logits_gives_a_list_of_actions():
    data = {"logit": [LOGITS, LOGITS[:, :2]], "action_mask": [MASK, None]}
    output = wrap("argmax_sample")(data)
    assert [action.tolist() for action in output["action"]] == [[2, 1], [1, 0]]
    assert output["logit"] is data["logit"]
    assert isinstance(wrap("multinomial_sample")({"logit": [LOGITS]})["action"], list)


@pytest.mark.parametrize("leading", [(), (1,), (4, 2), (0,)])
def test_any_leading_axes(leading):
    data = {"logit": torch.randn(*leading, 3), "action_mask": torch.ones(3)}
    for name in ("argmax_sample", "multinomial_sample"):
        assert wrap(name)(data)["action"].shape == leading
    assert wrap("combination_argmax_sample", shot_number=2)(data)["action"].shape == (*leading, 2)


def test_a_legal_logit_of_minus_infinity_is_better_than_an_illegal_one():
    data = {"logit": torch.tensor([-math.inf, 3.0]), "action_mask": torch.tensor([1, 0])}
    assert wrap("argmax_sample")(data)["action"] == 0
    assert wrap("multinomial_sample")(data, alpha=0.5)["action"] == 0


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2])
def test_multinomial_draws_the_softmax_of_logits_over_alpha(alpha):
    logits = torch.tensor([0.5, -1.0, 1.5, 0.0])
    mask = torch.tensor([1, 1, 0, 1])
    data = {"logit": logits.expand(40_000, 4), "action_mask": mask}
    drawn = wrap("multinomial_sample")(data, alpha=alpha, generator=seeded())["action"]
    expected = (logits / alpha).masked_fill(mask == 0, -math.inf).softmax(-1)
    torch.testing.assert_close(frequencies(drawn, 4), expected, atol=0.01, rtol=0)


# --- epsilon greedy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eps_greedy_sample", "eps_greedy_multinomial_sample"])
def test_a_number_throws_one_coin_for_the_whole_batch(name):
    logits = torch.tensor([0.0, 0.0, 0.0, 50.0]).expand(64, 4)
    generator, model = seeded(), wrap(name)
    greedy = [
        bool((model({"logit": logits}, eps=0.3, generator=generator)["action"] == 3).all())
        for _ in range(1000)
    ]
    assert abs(sum(greedy) / 1000 - 0.7) < 0.04


def test_a_number_throws_a_coin_for_each_action():
    logits = torch.tensor([0.0, 0.0, 0.0, 50.0]).expand(64, 4)
    generator, model = seeded(), wrap("eps_greedy_sample")
    both = []
    for _ in range(500):
        pair = model({"logit": [logits, logits]}, eps=0.5, generator=generator)["action"]
        both.append([bool((action == 3).all()) for action in pair])
    assert {tuple(pair) for pair in both} == {(a, b) for a in (True, False) for b in (True, False)}


@pytest.mark.parametrize("kind", [dict, torch.tensor, list])
def test_eps_by_row_throws_a_coin_for_each_row(kind):
    rates = [0.0, 1.0, 0.4]
    eps = dict(enumerate(rates)) if kind is dict else kind(rates)
    logits = torch.tensor([0.0, 0.0, 0.0, 50.0]).expand(3, 4)
    generator, model = seeded(), wrap("eps_greedy_sample")
    drawn = torch.stack(
        [model({"logit": logits}, eps=eps, generator=generator)["action"] for _ in range(2000)]
    )
    best = (drawn == 3).float().mean(0)
    torch.testing.assert_close(best, torch.tensor([1.0, 0.25, 0.7]), atol=0.03, rtol=0)


def test_one_coin_per_row_explores_all_actions_of_it():
    logits = torch.tensor([0.0] * 99 + [50.0]).expand(200, 100)
    eps = torch.full((200,), 0.5)
    one, two = wrap("eps_greedy_sample")({"logit": [logits, logits]}, eps=eps)["action"]
    assert ((one == 99) == (two == 99)).float().mean() > 0.9


@pytest.mark.parametrize("eps", [1.0, {0: 1.0, 1: 1.0}])
def test_random_actions_are_legal_and_all_alike(eps):
    logits, mask = torch.tensor([[50.0, 0, 0, 9, 0]] * 2), torch.tensor([[1, 0, 1, 1, 0]] * 2)
    generator, model = seeded(), wrap("eps_greedy_sample")
    data = {"logit": logits, "action_mask": mask}
    drawn = [model(data, eps=eps, generator=generator)["action"] for _ in range(5000)]
    expected = torch.tensor([1 / 3, 0, 1 / 3, 1 / 3, 0])
    torch.testing.assert_close(frequencies(torch.stack(drawn), 5), expected, atol=0.02, rtol=0)


def test_what_is_not_explored_is_drawn_with_alpha():
    logits = torch.tensor([1.0, 0.0]).expand(20_000, 2)
    drawn = wrap("eps_greedy_multinomial_sample")(
        {"logit": logits}, eps=0.0, alpha=0.5, generator=seeded()
    )["action"]
    assert abs(drawn.float().mean() - torch.tensor(-2.0).sigmoid()) < 0.01


# --- normals and hybrids ----------------------------------------------------------------------------------------------

NORMAL = {"mu": torch.tensor([[1.0, -2.0]]), "sigma": torch.tensor([[0.5, 2.0]])}


def test_deterministic_takes_mu_and_reparam_draws():
    assert wrap("deterministic_sample")({"logit": NORMAL})["action"] is NORMAL["mu"]
    assert wrap("deterministic_sample")({"logit": {"mu": NORMAL["mu"]}})["action"].shape == (1, 2)
    many = {key: value.expand(40_000, 2) for key, value in NORMAL.items()}
    drawn = wrap("reparam_sample")({"logit": many}, generator=seeded())["action"]
    torch.testing.assert_close(drawn.mean(0), NORMAL["mu"][0], atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.std(0), NORMAL["sigma"][0], atol=0.03, rtol=0)


def test_gradients_flow_through_a_reparametrised_sample():
    logit = {key: value.clone().requires_grad_() for key, value in NORMAL.items()}
    action = wrap("reparam_sample")({"logit": logit}, generator=seeded())["action"]
    action.sum().backward()
    assert torch.equal(logit["mu"].grad, torch.ones(1, 2))
    noise = (action - NORMAL["mu"]) / NORMAL["sigma"]
    torch.testing.assert_close(logit["sigma"].grad, noise.detach())


def test_lists_of_normals_give_lists_of_actions():
    action = wrap("deterministic_sample")({"logit": [NORMAL, NORMAL]})["action"]
    assert [part.tolist() for part in action] == [NORMAL["mu"].tolist()] * 2


ARGS = torch.tensor([[0.1], [0.2]])


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("hybrid_argmax_sample", {}),
        ("hybrid_eps_greedy_sample", {"eps": 0.0}),
        ("hybrid_eps_greedy_multinomial_sample", {"eps": 0.0, "alpha": 1e-3}),
    ],
)
def test_hybrid_actions_have_a_type_and_its_arguments(name, keywords):
    data = {"logit": LOGITS, "action_args": ARGS}
    action = wrap(name)(data, **keywords)["action"]
    assert action["action_type"].tolist() == [1, 0]
    assert action["action_args"] is ARGS
    masked = wrap(name)({**data, "action_mask": MASK}, **keywords)
    assert masked["action"]["action_type"].tolist() == [2, 1]
    assert masked["logit"] is LOGITS


@pytest.mark.parametrize(
    "name", ["hybrid_reparam_multinomial_sample", "hybrid_deterministic_argmax_sample"]
)
def test_hybrid_logits_hold_both_parts(name):
    arguments = {"mu": ARGS, "sigma": torch.zeros(2, 1)}
    data = {"logit": {"action_type": 100 * LOGITS, "action_args": arguments}, "action_mask": MASK}
    action = wrap(name)(data)["action"]
    assert action["action_type"].tolist() == [2, 1]
    assert torch.equal(action["action_args"], ARGS)


def test_hybrid_exploration_leaves_the_arguments():
    data = {"logit": torch.zeros(1000, 3), "action_args": torch.ones(1000, 1)}
    for name in ("hybrid_eps_greedy_sample", "hybrid_eps_greedy_multinomial_sample"):
        action = wrap(name)(data, eps=1.0, generator=seeded())["action"]
        assert (frequencies(action["action_type"], 3) > 0.25).all()
        assert action["action_args"] is data["action_args"]


# --- combinations -----------------------------------------------------------------------------------------------------


def test_combinations_do_not_repeat_and_are_legal():
    data = {"logit": LOGITS, "action_mask": MASK}
    assert wrap("combination_argmax_sample")(data, shot_number=2)["action"].tolist() == [
        [2, 0],
        [1, 2],
    ]
    assert wrap("combination_argmax_sample")({"logit": LOGITS}, shot_number=3)[
        "action"
    ].tolist() == [[1, 2, 0], [0, 1, 2]]
    drawn = wrap("combination_multinomial_sample", shot_number=2)(data)["action"]
    assert sorted(drawn[0].tolist()) == [0, 2]
    assert sorted(drawn[1].tolist()) == [1, 2]


def test_combinations_are_drawn_one_after_the_other():
    logits = torch.tensor([0.0, 1.0, -1.0])
    model = wrap("combination_multinomial_sample", shot_number=2)
    drawn = model({"logit": logits.expand(40_000, 3)}, generator=seeded())["action"]
    p = logits.softmax(-1)
    for first in range(3):
        for second in range(3):
            found = ((drawn[:, 0] == first) & (drawn[:, 1] == second)).float().mean()
            expected = 0.0 if first == second else p[first] * p[second] / (1 - p[first])
            assert abs(found - expected) < 0.01


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "keywords", "message"),
    [
        (
            "argmax_sample",
            {"q": LOGITS},
            {},
            "'argmax_sample' reads 'logit' of the model's output, which has 'q'",
        ),
        (
            "argmax_sample",
            LOGITS,
            {},
            "'argmax_sample' needs a model that returns a dict, got a Tensor",
        ),
        (
            "argmax_sample",
            {"logit": NORMAL},
            {},
            "'argmax_sample' needs choices, a tensor of logits (..., n), got {mu, sigma}",
        ),
        (
            "multinomial_sample",
            {"logit": LOGITS, "action_mask": MASK[:, :2]},
            {},
            "'multinomial_sample' got a mask of the shape (2, 2) for logits of the shape (2, 3)",
        ),
        (
            "multinomial_sample",
            {"logit": [LOGITS], "action_mask": [MASK, MASK]},
            {},
            "'multinomial_sample' got 2 masks for the logits of 1 actions",
        ),
        (
            "argmax_sample",
            {"logit": LOGITS, "action_mask": torch.tensor([[1, 0, 1], [0, 0, 0]])},
            {},
            "'argmax_sample' got a mask without a legal action in row 1",
        ),
        (
            "multinomial_sample",
            {"logit": LOGITS},
            {"alpha": 0},
            "'multinomial_sample' needs a positive number as 'alpha', got 0",
        ),
        (
            "eps_greedy_sample",
            {"logit": LOGITS},
            {},
            "'eps_greedy_sample' needs the keyword 'eps': a probability, or one for each row as a dict or a "
            "tensor",
        ),
        (
            "eps_greedy_sample",
            {"logit": LOGITS},
            {"eps": 1.5},
            "'eps_greedy_sample': 'eps' must be between 0 and 1, got 1.5",
        ),
        (
            "eps_greedy_sample",
            {"logit": LOGITS},
            {"eps": {0: 0.5, 2: 0.5}},
            "'eps_greedy_sample': 'eps' must name every row from 0 on, got 0, 2",
        ),
        (
            "eps_greedy_sample",
            {"logit": LOGITS},
            {"eps": torch.zeros(3)},
            "'eps_greedy_sample': 'eps' has 3 rows, the logits 2",
        ),
        (
            "eps_greedy_sample",
            {"logit": LOGITS[0]},
            {"eps": torch.zeros(3)},
            "'eps_greedy_sample': 'eps' has 3 rows, the logits no",
        ),
        (
            "eps_greedy_sample",
            {"logit": LOGITS},
            {"eps": "much"},
            "'eps_greedy_sample': 'eps' must be numbers, got 'much'",
        ),
        (
            "deterministic_sample",
            {"logit": LOGITS},
            {},
            "'deterministic_sample' needs a logit {mu, sigma} with a tensor 'mu', got a tensor of the shape (2, 3)",
        ),
        (
            "argmax_sample",
            {"logit": torch.zeros(2, 0)},
            {},
            "'argmax_sample' needs choices, a tensor of logits (..., n), got a tensor of the shape (2, 0)",
        ),
        (
            "multinomial_sample",
            {"logit": torch.tensor([[1.0, 2.0], [3.0, torch.nan]])},
            {},
            "'multinomial_sample' got logits that are NaN or infinite at index (1, 1)",
        ),
        (
            "argmax_sample",
            {"logit": LOGITS, "action_mask": "all"},
            {},
            "'action_mask' must be numbers, got a str",
        ),
        (
            "reparam_sample",
            {"logit": {"mu": ARGS, "sigma": -torch.ones_like(ARGS)}},
            {},
            "'reparam_sample' got a 'sigma' below 0; a log needs its exp()",
        ),
        (
            "reparam_sample",
            {"logit": {"mu": ARGS}},
            {},
            "'reparam_sample' needs a logit {mu, sigma} with a tensor 'sigma', got {mu}",
        ),
        (
            "reparam_sample",
            {"logit": {"mu": ARGS, "sigma": torch.ones(3, 1)}},
            {},
            "'reparam_sample' got a 'sigma' of the shape (3, 1) for a 'mu' of the shape (2, 1)",
        ),
        (
            "hybrid_argmax_sample",
            {"logit": LOGITS},
            {},
            "'hybrid_argmax_sample' reads 'action_args' of the model's output, which has 'logit'",
        ),
        (
            "hybrid_deterministic_argmax_sample",
            {"logit": {"action_type": LOGITS}},
            {},
            "'hybrid_deterministic_argmax_sample' needs a logit {action_type, action_args}, got {action_type}",
        ),
        (
            "combination_argmax_sample",
            {"logit": LOGITS},
            {},
            "'combination_argmax_sample' needs 'shot_number', how many actions to choose: a setting or a keyword",
        ),
        (
            "combination_argmax_sample",
            {"logit": LOGITS},
            {"shot_number": 4},
            "'combination_argmax_sample' cannot choose 4 different actions: a row has only 3 legal",
        ),
        (
            "combination_multinomial_sample",
            {"logit": LOGITS, "action_mask": MASK},
            {"shot_number": 3},
            "'combination_multinomial_sample' cannot choose 3 different actions: a row has only 2 legal",
        ),
        (
            "combination_argmax_sample",
            {"logit": LOGITS},
            {"shot_number": 0},
            "'combination_argmax_sample': 'shot_number' must be a positive integer, got 0",
        ),
    ],
)
def test_wrong_input_is_said(name, data, keywords, message):
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        wrap(name)(data, **keywords)
