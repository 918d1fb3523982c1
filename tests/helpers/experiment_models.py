"""Tiny models of experiments for tests."""

from composer.dataflow.calls.experiment import ModelEntry
from composer.dataflow.running.model_building import build_model

VOCABULARY, LENGTH = 16, 24
DECODER = {
    "vocab_size": VOCABULARY,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "max_length": LENGTH,
}
TOKEN = {"block": "embedding", "in": "observation", "embedding_dim": 8}
GRU = {
    "version": 1,
    "policy": {
        "graph": {"token": TOKEN, "latent": {"block": "gru", "in": "token", "hidden_units": 16}},
        "heads": {"in": "latent"},
    },
}
GPT2 = {
    "version": 1,
    "policy": {
        "graph": {
            "latent": {
                "block": "transformer",
                "family": "gpt2",
                "in": ["sequence", "sequence_mask"],
            }
            | {"n_layer": 2, "n_head": 2, "n_embd": 16}
            | {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
        },
        "heads": {"in": "latent"},
    },
    "ignore": ["observation", "action_mask"],
}
ORIGINS = {"decoder": {"decoder": DECODER}, "gru": {"spec": GRU}, "gpt2": {"spec": GPT2}}


class Words:
    """A tokenizer of which only its size and its end token are asked."""

    def __init__(self, size=VOCABULARY, eos_token_id=None):
        self.size, self.eos_token_id = size, eos_token_id

    def __len__(self):
        return self.size


def entry(name, origin=None, **settings):
    """What an experiment says about a model."""
    return ModelEntry(name, ("models", name), origin or {}, max_length=LENGTH, **settings)


def a_model(origin="decoder", *, seed=0, end=None, lr=None, iterations=1, name="actor", **settings):
    optimizer = (
        None if lr is None else {"lr": lr, "weight_decay": 0.0, **settings.pop("optimizer", {})}
    )
    wanted = entry(name, ORIGINS[origin], optimizer=optimizer, **settings)
    return build_model(
        wanted, {name: wanted}, seed, tokenizer=Words(eos_token_id=end), iterations=iterations
    )
