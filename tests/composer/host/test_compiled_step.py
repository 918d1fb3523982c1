"""model.step and model.value compile into one graph, for batches of any size."""

import pytest
import torch
from torch._dynamo.utils import counters

from tests.helpers.host_models import KINDS, compose_kind, seen_by

FEW = ["masked", "shared trunk, two memories"]
BATCHES = (2, 3, 8)


@pytest.fixture(autouse=True)
def _a_fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def arguments(model, batch):
    seen = seen_by(model, (batch,), seed=1)
    if not model.has_memory:
        return seen, None, None
    return seen, model.initial_state(batch), torch.rand(batch) < 0.5


def check(kind, backend):
    model = compose_kind(kind)
    step = torch.compile(model.step, fullgraph=True, backend=backend)
    for batch in BATCHES:
        seen, state, resets = arguments(model, batch)
        drawn = step(seen, None, state, resets)
        expected = model.step(seen, drawn.action, state, resets)
        close = {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(drawn[2:], expected[2:], **close)
        torch.testing.assert_close(step(seen, drawn.action, state, resets)[1:], expected[1:], **close)  # fmt: skip
    # A batch of its own, and batches of any size; with an action, and without.
    assert counters["stats"]["unique_graphs"] <= 4
    if model.critic is not None:
        counters.clear()
        value = torch.compile(model.value, fullgraph=True, backend=backend)
        for batch in BATCHES:
            seen, state, resets = arguments(model, batch)
            expected = model.value(seen, state, resets)
            torch.testing.assert_close(value(seen, state, resets), expected, atol=1e-4, rtol=1e-4)
        assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("kind", FEW)
def test_a_step_and_a_value_are_one_graph(kind):
    check(kind, "eager")


@pytest.mark.full
@pytest.mark.filterwarnings("default")  # of the compiler's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_one_graph(kind, backend):
    check(kind, backend)


@pytest.mark.full
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "deterministic"])
def test_the_loss_of_sequences_is_one_graph(kind):
    model = compose_kind(kind)
    seen, (state, resets) = seen_by(model, (3, 4)), (None, None)
    if model.has_memory:
        state, resets = model.initial_state(3), torch.rand(3, 4) < 0.3
    action = model.step(seen, None, state, resets, unroll=True).action

    def loss():
        step = model.step(seen, action, state, resets, unroll=True)
        value = 0 if step.value is None else step.value.square()
        return (value - step.log_prob - 0.01 * step.entropy).sum()

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        function().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
