"""Processes that do not outlive the command that started them, however it ends.

Nothing heavy is imported here: a process watches its parent before it does anything else.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1
"""Of Linux' prctl(2): the signal that a process gets when the thread that started it ends."""


def end_with_parent() -> None:
    """Ends this process once its parent has gone, killed or not, and at once if it has gone already.

    To be called first in a process of :mod:`multiprocessing`, or as ``initializer`` of a pool. The parent holds the
    other end of a pipe, which the system closes when it dies; on Linux the kernel sends a signal besides, which also
    ends a process whose threads do not come to run.

    Raises:
        RuntimeError: In a process that :mod:`multiprocessing` did not start.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("end_with_parent: this process was not started by multiprocessing")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not parent.is_alive():
        os._exit(1)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
