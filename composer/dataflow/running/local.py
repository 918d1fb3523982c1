"""The runner in this process: models, interfaces and values are at hand, and each call ends before the next begins."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from composer.checkpoint.blending import blend
from composer.checkpoint.container import CheckpointError
from composer.dataflow.algorithms.interfaces import Interface
from composer.dataflow.algorithms.models import ExperimentModel
from composer.dataflow.algorithms.rewards import interface_of
from composer.dataflow.calls.experiment import CallSpec, Experiment, ModelEntry
from composer.dataflow.context import Context, call_generator
from composer.dataflow.data.samples import Sample, SampleError
from composer.dataflow.data.tokenizers import tokenizer_from
from composer.dataflow.running.model_building import ModelBuildError, build_model, line_of
from composer.dataflow.running.schedule import RunError
from composer.dataflow.running.written import joined, packed
from composer.errors import MissingExtraSpecError, Problem, SpecError
from composer.parallel import state
from perception_blocks.reading import files_found

__all__ = ["LocalRunner", "Tokenizers"]


class LocalRunner:
    """A `composer.dataflow.running.schedule.Runner` whose models are all in this process.

    ``models`` are the names of those to build (None: all that are used), ``tokenizers`` are theirs and the data set's.
    With ``shards`` the caller shards those that have `parallel`, which are refused otherwise. ``folder`` is that of the
    run, for what calls write.

    Raises RunError and SpecError where a model or an interface cannot be built.
    """

    def __init__(
        self,
        experiment: Experiment,
        allow: Iterable[str] = (),
        models: Collection[str] | None = None,
        *,
        device: torch.device | str = "cpu",
        shards: bool = False,
        folder: str | None = None,
    ) -> None:
        self.experiment = experiment
        self._folder = folder
        self._shards = shards
        self._allow = tuple(allow)
        self.tokenizers = Tokenizers(experiment)
        names = experiment.used_models()
        self.models = {n: self._model(n, device) for n in names if models is None or n in models}
        self._interfaces: dict[str, Interface] = {}
        self._numbers: dict[str, Mapping[str, float]] = {}
        for call in experiment.calls.values():
            if models is None or call.model in models:
                self._interface(call)
        self._check_hooks()

    def _model(self, name: str, device: torch.device | str) -> ExperimentModel:
        experiment = self.experiment
        entry = experiment.models[name]
        if entry.parallel is not None and not self._shards:
            place = experiment.where((*entry.path, "parallel"))
            message = (
                f"the model {name!r} has 'parallel', which spreads it over workers of Ray: add --runner ray, or leave "
                "it out"
            )
            raise RunError(f"{place}{message}")
        try:
            return build_model(
                entry,
                experiment.models,
                experiment.run.seed,
                tokenizer=self.tokenizers.of_model(name),
                source=experiment.source,
                iterations=experiment.run.iterations,
                allow=self._allow,
                device=device,
            )
        except MissingExtraSpecError:
            raise
        except SpecError as error:
            raise SpecError(self._placed(problem, entry) for problem in error.problems) from error
        except RunError:
            raise
        except ValueError as error:
            said = "" if isinstance(error, ModelBuildError) else f"model {name!r}: "
            raise RunError(f"{experiment.where(entry.path)}{said}{error}") from error

    def _placed(self, problem: Problem, entry: ModelEntry) -> Problem:
        """A problem of the spec of a model, which has no place in a file, at the model."""
        if problem.position is not None:
            return problem
        position = self.experiment.source.position(entry.path)
        return Problem(f"model {entry.name!r}: {problem}", entry.path, position)

    def _interface(self, call: CallSpec) -> Interface:
        if call.name not in self._interfaces:
            interface = interface_of(call.interface, self._allow)
            find = self.experiment.source.find_file  # a setting may name a file
            try:
                with files_found(find, has_weights=False):
                    self._interfaces[call.name] = interface(**call.settings)
            except ValueError as error:
                place = self.experiment.where((*call.path, "settings"))
                message = f"interface {call.interface!r} cannot be made: {error}"
                raise RunError(f"{place}{message}") from error
            except Exception as error:
                place = self.experiment.where((*call.path, "settings"))
                error.add_note(f"in {place}interface {call.interface!r}")
                raise
        return self._interfaces[call.name]

    def _check_hooks(self) -> None:
        """Raise RunError for a hook between models of different shapes, as far as both are here."""
        for hook in self.experiment.hooks:
            if hook.source not in self.models or hook.target not in self.models:
                continue
            source, target = (shapes_of(self.models[name]) for name in (hook.source, hook.target))
            for name in [*target, *(name for name in source if name not in target)]:
                if source.get(name) != target.get(name):
                    here, there = (s.get(name, "not there") for s in (source, target))
                    place = self.experiment.where((*hook.path, "to"))
                    both = f"the models {hook.source!r} and {hook.target!r} have different shapes"
                    raise RunError(f"{place}{both}: {name!r} is {here} and {there}")

    # --- the protocol ----------------------------------------------------------------------------------------------

    def start(
        self, call: CallSpec, iteration: int, values: Sequence[Sample]
    ) -> tuple[str, Sequence[Sample]]:
        """Run the call to its end. Raises RunError for what does not fit, and what the interface raises."""
        interface = self._interface(call)
        model = None if call.model is None else self.models[call.model]
        generator = call_generator(self.experiment.run.seed, iteration, call.name)
        tokenizer = self.tokenizers.of_data() if model is None else model.tokenizer
        context = Context(generator, iteration, tokenizer, call=call.name, folder=self._folder)
        try:
            sample = joined(call, values)
        except SampleError as error:
            raise self._run_error(call, context, error) from error
        try:
            result = getattr(interface, call.verb)(model, sample, context)
        except Exception as error:
            error.add_note(f"in {self._where(call, context)}")
            raise
        except SystemExit as error:  # it would end the run as if that were done
            where = self._where(call, context)
            raise RunError(f"{where}: interface {call.interface!r} calls exit()") from error
        self._numbers[call.name] = context.numbers
        try:
            return call.name, packed(call, sample, result)
        except SampleError as error:
            raise self._run_error(call, context, error) from error

    def wait(self, running: Mapping[str, str]) -> str:
        return next(iter(running))

    def numbers(self, call: CallSpec) -> Mapping[str, float]:
        return self._numbers.get(call.name, {})

    def blend(self, source: str, target: str, eta: float) -> None:
        try:
            blend(self.models[target].network, self.models[source].network, eta)
        except ValueError as error:
            raise RunError(f"the hook from {source!r} to {target!r}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Write each model that changes, with its optimiser, as a folder of its name, for any number of processes.

        Raises CheckpointError where it cannot be written.
        """
        for name, model in self._changing().items():
            state.save(Path(folder) / name, model.model, model.optimizer)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote. Raises CheckpointError, which names the model, for what does not fit."""
        for name, model in self._changing().items():
            try:
                state.load(Path(folder) / name, model.model, model.optimizer)
            except CheckpointError as error:
                raise CheckpointError(f"the model {name!r}: {error}") from error

    def close(self) -> None:
        self.models, self._interfaces = {}, {}

    def _run_error(self, call: CallSpec, context: Context, error: SampleError) -> RunError:
        return RunError(f"{self._where(call, context)}: {error}")

    def _where(self, call: CallSpec, context: Context) -> str:
        model = "" if call.model is None else f", model {call.model!r}"
        return f"{self.experiment.where(call.path)}{context.where()}{model}"

    def _changing(self) -> dict[str, ExperimentModel]:
        """The models here that a call trains or a hook changes; the others are as they were built."""
        names = {call.model for call in self.experiment.calls.values() if call.verb == "train_step"}
        names |= {hook.target for hook in self.experiment.hooks}
        return {name: model for name, model in self.models.items() if name in names}


def shapes_of(model: ExperimentModel) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of a model's network by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.network.state_dict().items()}


class Tokenizers:
    """The tokenizers of an experiment, each read once."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._by_path: dict[str, Any] = {}

    def of_model(self, name: str) -> Any:
        """That of the vocabulary, or of the folder of Hugging Face, of the model or of what it is like; or None.

        Raises RunError where it cannot be read.
        """
        experiment = self._experiment
        for entry in line_of(experiment.models[name], experiment.models):
            given = entry.vocabulary or entry.origin.get("checkpoint")
            if not isinstance(given, str):
                continue
            try:
                path = experiment.source.find_file(given)
                has_one = entry.vocabulary or (Path(path) / "tokenizer_config.json").is_file()
                if has_one and path not in self._by_path:
                    self._by_path[path] = tokenizer_from(path)
            except ValueError as error:
                key = "vocabulary" if entry.vocabulary else "checkpoint"
                place = experiment.where((*entry.path, key))
                raise RunError(f"{place}{error}") from error
            if has_one:
                return self._by_path[path]
        return None

    @cached_property
    def _of_data(self) -> Any:
        experiment = self._experiment
        written = {value for call in experiment.calls.values() for value in call.writes.values()}
        calls = experiment.ordered_calls()
        first = [call for call in calls if not written.issuperset(call.reads.values())]
        models = dict.fromkeys(call.model for call in [*first, *calls] if call.model)
        return next(filter(None, map(self.of_model, models)), None)

    def of_data(self) -> Any:
        """That of the first model, in the order of the calls, that reads of the data set; or of any; or None."""
        return self._of_data
