"""Longest run: say tokens one after the other, and be paid for the longest run of one of them.

There are eight tokens: one begins a sequence, one ends it, six are to choose from. A sequence that is ended, or that
has reached its 16 places, is worth its longest run of one token, divided by the longest that there is room for.
"""

import gymnasium
import torch

# What a sequence is, for this environment and for a batch of sequences in TorchRL's.
RULES = {"vocabulary_size": 8, "max_length": 16, "start_token": 0, "end_token": 1}
ROOM = RULES["max_length"] - 2  # the first place is the start token's, the last one stays empty


def longest_run(sequence, sequence_mask):
    """The longest run of one token in each row, as a share of the longest that there could be."""
    run = longest = torch.zeros(len(sequence))
    for place in range(1, sequence.shape[1]):
        same = (sequence[:, place] == sequence[:, place - 1]) & sequence_mask[:, place]
        run = torch.where(same, run + 1, 1.0) * sequence_mask[:, place]
        longest = torch.maximum(longest, run)
    return longest / ROOM


gymnasium.register(
    "LongestRun-v0",
    "composer.adapters.tokens.gym_env:TokenGym",
    kwargs={**RULES, "score": longest_run},
)
