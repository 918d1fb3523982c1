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
    from composer.dataflow.balance import (
        SampleError,
        balanced,
    )
    from composer.dataflow.call_spec import (
        read_experiment,
    )
    from composer.dataflow.context import (
        Context,
    )
    from composer.dataflow.datasets import (
        DATASETS,
        DatasetUtil,
        ItemDataset,
        batches,
        make_dataset,
    )
    from composer.dataflow.decoding import (
        GenerationSettings,
    )
    from composer.dataflow.experiment import (
        EXPERIMENTS,
        Experiment,
    )
    from composer.dataflow.experiments import (
        register_experiment,
    )
    from composer.dataflow.generation import (
        Generation,
    )
    from composer.dataflow.interfaces import (
        INTERFACES,
        Interface,
    )
    from composer.dataflow.models import (
        ExperimentModel,
        NotFiniteError,
    )
    from composer.dataflow.optimization import (
        OptimizerSettings,
    )
    from composer.dataflow.ppo import (
        PpoActor,
        PpoCritic,
    )
    from composer.dataflow.preference import (
        Dpo,
        PairedReward,
    )
    from composer.dataflow.rewards import (
        RewardError,
        interface_of,
        reward_function,
    )
    from composer.dataflow.rows import (
        DataError,
    )
    from composer.dataflow.run_log import (
        RunLog,
    )
    from composer.dataflow.running import (
        run,
    )
    from composer.dataflow.samples import (
        LENGTHS,
        Sample,
        Split,
    )
    from composer.dataflow.schedule import (
        RunError,
    )
    from composer.dataflow.sft import (
        Sft,
    )
    from composer.dataflow.tokenizers import (
        tokenizer_from,
        vocabulary_tokenizer,
    )
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
            "experiments": "register_experiment",
            "generation": "Generation",
            "interfaces": "INTERFACES Interface",
            "models": "ExperimentModel NotFiniteError",
            "optimization": "OptimizerSettings",
            "ppo": "PpoActor PpoCritic",
            "preference": "Dpo PairedReward",
            "rewards": "RewardError interface_of reward_function",
            "rows": "DataError",
            "run_log": "RunLog",
            "running": "run",
            "samples": "LENGTHS Sample Split",
            "schedule": "RunError",
            "sft": "Sft",
            "tokenizers": "tokenizer_from vocabulary_tokenizer",
        },
    )
