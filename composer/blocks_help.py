"""What blocks there are and how they are used, read from the classes themselves."""

from __future__ import annotations

import inspect
from typing import Any

from perception_blocks.registry import BLOCKS, MissingExtraError
from perception_blocks.settings import Setting, describe, settings_of

__all__ = ["describe_block", "list_blocks"]


def list_blocks() -> str:
    """Every registered block: its name, and the first line of its documentation."""
    rows = [(name, _first_line(name)) for name in sorted(BLOCKS)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    return "\n".join([*lines, "", "composer blocks NAME describes one."])


def describe_block(name: str) -> str:
    """Documentation, settings and an example of one block.

    Raises UnknownNameError for an unknown name and MissingExtraError where its library is not installed.
    """
    block = BLOCKS.get(name)
    settings, _ = settings_of(block)
    lines = [name, "", inspect.cleandoc(block.__doc__ or "").strip(), "", "Settings:"]
    lines += [f"  {_setting_line(setting)}" for setting in settings.values()] or ["  none"]
    if block.from_ports:
        lines += ["", f"Taken from the input where left out: {', '.join(block.from_ports)}."]
    for what, why in block.limits.items():
        lines += ["", f"Not possible: {what} ({why})."]
    return "\n".join([*lines, "", "In a spec:", f"  {_example(name, settings)}"])


def _first_line(name: str) -> str:
    try:
        documentation = inspect.getdoc(BLOCKS.get(name)) or ""
    except MissingExtraError:
        return f"(needs the extra [{BLOCKS.extra_of(name)}])"
    return documentation.partition("\n")[0].replace("``", "")


def _setting_line(setting: Setting) -> str:
    text = f"{setting.name}: {describe(setting.annotation)}"
    return text if setting.required else f"{text} (default: {_show(setting.default)})"


def _example(name: str, settings: dict[str, Setting]) -> str:
    examples = {"hidden_units": "[64]", "hidden_channels": "[16, 32]", "hidden_kernels": "[3, 3]"}
    needed = [
        f"{s}: {examples.get(s, '...')}" for s, setting in settings.items() if setting.required
    ]
    return f"latent: {{{', '.join([f'block: {name}', 'in: observation', *needed])}}}"


def _show(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), repr(value))
