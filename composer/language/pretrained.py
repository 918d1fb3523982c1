"""Language models of Hugging Face's transformers, of a folder or in memory, as token policies and critics, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from composer.atomic import WriteError, new_folder
from composer.network.module import NetworkModule
from composer.network.sharded import refuse_sharded
from composer.spec.keys import PARTS
from perception_blocks.blocks.decoder import DecoderBlock
from perception_blocks.blocks.dense import LinearOutputBlock
from perception_blocks.blocks.families import (
    FAMILIES,
    HEAD,
    Family,
    FamilyError,
    complete_settings,
    family_of,
    told_settings,
)
from perception_blocks.blocks.family_folder import FamilyFolder, with_places
from perception_blocks.blocks.family_proof import register_family
from perception_blocks.blocks.family_weights import WeightMap
from perception_blocks.blocks.lora import merged_weights
from perception_blocks.inference import InferenceBlock
from perception_blocks.port import Shape
from perception_blocks.words import describe, listing

__all__ = ["FAMILIES", "FamilyError", "complete_settings", "from_hf", "register_family", "to_hf"]
__all__ += ["token_spec"]

NODE = "latent"
IGNORED = ["sequence", "sequence_mask", "action_mask"]  # of a token environment
Tensors = dict[str, Tensor]


def token_spec(decoder: Mapping[str, Any], *, is_critic: bool = False) -> dict[str, Any]:
    """The spec of a policy over tokens, or of a critic, whose body is the block `decoder` with these settings.

    The head is that of the family: logits by the weights of the embedding where the family ties them (``tied_head``),
    else a linear layer without bias; of a critic, a linear layer of width 1 without bias. The spec is for the spaces of
    a token environment. The spec of a critic has the smallest policy there is, since every spec needs one.

    Raises SettingsError where the settings are not those of a decoder, or not of its ``family``.
    """
    settings = dict(decoder)
    if settings.get("family") is not None:
        tied = complete_settings(settings["family"], settings)["tied_head"]
        settings |= {"tied_head": tied} if tied else {}
    tied = settings.pop("tied_head", False) and not is_critic
    node = {"block": "decoder", "in": "observation", **settings}
    linear = {"block": "linear_output", "in": NODE, "bias": False}
    if is_critic:
        smallest = {NODE: {"block": "embedding", "in": "observation", "embedding_dim": 1}}
        parts = {
            "policy": {"graph": smallest, "heads": {"in": NODE}},
            "critic": {"graph": {NODE: node}, "heads": {"value": linear}},
        }
    elif tied:
        same = {"block": "functional", "function": "identity", "in": NODE}
        graph = {NODE: {**node, "tied_head": True}}
        parts = {"policy": {"graph": graph, "heads": {"action": same}}}
    else:
        parts = {"policy": {"graph": {NODE: node}, "heads": {"action": linear}}}
    return {"version": 1, **parts, "ignore": list(IGNORED)}


def from_hf(
    source: str | os.PathLike[str] | nn.Module,
    *,
    is_critic: bool = False,
    init_critic_from_actor: bool = False,
    max_length: int | None = None,
) -> tuple[dict[str, Any], Tensors]:
    """A spec and its weights, from a local folder of safetensors or from a model of transformers.

    ``composer.compose(spec, observation_space=.., action_space=..)`` makes the model, of which the weights are a part
    of the ``state_dict()``: ``model.load_state_dict(tensors)``, with ``strict=False`` for a critic, whose spec has a
    small policy too. ``is_critic`` reads a classifier of sequences with one label, such as a reward model, as a critic.
    ``init_critic_from_actor`` begins a critic with the body of a language model; its values are zero at first.
    ``max_length`` reserves fewer places than the model has. Nothing is downloaded, and no code of the folder runs.

    Raises FamilyError with every tensor that is missing, too many, or of another shape; for an unknown type of model;
    and for a configuration that the block `decoder` cannot have.
    """
    if init_critic_from_actor and not is_critic:
        raise FamilyError("init_critic_from_actor is for a critic; pass is_critic=True too")
    read = _from_model if isinstance(source, nn.Module) else _from_folder
    model = read(source, max_length)  # type: ignore[arg-type]
    head = None if init_critic_from_actor else "value" if is_critic else "tokens"
    try:
        weights = WeightMap(model.family, model.settings, head, places=model.places)
        if head is None and _is_critic(model):
            raise FamilyError("it is a critic already; leave out init_critic_from_actor")
        weights.check(model.shapes)
        tensors = weights.all_converted(model.tensors)
    except FamilyError as error:
        raise FamilyError(f"{model.name}: {error}{_advice(model, head)}") from error
    if head is None:
        tensors[HEAD] = torch.zeros_like(tensors["embed_tokens.weight"][:1])
    settings = {**model.settings, "tied_head": weights.tied}
    spec = token_spec(told_settings(model.family, settings), is_critic=is_critic)
    part, head_name = ("critic", "value") if is_critic else ("policy", "action")
    names = {name: f"{part}.{NODE}.{name}" for name in tensors}
    names[HEAD] = f"{part}.heads.{head_name}.linear.weight"
    return spec, {names[name]: tensor for name, tensor in tensors.items()}


class _HfModel(NamedTuple):
    """What was read of a model; ``places`` are those of its learned positions."""

    name: str
    family: Family
    settings: dict[str, Any]
    shapes: dict[str, Shape]
    tensors: Iterable[tuple[str, Tensor]]
    places: int


def _from_folder(path: str | os.PathLike[str], max_length: int | None) -> _HfModel:
    folder = FamilyFolder(os.fspath(path), None, max_length=max_length)
    return _HfModel(
        repr(folder.path),
        folder.family,
        folder.settings,
        folder.stored_shapes(),
        folder.all_tensors(),
        folder.places,
    )


def _from_model(model: Any, max_length: int | None) -> _HfModel:
    name = type(model).__name__
    if not hasattr(getattr(model, "config", None), "to_dict"):
        raise FamilyError(
            f"from_hf takes a folder or a model of transformers, got {describe(model)}"
        )
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if any(tensor.is_meta for tensor in tensors.values()):
        raise FamilyError(f"{name} has no weights yet: it is on the meta device")
    values = model.config.to_dict()
    try:
        family = family_of(values)
        every = family.read(values)
        settings = with_places(every, max_length)
    except FamilyError as error:
        raise FamilyError(f"{name} is no model for a decoder: {error}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return _HfModel(name, family, settings, shapes, tensors.items(), every["max_length"])


def _is_critic(model: _HfModel) -> bool:
    return any(name.startswith("score.") for name in model.shapes)


def _advice(model: _HfModel, head: str | None) -> str:
    """What would help where the weights are those of the other kind of model."""
    if head == "tokens" and _is_critic(model):
        return "; it is a critic: pass is_critic=True"
    if head == "value" and not _is_critic(model):
        return "; it is no critic: pass init_critic_from_actor=True to begin one with its body"
    return ""


# --- folders ----------------------------------------------------------------------------------------------------------


def to_hf(model: nn.Module, folder: str | os.PathLike[str], tokenizer: Any = None) -> None:
    """Write a folder that ``from_pretrained`` of transformers reads; it appears whole or not at all.

    ``model`` is what `composer.compose` made of a spec of `from_hf` or `token_spec`, or its policy or critic: a decoder
    with a ``family``, and its head. Of a model with both the policy is written. A critic is written as a classifier of
    sequences with one label. LoRA adapters are added to the weights. ``tokenizer`` is saved beside it, and its special
    tokens are those of the configuration.

    Raises FamilyError for a model that is none of a family, and WriteError where the folder is there or cannot be
    written.
    """
    refuse_sharded(model, "to_hf()")
    block, head, is_critic = _decoder_and_head(model)
    settings = block.settings
    if block.family is None or settings is None:
        names = listing(FAMILIES)
        raise FamilyError(f"the decoder of this model has no 'family'; set one of {names}")
    family: Family = FAMILIES.get(block.family)
    tensors = merged_weights(block)
    settings = {**settings, "vocab_size": block.vocab_size}
    if head is not None:
        tensors[HEAD] = head.linear.weight
    if any(tensor.is_meta for tensor in tensors.values()):
        raise FamilyError("this model has no weights yet; call model.materialize() first")
    weights = WeightMap(family, settings, "value" if is_critic else "tokens")
    stored = weights.from_decoder({n: t.detach().cpu() for n, t in tensors.items()})
    values = {
        "model_type": family.model_type,
        "architectures": [family.critic_class_name if is_critic else family.class_name],
        "dtype": str(block.embed_tokens.weight.dtype).removeprefix("torch."),
        **family.write({**settings, "tied_head": weights.tied}),
        **_special_tokens(tokenizer),
    }
    if is_critic:
        values |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    _check_config(family, values)
    _write(Path(folder), stored, values, tokenizer)


def _decoder_and_head(model: nn.Module) -> tuple[DecoderBlock, LinearOutputBlock | None, bool]:
    """The decoder, its linear head unless it is tied, and whether that is a critic's."""
    is_part = isinstance(model, NetworkModule)
    parts = [model] if is_part else [getattr(model, name, None) for name in PARTS]
    for part in parts:
        if not isinstance(part, NetworkModule) or not isinstance(
            part.network.module, InferenceBlock
        ):
            continue
        module = part.network.module
        nodes = {index: module.module_of(node) for index, node in enumerate(module.nodes)}
        decoders = {i: block for i, block in nodes.items() if isinstance(block, DecoderBlock)}
        if not decoders:
            continue
        (first, block), *_ = decoders.items()
        others = [node for index, node in enumerate(module.nodes) if index != first]
        if len(others) != 1 or not _is_head(others[0].label, others[0].node.settings):
            names = listing(node.node.name for node in others)
            raise FamilyError(
                f"to_hf writes a decoder and a linear head without bias; this {part.part} has {names}"
            )
        head = module.module_of(others[0])
        linear = head if isinstance(head, LinearOutputBlock) else None
        return block, linear, part.part == "critic"
    raise FamilyError(
        f"to_hf takes a model of from_hf or token_spec; there is no decoder in {describe(model)}"
    )


def _is_head(block: str, settings: Mapping[str, Any]) -> bool:
    if block == "functional":
        return settings.get("function") == "identity"
    return block == "linear_output" and settings.get("bias") is False


def _check_config(family: Family, values: Mapping[str, Any]) -> None:
    """Raise FamilyError for a configuration that transformers would not read."""
    cls = family.model_class.config_class
    try:
        cls.from_dict(dict(values))
    except Exception as error:  # whatever the library says of values that only it knows
        reason = str(error).strip().rpartition("\n")[2].strip()
        reason = reason.removeprefix("ValueError: ")
        raise FamilyError(f"{cls.__name__} does not take this model: {reason}") from error


def _special_tokens(tokenizer: Any) -> dict[str, int | None]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name, None) for name in names}


def _write(target: Path, tensors: Tensors, values: Mapping[str, Any], tokenizer: Any) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WriteError(target, "it is there already; remove it or choose another name")
    if not target.resolve().parent.is_dir():
        raise WriteError(target, f"there is no folder {str(target.parent)!r}")
    try:
        with new_folder(target) as folder:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            text = json.dumps(values, indent=2, sort_keys=True) + "\n"
            (folder / "config.json").write_text(text, encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise WriteError(target, str(error)) from error
    except OSError as error:
        raise WriteError(target, error.strerror or str(error), error.errno or 0) from error
