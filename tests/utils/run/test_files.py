"""Files that appear whole, whatever happens while they are written."""

import errno
import hashlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from utils.run.errors import UserError
from utils.run.files import (
    FORGOTTEN,
    MOST_JSON,
    only_one,
    part_beside,
    read_bytes,
    read_json,
    remove,
    safetensors_header,
    sha256_of,
    sweep,
    write_json,
    write_json_lines,
    write_png,
    write_safetensors,
    write_whole,
)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "newer" / "file"
    write_whole(path, lambda part: part.write_text("whole"))
    assert path.read_text() == "whole"
    assert names_in(path.parent) == ["file"]


@pytest.mark.parametrize("name", ["file", "\udcff\udcfe"])
def test_a_header_is_read_where_the_file_is_whole(tmp_path, name):
    path = tmp_path / name
    write_safetensors(path, {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int16)}, {"told": "so"})
    assert safetensors_header(path) == ({"a": ("F32", [2, 3]), "b": ("I16", [4])}, {"told": "so"})
    content = path.read_bytes()
    for damaged in (b"", content[:7], content[:20], content[:-1], content + b"x", b"\xff" * 40):
        path.write_bytes(damaged)
        assert safetensors_header(path) is None
    length = len(b"[" * 10**5)
    path.write_bytes(length.to_bytes(8, "little") + b"[" * 10**5)
    assert safetensors_header(path) is None


def test_a_header_that_the_system_does_not_give_is_no_damage(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "file")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        safetensors_header(tmp_path / "file")


def test_what_killed_processes_left_is_swept_when_it_is_old(tmp_path):
    old, new, other = (tmp_path / "in" / name for name in (".a.png.12.part", ".b.png.34.part", "c.part"))
    old.parent.mkdir()
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - FORGOTTEN - 9,) * 2)
    sweep(tmp_path)
    assert names_in(old.parent) == [".b.png.34.part", "c.part"]


def test_to_remove_what_is_not_there_asks_nothing_of_the_disk(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    remove(tmp_path / "absent")
    with pytest.raises(OSError, match="Read-only"):
        write_whole(tmp_path / "file", read_only)


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
from utils.run.files import write_whole
def write(part):
    part.write_text("ha")
    os.kill(os.getpid(), signal.SIGKILL)
write_whole(Path(sys.argv[1]), write)
"""


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_what_a_killed_process_left_is_swept_when_it_is_a_day_old(tmp_path, processes):
    path = tmp_path / "odd [name]*.json"
    other = tmp_path / ".file.0123456789abcdef.part"  # of a process that may live, on whatever machine
    other.touch()
    assert processes.run("-c", KILLED, str(path)).status == -signal.SIGKILL
    (left,) = set(names_in(tmp_path)) - {other.name}
    assert left.startswith(".odd [name]*.json.") and left.endswith(".part")
    age(tmp_path / left, FORGOTTEN - 60)
    write_whole(path, lambda part: part.write_text("whole"))
    assert set(names_in(tmp_path)) == {path.name, left, other.name}
    age(tmp_path / left, FORGOTTEN + 60)
    write_whole(tmp_path / "file", lambda part: part.write_text("whole"))
    assert set(names_in(tmp_path)) == {path.name, left, other.name, "file"}  # only what belongs to the same path goes
    write_whole(path, lambda part: part.write_text("whole"))
    assert set(names_in(tmp_path)) == {path.name, other.name, "file"}


def test_each_attempt_has_a_name_of_its_own(tmp_path):
    path = tmp_path / "new" / "file"
    parts = [part_beside(path) for _ in range(3)]
    assert len(set(parts)) == 3 and not any(part.exists() for part in parts)
    assert all(part.parent == path.parent and part.name.startswith(".file.") for part in parts)
    assert path.parent.is_dir()


def test_a_forgotten_folder_is_swept_too(tmp_path):
    left = part_beside(tmp_path / "images")
    (left / "class").mkdir(parents=True)
    part_beside(tmp_path / "images")
    assert left.exists()
    age(left, FORGOTTEN + 60)
    part_beside(tmp_path / "images")
    assert not left.exists()


def test_what_cannot_be_swept_stays(tmp_path, monkeypatch):
    left = part_beside(tmp_path / "file")
    left.touch()
    age(left, FORGOTTEN + 60)

    def forbidden(path, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", forbidden)
    part_beside(tmp_path / "file")
    assert left.exists()


# Files that are only made, and files that last


def test_only_a_new_file_is_written(tmp_path):
    path = tmp_path / "file"
    assert write_whole(path, lambda part: part.write_text("first"), only_new=True)
    assert not write_whole(path, lambda part: part.write_text("second"), only_new=True)
    assert path.read_text() == "first" and names_in(tmp_path) == ["file"]
    assert write_whole(path, lambda part: part.write_text("third"))
    assert path.read_text() == "third"


def test_of_many_that_begin_at_once_one_writes(tmp_path):
    path, gate = tmp_path / "file", threading.Barrier(8)

    def write(number):
        def fill(part):
            part.write_text(str(number))
            gate.wait()

        return write_whole(path, fill, only_new=True)

    with ThreadPoolExecutor(8) as pool:
        wrote = list(pool.map(write, range(8)))
    assert wrote.count(True) == 1 and path.read_text() == str(wrote.index(True))
    assert names_in(tmp_path) == ["file"]


def test_a_new_file_on_a_disk_that_knows_no_links(tmp_path, monkeypatch):
    def link(source, target):
        raise OSError(errno.EPERM, "Operation not permitted", str(source))

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "file"
    assert write_whole(path, lambda part: part.write_text("first"), only_new=True)
    assert not write_whole(path, lambda part: part.write_text("second"), only_new=True)
    assert path.read_text() == "first" and names_in(tmp_path) == ["file"]


def test_a_link_that_fails_otherwise_is_an_error_of_the_file(tmp_path, monkeypatch):
    def link(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "file", lambda part: part.write_text("first"), only_new=True)
    assert caught.value.filename == str(tmp_path / "file")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_whole(path, lambda part: part.write_text("whole"), lasting=True),
        lambda path: write_json(path, {}),
        lambda path: write_safetensors(path, {"a": torch.zeros(2)}),
    ],
)
def test_what_lasts_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, monkeypatch, write):
    path, synced, fsync = tmp_path / "file", [], os.fsync

    def note(descriptor):
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write(path)
    (part, before), (folder, after) = synced
    assert part.name.startswith(".file.") and not before
    assert (folder, after) == (tmp_path, True)


def test_images_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", None)
    write_png(tmp_path / "a.png", Image.new("RGB", (3, 2)))


# Kinds of files


def test_json_lines_are_a_value_each_and_whole(tmp_path):
    path, lines = tmp_path / "new" / "a.jsonl", [{"epoch": 0, "name": "é\n"}, {"epoch": 1}]
    write_json_lines(path, lines)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines
    with pytest.raises(TypeError):
        write_json_lines(path, [object()])
    write_json_lines(path, [])
    assert path.read_bytes() == b"" and names_in(path.parent) == ["a.jsonl"]


def test_json_comes_back(tmp_path):
    content = {"alpha": 0.1, "names": ["é", None], "nested": {"1": True}}
    assert write_json(tmp_path / "a.json", content)
    assert not write_json(tmp_path / "a.json", {}, only_new=True)
    assert read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: run the stage that writes it"),
        (b'{"half": ', r"is damaged \(JSONDecodeError: .*\): remove it"),
        (b"\xff\xfe\x00", r"is damaged \(UnicodeDecodeError: .*\): remove it"),
        (b"", r"is damaged \(JSONDecodeError: .*\): remove it"),
        (b"[" * 100_000, r"is damaged \(RecursionError: .*\): remove it"),
        (b"[1]", "does not hold a JSON object"),
    ],
)
def test_json_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"settings.json {message}"):
        read_json(path)


def test_a_json_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "settings.json"
    with path.open("w") as file:
        file.truncate(MOST_JSON + 1)  # it takes no room on the disk
    with pytest.raises(UserError, match=r"settings\.json is too large for a record: remove it"):
        read_json(path)


def test_only_files_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"bytes")
    assert read_bytes(tmp_path / "file") == b"bytes"
    with pytest.raises(UserError, match="nothing is missing: run the stage that writes it"):
        read_bytes(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        for read in (read_bytes, read_json):
            with pytest.raises(UserError, match=f"{name} is no file: put the right file there, or remove it"):
                read(tmp_path / name)


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


# One process at a time

HOLDER = """
import sys
import time
from pathlib import Path
from utils.run.files import only_one
with only_one(Path(sys.argv[1]), "the student is being trained"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time(tmp_path, processes):
    folder = tmp_path / "new" / "seed0"
    process = processes.start("-c", HOLDER, str(folder))
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError) as caught, only_one(folder, "the student is being trained"):
            pytest.fail("both have it")
        assert str(caught.value) == (
            f"the student is being trained by another process, in {folder}: wait for it, or stop it"
        )
        with only_one(folder, "another thing", name=".other"):
            pass
    finally:
        process.kill()
        process.communicate()
    with only_one(folder, "the student is being trained"):  # the lock ended with its process, though its file is there
        assert names_in(folder) == [".lock", ".other"]


def test_a_lock_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), only_one(tmp_path, "it is made"):
        raise ZeroDivisionError
    with only_one(tmp_path, "it is made"):
        pass
