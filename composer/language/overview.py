"""An action model, a `composer.language.ActionModel`, as a table and as a picture."""

from __future__ import annotations

from typing import Any

from torch import nn

from composer.diagram.picture import Box, Frame, Picture
from composer.summary.layout import aligned
from composer.summary.table import percent
from perception_blocks.blocks.lora import adapter_names
from perception_blocks.dag import Dag, DagNode

__all__ = ["picture_of", "summary_of", "why_no_processor"]


def summary_of(model: Any) -> str:
    """Parts of the model, each with its class, parameters and what of them is trained."""
    parts = [*model.hf.named_children(), ("value_head", model.value_head)]
    rows = [(name, type(p).__name__, *_counts(p)) for name, p in parts if p is not None]
    rows.append(("all", type(model.hf).__name__, *_counts(model)))
    table = aligned(["part", "class", "parameters", "trained"], rows)
    return "\n".join([*table, "", *_remarks(model)])


def _counts(part: nn.Module) -> tuple[str, str]:
    parameters = list(part.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return f"{sum(p.numel() for p in parameters):,}", f"{trained:,}"


def _remarks(model: Any) -> list[str]:
    plan = model.plan
    inputs = ", ".join(f"{name!r} as the {kind}" for kind, name in plan.spec.inputs.items())
    actions = (
        f"{model.action_token_len} tokens of {model.bins.n_bins} bins, {model.bins.size} numbers"
    )
    chunks = f" in each of {model.chunks} chunks" if model.chunks > 1 else ""
    lines = [f"it reads {inputs}", f"an action is {actions}{chunks}"]
    if adapter_names(model.hf):
        lines.append(f"LoRA of rank {plan.spec.lora.rank} is trained, and the value head")
    lines += [f"frozen: {', '.join(plan.spec.freeze)}"] if plan.spec.freeze else []
    if model.value_head is None:
        lines.append("there is no value head: values are zeros")
    if model.processor is None:
        lines.append(why_no_processor(model))
    return [*lines, f"attention: {plan.attention}, {str(plan.dtype).removeprefix('torch.')}"]


def why_no_processor(model: Any) -> str:
    """Why ``model`` cannot read observations, with the ways out."""
    plan = model.plan
    advice = "register_hf takes one"
    if plan.folder is None and plan.entry.processor is not None:
        name = plan.entry.processor.__name__
        advice = f"give {name!r} a from_config(config), which makes one without a model_path"
    return (
        f"the model type {plan.spec.model_type!r} has no processor; {advice}, or call predict_tokens "
        "with input_ids"
    )


def picture_of(model: Any) -> Picture:
    """Observations, processor, the library's module, value head, bins and action."""
    whole = sum(p.numel() for p in model.parameters())

    def module(title: str, part: nn.Module, *lines: str) -> Box:
        share = sum(p.numel() for p in part.parameters()) / max(1, whole)
        counts = f"{_counts(part)[0]} parameters, {percent(share)}"
        return Box("opaque", title, (*lines, counts), share, frame="policy")

    spec, bins = model.plan.spec, model.bins
    boxes: dict[str, Box] = {}
    for kind, name in spec.inputs.items():
        boxes[f"input_{kind}"] = Box("input", name, (kind,))
    reads = tuple(boxes)
    nodes = [DagNode("processor", reads), DagNode("hf", ("processor",))]
    processor = "none" if model.processor is None else type(model.processor).__name__
    boxes["processor"] = Box("block", "processor", (processor, "tokens and pixels"), frame="policy")
    adapters = f"LoRA, rank {spec.lora.rank}" if spec.lora and adapter_names(model.hf) else ""
    kind = f"{spec.model_type}, {type(model.hf).__name__}"
    boxes["hf"] = module("hf", model.hf, kind, *filter(None, [adapters]))
    nodes.append(DagNode("bins", ("hf",)))
    boxes["bins"] = Box(
        "block", "bins", (f"{model.action_token_len} tokens of {bins.n_bins}",), frame="policy"
    )
    nodes.append(DagNode("action", ("bins",)))
    boxes["action"] = Box("output", "action", (f"({model.chunks}, {bins.size})",))
    if model.value_head is not None:
        nodes += [DagNode("value_head", ("hf",)), DagNode("value", ("value_head",))]
        boxes["value_head"] = module("value_head", model.value_head, "last token of the prompt")
        boxes["value"] = Box("output", "value", ("(1,)",))
    frame = Frame("policy", f"{whole:,} parameters", network=True)
    return Picture(
        Dag(nodes, reads, None), boxes, {"policy": frame}, caption=f"{whole:,} parameters"
    )
