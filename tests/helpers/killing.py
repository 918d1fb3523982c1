"""A piece of work that is killed at one point of it after the other, by scripts of their own: they fork."""

import os
from collections.abc import Callable, Iterable


def is_done_before(place: int, steps: Iterable[tuple[object, str]], work: Callable[[], object]):
    """Do ``work`` in a child that ends without a word at its ``place``-th step; whether it got to the end.

    ``steps`` are functions, each by its home and its name; there is a step before and after every call.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    count = 0

    def step():
        nonlocal count
        count += 1
        if count == place:
            os._exit(9)

    def counted(function):
        def call(*arguments, **keywords):
            step()
            result = function(*arguments, **keywords)
            step()
            return result

        return call

    for home, name in steps:
        setattr(home, name, counted(getattr(home, name)))
    work()
    os._exit(0)
