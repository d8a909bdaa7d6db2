"""Records: other settings into the same folder are refused with the difference named."""

import json
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.records import check_record, differences


def test_differences_compare_what_json_keeps():
    assert differences({"sizes": [32, 32], "lr": 1}, {"sizes": (32, 32), "lr": 1.0}) == ""
    assert differences({"folder": "a/b"}, {"folder": Path("a/b")}) == ""
    assert differences({"alpha": 0.5, "seed": 0}, {"alpha": 1, "jitter": None}) == (
        "alpha (0.5 there, 1 here), jitter (none there, null here), seed (0 there, none here)"
    )


def test_a_record_is_written_once_and_then_compared(tmp_path):
    path = tmp_path / "folder" / "record.json"
    check_record(path, {"alpha": 0.5, "sizes": (32, 32)}, "patches")
    assert json.loads(path.read_text()) == {"alpha": 0.5, "sizes": [32, 32]}
    check_record(path, {"sizes": [32, 32], "alpha": 0.5}, "patches")
    with pytest.raises(UserError, match=r"holds patches made with other settings: alpha \(0.5 there, 0.7 here\)"):
        check_record(path, {"alpha": 0.7, "sizes": (32, 32)}, "patches")
    assert json.loads(path.read_text())["alpha"] == 0.5


def test_a_damaged_record_is_named(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"record\.json is damaged"):
        check_record(path, {}, "patches")
