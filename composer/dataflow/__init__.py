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
    "Dpo",
    "Experiment",
    "ExperimentModel",
    "Generation",
    "GenerationSettings",
    "Interface",
    "ItemDataset",
    "NotFiniteError",
    "OptimizerSettings",
    "PairedReward",
    "PpoActor",
    "PpoCritic",
    "RewardError",
    "RunError",
    "RunLog",
    "Sample",
    "SampleError",
    "Sft",
    "Split",
    "balanced",
    "batches",
    "interface_of",
    "make_dataset",
    "read_experiment",
    "register_experiment",
    "reward_function",
    "run",
    "tokenizer_from",
    "vocabulary_tokenizer",
]

if TYPE_CHECKING:
    from composer.dataflow.algorithms.decoding import (
        GenerationSettings,
    )
    from composer.dataflow.algorithms.generation import (
        Generation,
    )
    from composer.dataflow.algorithms.interfaces import (
        INTERFACES,
        Interface,
    )
    from composer.dataflow.algorithms.models import (
        ExperimentModel,
        NotFiniteError,
    )
    from composer.dataflow.algorithms.optimization import (
        OptimizerSettings,
    )
    from composer.dataflow.algorithms.ppo import (
        PpoActor,
        PpoCritic,
    )
    from composer.dataflow.algorithms.preference import (
        Dpo,
        PairedReward,
    )
    from composer.dataflow.algorithms.rewards import (
        RewardError,
        interface_of,
        reward_function,
    )
    from composer.dataflow.algorithms.sft import (
        Sft,
    )
    from composer.dataflow.calls.call_spec import (
        read_experiment,
    )
    from composer.dataflow.calls.experiment import (
        EXPERIMENTS,
        Experiment,
    )
    from composer.dataflow.calls.experiments import (
        register_experiment,
    )
    from composer.dataflow.context import (
        Context,
    )
    from composer.dataflow.data.balance import (
        SampleError,
        balanced,
    )
    from composer.dataflow.data.datasets import (
        DATASETS,
        DatasetUtil,
        ItemDataset,
        batches,
        make_dataset,
    )
    from composer.dataflow.data.rows import (
        DataError,
    )
    from composer.dataflow.data.samples import (
        LENGTHS,
        Sample,
        Split,
    )
    from composer.dataflow.data.tokenizers import (
        tokenizer_from,
        vocabulary_tokenizer,
    )
    from composer.dataflow.running.run_log import (
        RunLog,
    )
    from composer.dataflow.running.schedule import (
        RunError,
    )
    from composer.dataflow.running.session import (
        run,
    )
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "data.balance": "SampleError balanced",
            "calls.call_spec": "read_experiment",
            "context": "Context",
            "data.datasets": "DATASETS DatasetUtil ItemDataset batches make_dataset",
            "algorithms.decoding": "GenerationSettings",
            "calls.experiment": "EXPERIMENTS Experiment",
            "calls.experiments": "register_experiment",
            "algorithms.generation": "Generation",
            "algorithms.interfaces": "INTERFACES Interface",
            "algorithms.models": "ExperimentModel NotFiniteError",
            "algorithms.optimization": "OptimizerSettings",
            "algorithms.ppo": "PpoActor PpoCritic",
            "algorithms.preference": "Dpo PairedReward",
            "algorithms.rewards": "RewardError interface_of reward_function",
            "data.rows": "DataError",
            "running.run_log": "RunLog",
            "running.session": "run",
            "data.samples": "LENGTHS Sample Split",
            "running.schedule": "RunError",
            "algorithms.sft": "Sft",
            "data.tokenizers": "tokenizer_from vocabulary_tokenizer",
        },
    )
