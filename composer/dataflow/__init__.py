"""Experiments: calls between models, on one process or many."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = [
    "EXPERIMENTS",
    "INTERFACES",
    "LENGTHS",
    "Context",
    "Experiment",
    "ExperimentModel",
    "GenerationSettings",
    "Interface",
    "OptimizerSettings",
    "Sample",
    "SampleError",
    "Split",
    "balanced",
    "read_experiment",
]

if TYPE_CHECKING:
    from composer.dataflow.balance import SampleError, balanced
    from composer.dataflow.call_spec import read_experiment
    from composer.dataflow.context import Context
    from composer.dataflow.decoding import GenerationSettings
    from composer.dataflow.experiment import EXPERIMENTS, Experiment
    from composer.dataflow.interfaces import INTERFACES, Interface
    from composer.dataflow.models import ExperimentModel
    from composer.dataflow.optimization import OptimizerSettings
    from composer.dataflow.samples import LENGTHS, Sample, Split
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "balance": "SampleError balanced",
            "call_spec": "read_experiment",
            "context": "Context",
            "decoding": "GenerationSettings",
            "experiment": "EXPERIMENTS Experiment",
            "interfaces": "INTERFACES Interface",
            "models": "ExperimentModel",
            "optimization": "OptimizerSettings",
            "samples": "LENGTHS Sample Split",
        },
    )
