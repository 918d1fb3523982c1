"""A spec's text, file or mapping as plain data with positions. Only this package reads YAML; it imports no torch."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["Override", "Source", "dump_flow", "dump_yaml", "load_source"]

if TYPE_CHECKING:
    from composer.source.dump import dump_flow, dump_yaml
    from composer.source.load import Override, Source, load_source
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"dump": "dump_flow dump_yaml", "load": "Override Source load_source"},
    )
