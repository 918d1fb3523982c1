"""An experiment as text, file or mapping -> an Experiment, or every mistake in it. Nothing is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath

from composer.dataflow.algorithms.interfaces import VERBS, Interface, model_problem, verbs_of
from composer.dataflow.algorithms.rewards import interface_of
from composer.dataflow.calls.call_graph import Call, check_graph
from composer.dataflow.calls.experiment import (
    DataSpec,
    Experiment,
    HookSpec,
    ModelEntry,
    RunSpec,
    registered_spec,
)
from composer.dataflow.calls.model_entries import (
    name_problem,
    note_settings,
    read_models,
    roots_of,
    shape_difference,
)
from composer.dataflow.data.datasets import DATASETS
from composer.errors import Path, Problems
from composer.source.load import GivenSpec, Override, Source, load_source
from composer.spec.fields import Fields
from composer.spec.top_level import (
    check_version,
    params_meant,
    read_extensions,
    without_other_files,
)
from composer.trust import allow_list, import_allowed, import_extensions
from perception_blocks.registry import MissingExtraError
from perception_blocks.settings import Probability, check_settings
from perception_blocks.words import describe, did_you_mean, hint, listing, near_name, sparing

__all__ = ["CALL_KEYS", "EXPERIMENT_KEYS", "read_experiment", "source_of"]

EXPERIMENT_KEYS = ("version", "params", "extends", "extensions", "models", "data", "calls", "hooks")
EXPERIMENT_KEYS += ("run",)
MOST = 1_000  # models, and calls
BESIDE = ("policy", "critic", "model")
CALL_KEYS = ("model", "do", "with", "reads", "writes", "settings")
HOOK_KEYS = ("after", "from", "to", "eta")


def source_of(
    spec: GivenSpec, overrides: Iterable[Override] = (), allow: Iterable[str] = ()
) -> Source:
    """The Source of an experiment: `load_source` that knows the registered ones. Raises SpecError."""
    return load_source(spec, overrides, allow, named=registered_spec)


@sparing
def read_experiment(
    spec: GivenSpec,
    overrides: Iterable[Override] = (),
    allow: Iterable[str] = (),
) -> Experiment:
    """The checked experiment of a registered name, a file, YAML text or a mapping.

    ``overrides`` and ``allow`` are as for `composer.compose`: allowed modules are imported, and so are those after
    ``extensions:`` that are allowed.

    Raises SpecError with every mistake in the graph of calls and in what the calls name.
    """
    allow = allow_list(allow)
    import_allowed(allow)
    source = source_of(spec, overrides, allow)
    import_extensions(source, allow)
    problems = Problems(source, source.problems)
    experiment = _Reader(source, problems, allow).experiment()
    problems.raise_if_any()
    assert experiment is not None
    return experiment


class _Reader:
    """Reads from the top down; each method reads one value and notes its mistakes."""

    def __init__(self, source: Source, problems: Problems, allow: tuple[str, ...]) -> None:
        self._source = source
        self._problems = problems
        self._allow = allow

    def experiment(self) -> Experiment | None:
        source, problems = self._source, self._problems
        if "calls" not in source.data and {*BESIDE} & {*source.data}:
            message = "this is the spec of a model; an experiment has 'calls', 'models' and 'data'"
            problems.add((), message)
            return None
        values = without_other_files(source, (*EXPERIMENT_KEYS, *BESIDE), problems, "an experiment")
        top = Fields(values, (), problems)
        if not top.values and source.data:
            return None
        meant = self._keys(top)
        check_version(top, "version" in meant, "experiment")
        extensions = read_extensions(top, self._allow)
        run = self._run(top)
        data, gives = self._data(top, meant)
        given_models, given_calls = (self._named(top, key, meant) for key in ("models", "calls"))
        models = read_models(given_models or {}, problems)
        if given_models is None or given_calls is None:
            return None
        calls = {name: self._call(name, given_calls, models) for name in given_calls}
        dag = check_graph(calls, gives, models, problems)
        hooks = self._hooks(top, calls, models)
        if len(problems) or data is None:
            return None
        return Experiment(
            name=PurePath(source.name or "experiment").stem.strip("<>"),
            source=source,
            models=models,
            data=data,
            calls={name: call.spec() for name, call in calls.items()},
            hooks=hooks,
            run=run,
            dag=dag,
            extensions=extensions,
        )

    def _keys(self, top: Fields) -> set[str]:
        beside = [key for key in BESIDE if key in top and (key != "model" or "models" in top)]
        for key in beside:
            message = (
                f"{key!r} has no place beside 'calls': a file describes an experiment or a model"
            )
            top.note(key, message, on_key=True)
        known = {key: value for key, value in top.values.items() if key not in beside}
        return Fields(known, (), self._problems).unknown(
            EXPERIMENT_KEYS,
            "an experiment",
            elsewhere=params_meant(self._source, (*EXPERIMENT_KEYS, *BESIDE)),
        )

    def _named(self, top: Fields, key: str, meant: set[str]) -> dict[str, object] | None:
        """The mapping of models or calls by name; None where it cannot be told."""
        if key not in top and key in meant:
            return None
        values = top.mapping(key, f"a mapping of {key} by their names")
        if not isinstance(top.values.get(key, {}), dict):
            return None
        if key == "calls" and not values:
            self._problems.add((key,) if key in top else (), "the experiment has no 'calls'")
            return None
        if len(values) > MOST:
            top.note(key, f"an experiment has at most {MOST:,} {key}, and this one {len(values):,}")
            return None
        return values

    def _run(self, top: Fields) -> RunSpec:
        fields = Fields(top.mapping("run"), ("run",), self._problems)
        note_settings(fields, RunSpec, "'run'")
        # What is wrong has been noted.
        good = not check_settings(RunSpec, fields.values, "'run'", skip=0)
        return RunSpec(**fields.values) if good else RunSpec()  # type: ignore[arg-type]

    # --- data ---

    def _data(self, top: Fields, meant: set[str]) -> tuple[DataSpec | None, tuple[str, ...] | None]:
        """The data set, and the values that it gives; None where that cannot be told."""
        if "data" not in top:
            if "data" not in meant:
                self._problems.add(
                    (), "the experiment has no 'data'; name a data set: data: {dataset: NAME}"
                )
            return None, None
        values = top.mapping("data", "a mapping such as {dataset: prompt, path: prompts.jsonl}")
        fields = Fields(values, ("data",), self._problems)
        batch_size = fields.count("batch_size", DataSpec.batch_size)
        name = fields.text("dataset")
        if name is None:
            self._without_dataset(top, fields)
            return None, None
        settings = {k: v for k, v in values.items() if k not in ("dataset", "batch_size")}
        spec = DataSpec(name, fields.path, settings, batch_size)
        dataset = self._entry(fields, "dataset", DATASETS.get)
        if dataset is None:
            return spec, None
        label = f"data set {name!r}"
        note_settings(Fields(settings, fields.path, self._problems), dataset, label, skip=1)
        gives = getattr(dataset, "gives", ())
        if not gives or not _are_names(gives):
            fields.note("dataset", f"{label} does not say what it gives, as in: gives = ('ids',)")
            return spec, None
        return spec, tuple(gives)

    def _without_dataset(self, top: Fields, fields: Fields) -> None:
        if "dataset" in fields or not isinstance(top.values["data"], dict):
            return
        near = near_name("dataset", fields.values)
        end = f"; is {near!r} a misspelling of it?" if near else f"; there is {listing(DATASETS)}"
        self._problems.add(fields.path, f"'data' lacks 'dataset'{end}")

    def _entry(self, fields: Fields, key: str, find: Callable[[str], object]) -> type | None:
        """The class that ``key`` names; None where there is none, which is noted."""
        name = str(fields.values[key])
        try:
            entry = find(name)
        except MissingExtraError as error:
            self._problems.add(fields.at(key), str(error), needs_extra=True)
        except ValueError as error:
            fields.note(key, str(error))
        else:
            if isinstance(entry, type):
                return entry
            fields.note(key, f"{name!r} is registered as {describe(entry)}, not as a class")
        return None

    # --- calls ---

    def _call(
        self, name: str, values: Mapping[str, object], models: Mapping[str, ModelEntry]
    ) -> Call:
        path: Path = ("calls", name)
        if problem := name_problem("a call", name):
            self._problems.add(path, problem, key=True)
        value = values[name]
        if not isinstance(value, dict):
            example = "{model: actor, do: inference, with: ppo_actor, reads: [ids], writes: [logp]}"
            Fields(values, ("calls",), self._problems).wrong(name, f"a mapping such as {example}")
            return Call(name, path)
        fields = Fields(value, path, self._problems)
        meant = fields.unknown(CALL_KEYS, "a call")
        call = Call(name, path)
        call.reads, call.reads_fit = self._values(fields, "reads", meant)
        call.writes, call.writes_fit = self._values(fields, "writes", meant)
        call.verb = self._verb(fields, meant)
        call.interface_name = fields.text("with") or ""
        call.interface = self._interface(fields, meant)
        call.settings = fields.mapping("settings")
        if call.interface is not None:
            inner = Fields(call.settings, fields.at("settings"), self._problems)
            note_settings(inner, call.interface, f"interface {call.interface_name!r}")
            call.verb = self._verb_of(call, fields)
        call.model = self._model(call, fields, meant, models)
        return call

    def _values(
        self, fields: Fields, key: str, meant: set[str]
    ) -> tuple[dict[str, tuple[str, Path]], bool]:
        """The experiment's values by the interface's names, each with its place; and whether they could be read."""
        given = fields.values.get(key, [])
        before = len(self._problems)
        values: dict[str, tuple[str, Path]] = {}
        if isinstance(given, dict):
            expected = "a list of values, or a mapping of the interface's names to values"
            pairs = fields.text_mapping(key, expected)
            values = {name: (value, (*fields.at(key), name)) for name, value in pairs.items()}
        elif isinstance(given, list):
            fields.texts(key)
            for index, value in enumerate(given):
                if isinstance(value, str):
                    values.setdefault(value, (value, (*fields.at(key), index)))
        else:
            fields.wrong(key, "a list of values, or a mapping of the interface's names to values")
        for value, place in values.values():
            if problem := name_problem("a value", value):
                self._problems.add(place, problem)
        return values, len(self._problems) == before and key not in meant

    def _verb(self, fields: Fields, meant: set[str]) -> str | None:
        verb = fields.values.get("do")
        if isinstance(verb, str) and verb in VERBS:
            return verb
        if "do" not in fields:
            if "do" not in meant:
                self._problems.add(fields.path, f"the call lacks 'do', one of {listing(VERBS)}")
            return None
        near = did_you_mean(verb, VERBS) if isinstance(verb, str) else ""
        fields.note("do", f"'do' must be one of {listing(VERBS)}, got {describe(verb)}{near}")
        return None

    def _interface(self, fields: Fields, meant: set[str]) -> type[Interface] | None:
        if "with" not in fields and "with" not in meant:
            self._problems.add(fields.path, "the call lacks 'with', the name of an interface")
        name = fields.values.get("with")
        if not isinstance(name, str) or not name:
            return None
        interface = self._entry(fields, "with", lambda name: interface_of(name, self._allow))
        if interface is None:
            return None
        for attribute in ("reads", "writes", "optional", "takes"):
            declared = getattr(interface, attribute, {})
            fits = isinstance(declared, Mapping)
            if not fits or (attribute != "takes" and not all(map(_are_names, declared.values()))):
                what = "kinds of models" if attribute == "takes" else "lists of names"
                message = f"{attribute!r} of interface {name!r} must map verbs to {what}"
                fields.note("with", message)
                return None
        return interface

    def _verb_of(self, call: Call, fields: Fields) -> str | None:
        """The verb of the call, if its interface has it."""
        assert call.interface is not None
        verbs = verbs_of(call.interface)
        if call.verb is None or call.verb in verbs:
            return call.verb
        label = f"interface {call.interface_name!r}"
        fields.note("do", f"{label} has no {call.verb!r}; it has {listing(verbs) or 'nothing'}")
        call.interface = None
        return call.verb

    def _model(
        self, call: Call, fields: Fields, meant: set[str], models: Mapping[str, ModelEntry]
    ) -> str | None:
        if call.interface is not None and not getattr(call.interface, "needs_model", True):
            return None
        model = fields.text("model")
        if model is None:
            if call.interface is not None and not {"model"} & {*fields.values, *meant}:
                message = (
                    f"the call needs a 'model': interface {call.interface_name!r} works on one"
                )
                self._problems.add(fields.path, message)
        elif model not in models:
            fields.note("model", f"there is no model {model!r}{hint(model, models)}")
        elif call.interface is not None and call.verb is not None:
            is_critic = models[model].is_critic
            if message := model_problem(call.interface, call.verb, model, is_critic):
                fields.note("model", message)
        return model if model in models else None

    # --- hooks ---

    def _hooks(
        self, top: Fields, calls: Mapping[str, Call], models: Mapping[str, ModelEntry]
    ) -> tuple[HookSpec, ...]:
        entries = top.values.get("hooks", [])
        example = "{after: actor_train, from: actor, to: ref, eta: 0.001}"
        if not isinstance(entries, list):
            top.wrong("hooks", f"a list of entries such as {example}")
            return ()
        hooks, roots = [], roots_of(models)
        for index, entry in enumerate(entries):
            path: Path = ("hooks", index)
            if isinstance(entry, dict):
                fields = Fields(entry, path, self._problems)
                hooks.append(self._hook(fields, calls, models, roots))
            else:
                message = f"an entry of 'hooks' must be a mapping such as {example}, got {describe(entry)}"
                self._problems.add(path, message)
        return tuple(filter(None, hooks))

    def _hook(
        self,
        fields: Fields,
        calls: Mapping[str, Call],
        models: Mapping[str, ModelEntry],
        roots: Mapping[str, ModelEntry],
    ) -> HookSpec | None:
        meant = fields.unknown(HOOK_KEYS, "a hook")
        names: dict[str, str] = {}
        for key, known, what in (
            ("after", calls, "call"),
            ("from", models, "model"),
            ("to", models, "model"),
        ):
            name = fields.text(key)
            if key not in fields and key not in meant:
                self._problems.add(fields.path, f"the hook lacks {key!r}, the name of a {what}")
            elif name is not None and name not in known:
                fields.note(key, f"there is no {what} {name!r}{hint(name, known)}")
            elif name is not None:
                names[key] = name
        eta = {key: fields.values[key] for key in ("eta",) if key in fields}
        note_settings(Fields(eta, fields.path, self._problems), _Hook, "a hook")
        if len(names) < 3:
            return None
        source, target = names["from"], names["to"]
        if source == target:
            fields.note("to", f"the hook blends {source!r} into itself; name another model")
        elif difference := shape_difference(models[source], models[target], roots):
            message = f"the models {source!r} and {target!r} have different shapes: {difference}"
            fields.note("to", message)
        return HookSpec(fields.path, names["after"], source, target, **eta)  # type: ignore[arg-type]


class _Hook:
    def __init__(self, *, eta: Probability = 1.0) -> None: ...


def _are_names(names: object) -> bool:
    return (
        isinstance(names, Sequence)
        and not isinstance(names, str)
        and all(isinstance(name, str) for name in names)
    )
