"""An action model: a model of Hugging Face's that sees an image, reads a task, and writes actions as tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from composer.build.budget import Budget, CountingMode, LimitReached
from composer.build.construction import on_cpu
from composer.language.action_files import (
    HEAD,
    fill_from,
    give_weights,
    save,
    save_folder,
    saved_beside,
    take_adapters,
)
from composer.language.action_plan import ActionPlan
from composer.language.action_proof import prove_action_model
from composer.language.action_spec import Spaces, plan_action_model
from composer.language.generating import (
    SAMPLING,
    OnlyBins,
    Sampler,
    check_prompt,
    check_sampling,
    check_tokens,
    generation_config,
    is_single,
    refuse_arguments,
    rows_of,
    split_rows,
)
from composer.language.overview import picture_of, summary_of, why_no_processor
from composer.limits import Limits
from composer.network.sharded import refuse_sharded
from composer.source.load import Source
from composer.spec.model_spec import ModelSpec
from perception_blocks.blocks.lora import freeze, merge
from perception_blocks.init import derive_seed
from perception_blocks.reading import files_found
from perception_blocks.words import describe, did_you_mean, listing

__all__ = ["ActionModel", "Predicted", "compose_action_model"]

MODES = ("train", "eval")
Inputs = dict[str, Any]


class Predicted(NamedTuple):
    """``actions`` are token ids ``(B, n)``, the last of ``sequences``; ``logits`` ``(B, n, V)`` before any processor.

    ``values`` ``(B, n, 1)`` are of the features that each token was chosen from.
    """

    actions: Tensor
    sequences: Tensor
    logits: Tensor
    values: Tensor


class ActionModel(nn.Module):
    """What `compose` returns for a spec with `model`: the policy, and the critic if it has a value head.

    ``hf`` is the library's module, ``bins`` say what tokens stand for, ``value_head`` reads the features of the last
    token of the prompt (None: values are zeros), ``processor`` makes tokens and pixels of observations (None: there
    is none).
    """

    has_merged = False  # whether its adapters are in its weights

    def __init__(
        self, plan: ActionPlan, source: Source, spec: ModelSpec, spaces: Spaces, seed: int
    ) -> None:
        super().__init__()
        self.plan, self.source, self.spec, self.seed = plan, source, spec, seed
        self.observation_space, self.action_space = spaces
        self.bins, self.processor = plan.bins, plan.processor
        self.action_token_len = plan.action_token_len
        self.chunks = plan.spec.action_chunks_len
        self.hf = plan.build("meta")
        self.value_head = plan.value_head("meta")
        self._sharding: Any = None  # of composer.parallel, once weights are spread over processes
        self.eval()

    # --- weights ---

    def materialize(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> ActionModel:
        """Give a model composed on ``device="meta"`` its weights; ``dtype`` replaces that of the spec."""
        refuse_sharded(self, "materialize()")
        self.hf = self.plan.build("cpu").to(device=device, dtype=dtype)
        self._materialize_value_head(device)
        take_adapters(self, self.plan.adapters)
        return self

    def prepare_parts(self) -> bool:
        """Where the weights are in a folder, let `materialize_part` and `materialize_rest` read them; else give False.

        A class that draws its weights does so as it is constructed, whole.
        """
        if self.plan.folder is None:
            return False
        self.hf = self.plan.without_weights()
        return True

    def materialize_part(self, part: nn.Module, device: torch.device) -> None:
        """Give a module in ``hf`` its weights; no others are read."""
        give_weights(self, part, device)

    def materialize_rest(self, device: torch.device) -> None:
        """Give all else its weights."""
        give_weights(self, self.hf, device)
        self._materialize_value_head(device)
        head = {n: t for n, t in self.plan.adapters.items() if n.startswith(HEAD)}
        take_adapters(self, head)

    def _materialize_value_head(self, device: torch.device | str) -> None:
        if self.value_head is None:
            return
        self.value_head.to_empty(device=device)
        self.value_head.reset_parameters(derive_seed(self.seed, "value_head"))
        kept = {} if self.plan.folder is None else self.plan.folder.value_head()
        if kept:
            self.value_head.load_state_dict(kept)

    def save(self, path: str | FilePath, *, adapters_only: bool = False) -> None:
        """Write weights, spec, configuration and processor to one safetensors file, which `composer.load` reads.

        With ``adapters_only`` it has the adapters and the value head, for `load_weights` and `path` of `lora`. Of a
        sharded model every process calls this: the weights are gathered, and the first process writes the file.
        """
        if self._sharding is None:
            save(self, path, adapters_only=adapters_only)
            return
        if adapters_only:
            refuse_sharded(self, "save(adapters_only=True)")
        self._sharding.save(path)

    def save_pretrained(self, folder: str | FilePath) -> None:
        """Write a folder that ``from_pretrained`` reads and `model_path` may name; adapters are added to the weights.

        The value head is the file ``value_head.safetensors`` in it.
        """
        refuse_sharded(self, "save_pretrained()")
        save_folder(self, folder)

    def load_weights(self, path: str | FilePath, *, strict: bool = True) -> Any:
        """Load a file that `save` wrote, of this model or with its adapters only; return a LoadReport."""
        refuse_sharded(self, "load_weights()")
        return fill_from(self, path, strict=strict)

    def merge_adapters(self) -> ActionModel:
        """Add the adapters to the weights and remove them, in place: what `save` writes then needs no peft."""
        refuse_sharded(self, "merge_adapters()")
        merge(self.hf)
        self.hf.requires_grad_(True)
        freeze(self.hf, self.plan.spec.freeze)
        self.has_merged = True
        return self

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    # --- acting ---

    @torch.no_grad()
    def predict_tokens(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None = None,
        do_sample: bool = True,
        generator: torch.Generator | None = None,
        compute_values: bool = True,
        **more: Any,
    ) -> Predicted:
        """Actions as tokens, sampled from the bins, or the likeliest ones.

        ``more`` are other inputs of the model, and ``temperature``, ``top_k`` and ``top_p`` of sampling.
        """
        given = {name: more.pop(name, None) for name in SAMPLING}
        sampling = {name: value for name, value in given.items() if value is not None}
        check_sampling(sampling)
        refuse_arguments(more)
        check_prompt(input_ids, attention_mask, self.plan.config.get_text_config().vocab_size)
        has_values = compute_values and self.value_head is not None
        inputs = self._moved(
            {"attention_mask": attention_mask, "pixel_values": pixel_values, **more}
        )
        processors: list[LogitsProcessor] = [OnlyBins(self.bins.first, self.bins.n_bins)]
        if do_sample and generator is not None:
            processors.append(Sampler(generator, **sampling))
        count = self.action_token_len
        drawn = sampling if do_sample and generator is None else None
        out = self.hf.generate(
            input_ids.to(self.device),
            generation_config=generation_config(count, drawn, with_features=has_values),
            logits_processor=LogitsProcessorList(processors),
            **inputs,
        )
        logits = torch.stack(out.logits, 1)
        values = torch.zeros_like(logits[..., :1], dtype=torch.float32)
        if has_values:
            values = self._values(torch.stack([x[-1][:, -1] for x in out.hidden_states], 1))
        return Predicted(out.sequences[:, -count:], out.sequences, logits, values)

    def predict_action_batch(
        self,
        env_obs: Mapping[str, Any] | None = None,
        mode: str = "train",
        compute_values: bool = True,
        *,
        input_ids: Tensor | None = None,
        **more: Any,
    ) -> Any:
        """Return actions ``(B, chunks, size)`` in the environment's units, and a dict of what training needs.

        The dict has ``prev_logprobs`` ``(B, n)``, ``prev_values`` ``(B, 1)`` and ``forward_inputs``, which `forward`
        takes. ``mode`` "train" samples, "eval" takes the likeliest action. ``more`` are those of `predict_tokens`. With
        ``input_ids`` in the place of observations it is `predict_tokens`.
        """
        if input_ids is not None:
            return self.predict_tokens(input_ids, **more)
        if mode not in MODES:
            near = did_you_mean(str(mode), MODES)
            raise ValueError(f"mode is one of {listing(MODES)}, got {mode!r}{near}")
        if env_obs is None:
            raise ValueError("predict_action_batch takes observations, or input_ids")
        inputs = self.inputs(env_obs)
        keywords = {"do_sample": mode == "train", **more, "compute_values": compute_values}
        key = "micro_batch_size"
        if mode == "eval" and self.plan.spec.val_micro_batch_size is not None:
            key = "val_micro_batch_size"
        split = split_rows(inputs, getattr(self.plan.spec, key), key)
        parts = [self.predict_tokens(**part, **keywords) for part in split]
        tokens, logits = (torch.cat([part[index] for part in parts]) for index in (0, 2))
        result = {
            "prev_logprobs": self._log_probs(logits).gather(-1, self._bin(tokens)).squeeze(-1),
            "prev_values": torch.cat([part.values[:, 0] for part in parts]),
            "forward_inputs": {**inputs, "action_tokens": tokens},
        }
        chunks = tokens.unflatten(-1, (self.chunks, self.bins.size))
        return self.bins.values(chunks), result

    def act(self, observation: Mapping[str, Any], deterministic: bool = False) -> Any:
        """An action as the environment takes it for an observation, or a batch of them; with chunks, one for each step.

        Of tensors it is a tensor, else an array.
        """
        if not isinstance(observation, Mapping):
            raise ValueError(f"an observation is a mapping, got {describe(observation)}")
        names = [name for name in self.plan.spec.inputs.values() if name in observation]
        image = observation.get(self.plan.spec.inputs.get("image", ""))
        single = is_single(observation, self.plan.spec.inputs)
        if single:
            observation = {name: [observation[name]] for name in names}
        mode = "eval" if deterministic else "train"
        actions, _ = self.predict_action_batch(observation, mode, compute_values=False)
        actions = actions.squeeze(1) if self.chunks == 1 else actions
        actions = actions[0] if single else actions
        space = self.action_space
        if space is not None:
            low, high = (torch.as_tensor(x, device=actions.device) for x in (space.low, space.high))
            actions = actions.unflatten(-1, space.shape) if space.shape else actions.squeeze(-1)
            actions = actions.clamp(low, high).to(low.dtype)
        return actions if isinstance(image, Tensor) else actions.cpu().numpy()

    def inputs(self, env_obs: Mapping[str, Any]) -> Inputs:
        """A batch of observations as the model's inputs, on its device."""
        if self.processor is None:
            raise ValueError(why_no_processor(self))
        rows = rows_of(env_obs, self.plan.spec.inputs)
        given = {"images" if kind == "image" else kind: values for kind, values in rows.items()}
        return self._moved(dict(self.processor(**given, return_tensors="pt", padding=True)))

    # --- training ---

    def forward(
        self,
        forward_inputs: Mapping[str, Any],
        compute_logprobs: bool = True,
        compute_entropy: bool = True,
        compute_values: bool = True,
    ) -> dict[str, Tensor | None]:
        """Calculate log-probabilities ``(B, n)``, entropies ``(B, n)`` and values ``(B, 1)`` of actions again.

        ``forward_inputs`` are those that `predict_action_batch` returned. What is not computed is None. The model
        counts places as it does for ``generate``, so the results are those of acting.
        """
        check_tokens(forward_inputs, self.action_token_len)
        inputs = self._moved(dict(forward_inputs))
        tokens, prompt = inputs.pop("action_tokens"), inputs.pop("input_ids")
        said = tokens[:, :-1]  # nothing follows the last one
        inputs["attention_mask"] = torch.cat(
            [inputs["attention_mask"], inputs["attention_mask"].new_ones(said.shape)], 1
        )
        out = self._run(torch.cat([prompt, said], 1), inputs, with_features=compute_values)
        result: dict[str, Tensor | None] = dict.fromkeys(("logprobs", "entropy", "values"))
        if compute_logprobs or compute_entropy:
            log_probs = self._log_probs(out.logits[:, -self.action_token_len :])
            if compute_logprobs:
                result["logprobs"] = log_probs.gather(-1, self._bin(tokens)).squeeze(-1)
            if compute_entropy:
                result["entropy"] = -(log_probs.exp() * log_probs).sum(-1)
        if compute_values:
            result["values"] = (
                torch.zeros(len(tokens), 1, device=tokens.device)
                if self.value_head is None
                else self._values(out.hidden_states[-1][:, -self.action_token_len])
            )
        return result

    def default_forward(self, forward_inputs: Mapping[str, Any], **what: bool) -> dict[str, Any]:
        """`forward` by its second name."""
        return self(forward_inputs, **what)

    def prove(
        self, observation: Mapping[str, Any] | None = None, tolerance: float | None = None
    ) -> float:
        """The largest difference between what acting returned and what `forward` calculates again.

        ``observation`` is one or a batch; without one, two are made, with tasks of unequal lengths. Raises ProofError
        above ``tolerance``: 1e-5, or 0.1 of a log-probability in half precision.
        """
        return prove_action_model(self, observation, tolerance)

    # --- looking at it ---

    def summary(self) -> str:
        """Parts, parameters and what is trained, as a table."""
        return summary_of(self)

    def picture(self) -> Any:
        """What `composer.draw` draws."""
        return picture_of(self)

    def draw(self, path: str | FilePath) -> FilePath:
        """Draw the model; the extension (png, svg, pdf, html, dot, mmd) selects the format."""
        from composer.diagram.drawing import draw

        return draw(self, path)

    def export(self, *_: Any, **__: Any) -> Any:
        """Refused: raises ExportError."""
        from composer.export.exporting import ExportError

        raise ExportError(
            "an action model is not exported: no file holds its processor and its loop over tokens; "
            "model.save_pretrained(folder) writes what transformers reads"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        refuse_sharded(self, "a copy")
        return super().__reduce_ex__(protocol)

    def checkpoint_about(self) -> dict[str, Any]:
        """What its checkpoint says beside the weights."""
        return saved_beside(self)

    def parallel_roots(self) -> list[nn.Module]:
        """What is called from outside of it: `composer.parallel` shards these."""
        return [self.hf, *([] if self.value_head is None else [self.value_head])]

    @property
    def policy(self) -> Any:
        """Of other models; raises TypeError."""
        raise TypeError(
            "an action model is the policy, and has no other: call model.act(observation), "
            "model.predict_action_batch(observations) and model(forward_inputs)"
        )

    # --- inside ---

    def _run(self, ids: Tensor, inputs: Inputs, *, with_features: bool) -> Any:
        """One pass over whole sequences, its inputs prepared as ``generate`` prepares them."""
        accepts = inspect.signature(self.hf.forward).parameters
        if "position_ids" in accepts and "position_ids" not in inputs:
            inputs["position_ids"] = self.hf._prepare_position_ids_for_generation(ids, inputs)
        if "logits_to_keep" in accepts:
            inputs["logits_to_keep"] = self.action_token_len
        inputs["output_hidden_states"] = with_features and self.value_head is not None
        prepared = self.hf.prepare_inputs_for_generation(
            ids, is_first_iteration=True, use_cache=False, **inputs
        )
        return self.hf(**prepared, return_dict=True)

    def _values(self, features: Tensor) -> Tensor:
        assert self.value_head is not None
        return self.value_head(features).float()

    def _log_probs(self, logits: Tensor) -> Tensor:
        """Of the bins alone, in float32."""
        first = self.bins.first
        return logits[..., first : first + self.bins.n_bins].float().log_softmax(-1)

    def _bin(self, tokens: Tensor) -> Tensor:
        return (tokens - self.bins.first).unsqueeze(-1)

    def _moved(self, inputs: Inputs) -> Inputs:
        """Without what is None; on the model's device, images in its dtype."""
        like = next(self.hf.parameters())
        return {
            name: value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
            if isinstance(value, Tensor)
            else value
            for name, value in inputs.items()
            if value is not None
        }


def compose_action_model(
    source: Source,
    spec: ModelSpec,
    spaces: Spaces,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    seed: int,
    limits: Limits,
    processor: Mapping[str, str] | None = None,
) -> ActionModel:
    """The model of a spec with `model`; ``processor`` has the files of its processor, where a checkpoint holds them.

    Raises SpecError with every problem.
    """
    assert spec.model is not None
    target = torch.device(device)
    budget = Budget(limits)
    memory = None if target.type == "meta" else budget.memory_of(target)
    with on_cpu(), files_found(source.find_file, has_weights=source.is_stored):
        try:
            with CountingMode(budget, memory):
                plan = plan_action_model(
                    spec.model, source, spaces, dtype, seed, layers=limits.layers, processor=processor
                )  # fmt: skip
        except LimitReached as reached:
            raise reached.at("model", spec.model.path).as_error(source) from None
        model = ActionModel(plan, source, spec, spaces, seed)
        return model if target.type == "meta" else model.materialize(device)
