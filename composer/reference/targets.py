"""The classes of allowed modules that `_target_` may name, with the arguments of their constructors."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Mapping

from torch import nn

from composer.reference.schema_parts import (
    DOTTED_PATH,
    Schema,
    mapping_of,
    or_null,
    properties_of,
    when,
)
from composer.source.files import names_a_folder
from composer.spec.keys import CRITIC_KEYS, NETWORK_KEYS, POLICY_KEYS, POLICY_NETWORK_KEYS
from perception_blocks.base_block import PerceptionBlock, is_torchs
from perception_blocks.settings import settings_of

__all__ = ["INJECTED", "allowed_modules", "target_arguments", "target_classes", "target_path"]

INJECTED = ("obs_shapes", "action_logits_shapes", "output_shapes")
"""Arguments that the composer passes itself."""
_BESIDE = {*NETWORK_KEYS, *POLICY_NETWORK_KEYS, *POLICY_KEYS, *CRITIC_KEYS}


def allowed_modules(allow: Collection[str]) -> frozenset[str]:
    """The modules of ``allow`` and below them that are imported already; nothing is imported here."""
    roots = tuple(entry for entry in allow if not names_a_folder(entry))
    if not roots:
        return frozenset()
    below = tuple(f"{root}." for root in roots)
    return frozenset(n for n in [*sys.modules] if n in roots or n.startswith(below))


def target_classes(allow: Collection[str]) -> dict[str, type[nn.Module]]:
    """The networks in imported modules of ``allow`` by dotted path: classes whose constructor takes ``obs_shapes``.

    A submodule that nothing has imported yet is not looked into: importing it would run it.
    """
    modules = allowed_modules(allow)
    return {
        f"{module}.{name}": value
        for module in sorted(modules)
        for name, value in sorted(vars(sys.modules[module]).items())
        if not name.startswith("_") and _is_network(value) and value.__module__ in modules
    }


def _is_network(value: object) -> bool:
    if not (isinstance(value, type) and issubclass(value, nn.Module)) or is_torchs(value):
        return False
    if issubclass(value, PerceptionBlock) or value.__init__ is nn.Module.__init__:
        return False
    try:
        settings, takes_any = settings_of(value, 0)
    except (TypeError, ValueError):  # a constructor without a signature
        return False
    return takes_any or INJECTED[0] in settings


def target_path(classes: Mapping[str, type[nn.Module]]) -> Schema:
    """A dotted path; ``classes`` are what an editor proposes."""
    return {**DOTTED_PATH, **({"examples": list(classes)} if classes else {})}


def target_arguments(classes: Mapping[str, type[nn.Module]], *, partial: bool) -> Schema:
    """What may stand beside `_target_`, by its value; if ``partial``, another file has the rest, or null removes it."""
    rules = [when("_target_", path, _arguments(cls, partial)) for path, cls in classes.items()]
    return {"allOf": rules} if rules else {}


def _arguments(cls: type[nn.Module], partial: bool) -> Schema:
    settings, takes_any = settings_of(cls, 0)
    settings = {name: setting for name, setting in settings.items() if name not in INJECTED}
    properties = properties_of(settings)
    if partial:
        properties = {name: or_null(schema) for name, schema in properties.items()}
    required = [s.name for s in settings.values() if s.required and not partial]
    description = (inspect.getdoc(cls) or "").partition("\n")[0].replace("``", "")
    schema = mapping_of(properties, required, more=True)
    del schema["additionalProperties"]
    if not takes_any:
        schema["propertyNames"] = {"enum": sorted({"_target_", *_BESIDE, *settings})}
    return {**schema, **({"description": description} if description else {})}
