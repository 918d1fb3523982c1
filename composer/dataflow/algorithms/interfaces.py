"""What a call does with a model: the base class of interfaces, their registry, and what each call is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from torch import Tensor

from composer.dataflow.context import Context
from composer.dataflow.data.samples import Sample
from perception_blocks.registry import Registry

__all__ = ["INTERFACES", "VERBS", "Interface", "Takes", "Written", "model_problem", "verbs_of"]

VERBS = ("generate", "inference", "train_step", "evaluate")
"""What a call can do; an interface has a method for each of those that it can."""

Written: TypeAlias = Mapping[str, Tensor | Sequence[Tensor]]
"""What a call writes, by the interface's names: all sequences one after the other in a tensor, or a list of them."""

Takes: TypeAlias = Literal["actor", "critic", "any"]

INTERFACES = Registry("interface", hyphens=True)
"""Interfaces by the names that calls give after ``with:``."""
INTERFACES.register("sft", "composer.dataflow.algorithms.sft:Sft")
INTERFACES.register("generation", "composer.dataflow.algorithms.generation:Generation")
INTERFACES.register("write_texts", "composer.dataflow.running.text_files:WriteTexts")
INTERFACES.register("classifier", "composer.dataflow.algorithms.classifier:Classifier", extra="llm")
INTERFACES.register_all(
    "composer.dataflow.algorithms.preference", {"paired_rw": "PairedReward", "dpo": "Dpo"}
)
INTERFACES.register_all(
    "composer.dataflow.algorithms.ppo", {"ppo_actor": "PpoActor", "ppo_critic": "PpoCritic"}
)


class Interface:
    """What calls do with a model. A subclass overrides the methods of the verbs that it has.

    The settings of a call are arguments of ``__init__``. The attributes say of each verb what a call of it may be, so
    that a wrong call is told before anything is built.

    >>> class LongestRun(Interface):
    ...     needs_model = False
    ...     reads, writes = {"inference": ("ids",)}, {"inference": ("rewards",)}
    ...
    ...     def __init__(self, token=3):
    ...         self.token = token
    ...
    ...     def inference(self, model, sample, context):
    ...         return {"rewards": (sample["ids"] == self.token).float().mean(-1)}
    """

    reads: ClassVar[Mapping[str, Sequence[str]]] = {}
    """The values that a verb reads, by its names for them; a call may list others, which the verb has no use for."""
    optional: ClassVar[Mapping[str, Sequence[str]]] = {}
    """The values that a verb reads where a call has them."""
    reads_any: ClassVar[bool] = False
    """Whether a call may map any other name to a value."""
    writes: ClassVar[Mapping[str, Sequence[str]]] = {}
    """The values that a verb can write, of which a call names those that it wants."""
    needs_model: ClassVar[bool] = True
    """Whether a call needs a model; a verb that needs none is given None, even where its call names one."""
    takes: ClassVar[Mapping[str, Takes]] = {}
    """Whether the model of a verb is an "actor", a "critic" or, which is the default, "any"."""
    side_effects: ClassVar[Sequence[str]] = ()
    """The verbs that write a file or the like: their calls need not lead to a training or an evaluation."""

    if TYPE_CHECKING:  # at run time a verb that a class lacks is no attribute of it
        generate: Callable[[Any, Sample, Context], Written]
        inference: Callable[[Any, Sample, Context], Written]
        train_step: Callable[[Any, Sample, Context], None]
        evaluate: Callable[[Any, Sample, Context], None]


def verbs_of(interface: type[Interface]) -> list[str]:
    """The verbs that an interface has methods for."""
    return [verb for verb in VERBS if callable(getattr(interface, verb, None))]


def model_problem(interface: type[Interface], verb: str, model: str, is_critic: bool) -> str | None:
    """Why ``verb`` of the interface cannot use the model called ``model``, in words; None where it can.

    >>> class Likelihood(Interface):
    ...     takes = {"inference": "actor"}
    >>> model_problem(Likelihood, "inference", "reward", is_critic=True)
    "'inference' takes an actor, and the model 'reward' is a critic; name a model without is_critic: true"
    """
    takes = interface.takes.get(verb, "any")
    if takes == "any" or (takes == "critic") == is_critic:
        return None
    kind, other = ("critic", "actor") if is_critic else ("actor", "critic")
    named = "without" if takes == "actor" else "with"
    article = {"actor": "an actor", "critic": "a critic"}
    return (
        f"{verb!r} takes {article[other]}, and the model {model!r} is {article[kind]}; "
        f"name a model {named} is_critic: true"
    )
