"""The JSON Schema (draft-07) of specs, so that editors complete and check them; made from the live registries."""

from __future__ import annotations

import inspect
from collections.abc import Collection

from composer.distributions.base import DISTRIBUTIONS
from composer.reference.schema_parts import (
    DOTTED_PATH,
    NOTHING,
    TEXT,
    Schema,
    described,
    has_one_of,
    if_then,
    list_of,
    mapping_of,
    named_in,
    names_list,
    names_to,
    one_or_list,
    or_null,
    or_param,
    properties_of,
    ref,
    settings_of_function,
    when,
)
from composer.reference.targets import target_arguments, target_classes, target_path
from composer.spaces.kinds import KINDS
from composer.spec.action_model import (
    ATTENTION,
    HEAD_ACTIVATIONS,
    INPUTS,
    MODEL_KEYS,
    MODEL_PRECISIONS,
)
from composer.spec.keys import BESIDE_MODEL, PREVIOUS, RECALLED, TOP_KEYS
from composer.spec.model_spec import CRITICS
from composer.spec.nodes import NESTED
from composer.spec.parallel import PRECISION_KEYS, PRECISIONS
from composer.spec.template import GIVEN_KINDS, TEMPLATE_KEYS
from composer.spec.top_level import VERSION
from composer.spec.wrapper_names import ONLY_PYTHON, WRAPPERS
from composer.trust import import_allowed
from perception_blocks.registry import (
    ACTIVATIONS,
    BLOCKS,
    FUNCTIONS,
    INITIALIZERS,
    MissingExtraError,
)
from perception_blocks.settings import settings_of

__all__ = ["json_schema"]

DRAFT = "http://json-schema.org/draft-07/schema#"
NODE_NAME = r"^(?!(_|training)$)[A-Za-z_][A-Za-z0-9_]*$"
PART = "part_of_"  # begins the names of definitions of one file's share, where another file has the rest
PARAM = r"\$\{\s*params\.[^{}]+\}"

PLACEHOLDER: Schema = {"type": "string", "pattern": PARAM, "description": "A value from params."}
# An argument of a class is no node and no mapping of nodes: such a key is a misspelt one.
_NODE: Schema = {"type": "object", "required": ["in"]}
NO_NODES: Schema = {
    "not": {"anyOf": [_NODE, {"type": "object", "minProperties": 1, "additionalProperties": _NODE}]}
}
COUNT: Schema = {"type": "integer", "minimum": 1}
_NOT_BESIDE_MODEL = [key for key in TOP_KEYS if key not in BESIDE_MODEL]


def json_schema(allow: Collection[str] = ()) -> Schema:
    """The JSON Schema of every spec that `read_spec` accepts, as a dict.

    The modules of ``allow`` are imported; beside the path of a network class in them, such as
    ``_target_: my_nets.Policy``, its constructor's arguments are known by name, type and default. Raises PathError.
    """
    import_allowed(allow)
    classes = target_classes(allow)
    keys = _top_keys()
    text = "The values it reads: a name, a list, or a mapping from arguments to names."
    inputs = if_then({"type": "object"}, names_to(TEXT), one_or_list(TEXT))
    return {
        "$schema": DRAFT,
        "title": "Perception composer spec",
        "type": "object",
        "properties": dict.fromkeys(keys, True),
        "additionalProperties": False,
        "if": {"required": ["extends"]},
        "then": {"properties": {key: or_null(schema) for key, schema in _top_keys(PART).items()}},
        "else": {
            "properties": keys,
            "required": ["version"],
            **if_then(
                has_one_of("model"),
                {"properties": dict.fromkeys(_NOT_BESIDE_MODEL, NOTHING)},
                {"required": ["policy"]},
            ),
        },
        "definitions": {
            "placeholder": PLACEHOLDER,
            "activation": named_in(ACTIVATIONS, 0, dotted=True),
            "function": named_in(FUNCTIONS, 1),
            "initialiser": named_in(INITIALIZERS, 2),
            "wrapper": named_in(WRAPPERS, 1, without=ONLY_PYTHON),
            "inputs": described(text, inputs),
            "distribution": _distribution(),
            "target": target_path(classes),
            "arguments": target_arguments(classes, partial=False),
            f"{PART}arguments": target_arguments(classes, partial=True),
            **_networks_and_nodes(""),
            **_networks_and_nodes(PART),
            **{f"block_{name}": _block(name) for name in sorted(BLOCKS)},
            **{f"block_{name}": _nested_graph(name) for name in NESTED},
        },
    }


def _networks_and_nodes(part: str) -> dict[str, Schema]:
    """Definitions of the mappings that are merged with another file's where a spec ``extends`` it.

    There are two of each. With ``part``, which is then in their names, they say what one of the files may hold: the
    other file may hold required keys, null removes a key, and the keys of a mapping are checked only where this file
    decides which there are.
    """
    separate = {"separate": described("One network for each agent.", or_param({"type": "boolean"}))}
    shares = {"shares": described("Values that the critic may read.", names_list())}
    text = "How the policy is used; the first wrapper is innermost."
    policy_keys = {"action_mask": names_to(TEXT), "wrap": described(text, list_of(ref("wrapper")))}
    critic_keys = {
        "kind": or_param({"enum": list(CRITICS)}),
        "stack": or_param({"type": "boolean"}),
        "ensemble": or_param(COUNT),
        "normalize_value": or_param({"type": "boolean"}),
    }
    definitions = {
        "graph": names_to(or_null(ref("node", part)) if part else ref("node"), NODE_NAME),
        "node": _node(part),
        "head": _head(part),
        "heads": _heads(part),
        "template": _template(part),
        "template_node": _template_node(part),
        "policy_network": _network({**shares, **separate}, part),
        "critic_network": _network(separate, part),
        "policy": _networks({**policy_keys, **separate}, shares, "policy_network", part),
        "critic": _networks({**critic_keys, **separate}, {}, "critic_network", part),
    }
    return {part + name: schema for name, schema in definitions.items()}


# --- the parts of a spec ----------------------------------------------------------------------------------------------


def _top_keys(part: str = "") -> dict[str, Schema]:
    params = names_to({"type": ["number", "string", "boolean", "null", "array"]})
    return {
        "version": {"enum": [VERSION], "description": "The version of the format."},
        "environment": described("The id of the gymnasium environment it is for.", TEXT),
        "params": described('Values that "${params.name}" stands for anywhere below.', params),
        "extends": described(
            "The file of a spec that this one changes, or several.", one_or_list(TEXT)
        ),
        "distributions": list_of(ref("distribution")),
        "ignore": described("Observations that are left unread on purpose.", names_list()),
        "normalize": described(
            "Observations and groups to normalise by running statistics.", names_list()
        ),
        "texts": _texts(),
        PREVIOUS: described("What of the last step becomes observations.", names_list(RECALLED)),
        "extensions": described(
            "Modules to import first; the caller must allow them.", names_list()
        ),
        "freeze": described(
            "Parts of the model that are not trained, such as policy/screen.", names_list()
        ),
        "weights": described("Files with the first weights of parts of the model.", names_to(TEXT)),
        "learning_rate_scale": described(
            "Factors of the learning rate by part of the model.",
            names_to(or_param({"type": "number", "exclusiveMinimum": 0})),
        ),
        "state_names": described(
            "Names of states such as policy/memory/h, for hosts and exported files.",
            names_to(TEXT),
        ),
        "parallel": or_null(_parallel()),
        "policy": ref("policy", part),
        "critic": or_null(ref("critic", part)),
        "model": or_null(_action_model(part)),
    }


def _action_model(part: str) -> Schema:
    """An action model in the place of policy and critic."""
    yes_or_no, size = or_param({"type": "boolean"}), or_null(or_param(COUNT))
    inputs = mapping_of(dict.fromkeys(INPUTS, or_param(TEXT)))
    units = or_param({"type": "array", "items": or_param(COUNT)})
    head = mapping_of(
        {"hidden_units": units, "activation": or_param({"enum": list(HEAD_ACTIVATIONS)})}
    )
    positive = {"type": "number", "exclusiveMinimum": 0}
    targets = or_param({"type": "array", "items": TEXT, "uniqueItems": True, "minItems": 1})
    lora = {"rank": or_param(COUNT), "alpha": or_null(or_param(positive))}
    lora |= {"targets": or_null(targets), "path": or_null(or_param(TEXT))}
    pair = {"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2}
    numbers = [int(word) for word in MODEL_PRECISIONS if word.isdigit()]
    precisions = [*MODEL_PRECISIONS, *numbers, "null", None]
    keys: Schema = dict.fromkeys(MODEL_KEYS, True) | {
        "model_type": described("The name that register_hf gave it.", or_param(TEXT)),
        "model_path": described("A local folder with config.json and safetensors.", or_param(TEXT)),
        "config": described("Settings of the model type, for new weights.", {"type": "object"}),
        "inputs": described("Which observation is the image, and which the text.", inputs),
        "action_token_len": described("How many tokens an action has.", size),
        "action_chunks_len": described("How many actions are chosen at once.", size),
        "unnorm_key": described("Whose statistics scale the actions.", or_null(or_param(TEXT))),
        "precision": or_param({"enum": precisions}),
        "attn_implementation": or_null(or_param({"enum": list(ATTENTION)})),
        "value_head": if_then({"type": "object"}, head, or_null(yes_or_no)),
        "lora": or_null(mapping_of(lora)),
        "freeze": described("Paths of modules that are not trained.", names_list()),
        "image_size": or_null(if_then({"type": "array"}, pair, or_param(COUNT))),
        "trust_remote_code": or_param({"const": False}),
        "lora_path": or_null(or_param(TEXT)),
    }
    keys |= dict.fromkeys(("micro_batch_size", "val_micro_batch_size", "lora_rank"), size)
    keys |= dict.fromkeys(("hidden_size", "vocab_size"), size)
    keys |= dict.fromkeys(("gradient_checkpointing", "low_cpu_mem_usage", "is_lora"), yes_or_no)
    keys["add_value_head"] = yes_or_no
    ways = [{"required": [way]} for way in ("model_path", "config")]
    needs = {} if part else {"required": ["model_type"], "oneOf": ways}
    return {**mapping_of(keys), **needs}


def _texts() -> Schema:
    length = described("The longest length, in characters.", or_param(COUNT))
    charset = described("All its characters; printable ASCII unless given.", TEXT)
    text = mapping_of({"max_length": length, "charset": charset}, ["max_length"])
    what = "The length and characters of texts whose space does not say them, by observation."
    return described(what, names_to(text))


def _parallel() -> Schema:
    word: Schema = {"enum": list(PRECISIONS)}
    both = mapping_of({key: or_param(word) for key in PRECISION_KEYS})
    keys = {
        "data": described(
            "How many processes share the batch.", or_param({"anyOf": [{"const": "auto"}, COUNT]})
        ),
        "tensor": described("How many processes share each matrix.", or_param(COUNT)),
        "precision": described(
            "The dtype of calculations and of sums of gradients.",
            or_null(if_then({"type": "object"}, both, or_param(word))),
        ),
        "units": described("Further classes that are sharded by themselves.", names_list()),
        "gradient_checkpointing": described(
            "Recompute layers backward.", or_param({"type": "boolean"})
        ),
        "offload": described("Keep parameters on the CPU.", or_param({"type": "boolean"})),
    }
    return described("How composer.parallel spreads the model over processes.", mapping_of(keys))


def _network(more: dict[str, Schema], part: str) -> Schema:
    """One network, which may have the keys of ``more`` too; one that may have `shares` is a policy's."""
    init = ref("initialiser")
    keys = {
        "graph": ref("graph", part),
        "_target_": described(
            "A class of your own; its arguments stand beside it.", {"allOf": [ref("target")]}
        ),
        "template": ref("template", part),
        "heads": ref("heads", part),
        "observations": described(
            "Observations and groups that it may see; by default all.", names_list()
        ),
        "init": if_then(
            has_one_of("body", "heads"), mapping_of(dict.fromkeys(("body", "heads"), init)), init
        ),
        **more,
    }
    only_these: Schema = {"propertyNames": {"enum": list(keys)}}
    if part:
        arguments = {"properties": dict.fromkeys(keys, True), "additionalProperties": NO_NODES}
        only_these = if_then(has_one_of("graph", "template", "heads"), only_these, arguments)
        keys = {key: or_null(schema) for key, schema in keys.items()}
    else:
        ways = [{"required": [way]} for way in ("graph", "_target_", "template")]
        only_these |= {"oneOf": ways, **_needs_heads(of_policy="shares" in more)}
    alone = dict.fromkeys(("graph", "template", "heads"), NOTHING)
    of_class = {"properties": alone, "allOf": [ref("arguments", part)]}
    return {
        "type": "object",
        "properties": keys,
        **if_then({"required": ["_target_"]}, of_class, only_these),
    }


def _needs_heads(of_policy: bool) -> Schema:
    """A policy's graph needs heads beside it, a critic's only where it has no nodes."""
    graph = {} if of_policy else {"properties": {"graph": {"type": "object", "maxProperties": 0}}}
    return if_then({"required": ["graph"], **graph}, {"required": ["heads"]})


def _networks(keys: dict[str, Schema], alone: dict[str, Schema], member: str, part: str) -> Schema:
    """A policy or critic with its ``keys``: one network, which may have the keys ``alone``, or several."""
    if part:
        keys = {key: or_null(schema) for key, schema in keys.items()}
    listed = {"type": "array", "items": ref(member, part), "minItems": 1}
    by_name = {**names_to(ref(member, part)), "minProperties": 1}
    networks = if_then({"type": "array"}, listed, by_name)
    several = {"properties": {**keys, "networks": networks}, "additionalProperties": False}
    return {
        "type": "object",
        **if_then({"required": ["networks"]}, several, _network({**keys, **alone}, part)),
    }


def _heads(part: str) -> Schema:
    text = "One head for every action ({in: latent}), or a mapping from actions to heads."
    head = ref("head", part)
    if part:  # whether there is one for every action may stand in the other file
        return described(text, names_to(if_then({"type": "object"}, head)))
    for_all = {"required": ["in"], "properties": {"in": {"type": ["string", "array"]}}}
    mapping = {"type": "object", "minProperties": 1}
    return described(text, {**mapping, **if_then(for_all, head, {"additionalProperties": head})})


def _template(part: str) -> Schema:
    node = ref("template_node", part)
    keys = [key for key in TEMPLATE_KEYS if key not in ("by_name", "kinds")]
    named = {
        "by_name": names_to(or_null(node) if part else node),
        "kinds": names_to({"enum": list(GIVEN_KINDS)}),
    }
    return mapping_of({**dict.fromkeys(keys, or_null(node)), **named})


def _distribution() -> Schema:
    """An entry of `distributions`."""
    keys = {"action": TEXT, "space": {"enum": list(KINDS)}}
    keys["distribution"] = or_param({"enum": list(DISTRIBUTIONS)})
    keys["optional"] = described("Whether it may match no action.", or_param({"type": "boolean"}))
    no_action = {"properties": {"action": NOTHING}}
    return {
        "type": "object",
        "properties": keys,
        "required": ["distribution"],
        **if_then({"required": ["space"]}, no_action, {"required": ["action"]}),
        "allOf": [
            when(
                "distribution",
                name,
                mapping_of({**keys, **settings_of_function(DISTRIBUTIONS.get(name), 1)[0]}),
            )
            for name in DISTRIBUTIONS
        ],
    }


# --- nodes ------------------------------------------------------------------------------------------------------------


def _wiring(*, nested: bool = False) -> dict[str, Schema]:
    """``nested``: of a node that holds a graph, whose outputs may get other names."""
    out = one_or_list(TEXT)
    return {
        "in": ref("inputs"),
        "out": if_then({"type": "object"}, names_to(TEXT), out) if nested else out,
        "each": or_param(COUNT),
    }


def _node(part: str) -> Schema:
    names = {"enum": [*sorted(BLOCKS), *NESTED]}
    block = or_param(if_then({"pattern": r"\."}, DOTTED_PATH, names))
    shared = {**_wiring(nested=True), "same_as": TEXT}
    if part:
        settings = {"block": block, "same_as": TEXT, "graph": or_null(ref("graph", part))}
        return {"type": "object", "properties": settings, "allOf": _per_block(part)}
    return {
        "type": "object",
        "properties": {
            **shared,
            "block": block,
            "init": ref("initialiser"),
            "graph": ref("graph"),
        },
        "required": ["in"],
        "allOf": _per_block(part),
        **if_then({"required": ["same_as"]}, mapping_of(shared), {"required": ["block"]}),
    }


def _head(part: str) -> Schema:
    """A node whose block is linear_output unless it says otherwise; how wide a head is need not be said."""
    if part:
        return _node(part)
    node = if_then(has_one_of("block", "same_as"), ref("node"), ref("block_linear_output"))
    dueling = {"properties": {"block": {"const": "dueling"}}, "required": ["block"]}
    return {"type": "object", "required": ["in"], **if_then(dueling, ref("block_dueling"), node)}


def _template_node(part: str) -> Schema:
    """A template wires its blocks itself."""
    return {
        "type": "object",
        "properties": dict.fromkeys(("in", "out", "same_as"), NOTHING),
        "allOf": _per_block(part),
        **({} if part else {"required": ["block"]}),
    }


def _per_block(part: str) -> list[Schema]:
    """The settings that each block takes and, without ``part``, the ones that it requires."""
    names = (*sorted(BLOCKS), *NESTED)
    rules = [when("block", name, ref(f"block_{name}")) for name in names]
    if not part:
        needs = {name: _required_by(name) for name in names}
        rules += [when("block", name, {"required": keys}) for name, keys in needs.items() if keys]
    return rules


def _required_by(name: str) -> list[str]:
    """The settings that the block ``name`` must be given."""
    if name in NESTED:
        return ["graph", "copies"] if name == "ensemble" else ["graph"]
    try:
        block = BLOCKS.get(name)
    except MissingExtraError:  # its settings are known where its library is
        return []
    settings, _ = settings_of(block)
    return [s.name for s in settings.values() if s.required and s.name not in block.from_ports]


def _block(name: str) -> Schema:
    """A node with the block ``name``."""
    keys = {"block": {"const": name}, "init": ref("initialiser"), **_wiring()}
    try:
        block = BLOCKS.get(name)
    except MissingExtraError:  # its settings are known where its library is
        return {"type": "object"}
    settings, takes_any = settings_of(block)
    return {
        "description": (inspect.getdoc(block) or "").partition("\n")[0].replace("``", ""),
        **mapping_of({**keys, **properties_of(settings)}, more=takes_any),
    }


def _nested_graph(name: str) -> Schema:
    """A node that holds a graph; an ensemble has several copies of it."""
    keys = {"block": {"const": name}, "init": True, "graph": True, **_wiring(nested=True)}
    if name == "ensemble":
        keys["copies"] = described(
            "How many there are, each with its own weights.", or_param(COUNT)
        )
    return mapping_of(keys)
