"""Proximal policy optimisation (PPO) in one file: policy and critic with memory, on sequences that cross episodes.

PYTHONPATH=configs python configs/trainers/ppo_memory.py
"""

from dataclasses import dataclass

import gymnasium
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch.nn.utils import clip_grad_norm_

import composer

ENVIRONMENT = "environments.recall_env:Recall-v0"


@dataclass(frozen=True)
class Settings:
    total_steps: int = 100_000
    num_envs: int = 16
    rollout_steps: int = 64  # in each environment
    sequence_steps: int = 16  # through which gradients flow; divides rollout_steps
    epochs: int = 4
    batch_size: int = 16  # sequences
    learning_rate: float = 1e-3  # falls to 0
    clip: float = 0.2
    gamma: float = 0.99
    gae_lambda: float = 0.95
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    max_grad_norm: float = 0.5


def collect(model, envs, observation, state, starts, settings):
    """A rollout as tensors (steps, envs, ...) by name, and the observation and the state after it."""
    rows = []
    for _ in range(settings.rollout_steps):
        with torch.no_grad():
            step = model.step(observation, None, state, starts.resets, entropy=False)
        following, reward, terminated, truncated, _ = envs.step(model.to_environment(step.action))
        row = {f"observation/{key}": value for key, value in observation.items()}
        row |= {"resets": starts.resets, "reward": reward, "terminated": terminated}
        starts.update(terminated, truncated)
        # After the end of an episode, gymnasium's next step only resets: nothing is learned from it, but its
        # observation is the last of the episode, which policy and critic read before their memory starts anew.
        row |= {"ended": terminated | truncated, "is_real": ~starts.resets}
        rows.append({name: torch.as_tensor(value) for name, value in row.items()})
        rows[-1] |= {"action": step.action, "log_prob": step.log_prob, "value": step.value}
        rows[-1]["state"] = model.pack_state(state)  # before this step
        observation, state = following, step.state
    rollout = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return rollout, observation, state


def advantages(rollout, last_value, settings):
    """Generalised advantage estimation (Schulman et al., 2016), (steps, envs).

    A terminated episode is worth nothing after its end; a truncated one is worth what its last observation is, which
    the next row of the rollout has.
    """
    gamma, value = settings.gamma, rollout["value"]
    following = torch.cat([value[1:], last_value.unsqueeze(0)])
    delta = rollout["reward"].float() + gamma * following * ~rollout["terminated"] - value
    advantage, result = torch.zeros_like(last_value), []
    for step, ended in zip(delta.flip(0), rollout["ended"].flip(0)):
        advantage = step + gamma * settings.gae_lambda * advantage * ~ended
        result.append(advantage)
    return torch.stack(result[::-1])


def in_sequences(value, steps):
    """(rollout steps, envs, ...) as (sequences, steps, ...)."""
    return value.unflatten(0, (-1, steps)).transpose(1, 2).flatten(0, 1)


def learn(model, optimizer, rollout, settings):
    """Update the model; return for each minibatch how far its ratios of probabilities are from 1."""
    sequences = {k: in_sequences(v, settings.sequence_steps) for k, v in rollout.items()}
    distances = []
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(sequences["action"])).split(settings.batch_size):
            batch = {name: value[rows] for name, value in sequences.items()}
            observations = {
                name.removeprefix("observation/"): value
                for name, value in batch.items()
                if name.startswith("observation/")
            }
            state = model.unpack_state(batch["state"][:, 0])
            step = model.step(observations, batch["action"], state, batch["resets"], unroll=True)
            real = batch["is_real"]
            ratio = (step.log_prob - batch["log_prob"])[real].exp()
            distances.append((ratio - 1).abs().max().item())
            gain = batch["advantage"][real]
            gain = (gain - gain.mean()) / (gain.std(correction=0) + 1e-8)
            clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            policy_loss = -torch.min(ratio * gain, clipped * gain).mean()
            value_loss = (step.value - batch["return"])[real].square().mean()
            loss = policy_loss + settings.value_weight * value_loss
            loss = loss - settings.entropy_weight * step.entropy[real].mean()
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
    return distances


def train(seed=0, settings=Settings(), spec="configs/masked_recurrent.yaml", log=print):
    """The trained model."""
    torch.manual_seed(seed)
    envs = gymnasium.make_vec(ENVIRONMENT, settings.num_envs, vectorization_mode="sync")
    envs = RecordEpisodeStatistics(envs)
    model = composer.compose(spec, env=envs, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, eps=1e-5)
    starts = composer.first_steps(envs)
    observation, _ = envs.reset(seed=seed)
    state = model.initial_state(settings.num_envs)
    updates = settings.total_steps // (settings.num_envs * settings.rollout_steps)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - update / updates)
        rollout, observation, state = collect(model, envs, observation, state, starts, settings)
        with torch.no_grad():
            last_value = model.value(observation, state, starts.resets)
        rollout["advantage"] = advantages(rollout, last_value, settings)
        rollout["return"] = rollout["advantage"] + rollout["value"]
        distances = learn(model, optimizer, rollout, settings)
        if envs.return_queue and update % max(1, updates // 20) == 0:
            mean = sum(envs.return_queue) / len(envs.return_queue)
            log(
                f"update {update}: mean return {mean:.2f}, largest |ratio - 1| {max(distances):.2f}"
            )
    envs.close()
    return model


def evaluate(model, episodes=100, seed=10_000):
    """The mean return of the policy's most likely actions."""
    policy, env, total = model.policy.lower(), gymnasium.make(ENVIRONMENT), 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        state, over = policy.initial_state(), False
        while not over:
            action, state = policy.act(observation, state, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
    return total / episodes


if __name__ == "__main__":
    trained = train()
    print("greedy:", evaluate(trained))
    trained.save("ppo_memory.safetensors")
