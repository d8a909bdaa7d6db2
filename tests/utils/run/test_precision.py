"""--amp and --compile: what they choose, and that they change no number beyond their type."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from models.registry import build_network
from utils.bn_matching.matching import MatchedTeacher
from utils.bn_matching.probes import BatchNormInput
from utils.data.table import get_dataset
from utils.fkd.groups import GroupedNetwork
from utils.run import precision
from utils.run.errors import UserError
from utils.run.precision import (
    WORTH_CALLS,
    WORTH_PIXELS,
    Trusted,
    Work,
    amp_type,
    autocast,
    compiled,
    fused,
    gradient_scaler,
    has_compiler,
    is_compiled,
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


# What is compiled is trusted after it agreed


class Small(nn.Module):
    """A network with running statistics, which a comparison must leave alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(1), nn.LazyLinear(5))
        self.layers(torch.randn(2, 3, 8, 8))

    def forward(self, images):
        return self.layers(images)


class Compiler:
    """A stand-in for torch.compile's network: what it answers, and how often it was asked."""

    def __init__(self, network, change):
        self.network, self.change, self.calls = network, change, 0

    def __call__(self, images, *others):
        self.calls += 1
        return self.change(self.network(images, *others), images)


def errs_in_outputs(outputs, images):
    return outputs * 1.01


def errs_in_gradients(outputs, images):
    return outputs + 0.5 * (outputs - outputs.detach())


def raises(outputs, images):
    raise ZeroDivisionError("the compiler's own\nfault")


def is_nan(outputs, images):
    return outputs * torch.nan


def trusted_by(change):
    network = Small()
    fast = Compiler(network, change)
    return network, fast, Trusted(network, fast, replayed=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (errs_in_outputs, "its outputs differ from the network's own by 0.01 of these"),
        (errs_in_gradients, "its gradients differ from the network's own by 0.5 of these"),
        (is_nan, "its outputs differ from the network's own by inf of these"),
        (raises, "ZeroDivisionError: the compiler's own fault"),
    ],
)
def test_a_compiler_that_errs_is_left_for_the_network_itself(change, said, capsys):
    network, fast, trusted = trusted_by(change)
    images, before = torch.randn(4, 3, 8, 8), copy.deepcopy(network.state_dict())
    answer = trusted(images)
    assert capsys.readouterr().out == f"note: going on without compiling, since {said}\n"
    assert is_compiled([trusted]) == f"off: {said}"
    other = Small()
    other.load_state_dict(before)
    assert torch.equal(answer, other(images))
    for (name, found), expected in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name  # running statistics moved once
    assert fast.calls == 1
    trusted(images)
    assert fast.calls == 1 and capsys.readouterr().out == ""


def test_a_compiler_that_agrees_is_compared_once_for_each_shape(capsys):
    network, _, trusted = trusted_by(lambda outputs, images: outputs * (1 + 1e-6))
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    for size, count in ((4, 3), (4, 4), (2, 7), (4, 8)):  # a comparison asks both
        trusted(torch.randn(size, 3, 8, 8))
        assert len(calls) == count
    assert is_compiled([trusted]) == "on" and is_compiled([network]) == "off"
    assert 0 < trusted.differences[0] < 1e-5
    assert capsys.readouterr().out == ""


def test_an_error_of_the_user_is_no_fault_of_the_compiler():
    def refuses(outputs, images):
        raise UserError("take another teacher")

    _, _, trusted = trusted_by(refuses)
    with pytest.raises(UserError, match="take another teacher"):
        trusted(torch.randn(4, 3, 8, 8))
    assert trusted.distrust is None


def test_more_shapes_than_graphs_are_said(monkeypatch, capsys):
    monkeypatch.setattr(precision, "MOST_GRAPHS", 2)
    _, fast, trusted = trusted_by(lambda outputs, images: outputs)
    for size in (2, 3, 4):
        trusted(torch.randn(size, 3, 8, 8))
    assert "there are more than 2 shapes of its input" in capsys.readouterr().out
    assert fast.calls == 4


def test_what_lies_in_a_replayed_graphs_memory_is_copied():
    memory = torch.zeros(4, 5)

    def into_memory(outputs, images):
        return memory.copy_(outputs.detach())

    network, fast, _ = trusted_by(into_memory)
    trusted = Trusted(network.eval().requires_grad_(False), fast, replayed=True)
    first = trusted(torch.randn(4, 3, 8, 8))
    kept = first.clone()
    trusted(torch.randn(4, 3, 8, 8))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("agrees", [True, False])
def test_a_fused_optimiser_is_taken_where_it_agrees(monkeypatch, capsys, agrees):
    """On a CPU that is made to look like a GPU."""

    class Optimiser(torch.optim.SGD):
        def __init__(self, weights, lr, fused):
            super().__init__(weights, lr if agrees or not fused else 2 * lr)

    fused.cache_clear()
    assert fused(torch.optim.SGD, CPU) and not fused(torch.optim.SGD, torch.device("mps"))
    linspace = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *range, device: linspace(*range))
    assert fused(Optimiser, CUDA) is agrees
    note = "note: Optimiser's fused kernel differs from its plain steps on this GPU: taking these\n"
    assert capsys.readouterr().out == ("" if agrees else note)
    fused.cache_clear()


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
