"""Files that appear whole, whatever happens while they are written."""

import hashlib
import os
import signal

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from utils.errors import UserError
from utils.files import read_json, sha256_of, write_json, write_png, write_safetensors, write_whole


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "newer" / "file"
    write_whole(path, lambda part: part.write_text("whole"))
    assert path.read_text() == "whole"
    assert names_in(path.parent) == ["file"]


def test_nobody_sees_half_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(part):
        part.write_text("ne")
        assert path.read_text() == "old"
        assert part.parent == tmp_path and part.name.startswith(".")  # same disk, and no image to anyone
        part.write_text("new")

    write_whole(path, write)
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
@pytest.mark.parametrize("before", [None, "old"])
def test_an_error_leaves_what_was_there(tmp_path, error, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_text(before)

    def write(part):
        part.write_text("ha")
        raise error

    with pytest.raises(error if isinstance(error, type) else OSError) as caught:
        write_whole(path, write)
    assert names_in(tmp_path) == ([] if before is None else ["file"])
    assert before is None or path.read_text() == before
    if isinstance(caught.value, OSError):
        assert caught.value.filename == str(path)


KILLED = """
import os, signal, sys
from pathlib import Path
from utils.files import write_whole
def write(part):
    part.write_text("ha")
    os.kill(os.getpid(), signal.SIGKILL)
write_whole(Path(sys.argv[1]), write)
"""


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path, processes):
    path = tmp_path / "odd [name]*.json"
    other = tmp_path / f".file.{os.uname().nodename}.{os.getppid()}.part"  # of a process that lives
    other.touch()
    assert processes.run("-c", KILLED, str(path)).status == -signal.SIGKILL
    (left,) = set(names_in(tmp_path)) - {other.name}
    assert left.startswith(".odd [name]*.json.") and left.endswith(".part")
    write_whole(tmp_path / "file", lambda part: part.write_text("whole"))
    assert set(names_in(tmp_path)) == {left, other.name, "file"}  # only what belongs to the same path goes
    write_whole(path, lambda part: part.write_text("whole"))
    assert set(names_in(tmp_path)) == {path.name, other.name, "file"}


def test_what_another_users_process_writes_stays(tmp_path, monkeypatch):
    def forbidden(process, number):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", forbidden)
    other = tmp_path / f".file.{os.uname().nodename}.4000000.part"
    other.touch()
    write_whole(tmp_path / "file", lambda part: part.write_text("whole"))
    assert other.exists()


def test_json_comes_back(tmp_path):
    content = {"alpha": 0.1, "names": ["é", None], "nested": {"1": True}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: run the stage that writes it"),
        (b'{"half": ', "is damaged: remove it"),
        (b"\xff\xfe\x00", "is damaged: remove it"),
        (b"", "is damaged: remove it"),
        (b"[1]", "does not hold a JSON object"),
    ],
)
def test_json_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"settings.json {message}"):
        read_json(path)


def test_safetensors_with_and_without_words(tmp_path):
    tensors = {"a": torch.arange(6, dtype=torch.int16).view(2, 3), "b": torch.tensor(1.5)}
    write_safetensors(tmp_path / "a.safetensors", tensors, {"teacher": "x"})
    write_safetensors(tmp_path / "b.safetensors", tensors)
    for name, words in (("a", {"teacher": "x"}), ("b", {})):
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            assert (file.metadata() or {}) == words
            assert all(torch.equal(file.get_tensor(key), tensor) for key, tensor in tensors.items())


def test_png_with_words(tmp_path):
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    write_png(tmp_path / "a.png", image, {"made with": "0123"})
    with Image.open(tmp_path / "a.png") as read:
        assert read.info["made with"] == "0123"
        assert read.tobytes() == image.tobytes()


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"bytes" * 100_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"bytes" * 100_000).hexdigest()
