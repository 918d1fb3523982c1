"""The two base classes of blocks: `PerceptionBlock`, and `MemoryBlock` for those that carry a state.

A block is an ``nn.Module`` over tensors whose shapes are fixed when it is built. Shapes leave out leading axes (batch,
time): a stateless block treats any number of them alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from perception_blocks.hidden import HiddenRecorder
from perception_blocks.init import Rule, draw_parameters
from perception_blocks.measure import measure_lengths, output_shapes
from perception_blocks.port import InputShapeError, Port, Shape, Shapes, as_port, as_shape
from perception_blocks.registry import BLOCKS
from perception_blocks.settings import SettingsError, check_settings
from perception_blocks.trial_copy import trial_copy

__all__ = [
    "InputShapeError",
    "MemoryBlock",
    "PerceptionBlock",
    "State",
    "block_label",
    "block_name",
    "is_built_in",
    "is_torchs",
]
__all__ += ["first_output", "one_input", "one_vector"]

State = Mapping[str, Tensor]


def block_name(block: object) -> str:
    """The registered name of a block class or instance, else its path in ``torch.nn``, else the name of its class.

    >>> block_name(torch.nn.ReLU())
    'torch.nn.ReLU'
    """
    cls = block if isinstance(block, type) else type(block)
    name = BLOCKS.name_of(cls)
    if name is None:
        name = f"torch.nn.{cls.__name__}" if _is_in(cls, "torch.nn") else cls.__name__
    return name


def block_label(block: object) -> str:
    """How messages call a block class or instance: ``block 'dense'``."""
    return f"block {block_name(block)!r}"


def is_built_in(block: object) -> bool:
    """Whether a block class or instance comes with this package; others are a user's, a plugin's or torch's."""
    cls = block if isinstance(block, type) else type(block)
    return _is_in(cls, "perception_blocks")


def is_torchs(block: object) -> bool:
    """Whether a module class or instance is torch's own."""
    return _is_in(block if isinstance(block, type) else type(block), "torch")


def _is_in(cls: type, package: str) -> bool:
    return cls.__module__.startswith(f"{package}.")


def one_input(in_shapes: Shapes, name: str) -> Shape:
    """The shape of the only input of block ``name``. Raises InputShapeError where there are more, or none."""
    if len(in_shapes) != 1:
        got = {index: as_port(shape) for index, shape in enumerate(in_shapes)}
        advice = "put a concat block before it" if in_shapes else "name its input"
        deep = [index for index, port in got.items() if len(port.shape) > 1]
        if deep and len({port.shape[:-1] for port in got.values()}) > 1:
            after = " and ".join(f"{{{index}}}" for index in deep)
            advice = f"put a flatten block after {after}, and a concat block before it"
        raise InputShapeError(f"{name} takes one input", got, advice)
    return as_shape(in_shapes[0])


def one_vector(in_shapes: Shapes, name: str) -> int:
    """The number of features of the only input of block ``name``, which must be a vector of known size."""
    shape = one_input(in_shapes, name)
    if len(shape) != 1:
        raise InputShapeError(
            f"{name} takes one vector (features,)", {0: shape}, "put a flatten block before it"
        )
    if shape[0] is None:
        raise InputShapeError(f"{name} needs to know how many features it reads", {0: shape})
    return shape[0]


class PerceptionBlock(nn.Module):
    """Base of every block: tensors in, a tensor or a tuple of tensors out.

    A subclass takes ``in_shapes`` first and its settings as keywords with defaults. Settings are checked against their
    annotations before ``__init__`` runs (SettingsError). A subclass either passes its ``out_shapes`` to this class, or
    they are inferred by running ``forward`` once on tensors without data.

    >>> class Double(PerceptionBlock):
    ...     def forward(self, x_F):
    ...         return torch.cat([x_F, x_F], dim=-1)
    >>> Double([(3,)]).out_shapes
    [(6,)]
    """

    # Settings that the graph fills from the input's Port when left out.
    from_ports: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[Literal["float", "integer", "any"]] = "float"  # what its inputs must be
    limits: ClassVar[Mapping[str, str]] = {}  # what it cannot do, and why: {"export": "reason"}
    drawn_buffers: ClassVar[tuple[str, ...]] = ()  # drawn like parameters, and never trained
    # Argument of forward -> the input whose mask it takes; the graph fills it in.
    mask_of: ClassVar[Mapping[str, int]] = {}
    mask_free: ClassVar[tuple[int, ...]] = ()  # inputs whose mask does not matter to it
    keeps_mask: bool = False  # the output has an element for each of the first input's
    state_shapes: Mapping[str, tuple[int, ...]] = {}  # filled by blocks with memory
    initializer: Rule | None = None  # set by a node's `init:`
    # Settings by which a saved spec knows the block's node (null: not set), among them the names of what is read once;
    # and what the node says instead of these and of `checkpoint`, so that what was read may be gone.
    read_once: tuple[Mapping[str, object], Mapping[str, object]] | None = None

    def __new__(cls, in_shapes: object = None, *args: object, **settings: object) -> Self:
        if in_shapes is not None:  # None: a copy or an unpickled block, whose settings were checked
            problems = check_settings(cls, settings, block_label(cls), partial=bool(args))
            if problems:
                raise SettingsError(problems)
        return super().__new__(cls)

    def __init__(self, in_shapes: Shapes, *, out_shapes: Shapes | None = None) -> None:
        super().__init__()
        outs = None if out_shapes is None else [tuple(shape) for shape in out_shapes]
        ins = [as_shape(shape) for shape in in_shapes]
        vars(self).update(in_shapes=ins, _out_shapes=outs)  # torch's assignment looks for modules

    in_shapes: list[Shape]
    _out_shapes: list[Shape] | None

    @property
    def out_shapes(self) -> list[Shape]:
        """Shapes of the outputs, without leading axes."""
        if self._out_shapes is None:
            self._out_shapes = self._measured_shapes()
        return self._out_shapes

    @classmethod
    def check_ports(cls, in_ports: Sequence[Port]) -> None:
        """Raise InputShapeError if an input has the wrong kind; called before the block is built.

        Quantities do not go where integers are embedded, integers not where quantities are multiplied, and nothing is
        scaled silently: a value of a uint8 space goes through scale_image, which knows its bounds.
        """
        for index, port in enumerate(in_ports):
            if cls.takes == "integer" and not port.is_integer:
                rule = "takes integers that stand for choices"
                advice = "numbers, also the integers of a Box, go straight into a dense block; "
                advice += "choices come from a Discrete or MultiDiscrete space"
            elif cls.takes == "float" and port.is_integer:
                rule = "takes numbers, not integers"
                advice = "put a one_hot or embedding block before it"
            elif cls.takes == "float" and port.dtype == torch.uint8:
                rule, advice = "takes scaled numbers", "put a scale_image block before it"
                if port.low is None:  # it is made of several values, whose bounds are not its own
                    advice = (
                        "put a scale_image block after each uint8 observation that it is made of"
                    )
            else:
                continue
            raise InputShapeError(f"{block_name(cls)} {rule}", {index: port}, advice)

    def out_ports(self, in_ports: Sequence[Port]) -> list[Port]:
        """The Ports of the outputs for the inputs ``in_ports``; floats unless a block overrides this."""
        return [Port(shape) for shape in self.out_shapes]

    def take_initializer(self, rule: Rule) -> None:
        """Draw weights by ``rule`` from now on. Raises SettingsError where a block's weights are not drawn."""
        self.initializer = rule

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise all weights again from ``generator`` (torch's global one if None), each by its name."""
        draw_parameters(self, seed_from(generator), self.initializer)

    def draw_parameter(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        """Fill a parameter (or drawn buffer) of this block itself, not of its layers; else it is left as built."""

    def adjust_parameters(self) -> None:
        """Called under no_grad after all weights were drawn, to scale or set some of them."""

    def names_in_file(self, names: Iterable[str]) -> Mapping[str, str]:
        """By this block's tensors: those of the ``names`` in a file that another library has written for them."""
        return {}

    def hidden_values(self, inputs: Sequence[Any]) -> dict[str, Tensor]:
        """What each inner layer gives after its activation, by the layer's path: ``{"linears.0": (..., units)}``.

        ``inputs`` are the arguments of forward, which runs on a copy of the block in eval mode, without gradient. The
        layer whose activation gives the block's output itself is left out: that is no hidden value. So a block of one
        layer, or of none, gives {}. Of a layer that runs several times, as over several episodes, it is the last time.
        A block whose layers are not seen may override this.

        >>> from perception_blocks import DenseBlock
        >>> hidden = DenseBlock([(3,)], hidden_units=[8, 4]).hidden_values([torch.zeros(5, 3)])
        >>> {layer: tuple(value.shape) for layer, value in hidden.items()}
        {'linears.0': (5, 8)}
        """
        trial = trial_copy(self, lambda tensor: tensor).eval()
        recorder = HiddenRecorder(trial)
        with torch.no_grad():
            output = trial(*inputs)
        return {hidden.layer: hidden.value for hidden in recorder.take(first_output(output))}

    def fill_constants(self) -> None:
        """Write the values of buffers that no checkpoint holds; called whenever the block moved or changed dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.fill_constants()  # so that they survive a stay on the meta device
        return self

    def _measured_shapes(self) -> list[Shape]:
        dtype = torch.int64 if self.takes == "integer" else torch.float32
        results = measure_lengths(self, [Port(shape, dtype=dtype) for shape in self.in_shapes])
        return output_shapes(results, block_label(self))[0]

    def extra_repr(self) -> str:
        return f"in_shapes={self.in_shapes}"


class MemoryBlock(PerceptionBlock):
    """Base of blocks that carry a state from step to step.

    A subclass sets ``state_shapes`` (name -> shape, no leading axes) and defines ``advance(x, state)``, which returns
    (output, state), for one step with leading axes (...); it may define ``scan`` for (..., T) at once where no reset
    occurs.

    ``block(x)`` is one step from a zero state and returns the output alone. ``block(x, state)`` returns
    (output, state); ``resets`` (shape of the leading axes, bool) is true at an episode's first observation and zeroes
    the state before it.
    """

    longest_episode: int | None = None  # in steps, where the state has room for no more

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        raise TypeError(f"{type(self).__name__} must define advance(x, state)")

    def scan(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """All steps of (..., T) + shape, in a loop."""
        return self._loop(x, state, None)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        resets: Tensor | None = None,
        unroll: bool = False,
    ) -> Tensor | tuple[Tensor, State]:
        if state is None:
            return self.advance(x, self.zero_state(x))[0]
        if not unroll:
            return self.advance(x, zeroed(state, self.state_shapes, resets))
        return self.scan(x, state) if resets is None else self._scan_episodes(x, state, resets)

    def step(self, x: Tensor, state: State, resets: Tensor | None = None) -> tuple[Tensor, State]:
        """One step: x (...) + shape, state (...) + its shapes."""
        return self(x, state, resets)

    def unroll(self, x: Tensor, state: State, resets: Tensor | None = None) -> tuple[Tensor, State]:
        """All steps: x (..., T) + shape, state (...) + its shapes, resets (..., T)."""
        return self(x, state, resets, unroll=True)

    def initial_state(
        self,
        *leading: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        shapes = self.state_shapes.items()
        return {n: torch.zeros(*leading, *shape, device=device, dtype=dtype) for n, shape in shapes}

    def zero_state(self, x: Tensor) -> dict[str, Tensor]:
        """The zero state for the leading axes, dtype and device of ``x``."""
        leading = x.shape[: x.dim() - len(self.in_shapes[0])]
        return {n: x.new_zeros((*leading, *shape)) for n, shape in self.state_shapes.items()}

    def _time_axis(self, x: Tensor) -> int:
        return x.dim() - len(self.in_shapes[0]) - 1

    def _loop(self, x: Tensor, state: State, resets: Tensor | None) -> tuple[Tensor, State]:
        axis = self._time_axis(x)
        outputs = []
        for t, x_t in enumerate(x.unbind(axis)):
            state = zeroed(state, self.state_shapes, None if resets is None else resets[..., t])
            output, state = self.advance(x_t, state)
            outputs.append(output)
        return torch.stack(outputs, dim=axis), state

    def _scan_episodes(self, x: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """``scan`` each stretch in which no episode begins; a loop where the host cannot look at the resets."""
        if is_traced() or resets.is_meta or capturing():
            return self._loop(x, state, resets)
        axis, length = self._time_axis(x), x.shape[self._time_axis(x)]
        starts = resets.reshape(-1, length).any(dim=0).nonzero().flatten().tolist()
        bounds = sorted({0, *starts, length})
        outputs = []
        for start, end in itertools.pairwise(bounds):
            state = zeroed(state, self.state_shapes, resets[..., start])
            output, state = self.scan(x.narrow(axis, start, end - start), state)
            outputs.append(output)
        return torch.cat(outputs, dim=axis), state


def zeroed(state: State, shapes: Mapping[str, tuple[int, ...]], resets: Tensor | None) -> State:
    """``state`` with zeros where ``resets`` (its leading axes) is true."""
    if resets is None:
        return state
    return {
        name: torch.where(resets.reshape(*resets.shape, *[1] * len(shapes[name])), 0.0, value)
        for name, value in state.items()
    }


def first_output(output: object) -> Tensor | None:
    """The first tensor of what a module returned: a tensor, a tuple of them, or (output, state)."""
    while isinstance(output, tuple) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def is_traced() -> bool:
    """Whether operations are recorded (torch.compile, torch.export) or transformed (vmap, torch.func).

    Fused recurrent kernels then have no rule, and values are not there to be looked at.
    """
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None  # type: ignore[attr-defined]


def capturing() -> bool:
    """Whether a CUDA graph is being captured, which no value may leave."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def seed_from(generator: torch.Generator | None) -> int:
    """A seed drawn from ``generator``, or from torch's global one."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))
