"""Output that goes to a log file too."""

import io
import sys

import pytest

from utils import logs


class Terminal(io.StringIO):
    def isatty(self):
        return True


def stand_in_terminals(monkeypatch):
    """Terminals in place of stdout and stderr until the end of the test; called in it, as pytest sets its own first."""
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return out, err


def test_both_streams_are_copied_and_stay_apart(monkeypatch, tmp_path):
    streams = stand_in_terminals(monkeypatch)
    log = tmp_path / "new" / "run.log"
    logs.copy_output_to(log, "the command")
    print("one")
    print("two", file=sys.stderr)
    assert [stream.getvalue() for stream in streams] == ["one\n", "two\n"]
    title, *rest = log.read_text().strip().splitlines()
    assert title.endswith(" the command")
    assert rest == ["one", "two"]
    assert sys.stdout.isatty()


def test_another_run_appends(monkeypatch, tmp_path):
    stand_in_terminals(monkeypatch)
    log = tmp_path / "run.log"
    for title in ("first", "second"):
        logs.copy_output_to(log, title)
    text = log.read_text()
    assert text.index(" first\n") < text.index(" second\n")


def test_progress_bars_are_thinned_but_their_last_state_is_kept(tmp_path):
    log = tmp_path / "run.log"
    terminal = Terminal()
    stream = logs.CopiedStream(terminal, log)
    for percent in range(0, 101, 20):
        stream.write(f"\r{percent}%")
    stream.write("\n")
    stream.write("done\n")
    assert terminal.getvalue() == "\r0%\r20%\r40%\r60%\r80%\r100%\ndone\n"
    assert log.read_bytes() == b"\r0%\r100%\ndone\n"


def test_progress_bars_reach_the_log_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_BARS", 0)
    log = tmp_path / "run.log"
    terminal = Terminal()
    stream = logs.CopiedStream(terminal, log)
    for percent in (1, 2, 3):
        stream.write(f"\r{percent}%")
    assert log.read_bytes() == b"\r1%\r2%\r3%"


def test_a_full_disk_does_not_keep_the_message_from_the_terminal(tmp_path):
    class FullDisk(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    terminal = Terminal()
    stream = logs.CopiedStream(terminal, tmp_path / "run.log")
    stream._log = FullDisk()
    stream.write("error: no space left\n")
    assert terminal.getvalue() == "error: no space left\n"


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        logs.copy_output_to(tmp_path / "file" / "run.log", "command")
