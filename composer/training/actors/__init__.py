"""`composer train --trainer composer`: PPO for several actors (MAPPO, IPPO) on PettingZoo's parallel environments."""
