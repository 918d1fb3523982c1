"""Policies and critics for reinforcement learning from one YAML file, with every shape inferred and checked."""

import os
import sys

_command = (
    (sys.orig_argv[-len(sys.argv)] if sys.argv[0] == "-m" else sys.argv[0]) if sys.argv else ""
)
_home = os.path.dirname(os.path.dirname(__file__))
if os.path.basename(_command) in ("composer", "-mcomposer", "composer.exe"):
    if not (sys.flags.safe_path or sys.path[0] == _home):  # a checkout that is not installed
        del sys.path[0]  # the current folder, or that of the script: anybody's files may lie there
    from composer.cli.ctrl_c import answer_ctrl_c

    answer_ctrl_c()

from typing import TYPE_CHECKING  # noqa: E402

from perception_blocks.lazy import lazy_attributes  # noqa: E402

__version__ = "0.1.0"  # setup.cfg reads it from here

__all__ = [
    "MODELS",
    "BaseModelWrapper",
    "ComposedNetwork",
    "Critic",
    "IModelWrapper",
    "Model",
    "Policy",
    "SpecError",
    "StructuredPolicy",
    "__version__",
    "adopt_weights",
    "any_batch",
    "blend",
    "compose",
    "compose_network",
    "draw",
    "find_model",
    "first_steps",
    "import_config",
    "load",
    "load_network",
    "model_wrap",
    "probe",
    "register_wrapper",
    "with_previous",
]

if TYPE_CHECKING:
    from composer.batch_axes import any_batch
    from composer.build.composed_network import ComposedNetwork, compose_network
    from composer.build.network_checkpoint import load_network
    from composer.checkpoint.blending import blend
    from composer.critic.state import Critic
    from composer.diagram.drawing import draw
    from composer.errors import SpecError
    from composer.importing.adopting import adopt_weights
    from composer.importing.config import import_config
    from composer.model import Model, compose, load
    from composer.model_registry import MODELS, find_model
    from composer.policy.policy import Policy
    from composer.policy.structured import StructuredPolicy
    from composer.probing.run import probe
    from composer.spaces.episode_starts import first_steps
    from composer.spaces.recalling import with_previous
    from composer.wrappers.interface import BaseModelWrapper, IModelWrapper
    from composer.wrappers.wrapping import model_wrap, register_wrapper
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "batch_axes": "any_batch",
            "build.composed_network": "ComposedNetwork compose_network",
            "build.network_checkpoint": "load_network",
            "checkpoint.blending": "blend",
            "critic.state": "Critic",
            "diagram.drawing": "draw",
            "errors": "SpecError",
            "importing.adopting": "adopt_weights",
            "importing.config": "import_config",
            "model": "Model compose load",
            "model_registry": "MODELS find_model",
            "policy.policy": "Policy",
            "policy.structured": "StructuredPolicy",
            "probing.run": "probe",
            "spaces.episode_starts": "first_steps",
            "spaces.recalling": "with_previous",
            "wrappers.interface": "BaseModelWrapper IModelWrapper",
            "wrappers.wrapping": "model_wrap register_wrapper",
        },
    )
