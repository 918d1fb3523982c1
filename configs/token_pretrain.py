"""Pretrain a token policy on a file of sequences, then fine-tune it by REINFORCE on whole sequences.

    python configs/token_pretrain.py
    python configs/token_pretrain.py --pretraining 400 --steps 60

It needs the extra [torchrl]. The sequences are balanced brackets, one a line of `token_texts.txt`. Pretraining teaches
which sequences there are; the score of fine-tuning is the length of a balanced sequence, and 0 for any other.
"""

import argparse
import warnings
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import composer
from composer.adapters.tokens import TokenDataset, Vocabulary, token_spaces

HERE = Path(__file__).parent
MAX_LENGTH = 12  # start and end included


def depths(sequence, mask, vocabulary):
    """How many brackets are open after each token (B, L)."""
    opens = vocabulary.encode("(", special=False)[0]
    closes = vocabulary.encode(")", special=False)[0]
    change = (sequence == opens).long() - (sequence == closes).long()
    return (change * mask).cumsum(-1)


def score_of(vocabulary):
    """The share of the room that a balanced sequence fills; 0 for one that is not balanced."""

    def score(sequence, mask):
        depth = depths(sequence, mask, vocabulary)
        balanced = (depth >= 0).all(-1) & (depth[:, -1] == 0)
        return balanced * (mask.sum(-1) - 1) / (MAX_LENGTH - 2)

    return score


def batches(dataset, batch_size, seed):
    """Shuffled batches without end."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        dataset, batch_size, shuffle=True, collate_fn=dataset.collate, generator=generator
    )
    while True:
        yield from loader


def pretrain(model, modules, dataset, steps, *, rate=1e-2, seed=0):
    """The negative log-probability of a token at every step."""
    optimizer = torch.optim.Adam(model.policy.parameters(), lr=rate)
    losses = []
    for batch in islice(batches(dataset, 20, seed), steps):
        log_prob = modules.actor_training.get_dist(batch).log_prob(batch["action"])
        loss = -log_prob[batch["mask"]].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def finetune(model, modules, env, steps, *, rate=2e-3):
    """The mean score at every step, by REINFORCE with the batch's mean score as baseline."""
    from composer.adapters.tokens import sample_sequences

    optimizer = torch.optim.Adam(model.policy.parameters(), lr=rate)
    scores = []
    for _ in range(steps):
        data = sample_sequences(env, modules.collecting)
        score = data["next", "reward"].squeeze(-1).sum(-1)
        each = modules.actor_training.get_dist(data).log_prob(data["action"])
        log_prob = torch.where(data["mask"], each, 0.0).sum(-1)
        loss = -((score - score.mean()) * log_prob).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scores.append(score.mean().item())
    return scores


def run(pretraining, steps, *, batch=64, seed=0):
    """The vocabulary, the trained model, and the curves of both stages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRL's own, when it is imported
        from torchrl.envs import TransformedEnv

        from composer.adapters.tokens import TokenEnv, token_modules
        from composer.adapters.torchrl import primers
    texts = HERE / "token_texts.txt"
    vocabulary = Vocabulary.from_texts(texts.read_text().split())
    dataset = TokenDataset(texts, vocabulary, max_length=MAX_LENGTH)
    observation_space, action_space = token_spaces(len(vocabulary), MAX_LENGTH)
    model = composer.compose(
        HERE / "token_gru.yaml",
        observation_space=observation_space, action_space=action_space,
        allow=["environments"], seed=seed,
    )  # fmt: skip
    env = TokenEnv(
        vocabulary_size=len(vocabulary), max_length=MAX_LENGTH, batch_size=batch,
        start_token=vocabulary.start_token, end_token=vocabulary.end_token,
        score=score_of(vocabulary),
    )  # fmt: skip
    env = TransformedEnv(env, primers(model))
    modules = token_modules(model, env)
    torch.manual_seed(seed)
    losses = pretrain(model, modules, dataset, pretraining, seed=seed)
    return vocabulary, model, losses, finetune(model, modules, env, steps)


def main():
    parser = argparse.ArgumentParser(description="A token policy is pretrained, then fine-tuned.")
    parser.add_argument("--pretraining", type=int, default=200, help="batches (default: 200)")
    parser.add_argument("--steps", type=int, default=80, help="steps of REINFORCE (default: 80)")
    given = parser.parse_args()
    _, _, losses, scores = run(given.pretraining, given.steps)
    print(f"pretraining: loss {losses[0]:.2f} in the first step, {losses[-1]:.2f} in the last")
    print(
        f"fine-tuning: mean score {scores[0]:.2f} in the first step, {scores[-1]:.2f} in the last"
    )


if __name__ == "__main__":
    main()
