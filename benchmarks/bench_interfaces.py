"""Models of experiments against transformers: generating from prompts of many lengths, and a step of fine-tuning.

Both sides have the same weights, and generate the same tokens. transformers pads: prompts in front, sequences to be
learned behind. Their lengths are drawn from a log-normal distribution, as those of answers of language models are.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

import composer
from composer.adapters.tokens import token_spaces
from composer.dataflow import (
    Context,
    ExperimentModel,
    GenerationSettings,
    OptimizerSettings,
    Sample,
    Sft,
)
from composer.language import from_hf
from harness import Row, main, medians

WORDS, PLACES, NEW = 1000, 256, 96


def models() -> tuple[LlamaForCausalLM, ExperimentModel]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=PLACES, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    spec, tensors = from_hf(theirs)
    observation, action = token_spaces(WORDS, PLACES)
    model = composer.compose(spec, observation_space=observation, action_space=action)
    model.load_state_dict(tensors)
    return theirs, ExperimentModel("actor", model, optimization=OptimizerSettings(lr=1e-5))


def sequences(count: int, longest: int) -> list[Tensor]:
    drawn = np.random.default_rng(0).lognormal(np.log(longest / 4), 0.7, count)
    return [torch.randint(1, WORDS, (n,)) for n in np.clip(drawn, 4, longest).astype(int).tolist()]


def generation_row(count: int) -> Row:
    theirs, ours = models()
    prompts = sequences(count, 64)
    lengths = [len(prompt) for prompt in prompts]
    tokens = pad_sequence(prompts, batch_first=True, padding_side="left")
    mask = pad_sequence(
        [torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left"
    )
    settings = GenerationSettings(max_new_tokens=NEW, greedy=True)

    def generated() -> list[Tensor]:
        out = ours.generate(torch.cat(prompts), lengths, settings)
        return [row[-NEW:] for row in out.ids.split(out.seqlens)]

    def by_transformers() -> list[Tensor]:
        out = theirs.generate(tokens, attention_mask=mask, max_new_tokens=NEW, do_sample=False)  # type: ignore[operator]
        return list(out[:, -NEW:])

    assert all(map(torch.equal, generated(), by_transformers()))
    mine, other = medians(generated, by_transformers, rounds=7, repeat=1)
    name = f"generation: {NEW} tokens after each of {count} prompts"
    return Row(name, mine, "generate of transformers", other, at_most=1.3)


def training(theirs: nn.Module, rows: list[Tensor]) -> Callable[[], None]:
    tokens = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels = torch.where(mask == 1, tokens, -100)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-5)

    def step() -> None:
        theirs.train()
        optimizer.zero_grad()
        theirs(input_ids=tokens, attention_mask=mask, labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()

    return step


def training_row(count: int) -> Row:
    theirs, ours = models()
    rows = sequences(count, PLACES)
    sample = Sample.from_default(range(count), list(map(len, rows)), {"ids": torch.cat(rows)})
    sft, context = Sft(max_tokens_per_mb=2048), Context(torch.Generator())
    step = training(theirs, rows)
    mine, other = medians(lambda: sft.train_step(ours, sample, context), step, rounds=7, repeat=1)
    name = f"sft: a step on {count} sequences"
    return Row(name, mine, "transformers, padded", other, at_most=1)


def rows() -> Iterator[Row]:
    yield generation_row(4)
    yield generation_row(16)
    yield training_row(32)


if __name__ == "__main__":
    main("Models of experiments", rows, peers=["transformers"])
