"""The calls of an experiment as a graph: who writes and reads each value, in which order, and all mistakes in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from composer.dataflow.algorithms.interfaces import Interface
from composer.dataflow.calls.experiment import CallSpec, ModelEntry, Settings
from composer.dataflow.data.samples import LENGTHS, LengthRule, in_words
from composer.errors import Path, Problems
from perception_blocks.dag import Dag, DagNode
from perception_blocks.words import did_you_mean, few_of, hint, listing, near_name

__all__ = ["Call", "check_graph"]

ENDS = ("train_step", "evaluate")
MOST_SHOWN = 12  # calls of a cycle
_DONE = "\n"  # before the name of a call: its end, which is no value


@dataclass
class Call:
    """A call as far as it could be read; it counts as the writer of its values, whatever else is wrong with it.

    ``reads`` and ``writes`` have the experiment's value for each of the interface's names, and where it is written.
    ``reads_fit`` and ``writes_fit``: these could be read whole. ``interface`` None: unknown, or without the verb.
    """

    name: str
    path: Path
    verb: str | None = None
    interface_name: str = ""
    interface: type[Interface] | None = None
    model: str | None = None
    reads: dict[str, tuple[str, Path]] = field(default_factory=dict)
    writes: dict[str, tuple[str, Path]] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    reads_fit: bool = False
    writes_fit: bool = False

    @property
    def is_end(self) -> bool:
        """Whether it is done for its own sake, as far as can be told."""
        effects = getattr(self.interface, "side_effects", ())
        return self.verb is None or self.verb in ENDS or self.verb in effects

    @property
    def read_values(self) -> list[str]:
        return list(dict.fromkeys(value for value, _ in self.reads.values()))

    @property
    def written_values(self) -> list[str]:
        return list(dict.fromkeys(value for value, _ in self.writes.values()))

    def declared(self, what: str) -> Sequence[str]:
        """What the interface declares for the verb: the names of its ``reads``, ``writes`` or ``optional``."""
        return getattr(self.interface, what, {}).get(self.verb, ())

    def spec(self) -> CallSpec:
        assert self.verb is not None
        return CallSpec(
            name=self.name,
            path=self.path,
            verb=self.verb,
            interface=self.interface_name,
            model=self.model,
            reads={name: value for name, (value, _) in self.reads.items()},
            writes={name: value for name, (value, _) in self.writes.items()},
            settings=self.settings,
        )


def check_graph(
    calls: Mapping[str, Call],
    gives: Sequence[str] | None,
    models: Mapping[str, ModelEntry],
    problems: Problems,
) -> Dag:
    """The calls in their order; all that is wrong with them is noted.

    ``gives`` are the values of the data set (None: unknown, so anything may be among them).
    """
    check = _GraphCheck(calls, gives, models, problems)
    return check.dag()


class _GraphCheck:
    def __init__(
        self,
        calls: Mapping[str, Call],
        gives: Sequence[str] | None,
        models: Mapping[str, ModelEntry],
        problems: Problems,
    ) -> None:
        self._calls = calls
        self._gives = gives
        self._models = models
        self._problems = problems
        self._trained: dict[str, str] = {}  # model -> the call that trains it
        self._writer: dict[str, Call] = {}
        self._names: dict[str, str] = {}  # of each value the name that its writer's interface has
        # Value -> a call that would write it, if it were asked to.
        self._could_write: dict[str, str] = {}
        self._unknown: set[str] = set()  # values that are read, but nothing writes
        self._explained: set[str] = set()  # values that nobody reads because of another mistake
        # Of each call with writes that are wrong the names of these, one of which may have been meant otherwise.
        self._lost: dict[str, list[set[str]]] = {}
        for call in calls.values():
            for name in call.declared("writes"):
                if name not in call.writes:
                    self._could_write.setdefault(name, call.name)
            for name, (value, _) in call.writes.items():
                if value not in self._writer:
                    self._writer[value], self._names[value] = call, name

    def dag(self) -> Dag:
        self._check_training()
        for call in self._calls.values():
            self._check_writes(call)
        self._check_unknown()
        for call in self._calls.values():
            self._check_names(call)
            self._check_lengths(call)
        dag = self._dag()
        self._check_cycles(dag)
        self._check_uses()
        return dag

    def _dag(self) -> Dag:
        users: dict[str, list[str]] = {}  # of each model the calls that end before it is trained
        for call in self._calls.values():
            if call.model is not None and self._trained.get(call.model) != call.name:
                users.setdefault(call.model, []).append(_DONE + call.name)
        trained = {name: users.get(model, []) for model, name in self._trained.items()}
        nodes = [
            DagNode(
                call.name,
                (*(v for v in call.read_values if self._writer.get(v) is not call), *trained.get(call.name, ())),
                (*(v for v in call.written_values if self._writer[v] is call), _DONE + call.name),
            )
            for call in self._calls.values()
        ]  # fmt: skip
        ends = [_DONE + call.name for call in self._calls.values() if call.is_end]
        return Dag(nodes, self._gives, ends)

    # --- one call ---

    def _check_training(self) -> None:
        for call in self._calls.values():
            if call.verb != "train_step" or call.model is None:
                continue
            entry, place = self._models[call.model], (*call.path, "model")
            first = self._trained.setdefault(call.model, call.name)
            if first != call.name:
                both = f"trained by {first!r} and {call.name!r}"
                self._problems.add(
                    place, f"the model {call.model!r} is {both}; one call trains a model"
                )
            elif entry.optimizer is None:
                message = (
                    f"{call.name!r} trains the model {call.model!r}, which has no 'lr'; give it one"
                )
                self._problems.add(place, message)

    def _check_writes(self, call: Call) -> None:
        seen: set[str] = set()
        for name, (value, place) in call.writes.items():
            writer = self._writer[value]
            if value in seen:
                problem = f"{call.name!r} writes {value!r} twice"
            elif value in (self._gives or ()):
                problem = f"{call.name!r} writes {value!r}, which the data set gives"
            elif writer is not call:
                problem = f"{call.name!r} writes {value!r}, which {writer.name!r} writes already"
            else:
                seen.add(value)
                continue
            self._lost.setdefault(call.name, []).append({name, value})
            way_out = f"give it a name of its own, as in {{{name}: my_{value}}}"
            self._problems.add(place, f"{problem}; {way_out}")
        for name in call.writes if call.interface is not None and call.verb else ():
            if name not in call.declared("writes"):
                self._lost.setdefault(call.name, []).append({name, call.writes[name][0]})
                self._note_name(call, name, "write", call.writes[name][1], call.declared("writes"))

    def _note_name(
        self, call: Call, name: str, verb: str, place: Path, known: Sequence[str], end: str = ""
    ) -> None:
        """Note that the interface of the call does not read or write ``name``."""
        label = f"{call.verb!r} of interface {call.interface_name!r}"
        end = end or did_you_mean(name, known) or f"; it {verb}s {listing(known) or 'nothing'}"
        self._problems.add(place, f"{label} does not {verb} {name!r}{end}")

    def _check_unknown(self) -> None:
        """Note values that nothing writes, unless a call whose writes are wrong may have been meant to."""
        unknown: dict[str, list[tuple[Call, Path]]] = {}
        for call in self._calls.values():
            for value, place in dict(call.reads.values()).items():
                writer = self._writer.get(value)
                if writer is call:
                    message = f"{call.name!r} reads {value!r}, which it writes itself"
                    self._problems.add(place, message)
                elif writer is None and self._gives is not None and value not in self._gives:
                    unknown.setdefault(value, []).append((call, place))
        self._unknown.update(unknown)
        self._explained.update(unknown)
        if not all(call.writes_fit for call in self._calls.values()):
            return
        lost = [names for wrong in self._lost.values() for names in wrong]
        vague = [value for value in unknown if self._may_be_lost(value, set().union(*lost))]
        for value, readers in unknown.items():
            if value not in vague or len(vague) > len(lost):
                self._note_unknown(value, readers)

    def _may_be_lost(self, value: str, lost: set[str]) -> bool:
        """Whether the wrong writes of a call, with the names ``lost``, were probably meant to write ``value``."""
        near = near_name(value, [*(self._gives or ()), *self._writer])
        return bool(lost) and (near is None or not lost.isdisjoint((value, near)))

    def _note_unknown(self, value: str, readers: Sequence[tuple[Call, Path]]) -> None:
        """Note at each reader a value that looks misspelt, at the first one a value that is missing."""
        can_write = self._who_could_write(value)
        for reader, place in readers:
            written = (v for v in self._writer if self._writer[v] is not reader)
            known = dict.fromkeys((*(self._gives or ()), *written))
            near = near_name(value, known)
            self._explained.update(filter(None, [near]))
            is_each = near is not None and not can_write
            read = f"{reader.name!r} reads"
            if not is_each and len(readers) > 1:
                read = f"{few_of(reader.name for reader, _ in readers)} read"
            what = "which neither the data set gives nor a call writes"
            end = can_write or hint(value, known)
            self._problems.add(place, f"{read} {value!r}, {what}{end}")
            if not is_each:
                return

    def _who_could_write(self, value: str) -> str:
        """The end of a message: the call whose interface writes a value of that name, if it is asked for it."""
        call = self._could_write.get(value)
        return "" if call is None else f"; {call!r} can: add {value!r} to its 'writes'"

    def _check_names(self, call: Call) -> None:
        """Compare the names that a call reads with those that its interface has."""
        if call.interface is None or call.verb is None:
            return
        needed = call.declared("reads")
        known = [*needed, *(n for n in call.declared("optional") if n not in needed)]
        missing = [n for n in needed if n not in call.reads and n not in call.declared("optional")]
        others = [name for name in call.reads if name not in known]
        for name in others if not getattr(call.interface, "reads_any", False) else ():
            self._check_other(call, name, known, missing)
        for name in missing if call.reads_fit else ():
            self._explained.add(name)
            label = f"{call.verb!r} of interface {call.interface_name!r}"
            place = (*call.path, "reads") if call.reads else call.path
            message = f"{label} needs {name!r}; read it, or map it: {{{name}: its_value}}"
            self._problems.add(place, message)

    def _check_other(self, call: Call, name: str, known: list[str], missing: list[str]) -> None:
        """Note that the interface does not read ``name``, and take from ``missing`` what was meant by it.

        A value of a list that the interface only has no use for is no mistake: another one in its place may have.
        """
        value, place = call.reads[name]
        is_list = name == value
        meant = near_name(name, missing if is_list else known)
        meant = meant or (missing[0] if len(missing) == 1 else None)
        if meant in missing:
            missing.remove(meant)
        if is_list and (value in self._unknown or meant is None):
            return
        end = f"; did you mean {meant!r}?" if meant is not None else ""
        if is_list:
            end = f"; it reads {meant!r}: map it, as in {{{meant}: {value}}}"
        self._note_name(call, name, "read", place, known, end)

    def _check_lengths(self, call: Call) -> None:
        """Compare how many numbers a value has with how many are read."""
        for name, (value, place) in call.reads.items():
            writer = self._writer.get(value)
            rules = _rule(name), _rule(self._names.get(value, value))
            if None in rules or rules[0] is rules[1] or value in self._unknown:
                continue
            needed, given = (in_words(rule) for rule in rules if rule is not None)
            by = f"as {writer.name!r} writes it" if writer else "in the data set"
            message = f"{name!r} is {needed}, but {value!r}, {by}, is {given}"
            self._problems.add(place, message)

    # --- all calls together ---

    def _check_cycles(self, dag: Dag) -> None:
        for cycle in dag.cycles():
            shown = [repr(name) for name in [*cycle, cycle[0]]]
            if len(shown) > MOST_SHOWN:
                shown[4:-3] = ["..."]
            message = f"the calls form a cycle: {' -> '.join(shown)}"
            waits = self._waiting(cycle)
            if waits:
                message += f"; {waits} trains a model, and waits for all other calls of it"
            call = self._calls[cycle[0]]
            self._problems.add((*call.path, "reads"), message)

    def _waiting(self, cycle: list[str]) -> str:
        """The call of the cycle that reads no value of the one before it, but waits for it."""
        for before, name in zip([cycle[-1], *cycle], cycle):
            if not {*self._calls[before].written_values} & {*self._calls[name].read_values}:
                return repr(name)
        return ""

    def _check_uses(self) -> None:
        """Note values that nobody reads, and calls that lead to nothing; not where another mistake explains it.

        Of calls that lead to nothing the last is noted; those before it lead to it.
        """
        if not all(call.reads_fit for call in self._calls.values()):
            return
        read = {value for call in self._calls.values() for value in call.read_values}
        for call in self._calls.values():
            if call.name in self._lost or not call.writes_fit:
                continue
            unread = {v: place for v, place in self._unread(call, read) if v not in self._explained}
            if call.is_end or any(value in read for value in call.written_values):
                for value, place in unread.items():
                    what = f"nothing reads {value!r}, which {call.name!r} writes"
                    self._problems.add(place, f"{what}; leave it out of 'writes'")
            elif call.interface is not None and len(unread) == len(call.written_values):
                what = (
                    f"nothing reads what it writes ({listing(unread)})"
                    if unread
                    else "it writes nothing"
                )
                message = f"{call.name!r} leads to no training or evaluation: {what}"
                self._problems.add(call.path, message, key=True)

    def _unread(self, call: Call, read: set[str]) -> Iterator[tuple[str, Path]]:
        for value, place in call.writes.values():
            if value not in read and self._writer[value] is call:
                yield value, place


def _rule(name: str) -> LengthRule | None:
    return LENGTHS.get(name) if name in LENGTHS else None
