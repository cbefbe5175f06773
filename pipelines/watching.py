"""What a person sees of a local run: the stages at work, without the runner's own output."""

import re
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

STARTED = re.compile(r"Executing task '(?:\x1b\[\d+m)?([\w-]+)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ENDED = re.compile(r"Task '([^']+)' finished with status (\w+)")
_STAGE_LOG = re.compile(r"\[KFP Executor [^]]*?(INFO|WARNING)\]: (.*)")
_DONE_OF = re.compile(r"\b(\d+) of (\d+)(?=[:,]| files| images| regions| X-rays)")
_CAUSE = re.compile(r" {4}[\w.]*(Error|Interrupted): ")
"""Last line of a stage's traceback; the runner indents what stages print by four."""
_SILENT_SKIP = "Could not resolve"
"""kfp logs this when it skips a condition that it cannot evaluate, and then reports success."""

_QUIET_STEPS = ("configure",)


@dataclass
class Watcher:
    """Turns the runner's output into one live line on a terminal, else a line per start and end."""

    console: Console
    titles: dict[str, str]
    """What the compiled pipeline calls each of its components' tasks."""
    recent: list[str] = field(default_factory=list)
    cause: str = ""
    faults: list[str] = field(default_factory=list)
    _at_work: dict[str, list[float]] = field(default_factory=dict)
    """Start of each task at work; shards of one loop share a name."""

    def __post_init__(self) -> None:
        """Make the live line, which only a terminal shows."""
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._live = Progress(
            TextColumn("  {task.description}"),
            TimeElapsedColumn(),
            BarColumn(20),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}", style="dim", markup=False, table_column=rest),
            console=self.console,
            transient=True,
            expand=True,
            disable=not self.console.is_terminal,
        )
        self._line = self._live.add_task("starting", total=None, said="")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def read(self, raw: str) -> None:
        """Take in one line of the runner's output."""
        line = _ANSI.sub("", raw).rstrip()
        if not line.strip():
            return
        self.recent = [*self.recent[-40:], line]
        if _CAUSE.match(line) and self._at_work:
            self.cause = line.strip()
        if _SILENT_SKIP in line:
            self.faults.append(line)
        if found := STARTED.search(line):
            self._started(found[1])
        elif found := _ENDED.search(line):
            self._ended(found[1], found[2])
        elif found := _STAGE_LOG.search(line):
            self._said(found[1], found[2])

    def note(self, message: str) -> None:
        """Show a line that stays."""
        self.console.print(f"  note   {message}", highlight=False, markup=False, soft_wrap=True)

    def _started(self, task: str) -> None:
        self._at_work.setdefault(task, []).append(time.monotonic())
        if not task.startswith(_QUIET_STEPS):
            if not self.console.is_terminal:
                self.console.print(f"  start  {self._title(task)}", highlight=False)
            self._show(task)

    def _ended(self, task: str, status: str) -> None:
        # The first shard to start is taken for the first to end.
        seconds = time.monotonic() - self._at_work[task].pop(0)
        if not self._at_work[task]:
            del self._at_work[task]
        if status != "SUCCESS" or not task.startswith(_QUIET_STEPS):
            mark = "done  " if status == "SUCCESS" else "FAILED"
            self.console.print(
                f"  {mark} {self._title(task):<28} {seconds:7.1f} s", highlight=False
            )
        if self._at_work:
            self._show(next(reversed(self._at_work)))

    def _show(self, task: str) -> None:
        """Let the live line be about a task."""
        others = sum(map(len, self._at_work.values())) - 1
        title = self._title(task) + (f" (+{others})" if others else "")
        self._live.remove_task(self._line)
        self._line = self._live.add_task(title, total=None, said="")
        self._live.tasks[-1].start_time = self._at_work[task][0]

    def _said(self, level: str, message: str) -> None:
        counts = _DONE_OF.findall(message)
        if level == "WARNING":
            self.note(message)
        elif counts:
            # Of "epoch 2 of 10: step 60 of 440", the last counts.
            done, total = map(int, counts[-1])
            self._live.update(self._line, completed=done, total=total, said=message)

    def _title(self, task: str) -> str:
        return self.titles.get(task, task)
