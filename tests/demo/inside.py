"""Plays the story in the room: ``python -m tests.demo.inside CGROUP FOLDER``. Exit 0 when all came out as told, else 1."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.demo import report, room
from tests.demo.outcome import Outcome, Told, listen, make
from tests.demo.story import STORY, Call, Chapter, Event, Talk
from tests.demo.system import System
from tests.harness import eventually


class Play:
    """The story's way through the system, and what has come of it so far."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.chapters: list[tuple[str, list[Outcome | Told]]] = []
        self._written = 0
        self._latest: dict[str | None, dict[str, Any]] = {}  # the last record of each client

    def run(self) -> None:
        for step in STORY:
            match step:
                case Chapter():
                    report.chapter(step)
                    self.chapters.append((step.title, []))
                case Event():
                    report.event(step)
                    step.do(self._system)
                case Call():
                    report.call(self._make(step))
                case Talk():
                    report.call(self._listen(step))

    def _listen(self, talk: Talk) -> Told:
        told = listen(talk, self._system)
        self.chapters[-1][1].append(told)
        self._written = len(self._system.agent.records())
        return told

    @property
    def outcomes(self) -> list[Outcome | Told]:
        return [outcome for _, outcomes in self.chapters for outcome in outcomes]

    def _make(self, call: Call) -> Outcome:
        outcome = make(call, self._system, self._written, self._latest.get(call.who))
        self.chapters[-1][1].append(outcome)
        if outcome.record is not None:
            self._written += 1
            self._latest[call.who] = outcome.record
        return outcome

    def check_whole(self) -> None:
        """No record is of no call, and the servers have received what policy allows and nothing else."""
        self._system.agent.wait_records(self._written)
        calls = [outcome.call for outcome in self.outcomes if isinstance(outcome, Outcome)]
        wanted = sorted(report.what(call) for call in calls if call.expected.status == 200)
        reached = eventually(lambda: len(got := self._system.reached()) >= len(wanted) and sorted(got), "the servers' logs")
        assert reached == wanted, f"the servers received {reached}, expected was {wanted}"


def main(root: Path, folder: Path) -> int:
    room.furnish(root, folder)
    with System(folder) as system:
        play = Play(system)
        try:
            play.run()
            play.check_whole()
        except (AssertionError, OSError, subprocess.CalledProcessError) as error:
            report.table(play.chapters)
            report.trouble(str(error))
            return 1
        report.table(play.chapters)
        return report.summary(play.outcomes)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
