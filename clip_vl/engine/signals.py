"""Requests to stop, answered within seconds wherever a program may be.

SIGTERM, SIGINT, SIGHUP, SIGUSR1 and the death of the launcher or of torchrun's agent ask a program to save and leave.
Where nothing is unsaved the handler raises Interrupted in the main thread at once. Between `hold` and `release`, while
updates are unsaved, it only notes the request, and the training loop saves after its update. A handler runs only when
the main thread comes back to Python: a thread beside it sees every signal, and after PATIENCE seconds it leaves itself.
"""

import contextlib
import ctypes
import multiprocessing.process
import os
import select
import signal
import threading
import time
from pathlib import Path

from clip_vl.engine.errors import Interrupted, leave

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
PATIENCE = 3.0  # seconds that the main thread has to answer
TICK = 2.0  # seconds between two looks at the loader workers
# Ctrl-C and schedulers signal the whole process group, and torchrun then passes the signal on: the echo arrives within
# milliseconds and is not a second request.
ECHO_SECONDS = 0.5
NOTHING_YET = "interrupted; nothing to save yet: the same command starts again"
PR_SET_PDEATHSIG = 1


class _State:
    """One listening program: what was asked of it, and what there is to lose."""

    def __init__(self):
        self.process, self.received, self.seen, self.raised = os.getpid(), None, None, False
        self.can_raise = False  # whether somebody above catches Interrupted
        self.sentence, self.rescue = NOTHING_YET, None


_state, _wakeup = None, None  # the current state; the write end of the watch thread's pipe


def listen(can_raise=False):
    """Take the signals over, once for a process.

    can_raise: whether Interrupted is caught; before that the handler itself ends the process
    """
    global _state
    if not _is_listening():
        _state = _State()
        for number in SIGNALS:
            # nohup ignores SIGHUP on purpose; shells make background jobs ignore SIGINT, which launch.bash forwards
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _handle)
        _start_watch()
    _state.can_raise |= can_raise


def requested():
    return _state is not None and _state.received is not None


def hold(rescue):
    """From now on updates are unsaved, and a signal is only noted.

    rescue: function -> (exit code, sentence) that saves them from another thread while the main thread is stuck
    """
    if _state is not None:
        _state.rescue = rescue


def release(sentence):
    """Nothing is unsaved any more. `sentence` tells a user who stops the program what to expect of the next start.

    raises: Interrupted where a signal has arrived in the meantime
    """
    if _state is not None:
        _state.rescue, _state.sentence = None, sentence
        if requested() and not _state.raised:
            _state.raised = True
            raise Interrupted(sentence)


def answer():
    """End the program as the request asks for, from whatever thread."""
    code, sentence = _state.rescue() if _state.rescue else (Interrupted.exit_code, _state.sentence)
    leave(code, sentence)


def finish():
    """The program is at its end: signals change nothing any more."""
    global _state
    if _is_listening():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        _state = None


class StopRequest:
    """`bool(stop)` is true once a signal has arrived."""

    def __init__(self):
        listen(can_raise=True)

    def __bool__(self):
        return requested()


def start_worker(_worker_id=0):
    """Loader workers leave with their parent; a signal to the whole group must not take a batch away from it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()


def start_pool_worker():
    """Workers of a Pool, which ends them by SIGTERM."""
    start_worker()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def die_with_parent():
    """Have the kernel kill this child of `multiprocessing` when its parent dies (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.process.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it died before the call
        os._exit(1)


def _is_listening():
    return _state is not None and _state.process == os.getpid() and signal.getsignal(signal.SIGTERM) is _handle


def _note(state):
    """Note a request; the first one starts the clock."""
    if state.received is None:
        state.received = time.monotonic()
        threading.Thread(target=_answer_late, args=(state,), daemon=True).start()


def _handle(number, frame):
    state = _state
    if state is None or state.process != os.getpid():  # a child that was forked with this handler
        return
    _note(state)
    if state.rescue is not None or state.raised:
        return
    state.raised = True
    if not state.can_raise:
        leave(Interrupted.exit_code, state.sentence)
    raise Interrupted(state.sentence)


def _answer_late(state):
    """Leave in the place of a main thread that did not answer: it waits for a process, for data, in one long call."""
    time.sleep(PATIENCE)
    if state is _state and _is_listening():
        answer()


# ---- the watch thread


def _start_watch():
    global _wakeup
    if _wakeup is None:
        end, _wakeup = os.pipe()
        os.set_blocking(_wakeup, False)
        threading.Thread(target=_watch, args=(end, _guardians()), daemon=True).start()
    signal.set_wakeup_fd(_wakeup, warn_on_full_buffer=False)


def _guardians():
    """{descriptor of a process without which this one ends: its name}: launch.bash and torchrun's agent."""
    pids = {int(os.environ["CLIP_VL_LAUNCHER"]): "launch script"} if "CLIP_VL_LAUNCHER" in os.environ else {}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        pids[os.getppid()] = "torchrun agent"
    found = {}
    for pid, name in pids.items():
        try:
            found[os.pidfd_open(pid)] = name
        except ProcessLookupError:
            leave(Interrupted.exit_code, f"the {name} has died; {NOTHING_YET}")
        except (OSError, AttributeError):  # no such call on this kernel
            continue
    return found


def _watch(wakeup, guardians):
    """See every signal at once, the death of a guardian, and loader workers that somebody stopped."""
    stopped = set()
    while True:
        ready, *_ = select.select([wakeup, *guardians], [], [], TICK)
        for descriptor in ready:
            if descriptor != wakeup:
                print(f"the {guardians.pop(descriptor)} has died; this process stops as well", flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                continue
            for number in os.read(wakeup, 64):
                _see(number)
        stopped = _continue_workers(stopped) if not ready else stopped


def _see(number):
    state = _state
    if number not in SIGNALS or state is None or not _is_listening():
        return
    state.seen = state.seen or time.monotonic()
    if time.monotonic() - state.seen < ECHO_SECONDS:
        return _note(state)
    ranks, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
    if ranks == 1 or number == signal.SIGINT:
        os._exit(128 + number)  # a second request
    if rank != 0:  # SIGTERM of torchrun's agent, after another rank left: rank 0 may still be saving
        leave(Interrupted.exit_code, "stopped, because another process did", quiet=True)


def _continue_workers(stopped):
    """Continue loader workers that were stopped for two looks, and return those stopped now."""
    now = set()
    for child in list(multiprocessing.process._children):  # active_children() would wait for the dead
        with contextlib.suppress(OSError, IndexError):
            if Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                now.add(child.pid)
    for pid in now & stopped:
        print(f"warning: process {pid}, a loader worker, was stopped by a signal; it is continued", flush=True)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)
    return now - stopped
