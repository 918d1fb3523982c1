"""The models of an experiment, as interfaces see them: reading packed sequences, generating, a step of training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from gymnasium.spaces import Discrete
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from composer.dataflow.algorithms.decoding import (
    Generated,
    GenerationSettings,
    continued,
    packed_rows,
    reader_of,
    token_logp,
)
from composer.dataflow.algorithms.optimization import OptimizerSettings
from composer.dataflow.algorithms.packing import drop_last
from composer.dataflow.context import Context
from composer.model import Model
from composer.network.module import NetworkModule
from composer.network.network import Tensors
from composer.policy.policy import Policy
from composer.policy.sequence_view import PackedView, SequenceView

__all__ = ["ExperimentModel", "NotFiniteError"]


class NotFiniteError(ValueError):
    """A loss, the gradients of one, or what tokens are chosen by has no finite value; no weight was changed."""


class ExperimentModel:
    """A model, its optimiser (None: never trained) and its tokenizer.

    ``network`` is the policy, or with ``is_critic`` the critic, whose value is one number. Its sequences are packed:
    tokens (N,) one after the other, and the number of tokens of each. A network whose memory is one `decoder` reads
    them as they are, any other padded; both read each sequence as if it were alone. With gradients the network is in
    train mode, without them in eval mode.

    ``optimization`` makes the ``optimizer`` where none is given; ``iterations`` are those of the run, over which the
    learning rate changes. Raises ValueError for a model that has no critic, or that does not read and say tokens.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        is_critic: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
        optimization: OptimizerSettings | None = None,
        iterations: int = 1,
        tokenizer: Any = None,
        max_length: int | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.is_critic = is_critic
        self.optimization = optimization
        self.iterations = iterations
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._action = the_action(name, model)
        self._networks = networks_of(name, model, is_critic)
        self._view = view_of(self._networks)
        if optimizer is None and optimization is not None:
            optimizer = optimization.make(self.parameters())
        self.optimizer = optimizer

    @property
    def network(self) -> NetworkModule:
        return self._networks[-1]

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def vocabulary_size(self) -> int:
        assert isinstance(self.model.policy, Policy)
        return self.model.policy.logits_shapes[self._action][-1]

    @property
    def end_token(self) -> int | None:
        """The tokenizer's ``eos_token_id``."""
        return getattr(self.tokenizer, "eos_token_id", None)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: of the network, and of a policy whose values it reads."""
        return list(dict.fromkeys(p for part in self._networks for p in part.parameters()))

    def logits(self, tokens: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
        """Logits (N, vocabulary) of the token after each of ``tokens`` (N,), sequences one after the other."""
        if self.is_critic:
            raise ValueError(f"the model {self.name!r} is a critic, and has scores but no logits")
        return self._read(tokens, lengths)[self._action]

    def scores(self, tokens: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
        """A critic's values (N,), one at each token."""
        if not self.is_critic:
            raise ValueError(
                f"the model {self.name!r} is an actor, and has no scores; write is_critic: true"
            )
        return self._read(tokens, lengths)["value"].squeeze(-1)

    def logp(
        self, tokens: Tensor, lengths: Tensor | Sequence[int], temperature: float = 1.0
    ) -> Tensor:
        """The log-probability of every token but the first of each sequence, (N - S,) for S sequences."""
        logits = self.logits(tokens, lengths)
        following = tokens.roll(-1).to(logits.device)  # of a last token it means nothing
        return drop_last(token_logp(logits, following, temperature), torch.as_tensor(lengths))

    @torch.no_grad()
    def generate(
        self,
        prompts: Tensor,
        lengths: Tensor | Sequence[int],
        settings: GenerationSettings,
        generator: torch.Generator | None = None,
    ) -> Generated:
        """Continue ``prompts`` (N,), one after the other, of ``lengths`` tokens each.

        A policy with memory carries its state, such as the key-value cache of a decoder, from token to token. Raises
        ValueError for prompts without tokens, and where prompt and ``max_new_tokens`` are longer than the model reads;
        NotFiniteError where the model's logits are no numbers.
        """
        counts = self._counts(prompts, lengths)
        self._refuse_prompts(counts, settings)
        tokens = prompts.to(self.device).split(counts)
        prompt_logp = self.logp(prompts, counts, settings.temperature)
        reader = reader_of(self._sequence_view, self._action)
        new, new_logp, no_eos = continued(reader, tokens, settings, self.end_token, generator)
        if any(bool(part.isnan().any()) for part in (prompt_logp, *new_logp)):
            raise NotFiniteError(
                f"the logits of model {self.name!r} are no numbers, so it cannot choose a token"
            )
        sizes = [count - 1 for count in counts]
        is_prompt = [torch.ones_like(part, dtype=torch.bool) for part in tokens]
        return Generated(
            ids=packed_rows(tokens, new),
            logp=packed_rows(prompt_logp.split(sizes), new_logp),
            prompt_mask=packed_rows(
                is_prompt, [torch.zeros_like(n, dtype=torch.bool) for n in new]
            ),
            seqlens=[count + len(part) for count, part in zip(counts, new)],
            lengths=torch.tensor([len(part) for part in new]),
            no_eos=no_eos,
        )

    def step(self, loss: Tensor | Iterable[Tensor], context: Context | None = None) -> float:
        """A step of the optimiser along the gradients of ``loss``, clipped; returns their norm before that.

        Losses of several micro-batches are added, each let go before the next is computed. ``context`` says in which
        iteration of the run this is, for the learning rate. Raises NotFiniteError before weights are changed where a
        loss or the norm is no finite number, and ValueError for a model that is not trained.
        """
        if self.optimizer is None:
            raise ValueError(f"the model {self.name!r} has no optimiser; give it an 'lr'")
        self.optimizer.zero_grad()
        try:
            for part in [loss] if isinstance(loss, Tensor) else loss:
                if not bool(torch.isfinite(part)):
                    raise NotFiniteError(self._not_finite(f"loss is {part.item()}", context))
                part.backward()
        except BaseException:
            self.optimizer.zero_grad()
            raise
        clip = None if self.optimization is None else self.optimization.gradient_clipping
        norm = nn.utils.clip_grad_norm_(self.parameters(), torch.inf if clip is None else clip)
        if isinstance(norm, DTensor):  # of a sharded model
            norm = norm.full_tensor()
        if not bool(torch.isfinite(norm)):
            self.optimizer.zero_grad()
            raise NotFiniteError(self._not_finite(f"norm of gradients is {norm.item()}", context))
        if self.optimization is not None and context is not None:
            lr = self.optimization.lr_at(context.iteration, self.iterations)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.item()

    def recall(self, name: str, default: float) -> float:
        """What `remember` was told last, or ``default``."""
        return (
            default if self.optimizer is None else self.optimizer.param_groups[0].get(name, default)
        )

    def remember(self, name: str, number: float) -> None:
        """Keep a number from one iteration to the next: it is saved and loaded with the optimiser.

        Raises ValueError for a model that is not trained.
        """
        if self.optimizer is None:
            raise ValueError(f"the model {self.name!r} has no optimiser; give it an 'lr'")
        self.optimizer.param_groups[0][name] = float(number)

    @property
    def longest(self) -> int | None:
        """The tokens of a sequence that the network has room for; None where it has no limit of its own."""
        blocks = (part for network in self._networks for part in network.modules())
        limits = [getattr(block, "longest_episode", None) for block in blocks]
        return min((limit for limit in [self.max_length, *limits] if limit), default=None)

    @property
    def _sequence_view(self) -> SequenceView:
        view = self._view
        return view.sequence_view if isinstance(view, PackedView) else view

    def _read(self, tokens: Tensor, lengths: Tensor | Sequence[int]) -> Tensors:
        """The network's outputs (N, k) at each token."""
        counts = self._counts(tokens, lengths)
        for part in self._networks:
            part.train(torch.is_grad_enabled())
        tokens = tokens.to(self.device)
        if isinstance(self._view, PackedView):
            return self._view(tokens, counts)
        rows = nn.utils.rnn.pad_sequence(list(tokens.split(counts)), batch_first=True)
        ends = torch.tensor(counts, device=rows.device).unsqueeze(-1)
        mask = torch.arange(rows.shape[1], device=rows.device) < ends
        return {name: values[mask] for name, values in self._view(rows, mask).items()}

    def _counts(self, tokens: Tensor, lengths: Tensor | Sequence[int]) -> list[int]:
        """The ``lengths`` as numbers. Raises ValueError unless they are those of all ``tokens``."""
        counts = torch.as_tensor(lengths).tolist()
        if tokens.dim() != 1 or sum(counts) != len(tokens) or min(counts, default=1) < 1:
            raise ValueError(
                f"the model {self.name!r} reads packed sequences: lengths of at least 1 that add up to the number of "
                f"tokens; got tokens of the shape {tuple(tokens.shape)}, and lengths {counts}"
            )
        return counts

    def _refuse_prompts(self, counts: list[int], settings: GenerationSettings) -> None:
        longest, needed = self.longest, max(counts, default=0) + settings.max_new_tokens
        if longest is not None and needed > longest:
            raise ValueError(
                f"the model {self.name!r} reads sequences of at most {longest} tokens, and a prompt of "
                f"{max(counts)} with max_new_tokens={settings.max_new_tokens} may be {needed}; "
                "raise its 'max_length', or lower 'max_new_tokens'"
            )

    def _not_finite(self, what: str, context: Context | None) -> str:
        where = "" if context is None else f"{context.where()}: "
        return f"{where}the {what}, of model {self.name!r}; its weights were not changed"


def the_action(name: str, model: Model) -> str:
    """The name of a policy's action, which is a token. Raises ValueError where it is not."""
    policy = model.policy
    if not isinstance(policy, Policy) or not isinstance(policy.action_space, Discrete):
        raise ValueError(
            f"the model {name!r} must choose a token, of a Discrete action space; it has {model.action_space}"
        )
    (action,) = policy.logits_shapes
    return action


def networks_of(name: str, model: Model, is_critic: bool) -> list[NetworkModule]:
    """The network that an experiment uses, last, and before it the policy whose values it reads."""
    if not is_critic:
        return [model.policy]  # type: ignore[list-item]
    if not isinstance(model.critic, NetworkModule):
        raise ValueError(f"the model {name!r} is_critic, but its spec has no 'critic' of states")
    return [model.policy, model.critic] if model.critic.shared else [model.critic]  # type: ignore[list-item]


def view_of(networks: Sequence[NetworkModule]) -> PackedView | SequenceView:
    """What reads whole sequences: packed where the last network's only memory is one decoder, else padded."""
    try:
        packed = None
        for network in networks:
            packed = PackedView(network, packed)
        assert packed is not None
        return packed
    except ValueError:
        view = None
        for network in networks:
            view = SequenceView(network, view)
        assert view is not None
        return view
