"""The command `composer check`, for models, networks without actions, action models and experiments."""

from __future__ import annotations

import argparse
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

from composer.cli.loading import (
    UserError,
    composed_network,
    experiment_of,
    fill,
    is_action_model,
    is_checkpoint,
    load_given,
    model_of_source,
    read_source,
)
from composer.cli.output import say

if TYPE_CHECKING:
    from composer.build.composed_network import ComposedNetwork
    from composer.dataflow.calls.experiment import Experiment
    from composer.model import Model
    from composer.source.load import Source

__all__ = ["run_check"]


def run_check(arguments: argparse.Namespace) -> None:
    loaded = load_given(arguments)
    if (experiment := experiment_of(arguments, loaded)) is not None:
        return _check_experiment(arguments, experiment)
    if (network := composed_network(arguments, loaded[0])) is not None:
        return say(_good(arguments, network))
    source, spaces = read_source(arguments, loaded, is_composed=True)
    if is_action_model(source):
        return _check_action_model(arguments, source, spaces)
    if not (spaces or source.data.get("environment")):
        say(
            f"{arguments.file}: the structure is good; shapes and heads are not checked "
            "(no environment: give one with --env ID)"
        )
        return
    model = model_of_source(arguments, source, spaces)
    fill(model, arguments.file)
    say(_good(arguments, model))


def _good(arguments: argparse.Namespace, module: Model | ComposedNetwork) -> str:
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{arguments.file}: good; {count:,} parameters"


def _check_experiment(arguments: argparse.Namespace, experiment: Experiment) -> None:
    """Its graph is good; its models are built without weights, so that shapes and files are checked too."""
    from composer.dataflow.running.local import LocalRunner

    runner = LocalRunner(experiment, arguments.allow, device="meta", shards=True)
    networks = (model.network for model in runner.models.values())
    count = sum(p.numel() for network in networks for p in network.parameters())
    calls, models = _counted(experiment.calls, "call"), _counted(runner.models, "model")
    say(f"{arguments.file}: good; {calls} of {models} with {count:,} parameters")


def _counted(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _check_action_model(
    arguments: argparse.Namespace, source: Source, spaces: dict[str, Any]
) -> None:
    """Its weights are needed too: whether training sees what acting saw is seen by one action."""
    from composer.language.action_proof import ProofError
    from composer.language.overview import why_no_processor

    model: Any = model_of_source(arguments, source, spaces)
    if not is_checkpoint(arguments.file):
        model.materialize()
    good = _good(arguments, model)
    if model.processor is None:
        return say(f"{good}; it did not act: {why_no_processor(model)}")
    try:
        difference = model.prove()
    except ProofError as error:
        raise UserError(f"{arguments.file}: {error}") from error
    except Exception as error:  # in a class of the model type
        error.add_note(
            f"in {arguments.file}: an action of made observations, and its log-probabilities"
        )
        raise
    say(
        f"{good}; log-probabilities and values of an action, calculated again, differ by {difference:.0e}"
    )
