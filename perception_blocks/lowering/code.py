"""Modules as straight-line code over their live parameters: what is written, by rules, and what guards it.

A rule says what one class of modules computes. It is followed only where calling the module does nothing else (see
`is_plain`); every other module is called as it is. Code is right as long as its `Guard` sees nothing new: whoever runs
the code looks there first. Parameters, buffers and ``training`` are read when the code runs.

The text contains only identifiers that are numbered here; names from a spec stay in the constants.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from perception_blocks.base_block import is_built_in
from perception_blocks.direct import is_plain

__all__ = ["Code", "Guard", "children", "fresh", "is_ordinary", "rule"]

Rule = Callable[..., "str | None"]

# By class, its rule and the forward that this is about: a class may be given another one.
_RULES: dict[type[nn.Module], tuple[Rule, Callable[..., object]]] = {}
# Classes whose output is a new tensor that no gradient needs: what follows may be computed in place.
_FRESH: set[type[nn.Module]] = set()

# Classes of parameters whose operations are torch's own; sharded and quantised ones say themselves what happens.
_ORDINARY = frozenset({nn.Parameter, Tensor, type(None)})

_forward_of = operator.attrgetter("forward")

GLOBAL_HOOKS = (
    torch_module._global_forward_pre_hooks,
    torch_module._global_forward_hooks,
    torch_module._global_backward_pre_hooks,
    torch_module._global_backward_hooks,
)


def rule(*classes: type[nn.Module], fresh: bool = False) -> Callable[[Rule], Rule]:
    """Register ``write(code, module, *inputs) -> expression`` for exactly these classes.

    It may return None where it has nothing to say; the class's own forward is then run. ``fresh`` promises that the
    result is a new tensor that the backward pass does not read.
    """

    def register(write: Rule) -> Rule:
        for cls in classes:
            _RULES[cls] = write, cls.forward
            if fresh:
                _FRESH.add(cls)
        return write

    return register


def children(module: nn.Module) -> list[nn.Module]:
    return [child for child in module._modules.values() if child is not None]


def fresh(module: nn.Module) -> bool:
    """Whether what ``module`` returns may be overwritten."""
    cls = type(module)
    return cls in _FRESH and _rule_of(cls) is not None and is_ordinary(module, cls)


def _rule_of(cls: type[nn.Module]) -> Rule | None:
    """The rule of a class, if the class still has the forward that the rule was written for."""
    write, forward = _RULES.get(cls, (None, None))
    return write if cls.forward is forward else None


def is_ordinary(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether calling ``module`` does nothing but run the forward of ``cls``, over parameters of torch's own class."""
    parameters = module._parameters.values()
    return is_plain(module, cls) and _ORDINARY.issuperset(map(type, parameters))


class Guard:
    """What code takes for granted: modules without hooks, parameters of torch's own class, and everywhere the class,
    its forward, the attributes and children that it met.
    """

    def __init__(self) -> None:
        self._plain: dict[nn.Module, None] = {}
        self._parents: dict[nn.Module, None] = {}
        self._hooked: dict[nn.Module, None] = {}

    def watch_hooks(self, module: nn.Module) -> None:
        """Code calls ``module`` because it has hooks: without them it could run it."""
        if any(_hooks(module)):
            self._hooked[module] = None

    def watch(self, module: nn.Module) -> None:
        """Code runs ``module`` itself: hooks, another class or another forward would be missed."""
        self._plain[module] = None

    def watch_children(self, module: nn.Module) -> None:
        """Code went on to the children of ``module``: others in their place would be missed."""
        self._parents[module] = None

    def write(self, code: Code) -> str:
        """The expression that is true where something has changed; it costs about as much as one small operation."""
        hooks = [hooks for module in self._plain for hooks in _hooks(module)]
        # A forward or a compiled call put on an instance is an attribute more.
        attributes = [vars(module) for module in self._plain]
        modules, families = [*self._plain], [module._modules.values() for module in self._parents]
        tensors = [module._parameters.values() for module in modules if module._parameters]
        classes = [*dict.fromkeys(map(type, modules))]
        parts = [
            *map(len, attributes),
            *map(type, modules),
            *map(_forward_of, classes),
            *itertools.chain(*families),
        ]
        every = code.constant(itertools.chain.from_iterable)
        seen = ", ".join(
            [
                f"*map(len, {code.constant(attributes)})",
                f"*map(type, {code.constant(modules)})",
                f"*map({code.constant(_forward_of)}, {code.constant(classes)})",
                f"*{every}({code.constant(families)})",
            ]
        )
        hooked = code.constant((*hooks, *GLOBAL_HOOKS))
        changed = f"any({hooked}) or [{seen}] != {code.constant(parts)}"
        if tensors:
            kinds = f"map(type, {every}({code.constant(tensors)}))"
            changed += f" or not {code.constant(_ORDINARY.issuperset)}({kinds})"
        if not self._hooked:
            return changed
        still = code.constant([tuple(_hooks(module)) for module in self._hooked])
        return f"{changed} or not all(map(any, {still}))"

    def changed(self) -> Callable[[], bool]:
        """A function that says whether something has changed."""
        code = Code()
        return code.function(f"def run(): return {self.write(code)}\n")


def _hooks(module: nn.Module) -> Iterable[dict]:
    yield module._forward_pre_hooks
    yield module._forward_hooks
    yield module._backward_pre_hooks
    yield module._backward_hooks


class Code:
    """Lines of one function, its constants (k) and its variables (v)."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.constants: dict[str, object] = {}
        self.guard = Guard()
        self.called: dict[nn.Module, None] = {}  # what runs through its own call
        self._names: dict[int, str] = {}
        self._count = 0

    def constant(self, value: object) -> str:
        """The name of ``value`` itself, the same each time."""
        if id(value) not in self._names:
            name = f"k{len(self.constants)}"
            self._names[id(value)] = name
            self.constants[name] = value  # which keeps it, and so its id
        return self._names[id(value)]

    def variable(self, expression: str) -> str:
        """A name for what ``expression`` is: a new one, unless it is a name."""
        if expression.isidentifier():
            return expression
        (name,) = self.variables(1)
        self.lines.append(f"{name} = {expression}")
        return name

    def variables(self, count: int) -> list[str]:
        """New names without a value."""
        first, self._count = self._count, self._count + count
        return [f"v{number}" for number in range(first, first + count)]

    def call(self, function: Callable[..., object], *arguments: str) -> str:
        return f"{self.constant(function)}({', '.join(arguments)})"

    def mapping(self, values: Mapping[str, str]) -> str:
        """A dict display of ``values``, which are expressions."""
        return (
            f"{{{', '.join(f'{self.constant(name)}: {value}' for name, value in values.items())}}}"
        )

    def parameter(self, module: nn.Module, name: str) -> str:
        """The parameter, or None, that ``module`` has when the code runs."""
        return f"{self.constant(module._parameters)}[{self.constant(name)}]"

    def buffer(self, module: nn.Module, name: str) -> str:
        return f"{self.constant(module._buffers)}[{self.constant(name)}]"

    def training(self, module: nn.Module) -> str:
        return f"{self.constant(module)}.training"

    def attribute(self, module: nn.Module, name: str) -> str:
        """The plain attribute that ``module`` has when the code runs."""
        return f"{self.constant(vars(module))}[{self.constant(name)}]"

    def child(self, module: nn.Module, name: str) -> nn.Module:
        """A child that the code runs."""
        self.guard.watch_children(module)
        child = module._modules[name]
        assert child is not None
        return child

    def list_of(self, module: nn.Module, name: str) -> list[nn.Module]:
        """The modules in the ModuleList or Sequential ``name`` of ``module``."""
        holder = self.child(module, name)
        self.guard.watch_children(holder)
        return children(holder)

    def apply(self, module: nn.Module, *inputs: str) -> str:
        """The expression of what ``module`` makes of ``inputs``: by its rule, its class's forward, or its call."""
        cls = type(module)
        if not self.runs(module):
            return self.call_as_it_is(module, *inputs)
        inputs = tuple(map(self.variable, inputs))
        follow = _rule_of(cls)
        written = None if follow is None else follow(self, module, *inputs)
        return self.forward_of(module, *inputs) if written is None else written

    def runs(self, module: nn.Module) -> bool:
        """Whether the code may run what the class of ``module`` computes; it is then guarded."""
        cls = type(module)
        known = (
            cls in _RULES or is_built_in(module) or cls.__module__.startswith("torch.nn.modules.")
        )
        if not known or cls.__call__ is not nn.Module.__call__:
            return False
        if not is_ordinary(module, cls):
            self.guard.watch_hooks(module)
            return False
        self.guard.watch(module)
        return True

    def forward_of(self, module: nn.Module, *arguments: str) -> str:
        """The forward of its class, without the call around it."""
        return self.call(type(module).forward, self.constant(module), *arguments)

    def calls(self, module: nn.Module) -> None:
        """Note that ``module`` runs through its own call."""
        self.called[module] = None

    def call_as_it_is(self, module: nn.Module, *arguments: str) -> str:
        self.calls(module)
        return f"{self.constant(module)}({', '.join(arguments)})"

    def function(self, source: str) -> Callable[..., Any]:
        """The function ``run`` that ``source`` defines."""
        namespace: dict[str, Any] = self.constants
        exec(compile(source, "<lowered network>", "exec"), namespace)
        return namespace["run"]
