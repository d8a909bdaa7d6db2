"""Whether what is installed is what requirement files pin."""

from importlib import metadata

import pytest

from utils import pins


@pytest.fixture
def installed(monkeypatch):
    versions = {"torch": "2.14.1+cpu", "numpy": "2.4.6"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(pins.metadata, "version", version)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["torch==2.14.1", "numpy==2.4.6"], []),
        (["# numbers", "", "numpy==2.4.6  # exact"], []),
        (["torch==2.14.0", "numpy==2.4.6"], ["torch==2.14.0"]),
        (["timm==1.0.31"], ["timm==1.0.31"]),
    ],
)
def test_unsatisfied(installed, lines, expected):
    assert pins.unsatisfied(lines) == expected


def test_exit_status(installed, tmp_path):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("numpy==2.4.6\n")
    bad.write_text("timm==1.0.31\n")
    for files, status in (([good], 0), ([good, bad], 1)):
        with pytest.raises(SystemExit) as stop:
            pins.main(files)
        assert stop.value.code == status
