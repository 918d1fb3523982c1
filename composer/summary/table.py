"""A model as a table: its nodes, their sizes and costs, and what policy and critic share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from composer.network.module import NetworkModule
from composer.policy.policy import Policy
from composer.source.load import TEXT_NAME
from composer.spec.model_spec import ModelSpec
from composer.summary.layout import aligned, fitted, styled
from composer.summary.networks import networks_by_name, served_actors, short_name, target_of
from composer.summary.rows import Row, distribution_name, read_rows
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import Shape, format_shape
from perception_blocks.words import printable, readable, wrapped

__all__ = ["Head", "Summary", "percent", "summarize"]

LONGEST = 60  # characters of a name
LONGEST_LINE = 2_000


@dataclass(frozen=True)
class Head:
    """One output of a network: ``distribution`` turns a policy's logits into an action, ``mask`` is an observation."""

    network: str
    name: str
    shape: Shape
    distribution: str | None = None
    mask: str | None = None
    shared: bool = False  # a value that the policy hands to the critic
    note: str = ""  # what a critic's value is made of

    @property
    def meaning(self) -> str:
        if self.shared:
            return "shared with the critic"
        if self.note:
            return self.note
        masked = f", masked by {self.mask!r}" if self.mask else ""
        return (self.distribution or "") + masked


@dataclass(frozen=True)
class Summary:
    """``str(summary)`` is a table, the same bytes for the same model; the fields have its contents as data."""

    rows: tuple[Row, ...]
    heads: tuple[Head, ...]
    parameters: int
    flops: int | None  # of one observation; None where those of some row are not known
    wrappers: tuple[str, ...]  # around the policy by the spec's `wrap`, the first one innermost
    remarks: tuple[str, ...]  # why copies are not batched, what the critic reads, who may see what

    def row(self, *path: str) -> Row:
        """The row at ``path``. Raises KeyError."""
        for row in self.rows:
            if row.path == path:
                return row
        raise KeyError("/".join(path))

    @property
    def by_network(self) -> dict[str, int]:
        """Parameters of policy and critic; what both use belongs to the policy."""
        networks = dict.fromkeys(head.network for head in self.heads if head.network)
        return {
            name: sum(row.parameters for row in self.rows if row.path[0] == name)
            for name in networks
        }

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int | None = None, color: bool = False) -> str:
        """The table in lines of at most ``width`` characters (None: as long as they are).

        Where the columns do not fit, notes stand below their node; then shares, inputs' shapes and FLOPs are left out.
        ``color`` adds a terminal's escape sequences: bold headings and networks, dim notes.
        """
        file = _file_of(self.rows)
        table = fitted([_cells(row, file) for row in self.rows], width)
        below = [(line, "") for line in self._below_the_table(file, width)]
        lines = [(readable(line.rstrip(), LONGEST_LINE), style) for line, style in table + below]
        return "\n".join(styled(line, style if color else "") for line, style in lines)

    def _below_the_table(self, file: str, width: int | None) -> list[str]:
        counts = self.by_network.items()
        networks = ", ".join(f"{printable(name, LONGEST)} {count:,}" for name, count in counts)
        flops = "not known for every row" if self.flops is None else f"{self.flops:,}"
        lines = [
            "",
            f"parameters  {self.parameters:,}" + (f" ({networks})" if ", " in networks else ""),
            f"FLOPs       {flops} for one observation",
        ]
        lines += [f"spec        {file}"] if file not in ("", TEXT_NAME) else []
        if self.heads:
            lines += ["", *aligned(["output", "shape", ""], list(map(_head_cells, self.heads)))]
        if self.remarks:
            lines += ["", *self.remarks]
        return [part for line in lines for part in wrapped(line, width)]


def summarize(net: nn.Module) -> Summary:
    """The summary of a Model, a Policy, a Critic, an InferenceBlock or any other module.

    Nothing is allocated and ``net`` does not change: FLOPs are counted on tensors without data.
    """
    rows = read_rows(net)
    modules = networks_by_name(net)
    heads = [head for name, module in modules.items() for head in _heads(name, module)]
    if isinstance(net, InferenceBlock):
        heads = [Head("", name, port.shape) for name, port in net.out_ports.items()]
    wrappers = _wrappers(net)
    counts = [row.flops for row in rows]
    known = [count for count in counts if count is not None]
    return Summary(
        rows=tuple(rows),
        heads=tuple(heads),
        parameters=sum(row.parameters for row in rows),
        flops=sum(known) if len(known) == len(counts) else None,
        wrappers=wrappers,
        remarks=(
            *_acting(net),
            *([f"the policy acts in the wrappers {', '.join(wrappers)}"] if wrappers else []),
            *_looped(rows),
            *_shared(modules),
            *_drawn_in_order(modules),
            *_targets(net),
            *_frozen(net),
            *_scaled(net),
            *_visible(net, modules),
        ),
    )


def percent(share: float) -> str:
    """
    >>> percent(0.0001), percent(0.004), percent(0.5)
    ('<0.1 %', '0.4 %', '50.0 %')
    """
    return "<0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def _heads(network: str, module: NetworkModule) -> list[Head]:
    heads = []
    for name, meaning in module.output_meanings().items():
        family = meaning.distribution
        kind = None if family is None else distribution_name(family)
        shape = meaning.port.shape
        heads.append(
            Head(network, name, shape, kind, meaning.mask, meaning.is_shared, meaning.note)
        )
    return heads


def _targets(net: nn.Module) -> list[str]:
    """The copy of a critic that is not trained."""
    target = target_of(net)
    if target is None:
        return []
    count = sum(p.numel() for p in target.parameters())
    return [
        f"the critic has a target copy of as many parameters ({count:,}); update_targets(tau) moves it"
    ]


def _frozen(net: nn.Module) -> list[str]:
    """How many parameters are trained, if not all of them are, as with LoRA."""
    target = target_of(net)
    copied = set() if target is None else set(target.parameters())
    sizes = [(p.requires_grad, p.numel()) for p in net.parameters() if p not in copied]
    count, trained = (
        sum(size for _, size in sizes),
        sum(size for is_trained, size in sizes if is_trained),
    )
    if trained == count:
        return []
    return [f"{trained:,} of {count:,} parameters are trained, the others are frozen"]


def _scaled(net: nn.Module) -> list[str]:
    """The factors of learning rates, and the files that first weights are from."""
    spec = getattr(net, "spec", None)
    if not isinstance(spec, ModelSpec):
        return []
    scales = [f"{path} by {scale:g}" for path, scale in spec.learning_rate_scale.items()]
    files = [f"{path} begins with {file!r}" for path, file in spec.weights.items()]
    return [*([f"learning rates are scaled: {', '.join(scales)}"] if scales else []), *files]


def _acting(net: nn.Module) -> list[str]:
    """The actors of each network, and why some networks run one after the other."""
    return [
        f"{name} {'is' if name.startswith('critic') else 'acts'} {served.words()}"
        + (f"; they run one by one: {served.why_looped}" if served.why_looped else "")
        for name, served in served_actors(net).items()
    ]


def _wrappers(net: nn.Module) -> tuple[str, ...]:
    spec = getattr(net, "spec", None)
    wrap = spec.policy.wrap if isinstance(spec, ModelSpec) else ()
    return tuple(entry if isinstance(entry, str) else next(iter(entry)) for entry in wrap)


def _looped(rows: Sequence[Row]) -> list[str]:
    """Why the copies of some ensembles run one after the other."""
    return [
        f"the copies of {'/'.join(row.path)!r} run one by one: {row.why_looped}"
        for row in rows
        if row.why_looped
    ]


def _shared(modules: Mapping[str, NetworkModule]) -> list[str]:
    return [
        f"the {name} reads of the policy: {_names(module.shared)}"
        for name, module in modules.items()
        if module.shared
    ]


def _drawn_in_order(modules: Mapping[str, NetworkModule]) -> list[str]:
    """The heads that read what other heads have drawn."""
    return [
        f"the {name} draws {head!r} after {_names(actions)}, which it reads"
        for name, module in modules.items()
        for head, actions in module.network.after.items()
    ]


def _visible(net: nn.Module, modules: Mapping[str, NetworkModule]) -> list[str]:
    """The observations of policy and critic, if they differ."""
    spec = getattr(net, "spec", None)
    policy, critic = modules.get("policy"), modules.get("critic")
    if not isinstance(spec, ModelSpec) or not isinstance(policy, Policy) or critic is None:
        return []
    everything = tuple(policy.observer.tree.ports)
    seen = {}
    for name, part in (("policy", spec.policy), ("critic", spec.critic)):
        network = part.networks.get(None) if part is not None else None
        given = network.observations if network is not None else None
        seen[name] = everything if given is None else given
    if set(seen["policy"]) == set(seen["critic"]):
        return []
    return [f"the {name} may see: {_names(keys)}" for name, keys in seen.items()]


def _names(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"


# --- the table --------------------------------------------------------------------------------------------------------


def _file_of(rows: Sequence[Row]) -> str:
    """The file in which most rows stand; empty where no row stands in a file."""
    files = Counter(row.position.rsplit(":", 2)[0] for row in rows if row.position)
    return files.most_common(1)[0][0] if files else ""


def _cells(row: Row, file: str) -> dict[str, str]:
    """A row's text for each column; the places in ``file`` without its name."""
    return {
        "node": "  " * row.depth + printable(row.name, LONGEST),
        "block": row.block,
        "shape": row.shapes,
        "results": row.results,
        "parameters": f"{row.parameters:,}" if row.parameters else "",
        "share": percent(row.share) if row.parameters else "",
        "FLOPs": "?" if row.flops is None else f"{row.flops:,}" if row.flops else "",
        "notes": row.notes,
        "line": (row.position or "").removeprefix(f"{file}:"),
    }


def _head_cells(head: Head) -> list[str]:
    name = printable(short_name(head.network, head.name), LONGEST)
    return [name, format_shape(head.shape), head.meaning]
