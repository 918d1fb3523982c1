"""A composed model as an RLModule: the model is in ``module.model``, made from the spec in ``model_config``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from composer.adapters.host import HostObservations, refuse_unrecalled
from composer.adapters.needs import refuse
from composer.adapters.rllib.distribution import ComposedDistribution, distribution_class
from composer.host.step import Step
from composer.model import Model, compose
from composer.network.network import State
from composer.policy.structured import one_policy
from composer.spaces.nested import map_nested
from composer.spaces.values import flags_for
from perception_blocks.words import listing

__all__ = ["CONFIG_KEY", "ComposedModule", "GivenModel", "refuse_untrainable"]

CONFIG_KEY = "composer"
_ROW = "row"  # the name of the state, which is one row of numbers for each environment
_KNOWN = (CONFIG_KEY, "max_seq_len", "vf_share_layers")  # RLlib adds the last one itself


class GivenModel:
    """In the place of a spec, a model that is trained itself: copies of a config share it.

    Modules that only act have a copy, as they have in other processes, where it arrives by pickle.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def __deepcopy__(self, memo: object) -> GivenModel:
        return self

    def for_module(self, inference_only: bool) -> Model:
        return copy.deepcopy(self.model) if inference_only else self.model


def refuse_untrainable(
    model: Model, observation_space: Any, names: Mapping[str, str] | None = None
) -> None:
    """Raise ValueError with every reason why RLlib cannot train ``model``; ``names`` are as for `refuse`."""
    refuse(model, "PPO", "rllib", names)
    refuse_unrecalled(model, observation_space)
    HostObservations(one_policy(model.policy).observer.tree, "RLlib")  # what varies is refused


class ComposedModule(TorchRLModule, ValueFunctionAPI):
    """The RLModule of `module_spec`. ``model`` is the composed model; ``model.save`` writes it after training.

    Its state is one row of numbers for each environment, and the inputs of its action distributions are rows that
    rebuild them without weights or observations (masks included).
    """

    model: Model
    needs_learner: bool  # `ComposedLearner`, which says that it is there by setting it to False

    def setup(self) -> None:
        """Compose the model. Raises ValueError with every reason why RLlib cannot train it."""
        given: Mapping[str, Any] = self.model_config.get(CONFIG_KEY) or {}  # type: ignore[union-attr]
        _refuse_settings(self.model_config)  # type: ignore[arg-type]
        if "model" in given:
            model = given["model"].for_module(self.inference_only)
        else:
            model = compose(
                given["spec"], allow=given["allow"], seed=given["seed"], limits=given["limits"],
                observation_space=self.observation_space, action_space=self.action_space,
            )  # fmt: skip
        refuse_untrainable(model, self.observation_space)
        self.needs_learner = bool(model.spec.learning_rate_scale) or not all(
            parameter.requires_grad for parameter in model.parameters()
        )
        self.model = model
        self._carries = model.has_memory
        self._has_masks = bool(one_policy(model.policy).masks)
        self._distributions = distribution_class(one_policy(model.policy))

    def get_inference_action_dist_cls(self) -> type[ComposedDistribution]:  # type: ignore[override]
        return self._distributions

    def get_exploration_action_dist_cls(self) -> type[ComposedDistribution]:  # type: ignore[override]
        return self._distributions

    def get_train_action_dist_cls(self) -> type[ComposedDistribution]:  # type: ignore[override]
        return self._distributions

    def get_initial_state(self) -> dict[str, np.ndarray]:
        """A row of zeros; nothing without memory."""
        if not self._carries:
            return {}
        return {_ROW: np.zeros(self.model.state_width, np.float32)}

    def is_stateful(self) -> bool:
        return self._carries

    def _forward_exploration(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Actions that are drawn, with their log-probabilities, for rollouts."""
        return self._acted(batch, deterministic=False)

    def _forward_inference(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        """The modes of the distributions as actions."""
        return self._acted(batch, deterministic=True)

    def _acted(self, batch: dict[str, Any], *, deterministic: bool) -> dict[str, Any]:
        """Actions as they were drawn, and as the environment takes them: a Box's numbers within its bounds.

        A critic without memory does not run.
        """
        with torch.no_grad():
            if self._carries:
                step = self._step(batch)
                distribution, answer = step.distribution, self._state_after(step)
            else:
                policy = one_policy(self.model.policy)
                distribution, answer = policy.distribution(batch[Columns.OBS]), {}
            action = distribution.mode() if deterministic else distribution.sample()
            actions = self._distributions.actions
            return {
                **answer,
                Columns.ACTION_DIST_INPUTS: distribution.row(),
                Columns.ACTIONS: actions.to_host(action),
                Columns.ACTIONS_FOR_ENV: actions.to_host(action, within_bounds=True),
                Columns.ACTION_LOGP: distribution.log_prob(action),
            }

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        """The distributions' rows and the values: what policy and critic share runs once."""
        if self.needs_learner:
            raise ValueError(
                "'freeze' and 'learning_rate_scale' of the spec need the learner that rllib.checked(config) sets; "
                "build the algorithm with rllib.checked(config).build_algo()"
            )
        step = self._step(self._unpadded(batch))
        rows = {Columns.ACTION_DIST_INPUTS: step.distribution.row()}
        return {**rows, **self._state_after(step), Columns.EMBEDDINGS: step.value}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Values (B,), with memory (B, T); ``embeddings`` are those that `_forward_train` has computed already."""
        if embeddings is not None:
            return embeddings
        state = self._state(batch)
        value = self.model.value(batch[Columns.OBS], state, unroll=self._carries)
        assert value is not None
        return value

    def _step(self, batch: dict[str, Any]) -> Step:
        """All steps of ``batch``: (B, ...), with memory sequences (B, T, ...), which never cross episodes."""
        state = self._state(batch)
        return self.model.step(
            batch[Columns.OBS], state=state, unroll=self._carries, deterministic=True, entropy=False
        )

    def _state(self, batch: dict[str, Any]) -> State | None:
        return self.model.unpack_state(batch[Columns.STATE_IN][_ROW]) if self._carries else None

    def _state_after(self, step: Step) -> dict[str, Any]:
        if step.state is None:
            return {}
        return {Columns.STATE_OUT: {_ROW: self.model.pack_state(step.state)}}

    def _unpadded(self, batch: dict[str, Any]) -> dict[str, Any]:
        """``batch`` with observations in the place of zeros after the ends of sequences, where masks forbid everything.

        They are the sequence's first ones; no loss looks at what the model answers there.
        """
        if Columns.LOSS_MASK not in batch or not self._carries or not self._has_masks:
            return batch
        is_step = batch[Columns.LOSS_MASK].bool()

        def filled(value: Tensor) -> Tensor:
            return torch.where(flags_for(value, is_step), value, value[:, :1])

        return {**batch, Columns.OBS: map_nested(filled, batch[Columns.OBS])}


def _refuse_settings(model_config: Mapping[str, Any]) -> None:
    """Raise ValueError for settings of networks beside the spec: they would have no effect."""
    more = [name for name in model_config if name not in _KNOWN]
    if CONFIG_KEY not in model_config:
        raise ValueError(
            "ComposedModule has no spec; make its RLModuleSpec with composer.adapters.rllib.module_spec(spec)"
        )
    if more:
        raise ValueError(
            f"the network is the spec's, so that model_config has no place for {listing(more)}; leave out model_config "
            "in rl_module(...), and give module_spec(..., max_seq_len=...) what memory needs"
        )
