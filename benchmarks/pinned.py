"""A server held on one core: what it costs there, and nothing of what others cost.

It is stopped (SIGSTOP) while another has its turn: what it does of itself then, such as asking engines how they
are, takes nothing from the other.
"""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Server:
    """A gateway that runs, or the upstream itself."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cpu_seconds(self) -> float:
        """Processor time so far, user and system, of all its processes."""
        return sum(_cpu_ticks(pid) for pid in self._pids()) / _TICKS_PER_SECOND

    def rss_megabytes(self) -> float:
        """Resident memory now, summed over its processes."""
        return sum(_resident_pages(pid) for pid in self._pids()) * _PAGE_BYTES / 1e6

    def settle(self, seconds: float = 15.0) -> None:
        """Let it come to the end of what clients left behind: until it uses less than a tenth of its core."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            before = self.cpu_seconds()
            time.sleep(0.2)
            if self.cpu_seconds() - before < 0.02 + 1 / _TICKS_PER_SECOND:
                return

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._pids():
            os.kill(pid, number)

    def _pids(self) -> list[int]:
        if self.process.poll() is not None:
            raise SystemExit(f"{self.name} ended with status {self.process.returncode}")
        pids = [self.process.pid]
        for pid in pids:  # grows as children are found
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pids += [int(child) for child in children]
        return pids


def start(name: str, command: list[str], port: int, core: str, environment: dict[str, str] | None = None) -> Server:
    """Run a server on one core. Whether it answers is for `wait_until_ready`."""
    process = subprocess.Popen(
        ["taskset", "-c", core, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    return Server(name, port, process)


def _cpu_ticks(pid: int) -> int:
    # The second field, the program's name, is in brackets and may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _resident_pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
