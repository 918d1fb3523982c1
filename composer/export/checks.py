"""Reasons against an export, in words, before anything is traced."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from composer.export.values import AnyCritic, ExportPart, roots_of
from composer.network.groups import SeparateNetworks
from composer.policy.structured import AnyPolicy
from perception_blocks.base_block import PerceptionBlock, block_name
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.words import as_module_name

__all__ = ["argument_problems", "model_problems"]

PARTS: dict[str, str] = {
    "policy": "logits and the deterministic action",
    "critic": "values",
    "model": "both",
}
LARGEST_ONNX = 2**31  # bytes; a limit of protobuf


def argument_problems(part: str, unroll: object, critic: AnyCritic | None) -> Iterator[str]:
    """The errors in the arguments of an export."""
    if part not in PARTS:
        known = ", ".join(f"{name!r} ({what})" for name, what in PARTS.items())
        yield f"part is one of {known}, got {part!r}"
    elif part != "policy" and critic is None:
        yield f"part={part!r} needs a critic, and the spec has none"
    if unroll is not None and (
        not isinstance(unroll, int) or isinstance(unroll, bool) or unroll < 1
    ):
        yield f"unroll is a number of steps, got {unroll!r}"


def model_problems(
    policy: AnyPolicy, critic: AnyCritic | None, part: ExportPart, suffix: str
) -> Iterator[str]:
    """Why ``part`` of a model cannot be in a file that ends in ``suffix``."""
    roots = roots_of(policy, critic, part)
    tensors = [t for root in roots.values() for t in (*root.parameters(), *root.buffers())]
    if any(tensor.is_meta for tensor in tensors):
        yield "the model has no weights yet; call materialize first"
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if suffix == ".onnx" and size >= LARGEST_ONNX:
        yield f"{size / 2**30:.1f} GiB of weights do not fit into an .onnx file; write a .pt2 file"
    if "policy" in roots:
        yield from _own_python(policy)
    if critic is not None:
        yield from critic.export_problems()
    for name, root in roots.items():
        yield from _limits(name, root)
        yield from _unsafe_names(name, root)


def _own_python(policy: AnyPolicy) -> Iterator[str]:
    """Methods of users' classes that decide in Python."""
    owners: dict[str, dict[str, str]] = {}
    for each in policy.policies.values():
        for method, what in (("act", "how it acts"), ("preprocess", "what it reads")):
            if each.users_own(method) is not None:
                owners.setdefault(type(each.network.module).__name__, {})[method] = what
    for owner, methods in owners.items():
        for method, what in methods.items():
            yield f"{owner!r} defines {method}(), which decides {what} and is Python that no file holds"


def _unsafe_names(name: str, root: nn.Module) -> Iterator[str]:
    """Tensors of users' classes whose names PyTorch's exporter cannot write into code."""
    for path, module in root.named_modules(prefix=name):
        for label in (*module._parameters, *module._buffers):
            if as_module_name(label) != label:
                yield (
                    f"{path!r} ({type(module).__qualname__}) calls a tensor {label!r}; exporters generate code with "
                    "that name, so leave quotes, backslashes and control characters out of it"
                )


def _limits(name: str, root: nn.Module) -> Iterator[str]:
    """Blocks whose ``limits`` say that they cannot be exported."""
    for path, module in root.named_modules(prefix=name):
        if isinstance(module, PerceptionBlock) and "export" in module.limits:
            yield f"{path!r} is a block {block_name(module)!r}, which cannot: {module.limits['export']}"
        # What is stacked has no children.
        ensemble = module.ensemble if isinstance(module, SeparateNetworks) else module
        if isinstance(ensemble, EnsembleBlock):
            yield from _limits(path, ensemble.network)
