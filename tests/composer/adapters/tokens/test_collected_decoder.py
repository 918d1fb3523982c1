"""A decoder in TorchRL: what a rollout stores of its cache is what the step had, and training reads it at once."""

import torch
from torchrl.envs import TransformedEnv

import composer
from composer.adapters.tokens import TokenEnv, token_spaces
from composer.adapters.torchrl import primers, to_torchrl

SPEC = """
version: 1
policy:
  graph:
    latent: {block: decoder, in: observation, width: 16, max_length: 12}
  heads: {in: latent}
ignore: [sequence, sequence_mask, action_mask]
"""


@torch.no_grad()
def test_stored_states_give_the_stored_logits_again_and_training_gives_them_at_once():
    torch.manual_seed(0)
    observation_space, action_space = token_spaces(8, 12)
    model = composer.compose(
        SPEC, observation_space=observation_space, action_space=action_space, seed=0
    )
    env = TokenEnv(
        start_token=0, end_token=1, vocabulary_size=8, max_length=12, batch_size=3,
        score=lambda sequence, mask: mask.sum(-1).float(),
    )  # fmt: skip
    env = TransformedEnv(env, primers(model))
    modules = to_torchrl(model, env)
    data = env.rollout(30, modules.collecting, break_when_any_done=False)
    assert data["is_init"].sum() > 6  # rows begin anew at different steps
    for step in range(30):
        again = modules.actor_inference(data[:, step].clone())
        torch.testing.assert_close(again["logits"], data[:, step]["logits"], atol=2e-6, rtol=2e-6)
    at_once = modules.actor_training(data.clone())
    torch.testing.assert_close(at_once["logits"], data["logits"], atol=1e-5, rtol=1e-5)
