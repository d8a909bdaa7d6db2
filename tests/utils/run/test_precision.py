"""--amp and --compile: what they choose, and that they change no number beyond their type."""

import copy
from functools import partial

import pytest
import torch

from models.registry import build_network
from utils.bn_matching.matching import MatchedTeacher
from utils.bn_matching.probes import BatchNormInput
from utils.data.table import get_dataset
from utils.fkd.groups import GroupedNetwork
from utils.run.errors import UserError
from utils.run.precision import (
    WORTH_CALLS,
    WORTH_PIXELS,
    Work,
    amp_type,
    autocast,
    compiled,
    gradient_scaler,
    has_compiler,
)

CIFAR = get_dataset("cifar100")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def matched(network):
    """A network as recover's teacher."""
    return MatchedTeacher(network.eval().requires_grad_(False), BatchNormInput, 10.0, CIFAR.size)


@pytest.mark.parametrize(
    ("choice", "device", "auto", "dtype"),
    [
        ("auto", CUDA, "fp16", torch.float16),
        ("auto", CUDA, "off", None),
        ("auto", CPU, "fp16", None),
        ("off", CUDA, "fp16", None),
        ("bf16", CPU, "fp16", torch.bfloat16),
        ("fp16", CUDA, "off", torch.float16),
    ],
)
def test_auto_is_a_matter_of_device_and_stage(choice, device, auto, dtype):
    assert amp_type(choice, device, auto) is dtype


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="--amp fp16 needs a GPU"):
        amp_type("fp16", CPU, "fp16")


def test_only_float16_is_scaled():
    assert gradient_scaler(CPU, torch.float16).is_enabled()
    assert not gradient_scaler(CPU, torch.bfloat16).is_enabled()
    assert not gradient_scaler(CPU, None).is_enabled()


def test_statistics_and_losses_stay_float32_under_autocast(relative):
    torch.manual_seed(0)
    teacher = matched(build_network("ShuffleNetV2", CIFAR))
    images = torch.randn(6, 3, 32, 32, requires_grad=True)
    _, exact = teacher(images)
    with autocast(CPU, torch.bfloat16):
        logits, bn_loss = teacher(images)
    assert logits.dtype == bn_loss.dtype == torch.float32
    assert relative(bn_loss, exact) < 0.05
    (logits.sum() + bn_loss).backward()
    assert images.grad.isfinite().all()


def test_compile_is_on_where_it_pays():
    network = torch.nn.Linear(2, 2)
    assert compiled(network, "auto", CPU) is network
    assert compiled(network, "auto", CPU, Work(WORTH_PIXELS - 1, 10**9)) is network
    assert compiled(network, "auto", CPU, Work(WORTH_PIXELS, 0)) is not network
    assert compiled(network, "auto", CUDA, Work(2**40, WORTH_CALLS - 1)) is network
    assert compiled(network, "auto", CUDA, Work(0, WORTH_CALLS)) is not network
    assert compiled(network, "auto", torch.device("mps"), Work(2**40, 10**9)) is network
    assert compiled(network, "off", CUDA, Work(2**40, 10**9)) is network
    assert compiled(network, "on", CPU) is not network


def test_without_a_compiler_a_cpu_compiles_nothing(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    network = torch.nn.Linear(2, 2)
    assert compiled(network, "auto", CPU, Work(2**40, 0)) is network
    with pytest.raises(UserError, match="--compile on needs a C\\+\\+ compiler"):
        compiled(network, "on", CPU)


def as_one_graph(network):
    """The network traced whole, its graph run by PyTorch itself: what any compiler gets to see."""
    return torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)


@pytest.mark.parametrize("name", ["ShuffleNetV2", "ConvNetBN_W32"])
def test_a_matched_teacher_is_one_graph_with_the_same_numbers(name, relative):
    torch.manual_seed(0)
    eager = matched(build_network(name, CIFAR))
    whole = as_one_graph(eager)
    images = torch.randn(5, 3, 32, 32)
    results = []
    for teacher in (eager, whole, whole):  # the second call runs what the first has traced
        leaf = images.clone().requires_grad_(True)
        logits, bn_loss = teacher(leaf)
        (logits.sum() + bn_loss).backward()
        results.append((logits.detach(), bn_loss.detach(), leaf.grad))
    for result in results[1:]:
        assert all(relative(a, b) < 1e-5 for a, b in zip(result, results[0], strict=True))
    assert set(eager.seen) == {None}


@pytest.mark.parametrize("groups", [(3, 3), (2, 2, 2), (2, 3)], ids=str)
@pytest.mark.parametrize("name", ["ConvNetBN_W32", "WRN-16-2"])
def test_a_grouped_student_is_one_graph_with_the_same_numbers(groups, name, relative):
    torch.manual_seed(0)
    eager = GroupedNetwork(build_network(name, CIFAR).double())
    compare_students(eager, as_one_graph(copy.deepcopy(eager)), groups, relative)


def compare_students(eager, other, groups, relative):
    """Logits, gradients and running statistics of two that are equal but for compilation."""
    images = torch.randn(sum(groups), 3, 32, 32, dtype=next(eager.parameters()).dtype)
    answers = [student(images, groups) for student in (eager, other)]
    assert relative(*answers) < 1e-5
    for answer in answers:
        torch.nn.functional.cross_entropy(answer, torch.arange(len(answer))).backward()
    for (name, a), b in zip(other.named_parameters(), eager.parameters(), strict=True):
        if b.grad.abs().max() > 1e-6:  # a bias before BatchNorm has a gradient of rounding alone
            assert relative(a.grad, b.grad) < 1e-4, name
    for (name, a), b in zip(other.state_dict().items(), eager.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name


def test_all_teachers_are_compiled_at_all_sizes(monkeypatch):
    """Beyond some eight graphs of one function PyTorch goes on without compiling, unless it is told otherwise."""
    graphs = []

    def note(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=note))
    for name in ("ConvNetBN_W32", "ConvNetBN_W64", "ConvNetW128"):
        teacher = matched(build_network(name, CIFAR))
        teacher = compiled(teacher, "on", CPU)
        for size in (32, 16, 32, 20, 24, 16):
            teacher(torch.randn(2, 3, size, size))
    assert len(graphs) == 3 * 4


@pytest.mark.skipif(not has_compiler(), reason="this machine has no C++ compiler")
def test_what_a_cpu_compiles_gives_the_same_numbers(relative):
    """Teachers in both stages and a student, by the compiler itself, in the memory format of the stages."""
    torch.manual_seed(0)
    network = build_network("ConvNetBN_W32", CIFAR).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    images = torch.randn(6, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    results = []
    for choice in ("off", "on"):
        leaf = images.clone().requires_grad_(True)
        logits, bn_loss = compiled(matched(copy.deepcopy(network)), choice, CPU)(leaf)
        (logits.sum() + bn_loss).backward()
        with torch.no_grad():
            labels = compiled(GroupedNetwork(copy.deepcopy(network)), choice, CPU)(images, (2, 2, 1, 1))
        results.append((logits.detach(), bn_loss.detach(), leaf.grad, labels))
    assert all(relative(a, b) < 1e-5 for a, b in zip(*results, strict=True))
    student = GroupedNetwork(network.train().requires_grad_(True))
    compare_students(student, compiled(copy.deepcopy(student), "on", CPU), (3, 3), relative)
