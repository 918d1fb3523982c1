"""Generation alone: sequences that begin with the prompts of a data set."""

from __future__ import annotations

from composer.dataflow.algorithms.decoding import Generated, GenerationSettings, Share, Temperature
from composer.dataflow.algorithms.interfaces import Interface, Written
from composer.dataflow.algorithms.models import ExperimentModel
from composer.dataflow.context import Context
from composer.dataflow.data.samples import Sample
from perception_blocks.settings import NonNegativeInt, PositiveInt

__all__ = ["Generation", "generated", "written_by"]


class Generation(Interface):
    """Continues prompts. Its settings are those of `GenerationSettings`.

    ``ids`` are prompts with what was generated, ``prompt_mask`` is true for tokens of the prompt, ``logp`` has the
    log-probability of every token but the first, under the softmax of ``logits / temperature`` (before ``top_k`` and
    ``top_p``), ``lengths`` is how many tokens were generated, and ``no_eos`` whether the end token was not.
    """

    reads = {"generate": ("prompts",)}
    writes = {"generate": ("ids", "logp", "prompt_mask", "lengths", "no_eos")}
    takes = {"generate": "actor"}

    def __init__(
        self,
        *,
        max_new_tokens: PositiveInt = 256,
        min_new_tokens: NonNegativeInt = 0,
        greedy: bool = False,
        top_p: Share = 1.0,
        top_k: PositiveInt | None = None,
        temperature: Temperature = 1.0,
    ) -> None:
        self.settings = GenerationSettings(
            max_new_tokens, min_new_tokens, greedy, top_p, top_k, temperature
        )

    def generate(self, model: ExperimentModel, sample: Sample, context: Context) -> Written:
        """Logs the mean ``generated_tokens``, and ``no_eos``, the share of sequences without an end token."""
        return generated(model, sample, context, self.settings)


def generated(
    model: ExperimentModel, sample: Sample, context: Context, settings: GenerationSettings
) -> Written:
    """What ``model`` makes of the ``prompts`` of a sample, by name."""
    prompts, lengths = sample.values("prompts"), sample.lengths("prompts")
    out = model.generate(prompts, lengths, settings, context.generator)
    context.log("generated_tokens", out.lengths.float().mean().item())
    context.log("no_eos", out.no_eos.float().mean().item())
    return written_by(out)


def written_by(out: Generated) -> Written:
    """Sequences of new lengths, each alone; numbers of whole sequences in one tensor."""
    but_first = [count - 1 for count in out.seqlens]
    return {
        "ids": out.ids.cpu().split(out.seqlens),
        "logp": out.logp.cpu().split(but_first),
        "prompt_mask": out.prompt_mask.cpu().split(out.seqlens),
        "lengths": out.lengths.cpu(),
        "no_eos": out.no_eos.cpu(),
    }
