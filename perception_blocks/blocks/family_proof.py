"""`register_family`: a family is known once a tiny model of it computes the same here, and is saved as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from perception_blocks.blocks.families import (
    FAMILIES,
    HEAD,
    HOWS,
    Family,
    FamilyError,
    HfValues,
    Row,
    names_of,
)
from perception_blocks.blocks.family_weights import EMBEDDING, WeightMap
from perception_blocks.random_states import random_states_kept
from perception_blocks.registry import BLOCKS, NameTakenError, Registry
from perception_blocks.words import describe, listing

__all__ = ["prove", "register_family"]

TOLERANCE = 1e-4
TINY = {"vocab_size": 40, "width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
TINY |= {"mlp_units": 48, "max_length": 16}
ROWS, LENGTH = 2, 10
Captured = dict[str, tuple[Tensor, Tensor]]  # of modules by name: what they got and what they gave


def register_family(
    name: str,
    *,
    hf_class: Any,
    settings: Callable[[HfValues], Mapping[str, Any]],
    config: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    table: Iterable[Row],
    embedding: Callable[[int], Sequence[str]] | None = None,
    block: Callable[[int], Sequence[str]] | None = None,
    head: Callable[[int], Sequence[str]] | None = None,
    aliases: Sequence[str] = (),
    replace: bool = False,
) -> None:
    """Make a family of language models known, for the setting ``family`` of `decoder`, `from_hf` and `to_hf`.

    Args:
        hf_class: Its class of transformers for causal language models.
        settings: From the keys of ``config.json`` to the settings of `decoder`. It raises FamilyError for what a
            decoder cannot have.
        config: The other way round. Sizes are always there; other settings are None where they were not told. Keys
            whose value is None are left out.
        table: Rows (their name, our name or names, how). ``{}`` stands for the number of a layer. How is ``""``,
            ``"t"`` (transposed), ``"split"`` (ours are theirs side by side, along the first axis) or ``"t split"``.
            Rows may be of tensors that not every model has, such as biases. A row without our names is of a constant.
        embedding: From the number of layers to the names of tensors before the first layer; by default from the table.
        block: From the number of a layer to the names of its tensors.
        head: From the number of layers to the names of tensors after the last layer.
        aliases: Other names of the family.
        replace: Whether a family of this name may be there already.

    A tiny model is made from ``config`` with random weights. Its logits must be those of a decoder with these weights,
    to 1e-4, and the weights must be saved as they were.

    Raises FamilyError where they are not, which names the tensor, NameTakenError where the name is another family's,
    and MissingExtraError without transformers.
    """
    rows = checked_table(name, table)
    family = Family(name, hf_class, settings, config, rows, embedding, block, head)
    is_lazy = isinstance(hf_class, str) and ":" in hf_class
    if not is_lazy and not hasattr(hf_class, "config_class"):
        rule = "'hf_class' must be a class of transformers, or 'module:Class'"
        raise FamilyError(f"{rule}, got {describe(hf_class)}")
    for each in (name, *aliases):
        Registry(FAMILIES.kind).register(each, family)  # whether it may be a name
        if each in FAMILIES and not replace and not _is_same(FAMILIES.get(each), family):
            raise NameTakenError(
                f"the model family name {each!r} is taken by a family of {FAMILIES.get(each).class_name}; "
                "choose another, or pass replace=True"
            )
    prove(family)
    family = replace_fields(family, hf_class=family.model_class)  # which knows its model type
    for each in (name, *aliases):
        FAMILIES.register(each, family, replace=True)


def _is_same(first: Family, second: Family) -> bool:
    """Whether both are one family; a module that is imported again defines it again."""
    addresses = [(f.settings.__module__, f.settings.__qualname__, f.name) for f in (first, second)]
    return addresses[0] == addresses[1]


def checked_table(name: str, table: Iterable[Row]) -> tuple[Row, ...]:
    """``table``. Raises FamilyError for rows that are none, and for tensors with two rows."""
    rows, problems = list(table), []
    seen: set[str] = set()
    for row in rows:
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 3:
            problems.append(f"{row!r} is no row (their name, our names, how)")
            continue
        theirs, ours, how = row
        names = names_of(ours)
        if how not in HOWS:
            problems.append(f"{theirs}: how is one of {listing(HOWS)}, got {how!r}")
        if any(("{}" in theirs) != ("{}" in our) for our in names):
            problems.append(f"{theirs}: both sides of a row have {{}}, or none has")
        if len(names) > 1 and "split" not in how:
            problems.append(f"{theirs}: several names of ours need 'split'")
        problems += [f"{each} has two rows" for each in (theirs, *names) if each in seen]
        seen |= {theirs, *names}
    if problems:
        raise FamilyError(f"the table of the family {name!r} is wrong: {'; '.join(problems)}")
    return tuple((theirs, names_of(ours), how) for theirs, ours, how in rows)


def prove(family: Family) -> None:
    """Raise FamilyError unless a tiny model of ``family`` is computed and saved as transformers does.

    Random states outside do not move.
    """
    with random_states_kept(0), torch.device("cpu"):
        _prove(family)


def _prove(family: Family) -> None:
    try:
        values = family.write(TINY)
        model = random_model(family, values)
        settings = family.read(model.config.to_dict())  # all keys are there
        defaults, again = family.read(values), family.read(family.write(settings))
    except FamilyError as error:
        raise FamilyError(f"the family {family.name!r} has wrong settings: {error}") from error
    for other, what in (
        (defaults, f"'settings' have other defaults than {family.class_name}"),
        (again, "'settings' of what 'config' gives for them are others"),
    ):
        unlike = [key for key in settings if settings[key] != other.get(key)]
        if unlike:
            raise FamilyError(f"the family {family.name!r}: {what} in {listing(unlike)}")
    weights = WeightMap(family, settings)
    stored = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    try:
        ours = weights.to_decoder(stored)
        back = weights.from_decoder(ours)
    except FamilyError as error:
        raise FamilyError(f"the family {family.name!r} has a wrong table: {error}") from error
    trained = {name for name, _ in model.named_parameters()}
    _check_saved(family, weights, stored, back, trained)
    _check_parts(family, weights, settings["num_layers"])
    _check_logits(family, weights, settings, model, ours)


def random_model(family: Family, values: Mapping[str, Any]) -> Any:
    """A model of transformers with weights that matter, biases and norms too."""
    cls = family.model_class
    try:
        with torch.no_grad():
            model = cls(cls.config_class(**values)).float().eval()
            for parameter in model.parameters():
                drawn = torch.randn(parameter.shape) * 0.2
                parameter.copy_(drawn if parameter.dim() > 1 else parameter + drawn)
    except Exception as error:  # whatever the library says of keys that only it knows
        reason = str(error).strip().partition("\n")[0]
        raise FamilyError(f"{cls.__name__} cannot be made from 'config': {reason}") from error
    return model


def _check_saved(
    family: Family,
    weights: WeightMap,
    stored: Mapping[str, Tensor],
    back: Mapping[str, Tensor],
    trained: set[str],
) -> None:
    """``trained`` are the names of parameters, none of which is a constant."""
    rows = weights.rows.items()
    tied = {theirs for theirs, (names, _) in rows if weights.tied and names == (HEAD,)}
    constants = {theirs for theirs, (names, _) in rows if not names} - trained
    wrong = sorted((stored.keys() ^ back.keys()) - tied - constants)
    wrong += [name for name in back if name in stored and not torch.equal(back[name], stored[name])]
    if wrong:
        raise FamilyError(
            f"the family {family.name!r} is not saved as it was read: {listing(wrong)}"
        )


def _check_parts(family: Family, weights: WeightMap, layers: int) -> None:
    """The names of all parts together are those of the model."""
    parts = [*family.embedding_names(layers), *family.head_names(layers)]
    for index in range(layers):
        parts += family.block_names(index)
    needed = {theirs for theirs, (names, _) in weights.rows.items() if names}
    optional = {t.format(index) for t, _, _ in family.table for index in range(layers)}
    lost = sorted(needed - set(parts))
    more = sorted(set(parts) - optional)
    if lost or more:
        raise FamilyError(
            f"the family {family.name!r}: 'embedding', 'block' and 'head' together lack {listing(lost) or 'nothing'}, "
            f"and name {listing(more) or 'nothing'} that no row has"
        )


def _check_logits(
    family: Family,
    weights: WeightMap,
    settings: Mapping[str, Any],
    model: Any,
    ours: Mapping[str, Tensor],
) -> None:
    tokens = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) * 7 % TINY["vocab_size"]
    body = {**settings, "tied_head": False}
    decoder = BLOCKS.get("decoder")([(LENGTH,)], **body).eval()
    decoder.load_state_dict({name: tensor for name, tensor in ours.items() if name != HEAD})
    head = nn.Linear(1, 1, bias=False)
    head.weight = nn.Parameter(ours.get(HEAD, decoder.embed_tokens.weight))
    with torch.no_grad(), captured(model) as theirs, captured(decoder) as mine:
        expected = model(input_ids=tokens, use_cache=False).logits
        got = functional.linear(decoder(tokens), head.weight)
    largest = (got - expected).abs().max().item()
    if not largest <= TOLERANCE:
        where = _first_difference(weights, theirs, mine)
        raise FamilyError(
            f"the family {family.name!r} computes other logits than {family.class_name} "
            f"(they differ by {largest:.1e}): {where}"
        )


@contextlib.contextmanager
def captured(model: nn.Module) -> Iterator[Captured]:
    """Within, the first input and the output of each module of ``model`` is kept, in the order of calls."""
    kept: Captured = {}

    def keep(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                kept[name] = inputs[0], output

        return hook

    handles = [part.register_forward_hook(keep(name)) for name, part in model.named_modules()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _first_difference(weights: WeightMap, theirs: Captured, mine: Captured) -> str:
    """The tensor whose module is the first to give something else, or what is computed before it."""
    modules = {}
    for tensor, (names, _) in weights.rows.items():
        holders = [name.rpartition(".")[0] for name in names]
        # What an embedding gives may be scaled inside of it or after it; no other tensor has its shape.
        if names and names[0] != EMBEDDING and all(holder in mine for holder in holders):
            modules.setdefault(tensor.rpartition(".")[0], (tensor, holders))
    for module, (got, gave) in theirs.items():
        if module not in modules:
            continue
        tensor, holders = modules[module]
        if are_unlike(got, mine[holders[0]][0]):
            return (
                f"{tensor} is the first whose module gets something else; look at its row and those before it, and "
                "at what 'settings' say of what is computed there"
            )
        if are_unlike(gave, torch.cat([mine[holder][1] for holder in holders], dim=-1)):
            return (
                f"{tensor} is the first whose module gives something else; look at its row, and at what 'settings' "
                "say of it"
            )
    return "the head, or what 'settings' say of it"


def are_unlike(first: Tensor, second: Tensor) -> bool:
    """Places may have no axis of rows in one of the two."""
    try:
        first, second = torch.broadcast_tensors(first, second)
    except RuntimeError:
        return True
    return not torch.allclose(first.float(), second.float(), atol=TOLERANCE, rtol=TOLERANCE)
