"""The models that an experiment names, built: from settings of a decoder, a checkpoint or a spec, or like another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, TypeAlias

import gymnasium
import torch

import composer.model as composing
from composer.adapters.tokens.gym_env import token_spaces
from composer.checkpoint.container import CheckpointError
from composer.dataflow.algorithms.models import ExperimentModel
from composer.dataflow.algorithms.optimization import optimizer_settings
from composer.dataflow.calls.experiment import ModelEntry
from composer.errors import Path, Problem, SpecError
from composer.language.pretrained import from_hf, token_spec
from composer.limits import Limits
from composer.model import Model
from composer.source.load import GivenSpec, Override, Source, load_source
from perception_blocks.settings import SettingsError
from perception_blocks.words import describe, did_you_mean, listing

__all__ = ["ModelBuildError", "build_model", "line_of"]

VALUE = {"block": "linear_output", "bias": False}
# A model has a policy, if it is only used as a critic: the smallest.
NO_POLICY = {
    "graph": {"token": {"block": "embedding", "in": "observation", "embedding_dim": 1}},
    "heads": {"in": "token"},
}
Spaces: TypeAlias = "tuple[gymnasium.Space, gymnasium.Space]"
LENGTH = 64  # of sequences, where nobody says how long they are; that of the block decoder


class ModelBuildError(ValueError):
    """A model of an experiment cannot be built; the message begins with its name."""


def build_model(
    entry: ModelEntry,
    entries: Mapping[str, ModelEntry],
    seed: int = 0,
    *,
    tokenizer: Any = None,
    source: Source | None = None,
    iterations: int = 1,
    allow: Iterable[str] = (),
    device: torch.device | str = "cpu",
) -> ExperimentModel:
    """The model that ``entry`` describes, in an experiment with ``entries``.

    Its initial weights depend on the ``seed`` of the run and its name; a model that is ``like`` another of its kind
    (actor or critic) begins with the same weights, and a critic with ``init_critic_from_actor`` with those of the
    actor's body. ``len(tokenizer)`` is the size of the vocabulary, unless a checkpoint has one. Files are found beside
    the ``source`` of the experiment. ``iterations`` are those of the run. On the meta device only shapes are checked.

    Raises ModelBuildError, and SpecError where a spec or the settings of a decoder are wrong.
    """
    builder = _ModelBuilder(entries, seed, tokenizer, source, tuple(allow), device)
    model = builder.build(entry)
    settings = None if entry.optimizer is None else optimizer_settings(entry.optimizer)
    try:
        built = ExperimentModel(
            entry.name,
            model,
            is_critic=entry.is_critic,
            optimization=settings,
            iterations=iterations,
            tokenizer=tokenizer,
            max_length=entry.max_length,
        )
    except ValueError as error:
        raise ModelBuildError(str(error)) from error
    if tokenizer is not None and len(tokenizer) > built.vocabulary_size:
        raise ModelBuildError(
            f"model {entry.name!r} knows {built.vocabulary_size} tokens, and its tokenizer has {len(tokenizer)}; give "
            "it a larger 'vocab_size', or none, or another 'vocabulary'"
        )
    return built


def line_of(entry: ModelEntry, entries: Mapping[str, ModelEntry]) -> list[ModelEntry]:
    """A model, what it is like, and so on, to the one that says where all of them come from.

    Raises ModelBuildError where there is none.
    """
    line = [entry]
    while (like := line[-1].like) is not None:
        if like not in entries:
            near = did_you_mean(like, entries)
            raise ModelBuildError(
                f"model {line[-1].name!r} is like {like!r}, which is no model{near}"
            )
        if entries[like] in line:
            names = [each.name for each in line]
            raise ModelBuildError(
                f"models are like each other in a circle: {listing([*names, like])}"
            )
        line.append(entries[like])
    return line


class _ModelBuilder:
    def __init__(
        self,
        entries: Mapping[str, ModelEntry],
        seed: int,
        tokenizer: Any,
        source: Source | None,
        allow: tuple[str, ...],
        device: torch.device | str,
    ) -> None:
        self.entries, self.run_seed, self.tokenizer = entries, seed, tokenizer
        self.source, self.allow, self.device = source, allow, device

    def build(self, entry: ModelEntry) -> Model:
        line = line_of(entry, self.entries)
        kin = [*takewhile(lambda each: each.is_critic == entry.is_critic, line)]  # of equal weights
        from_actor = entry.is_critic and any(each.init_critic_from_actor for each in kin)
        base = line[-1]
        if len(base.origin) != 1:
            given = listing(base.origin) or "none"
            raise ModelBuildError(
                f"model {base.name!r} needs one of 'decoder', 'checkpoint', 'spec' and 'like', got {given}"
            )
        ((kind, given),) = base.origin.items()
        wanted = replace(
            entry,
            vocabulary=next((each.vocabulary for each in line if each.vocabulary), None),
            max_length=next((each.max_length for each in line if each.max_length), None),
        )
        seed = self._seed(kin[-1].name)
        if kind == "checkpoint":
            return self._checkpoint(wanted, given, from_actor, seed)
        if kind == "decoder":
            model = self._decoder(wanted, base, given, seed)
        elif kind == "spec":
            model = self._spec(wanted, given, seed)
        else:
            raise ModelBuildError(
                f"model {base.name!r}: models of tokens do not come from {kind!r}; give 'decoder', 'checkpoint' or "
                "'spec'"
            )
        if from_actor and torch.device(self.device).type != "meta":
            actor = next((each for each in line if not each.is_critic), None)
            take_body(model, self.build(actor or _as_actor(base)))
        return model

    def _seed(self, name: str) -> int:
        digest = hashlib.sha256(f"{self.run_seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def _decoder(self, entry: ModelEntry, base: ModelEntry, given: object, seed: int) -> Model:
        if not isinstance(given, Mapping):
            raise ModelBuildError(
                f"model {base.name!r}: 'decoder' takes the settings of the block, got {describe(given)}"
            )
        settings = dict(given)
        size = self._vocabulary_size(entry, settings.pop("vocab_size", None))
        if entry.max_length is not None:
            settings.setdefault("max_length", entry.max_length)
        try:
            spec = token_spec(settings, is_critic=entry.is_critic)
            return self._compose(spec, self._spaces(entry, size), seed)
        except SpecError as error:
            problems = [(problem.path[3:], problem) for problem in error.problems]
            raise self._at_decoder(problems, base) from None
        except SettingsError as error:
            problems = [((each.setting,), Problem(each.message)) for each in error.problems]
            raise self._at_decoder(problems, base) from None

    def _at_decoder(self, problems: Iterable[tuple[Path, Problem]], base: ModelEntry) -> SpecError:
        """What is wrong with the settings of a decoder, at what the user wrote."""
        placed: list[Problem] = []
        for below, problem in problems:
            path = (*base.path, "decoder", *below)
            place = None if self.source is None else self.source.position(path)
            placed.append(Problem(problem.message, path, place, problem.needs_extra))
        return SpecError(placed)

    def _spec(self, entry: ModelEntry, given: Any, seed: int) -> Model:
        written = given
        if isinstance(given, str) and self.source is not None:
            written = self._found(entry, given)
        source = load_source(written, (), self.allow)
        spaces = None
        if "environment" not in source.data:
            spaces = self._spaces(entry, self._vocabulary_size(entry, None))
            if "sequence" not in str(source.data):  # it is for the last token alone
                spaces = (spaces[1], spaces[1])
        overrides = critic_of(entry.name, source.data) if entry.is_critic else []
        return self._compose(source, spaces, seed, overrides)

    def _checkpoint(self, entry: ModelEntry, given: Any, from_actor: bool, seed: int) -> Model:
        if not isinstance(given, str | os.PathLike):
            raise ModelBuildError(
                f"model {entry.name!r}: 'checkpoint' is a file of model.save, or a folder of Hugging Face, "
                f"got {describe(given)}"
            )
        path = self._found(entry, os.fspath(given))
        if os.path.isdir(path):
            return self._hugging_face(entry, path, from_actor, seed)
        try:
            saved = composing.load(path, self.allow, device=self.device)
        except CheckpointError as error:
            raise ModelBuildError(f"model {entry.name!r}: {error}") from error
        if not entry.is_critic:
            return saved
        if saved.critic is not None and not from_actor:
            return saved
        if not from_actor:
            raise ModelBuildError(
                f"model {entry.name!r} is_critic, and {given!r} has no critic; write init_critic_from_actor: true "
                "to begin with the body of its policy"
            )
        spaces = (saved.observation_space, saved.action_space)
        overrides = critic_of(entry.name, {**saved.source.data, "critic": None})
        model = self._compose(saved.source, spaces, seed, overrides)
        take_body(model, saved)
        return model

    def _hugging_face(self, entry: ModelEntry, path: str, from_actor: bool, seed: int) -> Model:
        try:
            spec, tensors = from_hf(
                path, is_critic=entry.is_critic, init_critic_from_actor=from_actor, max_length=entry.max_length
            )  # fmt: skip
        except ValueError as error:
            text = str(error)
            for name in ("init_critic_from_actor", "is_critic"):
                text = text.replace(f"pass {name}=True", f"write {name}: true")
            raise ModelBuildError(f"model {entry.name!r}: {text}") from error
        part = "critic" if entry.is_critic else "policy"
        size = len(tensors[f"{part}.latent.embed_tokens.weight"])
        if self.tokenizer is not None and len(self.tokenizer) > size:
            raise ModelBuildError(
                f"model {entry.name!r}: its tokenizer has {len(self.tokenizer)} tokens, and {path!r} knows {size}"
            )
        model = self._compose(spec, self._spaces(entry, size), seed)
        if torch.device(self.device).type != "meta":
            model.load_state_dict(tensors, strict=False)
        return model

    def _vocabulary_size(self, entry: ModelEntry, given: object) -> int:
        if isinstance(given, int) and not isinstance(given, bool):
            return given
        if self.tokenizer is None:
            raise ModelBuildError(
                f"model {entry.name!r} has no vocabulary; write vocabulary: and a file with a token in each line"
            )
        return len(self.tokenizer)

    def _found(self, entry: ModelEntry, path: str) -> str:
        """Where a file of the experiment is. Raises ModelBuildError where it may not be read."""
        try:
            return path if self.source is None else self.source.find_file(path)
        except ValueError as error:
            raise ModelBuildError(f"model {entry.name!r}: {error}") from error

    def _spaces(self, entry: ModelEntry, size: int) -> Spaces:
        """Raises ModelBuildError for sizes that no space of tokens has; a space of many numbers takes their memory."""
        length, most = entry.max_length or LENGTH, Limits().numbers
        for what, number in (("a vocabulary", size), ("a 'max_length'", length)):
            if number > most:
                raise ModelBuildError(
                    f"model {entry.name!r} has {what} of {number:,} tokens; it may have {most:,}"
                )
        try:
            return token_spaces(size, length)
        except ValueError as error:
            raise ModelBuildError(f"model {entry.name!r}: {error}") from error

    def _compose(
        self,
        spec: GivenSpec,
        spaces: Spaces | None,
        seed: int,
        overrides: Sequence[Override] = (),
    ) -> Model:
        observation_space, action_space = spaces or (None, None)
        model = composing.compose(
            spec,
            observation_space=observation_space,
            action_space=action_space,
            allow=self.allow,
            overrides=overrides,
            device=self.device,
            seed=seed,
        )
        return model.eval()


def critic_of(name: str, spec: Mapping[str, Any]) -> list[Override]:
    """What makes of a spec one of a critic: nothing where it has one, else a value from what its head reads."""
    if spec.get("critic") is not None:
        return []
    policy = spec.get("policy")
    policy = policy if isinstance(policy, Mapping) else {}
    heads = policy.get("heads")
    heads = heads if isinstance(heads, Mapping) else {}
    if "in" not in heads and len(heads) == 1:
        (heads,) = heads.values()  # that of the only action
    read = heads.get("in") if isinstance(heads, Mapping) else None
    if "graph" not in policy or not isinstance(read, str):
        raise ModelBuildError(
            f"model {name!r} is_critic, and its spec has neither a 'critic' nor a policy with a 'graph' and "
            "'heads: {in: ...}' to make one from"
        )
    graph = {node: without_tied_head(given) for node, given in policy["graph"].items()}
    critic = {"graph": graph, "heads": {"value": {**VALUE, "in": read}}}
    ignored = [key for key in spec.get("ignore") or () if key != "observation"]
    return [("policy", NO_POLICY), ("critic", critic), ("ignore", ignored)]


def without_tied_head(node: Any) -> Any:
    """A node that gives features, where it gave logits by its embedding."""
    if not isinstance(node, Mapping):
        return node
    return {key: value for key, value in node.items() if key != "tied_head"}


def take_body(critic: Model, actor: Model) -> None:
    """Copy the weights of the actor's policy into those of the critic that have the same names and shapes."""
    assert critic.critic is not None
    weights = actor.policy.state_dict()
    taken = critic.critic.state_dict()
    same = [name for name in taken if name in weights and taken[name].shape == weights[name].shape]
    with torch.no_grad():
        for name in same:
            taken[name].copy_(weights[name])


def _as_actor(entry: ModelEntry) -> ModelEntry:
    return replace(entry, is_critic=False, init_critic_from_actor=False)
