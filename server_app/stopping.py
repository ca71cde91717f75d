"""Saves when the process is told to end, in whichever way that comes.

In a deployment the loop runs in the main thread, and Flower's handlers of signals interrupt it. In a simulation it runs
beside the main thread, and Ray takes SIGTERM away from Flower: the main thread ends, Ray's processes are killed, this
one is aborted 3 s after the signal, and where it is not it hangs as long as the loop waits for workers that are gone.

A process may play several runs, one after the other: what is saved is the one under way, and nothing here holds on to
one that is over, with all that it has learned.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from flwr.supercore.exit import add_exit_handler

_LOOK_EVERY = 0.5  # seconds
_PATIENCE = 30.0  # seconds that a simulation may take to end by itself once its rounds are over

_saves: list[Callable[[], None]] = []  # of the run under way; empty between two runs


@contextlib.contextmanager
def at_the_end(save: Callable[[], None]) -> Iterator[None]:
    """Have `save` called when the block or this process ends by a signal or an exception, perhaps more than once."""
    _be_called()
    _saves.append(save)
    try:
        yield
    except BaseException:
        save()
        raise
    finally:
        _saves.remove(save)


def _save() -> None:
    for save in list(_saves):
        save()


@functools.cache
def _be_called() -> None:
    """See to it, once a process, that the end of it saves."""
    # Before the others: Flower ends the process 5 s after it begins with them, whatever they still do.
    add_exit_handler(_save, run_before_force_exit=True)
    loop = threading.current_thread()
    if loop is not threading.main_thread():
        threading.Thread(target=_watch, args=(_save, loop), name="save-at-the-end").start()


def _watch(save: Callable[[], None], loop: threading.Thread) -> None:
    """Stand before Ray once it is there; when the loop or the main thread has ended, see to it that the other does."""
    main, known = threading.main_thread(), None
    while loop.is_alive() and main.is_alive():
        node: Any = getattr(sys.modules.get("ray._private.worker"), "_global_node", None)
        if node is not None and node is not known:
            known = node
            _stand_before(node, save)
        main.join(_LOOK_EVERY)
    main.join(_PATIENCE)
    if main.is_alive():  # it waits for workers that hang, and always would: Flower ends that on an interrupt
        os.kill(os.getpid(), signal.SIGINT)
        main.join()
    save()
    if loop.is_alive():  # it waits for workers that are gone
        os._exit(1)


def _stand_before(node: Any, save: Callable[[], None]) -> None:
    """Have Ray wait for `save` when it kills its processes, which it does first of all on its way out."""
    kill = node.kill_all_processes

    def save_and_kill(*arguments: Any, **options: Any) -> None:
        signal.alarm(0)  # set by Ray's C++ half (absl's handler of fatal signals), to abort what takes longer than 3 s
        save()
        kill(*arguments, **options)

    node.kill_all_processes = save_and_kill
