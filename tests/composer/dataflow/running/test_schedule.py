"""Which call starts when, whichever runner runs them; and what is told where a call fails or writes what does not fit."""

import gc
import random
import weakref
from collections.abc import Mapping

import pytest

from composer.dataflow.calls.call_spec import read_experiment
from composer.dataflow.running.schedule import Schedule, run_iterations
from tests.helpers.experiments import PPO, toys


@pytest.fixture(autouse=True)
def _names():
    with toys():
        yield


class Recorder:
    """A runner whose calls end in any order; it notes what happens, and checks that values are there."""

    def __init__(self, seed=0):
        self.events = []
        self.random = random.Random(seed)
        self.most_running = 0

    def start(self, call, iteration, values):
        assert all(isinstance(value, str) for value in values)
        self.events.append(("start", call.name, tuple(values)))
        return call.name, [f"{value}@{iteration}" for value in call.writes.values()]

    def wait(self, running: Mapping[str, str]):
        self.most_running = max(self.most_running, len(running))
        name = self.random.choice(sorted(running))
        self.events.append(("end", name))
        return name

    def numbers(self, call):
        return {"loss": 1.0} if call.verb == "train_step" else {}

    def blend(self, source, target, eta):
        self.events.append(("blend", source, target, eta))


def times(events):
    return {event[:2]: index for index, event in enumerate(events)}


@pytest.mark.parametrize("seed", range(20))
def test_a_call_starts_when_all_that_it_waits_for_has_ended(seed):
    experiment = read_experiment(PPO, ["run.iterations=1"])
    runner = Recorder(seed)
    (row,) = run_iterations(
        experiment, runner, lambda i: {"prompts": f"prompts@{i}", "labels": "unused"}
    )
    assert row == {"actor_train/loss": 1.0, "critic_train/loss": 1.0}
    at = times(runner.events)
    writer = {
        value: call.name for call in experiment.calls.values() for value in call.writes.values()
    }
    for call in experiment.calls.values():
        before = {writer[value] for value in call.reads.values() if value in writer}
        if call.verb == "train_step":
            before |= {o.name for o in experiment.calls.values() if o.model == call.model} - {
                call.name
            }
        assert all(at["end", name] < at["start", call.name] for name in before)
    assert runner.events[-1] == ("blend", "actor", "ref", 0.1)
    assert runner.most_running > 1  # calls that wait for nothing run side by side


def test_calls_read_the_values_of_their_iteration():
    experiment = read_experiment(PPO, ["run.iterations=3"])
    runner = Recorder()
    rows = list(run_iterations(experiment, runner, lambda i: {"prompts": f"prompts@{i}"}, first=1))
    assert len(rows) == 2
    read = [values for kind, *rest in runner.events if kind == "start" for values in rest[1:]]
    assert {value.partition("@")[2] for values in read for value in values} == {"1", "2"}


class Value:
    """What a call writes, as an object that can be watched."""


class Watching(Recorder):
    """Notes at each start how many of the values written until then are still held."""

    def __init__(self):
        super().__init__()
        self.values = []
        self.held = {}

    def start(self, call, iteration, values):
        gc.collect()
        self.held[call.name] = sum(value() is not None for value in self.values)
        written = [Value() for _ in call.writes]
        self.values += map(weakref.ref, written)
        return call.name, written

    def wait(self, running):
        return next(iter(running))


def test_a_value_is_let_go_after_its_last_reader():
    experiment = read_experiment(PPO, ["run.iterations=1"])
    runner = Watching()
    list(run_iterations(experiment, runner, lambda i: {"prompts": Value(), "labels": Value()}))
    assert runner.held == {
        "actor_gen": 0, "rew_inf": 2, "ref_inf": 3, "critic_inf": 4, "actor_train": 5, "critic_train": 5,
    }  # fmt: skip
    assert not any(value() for value in runner.values)


def test_a_schedule_of_many_calls_is_linear():
    """Each call is looked at once for each that waits for it."""
    experiment = read_experiment(PPO)
    schedule = Schedule(experiment)
    assert sum(map(len, schedule.waiting.values())) == sum(schedule.waits.values())
    assert schedule.waits["actor_gen"] == 0
    assert schedule.waits["actor_train"] == 4
