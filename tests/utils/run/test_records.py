"""Records: other settings into the same folder are refused with the difference named; and what a record must be."""

import json
from pathlib import Path

import pytest

from utils.run.errors import UserError
from utils.run.records import check_record, check_shape, differences, plain


def test_settings_as_json_gives_them_back():
    assert plain({"sizes": (32, 32), "folder": Path("a/b"), "mix": None}) == {
        "sizes": [32, 32],
        "folder": "a/b",
        "mix": None,
    }


def test_differences_compare_what_json_keeps():
    assert differences({"sizes": [32, 32], "lr": 1}, {"sizes": (32, 32), "lr": 1.0}) == ""
    assert differences({"folder": "a/b"}, {"folder": Path("a/b")}) == ""
    assert differences({"alpha": 0.5, "seed": 0}, {"alpha": 1, "jitter": None}) == (
        "alpha (0.5 there, 1 here), jitter (none there, null here), seed (0 there, none here)"
    )
    assert differences({"views": {"size": 32, "mix": None}}, {"views": {"size": 64, "mix": None}}) == (
        "views.size (32 there, 64 here)"
    )


def test_a_record_is_written_once_and_then_compared(tmp_path):
    path = tmp_path / "folder" / "record.json"
    check_record(path, {"alpha": 0.5, "sizes": (32, 32)}, "patches", write=True)
    assert json.loads(path.read_text()) == {"alpha": 0.5, "sizes": [32, 32]}
    for write in (False, True):
        check_record(path, {"sizes": [32, 32], "alpha": 0.5}, "patches", write=write)
        with pytest.raises(UserError) as caught:
            check_record(path, {"alpha": 0.7, "sizes": (32, 32)}, "patches", write=write)
        assert str(caught.value) == (
            f"{tmp_path}/folder holds patches made with other settings: alpha (0.5 there, 0.7 here); "
            "give the same settings, take another folder, or move that one away"
        )
    assert json.loads(path.read_text())["alpha"] == 0.5


def test_a_run_that_made_nothing_claims_nothing(tmp_path):
    check_record(tmp_path / "folder" / "record.json", {"alpha": 0.5}, "patches")
    assert not list(tmp_path.iterdir())


def test_what_may_differ(tmp_path):
    path = tmp_path / "record.json"
    check_record(path, {"alpha": 0.5, "seed": 0}, "results", write=True)
    check_record(path, {"alpha": 0.5, "seed": 1}, "results", ignore=("seed",))
    with pytest.raises(UserError, match=r"other settings: alpha \(0.5 there, 0.7 here\); give"):
        check_record(path, {"alpha": 0.7, "seed": 1}, "results", ignore=("seed",))


def test_a_record_of_another_version_says_so_alone(tmp_path):
    path = tmp_path / "record.json"
    check_record(path, {"record_version": 1, "lr": 0.1}, "images", write=True)
    with pytest.raises(UserError, match="other settings: they are of another version of this project; give the same"):
        check_record(path, {"record_version": 2, "rate": 0.1}, "images")


def test_a_damaged_record_is_named(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"record\.json is damaged"):
        check_record(path, {}, "patches")


SHAPE = {
    "name": str,
    "ipc": int,
    "top1": float,
    "is_whole": bool,
    "mix": (None, "cutmix", "mixup"),
    "teachers": [{"name": str, "weight": float}],
}
CONTENT = {
    "name": "a",
    "ipc": 10,
    "top1": 50,
    "is_whole": True,
    "mix": None,
    "teachers": [{"name": "b", "weight": 0.5}, {"name": "c", "weight": 1}],
}


def test_content_of_the_right_shape():
    check_shape(Path("a.json"), CONTENT, SHAPE, "remove it")
    check_shape(Path("a.json"), CONTENT | {"teachers": [], "mix": "mixup", "more": {}}, SHAPE, "remove it")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": 1}, "name is no str"),
        ({"ipc": "10"}, "ipc is no int"),
        ({"ipc": 1.0}, "ipc is no int"),
        ({"ipc": True}, "ipc is no int"),
        ({"top1": "50"}, "top1 is no number"),
        ({"top1": False}, "top1 is no number"),
        ({"top1": float("nan")}, "top1 is no number"),
        ({"is_whole": 1}, "is_whole is no bool"),
        ({"mix": "cut"}, "mix is unknown"),
        ({"mix": ["cutmix"]}, "mix is unknown"),
        ({"teachers": {}}, "teachers is no list"),
        ({"teachers": ["b"]}, "teachers[] is no object"),
        ({"teachers": [{"name": "b", "weight": 1}, {"name": "c"}]}, "no weight"),
        ({"teachers": [{"name": "b", "weight": None}]}, "teachers[].weight is no number"),
    ],
)
def test_content_of_another_shape_is_damaged_in_a_place(change, problem):
    with pytest.raises(UserError) as caught:
        check_shape(Path("here/a.json"), CONTENT | change, SHAPE, "remove it")
    assert str(caught.value) == f"here/a.json is damaged ({problem}): remove it"


def test_content_that_lacks_a_key_or_is_no_object():
    without = {key: value for key, value in CONTENT.items() if key != "ipc"}
    for content, problem in ((without, "no ipc"), ([], "it is no object")):
        with pytest.raises(UserError) as caught:
            check_shape(Path("a.json"), content, SHAPE, "remove it")
        assert str(caught.value) == f"a.json is damaged ({problem}): remove it"
