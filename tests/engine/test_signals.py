"""Requests to stop, in processes of their own that import no torch."""

import os
import signal
import subprocess
import sys
import time

import pytest

from clip_vl.engine.signals import SIGNALS

STUCK = "import ctypes; lock = ctypes.create_string_buffer(64); c = ctypes.CDLL(None); c.pthread_mutex_lock(lock); " \
        "print('ready', flush=True); c.pthread_mutex_lock(lock)"  # fmt: skip
START = "from clip_vl.engine import signals, errors; signals.PATIENCE = signals.TICK = 0.3; "


def hang_up_counts():
    """SIGHUP as a terminal leaves it: whoever runs the tests under nohup hands on that it is ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(code, **environment):
    process = subprocess.Popen([sys.executable, "-c", START + code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, env=os.environ | environment, preexec_fn=hang_up_counts)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # for a main thread that is to be stuck
    return process


def end(process):
    text = process.communicate(timeout=30)[0]
    return process.returncode, text


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_anything_is_caught_ends_with_75(number):
    process = start("signals.listen(); print('ready', flush=True); import time; time.sleep(60)")
    process.send_signal(number)
    assert end(process) == (75, "interrupted; nothing to save yet: the same command starts again\n")


def test_it_is_raised_through_except_exception_and_cleans_up():
    code = """
def main(args):
    try:
        try:
            print('ready', flush=True); import time; time.sleep(60)
        except Exception:
            print('swallowed')
    finally:
        print('cleaned up', flush=True)
signals.listen(can_raise=True)
errors.run_alone(main, None)"""
    process = start(code)
    process.send_signal(signal.SIGTERM)
    code, text = end(process)
    assert code == 75 and text.startswith("cleaned up\ninterrupted; nothing to save yet")


def test_a_main_thread_that_does_not_come_back_is_answered_for():
    process = start(f"signals.listen(can_raise=True); {STUCK}")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 75


def test_unsaved_work_is_saved_beside_a_stuck_main_thread():
    process = start(f"signals.listen(True); signals.hold(lambda: (75, 'saved by the rescue')); {STUCK}")
    process.send_signal(signal.SIGTERM)
    assert end(process) == (75, "saved by the rescue\n")


def test_a_signal_while_work_is_unsaved_is_raised_once_it_is_saved():
    code = "signals.listen(True); signals.PATIENCE = 60; signals.hold(None or (lambda: (1, 'rescued')))\n"
    code += "print('ready', flush=True)\nwhile not signals.requested(): pass\n"
    code += "errors.run_alone(lambda _: signals.release('saved at update 3'), None)"
    process = start(code)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (75, "saved at update 3\n")


def test_a_signal_after_the_end_changes_nothing():
    process = start("signals.listen(); signals.finish(); print('ready', flush=True); import time; time.sleep(2)")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 0


def test_a_hangup_that_nohup_ignores_stays_ignored():
    code = "import signal, time; signal.signal(signal.SIGHUP, signal.SIG_IGN); signals.listen(); "
    process = start(code + "print('ready', flush=True); time.sleep(2)")
    process.send_signal(signal.SIGHUP)
    assert end(process)[0] == 0


def test_a_process_ends_when_its_launcher_is_killed():
    launcher = subprocess.Popen(["sleep", "60"])
    process = start(f"signals.listen(True); {STUCK}", CLIP_VL_LAUNCHER=str(launcher.pid))
    launcher.kill()
    code, text = end(process)
    launcher.wait()
    assert code == 75 and text.startswith("the launch script has died")


def test_a_launcher_that_died_before_is_noticed():
    launcher = subprocess.Popen(["true"])
    launcher.wait()
    code = START + "signals.listen()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"CLIP_VL_LAUNCHER": str(launcher.pid)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 75 and "has died" in done.stderr


WORKER = "import multiprocessing, time; m = multiprocessing.get_context('fork')\n" \
         "w = m.Process(target=lambda: (signals.start_worker(), time.sleep(60))); w.start()\n"  # fmt: skip


def state_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return None


def until(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_stopped_worker_is_continued_and_dies_with_its_parent():
    process = start(f"signals.listen(True)\n{WORKER}print('ready', flush=True); print(w.pid, flush=True); w.join()")
    worker = int(process.stdout.readline())
    time.sleep(0.5)
    os.kill(worker, signal.SIGSTOP)
    assert "a loader worker, was stopped" in process.stdout.readline()
    assert until(lambda: state_of(worker) == "S")
    process.kill()
    process.wait()
    assert until(lambda: state_of(worker) in (None, "Z"))
