"""Programs that run inside a capsule: started, watched, started again when they end."""

import pathlib
import subprocess
import threading
import time

import capsule

LOGS = capsule.INSIDE / "logs"
PIDS = capsule.INSIDE / "pids"

# Longest wait for one program to work. Unit: seconds.
READY_TIMEOUT = 120

# Longest wait for one that shall end. Unit: seconds.
STOP_TIMEOUT = 20

# Pause before a program that ended is started again. Unit: seconds.
AGAIN = 0.2

# A program that ends so soon after its start, so many times in a row, does not work at all and is
# given up. Unit: seconds; times.
SOON = 2
SOON_MAX = 20

POLL = 0.05


class Component(threading.Thread):
    """One program. Its process id is in a file, so that a test can kill it; it comes back."""

    def __init__(self, name, arguments, environment=None):
        super().__init__(name=name, daemon=True)
        self.arguments = [str(argument) for argument in arguments]
        self.environment = environment
        self.given_up = False
        self.stopping = False
        self.process = None

    def run(self):
        LOGS.mkdir(exist_ok=True)
        PIDS.mkdir(exist_ok=True)
        soon = 0
        while soon < SOON_MAX and not self.stopping:
            begin = time.monotonic()
            with open(LOGS / f"{self.name}.log", "ab") as log:
                self.process = subprocess.Popen(
                    self.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                    preexec_fn=capsule.end_with_parent,
                )
            (PIDS / self.name).write_text(f"{self.process.pid}\n")
            code = self.process.wait()
            if self.stopping:
                return
            print(f"{self.name} ended with {code}", flush=True)
            soon = soon + 1 if time.monotonic() - begin < SOON else 0
            time.sleep(AGAIN)
        self.given_up = True

    def stop(self):
        """Ends the program as Kubernetes does, and leaves it ended."""
        self.stopping = True
        if self.process is not None:
            self.process.terminate()
        self.join(STOP_TIMEOUT)
        if self.process is not None and self.is_alive():
            self.process.kill()

    def await_that(self, condition):
        """Waits until `condition()` holds."""
        end = time.monotonic() + READY_TIMEOUT
        while not condition():
            if self.given_up or time.monotonic() > end:
                tail = (LOGS / f"{self.name}.log").read_text(errors="replace")[-3000:]
                raise capsule.Broken(f"{self.name} does not work:\n{tail}")
            time.sleep(POLL)


def pid(name):
    """The process id of a component, as it is seen inside."""
    return int(pathlib.Path(PIDS / name).read_text())
