"""Threads that compose neither move what other threads draw, nor are moved by it."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from random import gauss

import numpy as np
import pytest
import torch
from numpy.random import randn
from torch import nn
from torch.nn import functional

import composer
from perception_blocks.measure import measure
from perception_blocks.port import Port
from perception_blocks.random_states import _with_generator, random_states_kept

ROW = torch.full((6,), 0.5)

DRAWS = {
    "rand": lambda: torch.rand(3),
    "randn": lambda: torch.randn(20),
    "randint": lambda: torch.randint(9, (4,)),
    "randint_from": lambda: torch.randint(2, 9, (4,)),
    "randperm": lambda: torch.randperm(9),
    "rand_like": lambda: torch.rand_like(ROW),
    "randn_like": lambda: torch.randn_like(ROW),
    "randint_like": lambda: torch.randint_like(ROW, 9),
    "normal": lambda: torch.normal(0.0, 1.0, (3,)),
    "normal_of_tensors": lambda: torch.normal(ROW, ROW),
    "bernoulli": lambda: torch.bernoulli(ROW),
    "multinomial": lambda: torch.multinomial(ROW, 3),
    "poisson": lambda: torch.poisson(ROW),
    "binomial": lambda: torch.binomial(ROW * 20, ROW),
    "uniform_": lambda: torch.empty(3).uniform_(),
    "exponential_": lambda: torch.empty(3).exponential_(),
    "random_": lambda: torch.empty(3).random_(),
    "out": lambda: torch.rand(3, out=torch.empty(3)),
    "global_generator": lambda: torch.rand(3, generator=torch.default_generator),
    "dropout": lambda: functional.dropout(ROW, 0.5),
    "alpha_dropout": lambda: functional.alpha_dropout(ROW, 0.5),
    "feature_dropout": lambda: functional.dropout2d(torch.ones(1, 8, 2, 2), 0.5),
    "rrelu": lambda: functional.rrelu(-ROW, training=True),
    "gumbel": lambda: functional.gumbel_softmax(ROW),
    "attention": lambda: functional.scaled_dot_product_attention(
        *[torch.ones(1, 4, 4)] * 3, dropout_p=0.5
    ),
    "lstm": lambda: nn.LSTM(3, 3, num_layers=2, dropout=0.5)(torch.ones(5, 3))[0],
    "linear": lambda: nn.Linear(3, 3).weight,
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(3, 3)),
    "trunc_normal": lambda: nn.init.trunc_normal_(torch.empty(3, 3)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)).weight,
    "gamma": lambda: torch.distributions.Gamma(ROW, ROW).sample(),
    "dirichlet": lambda: torch.distributions.Dirichlet(ROW).sample(),
    "beta": lambda: torch.distributions.Beta(ROW, ROW).sample(),
    "seeded_again": lambda: (torch.manual_seed(9), torch.rand(3))[1],
    "forked": lambda: _forked(),
    "state_read": torch.get_rng_state,
    "numpy": lambda: np.random.rand(3),
    "numpy_choice": lambda: np.random.choice(9, 3),
    "numpy_sample": lambda: np.random.sample(3),
    "numpy_seeded_again": lambda: (np.random.seed(9), np.random.randn())[1],
    "python": lambda: [random.random(), random.gauss(0, 1), random.choice(range(99))],
    "python_seeded_again": lambda: (random.seed(9), random.random())[1],
}


def _forked():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        inner = torch.rand(2)
    return torch.cat([inner, torch.rand(2)])


def states():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()


def in_a_thread(action):
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(action).result()


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("run", [in_a_thread, lambda action: action()], ids=["thread", "alone"])
def test_draws_follow_the_seed_and_move_no_global_state(name, run):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    expected = DRAWS[name]()

    def draw():
        with random_states_kept(3):
            return DRAWS[name]()

    before = states()
    found = run(draw)
    assert states() == before
    assert np.array_equal(torch.as_tensor(expected).detach(), torch.as_tensor(found).detach())


@pytest.mark.parametrize("seed", [-1, 2**64 - 1, 10**30])
def test_a_seed_may_be_any_whole_number(seed):
    with random_states_kept(seed):
        first = torch.rand(3)
    with random_states_kept(), random_states_kept(seed):  # within another
        assert torch.equal(torch.rand(3), first)


def test_a_generator_of_the_users_own_is_used():
    with random_states_kept(3):
        drawn = torch.rand(3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(5)))


def test_every_drawing_operation_of_the_cpu_takes_a_generator():
    """The others draw on accelerators alone, or are made of these."""
    without = set()
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        for overload in getattr(packet, "overloads", list)():
            func = getattr(packet, overload)
            if torch.Tag.nondeterministic_seeded not in func.tags:
                continue
            on_cpu = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU")
            if on_cpu and _with_generator(func) is None:
                without.add(func.name())
    assert without == {
        "aten::_scaled_dot_product_flash_attention_for_cpu",  # only where nothing is dropped
        "aten::native_dropout",  # of nested tensors
    }


def test_functions_are_as_they_were_after_an_error():
    def functions():
        return np.random.rand, random.random, vars(torch.random)["default_generator"]

    def fail():
        with random_states_kept(), random_states_kept():
            assert np.random.rand is not before[0]
            raise KeyError

    before = functions()
    with pytest.raises(KeyError):
        in_a_thread(fail)
    assert functions() == before


def test_functions_imported_by_their_own_name_follow_the_seed_where_there_is_one_thread(
    monkeypatch,
):
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # pytest may have others
    before = states()
    with random_states_kept(3):
        drawn = gauss(0, 1), randn()
    with random_states_kept(3):
        assert drawn == (gauss(0, 1), randn())
    assert states() == before


class Restless(nn.Module):
    """It draws from all that there is: when it is made, and when it runs."""

    def __init__(self, obs_shapes, action_logits_shapes):
        super().__init__()
        self.body = nn.Linear(4, 16)
        nn.init.orthogonal_(self.body.weight)
        self.head = nn.Linear(16, 2)
        self.noise = nn.Parameter(torch.randn(2) * float(np.random.rand()) + random.random())
        self.register_buffer("mask", torch.bernoulli(torch.full((16,), 0.5)))

    def forward(self, observations):
        x = self.body(observations["observation"]) * self.mask
        x = x * (1 + int(x.sum().item() > 1e9))  # so that it runs on real numbers only
        np.random.rand()
        random.random()
        return {"action": self.head(functional.dropout(x)) + self.noise * torch.rand(2)}


LAYER = {"block": "torch.nn.Linear", "in": "observation", "in_features": 4, "out_features": 8}
SPECS = {
    "class": {"_target_": Restless},
    "torch": {"graph": {"a": LAYER}, "heads": {"in": "a"}},
    "blocks": {
        "graph": {"a": {"block": "dense", "in": "observation", "hidden_units": 8}},
        "heads": {"in": "a"},
    },
}


def weights(policy, seed):
    spec = {"version": 1, "policy": policy}
    model = composer.compose(spec, env="CartPole-v1", seed=seed)
    return [tensor.tolist() for tensor in model.state_dict().values()]


@pytest.mark.parametrize("kind", SPECS)
def test_threads_that_compose_draw_the_same_weights_and_move_no_other_thread(kind):
    seeds = range(24)
    expected = [weights(SPECS[kind], seed) for seed in seeds]
    drawn = {"torch": [], "numpy": [], "python": []}
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    composed = threading.Event()

    def draw():
        while not composed.is_set():
            drawn["torch"].append(float(torch.rand(())))
            drawn["numpy"].append(np.random.rand())
            drawn["python"].append(random.random())

    drawing = threading.Thread(target=draw)
    drawing.start()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda seed: weights(SPECS[kind], seed), seeds))
    composed.set()
    drawing.join()
    assert found == expected
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    count = len(drawn["torch"])
    assert drawn["torch"] == [float(torch.rand(())) for _ in range(count)]
    assert drawn["numpy"] == [np.random.rand() for _ in range(count)]
    assert drawn["python"] == [random.random() for _ in range(count)]


def test_threads_that_measure_one_module_leave_it_as_it_is():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: measure(module, [Port((4,))]).shape, range(64)))
    assert set(results) == {(11, 4)}
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert all(inner.training for inner in module.modules())


def test_threads_act_with_lower_and_show_one_model():
    spec = {
        "version": 1,
        "policy": {
            "graph": {"a": {"block": "lstm", "in": "observation", "hidden_units": 8}},
            "heads": {"in": "a"},
        },
        "critic": {
            "ensemble": 3,
            "graph": {"a": {"block": "dense", "in": "observation", "hidden_units": 8}},
        },
    }
    model = composer.compose(spec, env="CartPole-v1", seed=0).eval()
    batches = [0.4 * torch.rand(size, 4) for size in (1, 2, 5)]
    lowered = model.lower()

    @torch.no_grad()
    def results(used, rows):
        logits, state = used.policy(rows, used.policy.initial_state(len(rows)))
        value = model.critic(rows)
        return [*logits.values(), *state.values(), *value.values()]

    def run(turn):
        if turn % 4 == 3:
            return model.summary() == text
        used = (model, lowered, model.lower())[turn % 4]
        found = results(used, batches[turn % 3])
        return all(map(torch.allclose, found, expected[turn % 3]))

    text = model.summary()
    expected = [results(model, rows) for rows in batches]
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(run, range(96)))
