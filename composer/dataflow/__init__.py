"""Experiments: calls between models, on one process or many."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = [
    "DATASETS",
    "EXPERIMENTS",
    "INTERFACES",
    "LENGTHS",
    "Context",
    "DataError",
    "DatasetUtil",
    "Experiment",
    "ExperimentModel",
    "GenerationSettings",
    "Interface",
    "ItemDataset",
    "OptimizerSettings",
    "RewardError",
    "Sample",
    "SampleError",
    "Split",
    "balanced",
    "batches",
    "interface_of",
    "make_dataset",
    "read_experiment",
    "reward_function",
    "tokenizer_from",
    "vocabulary_tokenizer",
]

if TYPE_CHECKING:
    from composer.dataflow.balance import SampleError, balanced
    from composer.dataflow.call_spec import read_experiment
    from composer.dataflow.context import Context
    from composer.dataflow.datasets import (
        DATASETS,
        DatasetUtil,
        ItemDataset,
        batches,
        make_dataset,
    )
    from composer.dataflow.decoding import GenerationSettings
    from composer.dataflow.experiment import EXPERIMENTS, Experiment
    from composer.dataflow.interfaces import INTERFACES, Interface
    from composer.dataflow.models import ExperimentModel
    from composer.dataflow.optimization import OptimizerSettings
    from composer.dataflow.rewards import RewardError, interface_of, reward_function
    from composer.dataflow.rows import DataError
    from composer.dataflow.samples import LENGTHS, Sample, Split
    from composer.dataflow.tokenizers import tokenizer_from, vocabulary_tokenizer
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "balance": "SampleError balanced",
            "call_spec": "read_experiment",
            "context": "Context",
            "datasets": "DATASETS DatasetUtil ItemDataset batches make_dataset",
            "decoding": "GenerationSettings",
            "experiment": "EXPERIMENTS Experiment",
            "interfaces": "INTERFACES Interface",
            "models": "ExperimentModel",
            "optimization": "OptimizerSettings",
            "rewards": "RewardError interface_of reward_function",
            "rows": "DataError",
            "samples": "LENGTHS Sample Split",
            "tokenizers": "tokenizer_from vocabulary_tokenizer",
        },
    )
