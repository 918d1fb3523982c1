"""What calls do with a model: supervised fine-tuning, learning from preferences, PPO, rewards, generation."""
