"""SIGTERM, SIGINT and SIGUSR1 ask a program to save and leave; a second signal ends it at once."""

import os
import signal
import time

# Ctrl-C and schedulers signal the whole process group, and torchrun then passes the signal on: the echo arrives within
# milliseconds and is not a second request.
ECHO_SECONDS = 0.5


class StopRequest:
    """`bool(stop)` is true once a signal has arrived. Handlers only note it: the program saves between two updates."""

    def __init__(self):
        self.received_at = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def __bool__(self):
        return self.received_at is not None

    def _handle(self, number, frame):
        now = time.monotonic()
        if self.received_at is None:
            self.received_at = now
        elif now - self.received_at > ECHO_SECONDS:
            os._exit(128 + number)


def ignore_in_worker(_worker_id=0):
    """Loader workers leave when their parent does; a signal to the whole group must not take a batch away from it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
