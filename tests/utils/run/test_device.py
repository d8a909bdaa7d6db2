"""Devices: choosing one, and what was used of it."""

import resource
import sys
from importlib import metadata

import pytest
import torch

from utils.run.device import choose_device, describe_device, keep_freed_memory, peak_memory_bytes, versions
from utils.run.errors import UserError

CPU = torch.device("cpu")
NONE = {"cuda": torch.cuda, "mps": torch.backends.mps}


def test_cpu_is_always_there():
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_is_not_there(monkeypatch, kind):
    monkeypatch.setattr(NONE[kind], "is_available", lambda: False)
    with pytest.raises(UserError, match=f"--device {kind}: this machine has none .*; take --device auto or cpu"):
        choose_device(kind)


def test_auto_takes_the_fastest_that_is_there(monkeypatch):
    for module in NONE.values():
        monkeypatch.setattr(module, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_cuda_goes_first_and_counts_its_own_memory():
    device = choose_device("auto")
    assert device.type == choose_device("cuda").type == "cuda"
    before = peak_memory_bytes(device)
    held = torch.zeros(2**22, device=device)
    assert peak_memory_bytes(device) >= before + held.nbytes or peak_memory_bytes(device) >= held.nbytes
    assert (
        describe_device(device)
        == f"{torch.cuda.get_device_name(device)}, TF32 in convolutions True, cudnn.benchmark False"
    )


def test_peak_memory_is_this_processs_in_bytes():
    held = torch.ones(2**22)
    peak = peak_memory_bytes(CPU)
    assert held.nbytes < peak < 2**40
    unit = 1 if sys.platform == "darwin" else 1024
    assert abs(peak - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) < 2**20


def test_a_cpu_is_described_with_its_threads():
    assert describe_device(CPU) == f"cpu, {torch.get_num_threads()} threads"


def test_versions_are_those_installed():
    found = versions()
    for name in ("torch", "torchvision"):
        assert found[name].partition("+")[0] == metadata.version(name).partition("+")[0]
    assert found["python"].startswith("3.")


def test_keeping_memory_changes_no_numbers():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 16, 64, 64, generator=generator)
    before = torch.nn.functional.avg_pool2d(images, 3)
    keep_freed_memory()
    keep_freed_memory()
    assert torch.equal(torch.nn.functional.avg_pool2d(images, 3), before)


def test_torchvision_is_not_imported_for_its_version(processes):
    """It takes a second, which every stage would wait."""
    code = "import sys, utils.run.device; print(utils.run.device.versions()); sys.exit('torchvision' in sys.modules)"
    ended = processes.run("-c", code)
    assert ended.status == 0, ended.errors
    assert "torchvision" in ended.output
