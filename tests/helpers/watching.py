"""A server of `composer watch` in a thread, and who asks it."""

import asyncio
import http.client
import json
import re
import threading
import time
from contextlib import contextmanager

from composer.editor.watch_opener import Opener
from composer.editor.watch_server import listening, serve
from composer.editor.watch_state import Watch

SPEC = """\
# composer: spaces=spaces.safetensors
version: 1
policy:
  graph:
    first: {block: dense, in: observation, hidden_units: 8}
    latent: {block: dense, in: first, hidden_units: 16}
  heads: {in: latent}
critic:
  graph:
    latent: {block: dense, in: observation, hidden_units: 8}
"""
BROKEN = SPEC.replace("block: dense, in: first", "block: dnse, in: first")
PATIENCE = 20.0


class Client:
    """Asks the server at ``address``, and reads its events."""

    def __init__(self, address: str) -> None:
        self.host, self.path = re.fullmatch(r"http://([^/]+)(/.+/)", address).groups()
        self._connection = self._stream = None

    def ask(self, path=None, method="GET", headers=None, body=None):
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        path = self.path if path is None else path
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, text

    def open(self, asked, origin=None):
        headers = {"Origin": f"http://{self.host}" if origin is None else origin}
        return self.ask(self.path + "open", "POST", headers, json.dumps(asked))[::2]

    def listen(self, seen=""):
        self.close()
        self._connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        self._connection.request("GET", f"{self.path}events?seen={seen}")
        self._stream = self._connection.getresponse()

    def event(self):
        while True:
            line = self._stream.readline()
            assert line, "the stream has ended"
            if line.startswith(b"data: "):
                return json.loads(line.removeprefix(b"data: "))

    def close(self):
        for closable in (self._stream, self._connection):
            if closable is not None:
                closable.close()


@contextmanager
def served(look, file, command=None, port=0):
    """A server in a thread, as `composer watch` starts it."""
    watch = Watch(str(file), look)
    addresses: list[str] = []
    opener = None if command is None else Opener(command)
    loops = []

    def run():
        async def all_of_it():
            loops.append(asyncio.get_running_loop())
            with listening(port) as server:
                await serve(watch, server, opener, addresses.append)

        asyncio.run(all_of_it())

    thread = threading.Thread(target=run)
    thread.start()
    while not addresses:
        assert thread.is_alive()
        time.sleep(0.01)
    client = Client(addresses[0])
    try:
        yield client
    finally:
        client.close()
        loops[0].call_soon_threadsafe(watch.stop)
        thread.join(PATIENCE)
        assert not thread.is_alive()
