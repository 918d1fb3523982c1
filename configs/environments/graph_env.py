"""Courier: find the way over a map of roads that is another one in each episode.

Between four and nine places lie on a map, with roads between them, each usable both ways. The courier sees the whole
map as a graph: of each place where it is, whether the courier is there and whether the parcel has to go there; of each
road its length. In each step it takes the road that leads most nearly up, right, down or left, if one does to within 45
degrees. A delivery is worth 1, each step costs a tenth of the road's length (of standing still, 0.1). After 50 steps it
is over.
"""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces import GraphInstance

FEWEST, MOST = 4, 9
WAYS = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])  # up, right, down, left
NARROW = np.cos(np.pi / 4)


class CourierEnv(gymnasium.Env):
    observation_space = spaces.Graph(
        node_space=spaces.Box(-1.0, 1.0, (4,), np.float32),  # x, y, courier, goal
        edge_space=spaces.Box(0.0, 3.0, (1,), np.float32),  # length
    )
    action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        count = int(self.np_random.integers(FEWEST, MOST + 1))
        self._places = self.np_random.uniform(-1, 1, (count, 2))
        self._roads = self._build()
        self._here, self._goal = self.np_random.choice(count, 2, replace=False)
        return self._observe(), {}

    def step(self, action):
        before = self._here
        self._here = self._next(int(action))
        length = np.linalg.norm(self._places[self._here] - self._places[before])
        done = bool(self._here == self._goal)
        cost = 0.1 * (float(length) if self._here != before else 1.0)
        return self._observe(), float(done) - cost, done, False, {}

    def _build(self):
        """Pairs (roads, 2), each road both ways: every place is linked to the nearest one that was there before it."""
        roads = []
        for new in range(1, len(self._places)):
            distances = np.linalg.norm(self._places[:new] - self._places[new], axis=-1)
            for old in distances.argsort()[: int(self.np_random.integers(1, 3))]:
                roads += [(new, int(old)), (int(old), new)]
        return np.array(roads, np.int32)

    def _next(self, action):
        """Where the way ``action`` leads."""
        ends = self._roads[self._roads[:, 0] == self._here, 1]
        ways = self._places[ends] - self._places[self._here]
        agreement = ways @ WAYS[action] / np.linalg.norm(ways, axis=-1)
        best = int(agreement.argmax())
        return int(ends[best]) if agreement[best] >= NARROW else self._here

    def _observe(self):
        numbers = np.arange(len(self._places))
        marks = np.stack([numbers == self._here, numbers == self._goal], axis=-1)
        nodes = np.concatenate([self._places, marks], axis=-1).astype(np.float32)
        starts, ends = self._places[self._roads[:, 0]], self._places[self._roads[:, 1]]
        lengths = np.linalg.norm(ends - starts, axis=-1, keepdims=True).astype(np.float32)
        return GraphInstance(nodes=nodes, edges=lengths, edge_links=self._roads.copy())


gymnasium.register("Courier-v0", "environments.graph_env:CourierEnv", max_episode_steps=50)
