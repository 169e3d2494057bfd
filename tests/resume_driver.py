"""Runs command lines of handmade, each in a process of its own that may be killed; test_resume.py talks to it.

To import torch takes seconds, so this process does it once and forks for every command. That is safe here because it
has a single thread (it checks): no other can hold a lock while the memory is copied.

A command is a line of JSON on standard input; the answer, on standard output, is a line too: {"code": 0 or what
`waitpid` says of a kill, "calls": how many calls that change the disk were made, "out": ..., "err": ...}.

    words           the command line behind `handmade`
    kill_at         SIGKILL to itself at that call, counted from 0, before it does anything
    kill_after      SIGKILL from outside after so many seconds
    slow            seconds that each of these calls takes longer, so that a kill from outside hits one
    signal_at_step  [step, number]: a signal to itself in that step
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("fsync", "replace", "mkdir", "unlink", "rmdir")


def instrument(command: dict[str, Any], counter: Path) -> None:
    """Have every call that changes the disk counted, and slowed or made the last one where asked for."""
    count = 0

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*words: Any, **more: Any) -> Any:
            nonlocal count
            if count == command.get("kill_at"):
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            with open(counter, "w") as file:
                file.write(str(count))
            time.sleep(command.get("slow", 0))
            return call(*words, **more)

        return called

    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))
    if "signal_at_step" in command:
        from handmade.training import Trainer

        step, number = command["signal_at_step"]
        one_step = Trainer.one_step

        def signalled(trainer: Trainer) -> Any:
            if trainer.step == step and trainer.owner:  # not in a rehearsal
                os.kill(os.getpid(), number)
            return one_step(trainer)

        Trainer.one_step = signalled  # type: ignore[method-assign]


def child(command: dict[str, Any], folder: Path) -> None:
    """The command, in the process that was forked for it. Does not return."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    instrument(command, folder / "count")
    code: Any = 1
    try:
        from handmade.cli import main

        main(command["words"])
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(command: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert threading.active_count() == 1
        pid = os.fork()
        if pid == 0:
            child(command, folder)
        deadline = time.monotonic() + command.get("kill_after", 1e9)
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() >= deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        count = folder / "count"
        return {
            "code": os.waitstatus_to_exitcode(status),
            "calls": int((count.read_text() if count.exists() else "") or 0),
            "out": (folder / "out").read_text(errors="replace"),
            "err": (folder / "err").read_text(errors="replace"),
        }


def serve() -> None:
    for name in ("torch._dynamo", "matplotlib.backends.backend_agg", "handmade.jobs", "handmade.progress"):
        importlib.import_module(name)  # what every command would have to load (an optimizer loads _dynamo)
    tasks = Path("/proc/self/task")
    assert not tasks.exists() or len(list(tasks.iterdir())) == 1, "a process with several threads must not fork"
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
