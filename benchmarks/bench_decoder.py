"""Generating tokens with the block decoder, against Hugging Face's generate with its key-value cache, and without one.

All sides have the same weights and give the same tokens. Each chooses the likeliest token at every step, from the first
token to the last; a row says what one token costs on average.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import composer
from composer.adapters.tokens import token_spaces
from harness import Row, main, medians

WORDS, WIDTH, LAYERS, HEADS, UNITS = 64, 64, 2, 4, 128
LENGTHS = (16, 64, 256, 512)
BATCHES = (1, 8)
ROUNDS = {16: 60, 64: 30, 256: 10, 512: 7}
IGNORED = ["sequence", "sequence_mask", "action_mask", "observation"]
CACHED = {
    "block": "decoder", "in": "observation", "width": WIDTH, "num_layers": LAYERS,
    "num_heads": HEADS, "mlp_units": UNITS,
}  # fmt: skip
ANEW = {
    "block": "transformer", "family": "llama", "in": ["sequence", "sequence_mask"], "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": UNITS,
}  # fmt: skip


def policy_of(node: dict[str, Any], length: int) -> Any:
    """A token policy of one block and a head."""
    inputs = node["in"] if isinstance(node["in"], list) else [node["in"]]
    spec = {
        "version": 1,
        "policy": {"graph": {"latent": node}, "heads": {"in": "latent"}},
        "ignore": [name for name in IGNORED if name not in inputs],
    }
    observation, action = token_spaces(WORDS, length)
    model = composer.compose(spec, observation_space=observation, action_space=action, seed=0)
    return model.eval().policy


def language_model(policy: Any, length: int) -> Any:
    """The same network as transformers has it."""
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=UNITS, max_position_embeddings=length, bos_token_id=None,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    network = policy.network.module
    model.model.load_state_dict(network.latent.state_dict())
    head = network.get_submodule("heads.action").linear
    head.bias.data.zero_()
    model.lm_head.weight.data.copy_(head.weight)
    return model


def observed(tokens: Tensor, length: int) -> dict[str, Tensor]:
    """What a token environment shows after ``tokens`` (B,), of which a decoder reads the token alone."""
    batch = len(tokens)
    sequence = torch.zeros(batch, length, dtype=torch.int64)
    mask = torch.ones(batch, WORDS, dtype=torch.bool)
    seen = torch.ones(batch, length, dtype=torch.bool)
    return {"observation": tokens, "sequence": sequence, "sequence_mask": seen, "action_mask": mask}


def acting(policy: Any, batch: int, length: int) -> Callable[[], Tensor]:
    first = observed(torch.zeros(batch, dtype=torch.int64), length)

    def run() -> Tensor:
        tokens, state = [first["observation"]], policy.initial_state(batch)
        for _ in range(length - 1):
            token, state = policy.act(
                {**first, "observation": tokens[-1]}, state, deterministic=True
            )
            tokens.append(token)
        return torch.stack(tokens, dim=1)

    return run


def generating(model: Any, batch: int, length: int) -> Callable[[], Tensor]:
    first = torch.zeros(batch, 1, dtype=torch.int64)
    mask = torch.ones_like(first)

    def run() -> Tensor:
        return model.generate(
            first, attention_mask=mask, do_sample=False, use_cache=True,
            max_new_tokens=length - 1, min_new_tokens=length - 1,
        )  # fmt: skip

    return run


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    for length in LENGTHS:
        policy = policy_of({**CACHED, "max_length": length}, length)
        model = language_model(policy, length)
        for batch in BATCHES:
            sides = (acting(policy, batch, length), generating(model, batch, length))
            assert torch.equal(*(side() for side in sides))
            ours, theirs = medians(*sides, rounds=ROUNDS[length], repeat=1)
            steps = length - 1
            name = f"decoder: a token of {length}, batch {batch}"
            yield Row(name, ours / steps, "generate of transformers", theirs / steps, at_most=1.3)
            if length == LENGTHS[-1]:
                yield reading_anew(length, batch, theirs / steps)


def reading_anew(length: int, batch: int, generated: float) -> Row:
    """A step of the block transformer, which costs the same at every place."""
    policy = policy_of({**ANEW, "max_position_embeddings": length}, length)
    seen = observed(torch.zeros(batch, dtype=torch.int64), length)
    (ours,) = medians(lambda: policy.act(seen, deterministic=True), rounds=20)
    name = f"transformer, no cache: a token of {length}, batch {batch}"
    return Row(name, ours, "generate of transformers", generated)


if __name__ == "__main__":
    main("Generating tokens", rows, peers=["transformers"])
