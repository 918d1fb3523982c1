"""What can be said of a spec's text while it is being written: all problems, and what is known of each node.

Nothing that a user wrote raises an exception. No protocol of an editor is in here.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import TypeAlias

import torch

from composer.build.budget import Budget, LimitReached
from composer.build.composed_network import check_network
from composer.build.construction import SeededConstruction, on_cpu
from composer.build.context import BuildContext, BuildNotes
from composer.build.parts_of_spec import prepare_parts
from composer.build.policy_and_critic import build_policy_and_critic
from composer.build.untouched import faults_of_untouched
from composer.dataflow.calls.call_spec import read_experiment
from composer.dataflow.calls.experiment import is_experiment, registered_spec
from composer.editor.checked import Checked, Outline
from composer.editor.environments import MadeSpaces, SpaceKeeper
from composer.editor.facts import facts_of, known_values, with_outputs, with_shapes
from composer.editor.given import Given, Settings, given_spaces
from composer.editor.memory import Memory
from composer.editor.mend import mended_data, mended_texts
from composer.editor.module_cache import KeepingConstruction
from composer.errors import Path, Position, Problem, Problems, SpecError
from composer.limits import GivenLimits, limits_from
from composer.model import Model
from composer.source.files import real_path
from composer.source.load import Source, load_source
from composer.spaces.actors import read_actors
from composer.spaces.lookup import Spaces, find_spaces, is_by_actor, recalled_spaces
from composer.spec.model_spec import ModelSpec, NetworkSpec, of_one_actor
from composer.spec.read import read_structure
from composer.spec.top_level import is_network
from composer.trust import allow_list, import_allowed, import_extensions
from perception_blocks.graph.collector import collection_paused
from perception_blocks.port import Shape
from perception_blocks.reading import files_found
from perception_blocks.words import sparing

__all__ = ["Analyser", "Analysis", "analyse", "analyse_source"]

GivenTo: TypeAlias = "Callable[[ModelSpec, str], Given]"
NO_FILES: Mapping[str, str] = MappingProxyType({})
MOST_FILES = 16  # that are remembered


@dataclass(frozen=True)
class Analysis(Checked):
    """What is known of one text, with what was read and built of it.

    ``problems`` are those of `composer.compose`; where the structure is wrong, also those of blocks and settings of
    nodes in which it is good. ``spaces`` are those of the ``environment``. ``networks`` has policies and critics,
    templates as graphs.
    """

    index: Source
    spec: ModelSpec | None = None
    spaces: Spaces | None = None
    networks: tuple[NetworkSpec, ...] = ()

    def plain(self) -> Checked:
        """What of it another process can read."""
        kept = {each.name: getattr(self, each.name) for each in fields(Checked)}
        return Checked(**{**kept, "index": Outline.of(self.index)})


class Analyser:
    """Analyses texts; spaces, modules and the last facts of each file are kept from one to the next."""

    def __init__(self, spaces: SpaceKeeper | None = None, keeps_modules: bool = True) -> None:
        self._spaces = spaces or SpaceKeeper()
        self._keeps_modules = keeps_modules
        self._memories: dict[str, Memory] = {}
        self._lock = threading.Lock()

    def analyse(
        self,
        text: str,
        path: str,
        *,
        allow: Sequence[str] = (),
        environment: str | None = None,
        files: Mapping[str, str] = NO_FILES,
        makes_environments: bool = True,
    ) -> Analysis:
        """As `analyse`. Without ``makes_environments``, spaces come from checkpoints only."""
        settings = Settings(tuple(allow), environment, makes_environments)
        texts = {real_path(file): unsaved for file, unsaved in files.items()}
        with self._lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            memory = self._memory(path) if self._keeps_modules else Memory()
            return _Check(path, texts, settings, memory, self._spaces).run(text)

    def forget(self, path: str) -> None:
        """Forget what is remembered of a file, which was closed."""
        with self._lock:
            self._memories.pop(real_path(path), None)

    def _memory(self, path: str) -> Memory:
        """What is remembered of a file; nothing of the one that was asked for least lately, where there are many."""
        name = real_path(path)
        memory = self._memories.pop(name, None) or Memory()
        while len(self._memories) >= MOST_FILES:
            del self._memories[next(iter(self._memories))]
        self._memories[name] = memory
        return memory


class _Check:
    """One check of a text."""

    def __init__(
        self,
        path: str,
        files: Mapping[str, str],
        settings: Settings,
        memory: Memory,
        spaces: SpaceKeeper,
    ) -> None:
        self.path = path
        self.files = files
        self.settings = settings
        self.memory = memory
        self.spaces = spaces
        self.parameters: dict[str, int] = {}

    @sparing
    def run(self, text: str) -> Analysis:
        self.memory.modules.begin()
        wrong: tuple[Problem, ...] = ()
        try:
            import_allowed(allow_list(self.settings.allow))
        except SpecError as error:  # of the caller, not of the text
            wrong = error.problems
        try:
            source = self._read(text)
        except SpecError as error:
            analysis = self._of_broken_text(text, error.problems)
        else:
            analysis = self.of_source(source, text)
        analysis = self._with_last_facts(analysis, text)
        told = {problem.message for problem in wrong}
        others = [problem for problem in analysis.problems if problem.message not in told]
        return replace(analysis, problems=(*wrong, *others)) if wrong else analysis

    def _read(self, text: str) -> Source:
        files, allow = {**self.files, real_path(self.path): text}, self.settings.allow
        source = load_source(FilePath(self.path), (), allow, registered_spec, files=files)
        import_extensions(source, allow)
        return source

    def _of_broken_text(self, text: str, problems: tuple[Problem, ...]) -> Analysis:
        """Of a text that cannot be read: its problems, and what is known of what it was probably meant to be."""
        places = [problem.position for problem in problems if problem.position]
        for meant in mended_texts(text, places[0] if places else None):
            try:
                source = self._read(meant)
            except SpecError:
                continue
            spec, structure = self._structure(source)
            known = Analysis(problems, source, params=source.params, spec=spec)
            if spec is None:
                return known
            given = self._given(spec, text)
            known = self._with_guesses(known, structure, given)
            self.memory.remember(known.nodes, source, meant, given.name)
            return known
        return Analysis(problems, load_source({}))

    # --- a text that can be read ---

    def _given(self, spec: ModelSpec, text: str) -> Given:
        return given_spaces(spec, text, self.path, self.settings, self.spaces)

    def of_source(self, source: Source, text: str, given_to: GivenTo | None = None) -> Analysis:
        """Of a spec that was read; ``given_to`` gives the spaces, if not those that the ``text`` is about."""
        if is_experiment(source.data):
            return self._of_experiment(source)
        if is_network(source.data):
            return self._of_network(source)
        spec, problems = self._structure(source)
        known = Analysis(
            tuple(problems), source, params=source.params, stage="structure", spec=spec
        )
        if spec is None or spec.model is not None:
            return known
        given = (given_to or self._given)(spec, text)
        notes = BuildNotes()
        structure = list(problems)
        problems += [p for p in given.problems if not (structure and p.path)]
        if given.made is not None:
            problems += self._of_model(spec, structure, given.made, notes)
            spaces = given.made.spaces
            known = replace(known, environment=given.name, spaces=spaces, stage="shapes")
        known = _with_facts(replace(known, unknown=given.unknown), _networks_of(spec), notes)
        counts = {} if problems else self.parameters
        known = replace(known, problems=_in_order(problems), parameters=counts)
        if text:
            self.memory.remember(known.nodes, source, text, given.name)
        return self._with_guesses(known, problems, given) if problems else known

    def _structure(self, source: Source) -> tuple[ModelSpec | None, list[Problem]]:
        """The spec as far as it could be read, and what is wrong with its structure."""
        allow, limits = self.settings.allow, self.settings.limits
        spec, problems = read_structure(source, allow, limits=limits)
        return spec, list(problems)

    def _of_model(
        self,
        spec: ModelSpec,
        structure: Sequence[Problem],
        made: MadeSpaces,
        notes: BuildNotes,
    ) -> list[Problem]:
        """What is wrong with a spec for the spaces that are known, beyond its structure."""
        allow, construction = self.settings.allow, self._construction()
        with self._building(spec.source):
            try:
                spaces = find_spaces(spec, None, *made.spaces)
                if structure:
                    return faults_of_untouched(
                        spec, structure, spaces, allow, self.settings.limits, notes, construction
                    )
                recalled_spaces(spec, made.spaces, made.why_not_recalled, None)
                self._compose(spec, spaces, notes)
            except SpecError as error:
                return [] if structure else list(error.problems)
            except LimitReached as reached:
                return list(reached.as_error(spec.source).problems)
            except (Exception, SystemExit) as error:  # of a user's class
                return [_raised(error, spec.source)]
        return []

    def _compose(
        self, spec: ModelSpec, spaces: Spaces, notes: BuildNotes, goes_on: bool = False
    ) -> None:
        """What `composer.compose` does, without weights. Raises as it does."""
        source, limits = spec.source, self.settings.limits
        actors = read_actors(*spaces) if is_by_actor(spaces[0]) else None
        spec = of_one_actor(spec) if actors is None else spec
        context = BuildContext(
            source, Problems(source), self.settings.allow, 0, True, Budget(limits),
            goes_on=goes_on, construction=self._construction(),
        )  # fmt: skip
        parts = build_policy_and_critic(spec, context, spaces, actors, torch.float32, notes)
        for name, part in (("policy", parts.policy), ("critic", parts.critic)):
            if part is not None:
                self.parameters[name] = sum(each.numel() for each in part.parameters())
        if spec.freeze or spec.weights or spec.learning_rate_scale or spec.state_names:
            model = Model(source, spec, parts, 0, limits)
            prepare_parts(model, spec, context.problems, reads=True)

    def _construction(self) -> Callable[..., SeededConstruction]:
        return partial(KeepingConstruction, cache=self.memory.modules)

    @contextmanager
    def _building(self, source: Source) -> Iterator[None]:
        def find(path: str) -> str:
            self.memory.modules.files_read += 1
            return source.find_file(path)

        with on_cpu(), collection_paused(), files_found(find, has_weights=False):
            yield

    # --- what is not known of a text with mistakes ---

    def _with_guesses(self, known: Analysis, problems: list[Problem], given: Given) -> Analysis:
        """``known``, and what is not known in it as the text was probably meant."""
        assert known.spec is not None
        source = known.spec.source
        spec: ModelSpec | None = known.spec
        data = mended_data(source.data, source.params, problems)
        if data is not None:
            spec = self._structure(source.with_data(data))[0]
        if spec is None or spec.model is not None:
            return known
        notes = BuildNotes()
        if given.made is not None:
            with self._building(source), suppress(Exception, SystemExit, LimitReached):
                spaces = find_spaces(spec, None, *given.made.spaces)
                self._compose(spec, spaces, notes, goes_on=True)
        guess = _with_facts(known, _networks_of(spec), notes)
        nodes = {
            path: tuple(facts.as_guess() for facts in of_node)
            for path, of_node in guess.nodes.items()
        }
        return replace(
            known,
            nodes=with_outputs(known.nodes, nodes),
            values=with_shapes(known.values, guess.values),
            environment=given.name,
            unknown=given.unknown,
        )

    def _with_last_facts(self, analysis: Analysis, text: str) -> Analysis:
        """``analysis``, with the last facts of nodes that are not known, if their own text is as it was then."""
        if not analysis.problems or (analysis.stage != "syntax" and analysis.environment is None):
            return analysis
        last = self.memory.recall(text, analysis.environment)
        nodes = with_outputs(analysis.nodes, last)
        values: dict[Path, dict[str, Shape | None]] = {}
        for path, of_node in last.items():
            if path[-2:-1] == ("graph",):
                values.setdefault(path[:-2], {}).update(of_node[0].outputs)
        return replace(analysis, nodes=nodes, values=with_shapes(analysis.values, values))

    # --- other files ---

    def _of_experiment(self, source: Source) -> Analysis:
        known = Analysis((), source, params=source.params, stage="structure")
        try:
            read_experiment(source, allow=self.settings.allow)
        except SpecError as error:
            return replace(known, problems=error.problems)
        except (Exception, SystemExit) as error:  # of a user's interface
            return replace(known, problems=(_raised(error, source),))
        return known

    def _of_network(self, source: Source) -> Analysis:
        """Of a network without actions."""
        known = Analysis((), source, params=source.params, stage="structure")
        notes = BuildNotes()
        try:
            with collection_paused():
                file = check_network(source, self.settings.allow, self.settings.limits, notes)
        except SpecError as error:
            return replace(known, problems=error.problems)
        except (Exception, SystemExit) as error:  # of a user's class
            return replace(known, problems=(_raised(error, source),))
        return _with_facts(replace(known, stage="shapes"), [file.network], notes)


def _networks_of(spec: ModelSpec) -> list[NetworkSpec]:
    """The networks of policy and critic."""
    parts = (spec.policy, spec.critic) if spec.critic else (spec.policy,)
    return [network for part in parts for network in part.networks.values()]


def _with_facts(analysis: Analysis, specs: Iterable[NetworkSpec], notes: BuildNotes) -> Analysis:
    networks = {spec.path: notes.expanded.get(spec.path, spec) for spec in specs}
    values = known_values(networks, notes)
    described = tuple(networks.values())
    return replace(analysis, nodes=facts_of(networks, notes), values=values, networks=described)


def _in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """In the order of the file, each once."""
    return SpecError(dict.fromkeys(problems)).problems


def _raised(error: BaseException, source: Source) -> Problem:
    """An exception of a user's own class, at the place in the spec that its note names."""
    text = f"{type(error).__name__}: {error}"
    for note in getattr(error, "__notes__", ()):
        text += f"\n{note}"
        match = re.match(r"in (.+):(\d+):(\d+): ", note)
        if match:
            position = Position(match[1], int(match[2]), int(match[3]))
            path, _ = source.at(position) or ((), False)
            return Problem(text, path, position)
    return Problem(text, (), source.position(()))


_ANALYSER = Analyser()


def analyse(
    text: str,
    path: str,
    *,
    allow: Sequence[str] = (),
    environment: str | None = None,
    files: Mapping[str, str] = NO_FILES,
) -> Analysis:
    """What can be said of ``text``, which is that of the file at ``path`` but need not be saved, nor be YAML.

    ``allow`` names the modules that may be imported, as for `composer.compose`; ``environment`` is the id of the one
    that shapes follow from if the file names none. ``files`` maps paths of other files to their unsaved text.

    Environments are made in a process of their own, once each; spaces, modules and the last facts of a file are kept.
    """
    return _ANALYSER.analyse(text, path, allow=allow, environment=environment, files=files)


def analyse_source(
    source: Source, given_to: GivenTo, allow: Sequence[str] = (), limits: GivenLimits = None
) -> Analysis:
    """What can be said of a spec that was read, with the spaces that ``given_to`` gives; nothing is kept."""
    settings = Settings(tuple(allow), limits=limits_from(limits))
    check = _Check(source.name or "", NO_FILES, settings, Memory(), SpaceKeeper())
    check.memory.modules.begin()
    return check.of_source(source, "", given_to)
