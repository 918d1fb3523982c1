"""The schedule of an experiment: what each call costs beyond itself, for 6 to 600 calls that do nothing.

The calls read and write values of eight items in this process: packing, checking and joining them is counted too. A
chain of calls that each read the one before, and calls that all read one value and are all read by one.
"""

from collections.abc import Iterator, Mapping

import torch

from composer.dataflow.algorithms.interfaces import INTERFACES, Interface
from composer.dataflow.calls.call_spec import read_experiment
from composer.dataflow.calls.experiment import Experiment
from composer.dataflow.data.datasets import DATASETS
from composer.dataflow.data.samples import Sample
from composer.dataflow.running.local import LocalRunner
from composer.dataflow.running.schedule import run_iterations
from harness import Row, main, medians

LIMIT_S = 1e-3  # of a call
SIZES = (6, 60, 600)


class Prompts:
    gives = ("prompts",)


class Nothing(Interface):
    """Returns what it is given."""

    needs_model = False
    reads_any = True
    reads, writes = {"inference": ("ids",)}, {"inference": ("ids",)}

    def inference(self, model: None, sample: Sample, context: object) -> Mapping[str, torch.Tensor]:
        return {"ids": sample.values("ids")}

    def evaluate(self, model: None, sample: Sample, context: object) -> None: ...


def chain(size: int) -> dict[str, object]:
    calls: dict[str, object] = {}
    for i in range(size - 1):
        before = "prompts" if i == 0 else f"v{i - 1}"
        calls[f"c{i}"] = _call("inference", {"ids": before}, {"ids": f"v{i}"})
    calls["last"] = _call("evaluate", {"ids": f"v{size - 2}"}, {})
    return calls


def fan(size: int) -> dict[str, object]:
    names = [f"v{i}" for i in range(size - 1)]
    calls = {f"c{v}": _call("inference", {"ids": "prompts"}, {"ids": v}) for v in names}
    return {**calls, "last": _call("evaluate", {v: v for v in names}, {})}


def _call(verb: str, reads: dict[str, str], writes: dict[str, str]) -> dict[str, object]:
    return {"do": verb, "with": "nothing", "reads": reads, "writes": writes}


def experiment_of(calls: dict[str, object]) -> Experiment:
    spec = {"version": 1, "data": {"dataset": "nothing"}, "calls": calls, "run": {"iterations": 1}}
    return read_experiment(spec)


def rows() -> Iterator[Row]:
    INTERFACES.register("nothing", Nothing)
    DATASETS.register("nothing", Prompts)
    tokens = torch.arange(8 * 16)
    prompts = Sample.from_default(range(8), [16] * 8, {"prompts": tokens})
    for name, form in (("a chain", chain), ("a fan", fan)):
        costs = {}
        for size in SIZES:
            experiment = experiment_of(form(size))
            runner = LocalRunner(experiment)

            def iteration(experiment=experiment, runner=runner) -> None:
                list(run_iterations(experiment, runner, lambda _: {"prompts": prompts}))

            (seconds,) = medians(iteration, rounds=30)
            costs[size] = seconds / size
            yield Row(f"a call of {size}, {name}", costs[size], "the limit", LIMIT_S, at_most=1)
        few, many = SIZES[0], SIZES[-1]
        most = f"a call of {many}, {name}, whether linear"
        yield Row(most, costs[many], f"a call of {few}", costs[few], at_most=1.5)


if __name__ == "__main__":
    main("The schedule of an experiment", rows)
