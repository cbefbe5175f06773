"""What a person sees of a local run, in a pipe and in a terminal."""

import io

from rich.console import Console

from pipelines.watching import Watcher

LOG = """\
01:28:05.974 - INFO - Running pipeline: 'chexradinet-training'
01:28:06.018 - INFO - Executing task '\x1b[96mconfigure\x1b[0m'
    [KFP Executor 2026-11-27 01:28:06,638 INFO]: Looking for component `configure`
    [KFP Executor 2026-11-27 01:28:06,639 INFO]: Got executor_input:
    {
01:28:06.934 - INFO - Task '\x1b[96mconfigure\x1b[0m' finished with status \x1b[92mSUCCESS\x1b[0m
01:28:06.943 - INFO - Executing task '\x1b[96mretrain-2\x1b[0m'
    [KFP Executor 2026-11-27 01:28:07,507 INFO]: epoch 1 of 3: step 4 of 12, loss 0.7
    [KFP Executor 2026-11-27 01:28:07,507 WARNING]: no [bold] finding
01:28:12.872 - INFO - Task '\x1b[96mretrain-2\x1b[0m' finished with status \x1b[92mSUCCESS\x1b[0m
"""
TITLES = {"configure": "configure", "retrain-2": "round 2: guided arm"}


def shown(*, is_terminal: bool) -> str:
    """Return what a log comes to."""
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=is_terminal)
    with Watcher(console, TITLES) as watcher:
        for line in LOG.splitlines():
            watcher.read(line)
        watcher._live.refresh()
    return file.getvalue()


def test_a_pipe_gets_a_line_at_the_start_and_at_the_end_of_a_stage() -> None:
    lines = shown(is_terminal=False).splitlines()
    assert lines[0] == "  start  round 2: guided arm"
    assert lines[1] == "  note   no [bold] finding"
    assert lines[2].startswith("  done   round 2: guided arm")
    assert lines[2].endswith(" s")
    assert len(lines) == 3


def test_a_terminal_gets_a_live_line_with_the_stage_its_time_and_its_progress() -> None:
    text = shown(is_terminal=True)
    assert "start " not in text
    assert "  done   round 2: guided arm" in text
    for part in ("0:00:0", "33%", "epoch 1 of 3: step 4 of 12, loss 0.7"):
        assert part in text
    assert "executor_input" not in text
