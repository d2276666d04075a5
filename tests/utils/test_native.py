"""Compiled kernels: what they refuse, what happens without them, and that each processor's say the same."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from utils import native

SRC = Path(native.__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not native.is_there(), reason="no C++ compiler here")

# A GRU of 40 units over 13 sequences of 3 lengths, a mixer with 24 units, what is taken over 21 actions, and a linear
# layer from 19 to 37: values and gradients in float32.
COMPARED = """
import sys, torch
from types import SimpleNamespace
from modules.agents.gru import run_gru
from modules.mixers.qmix import QMixer
from objectives.available import best_action, log_softmax, logsumexp
from utils import linear, native

linear.LEAST_PRODUCTS, linear._is_handicapped = 0, lambda: True
torch.manual_seed(0)
cell = torch.nn.GRUCell(5, 40)
counts = [13] * 4 + [9] * 3 + [1] * 2
x, h = torch.randn(sum(counts), 5, requires_grad=True), torch.randn(13, 40, requires_grad=True)
memories = run_gru(x, h, cell, counts)
args = SimpleNamespace(n_agents=3, state_shape=7, mixing_embed_dim=24, hypernet_layers=2, hypernet_embed=8)
mixer = QMixer(args)
qs = torch.randn(2, 4, 3, 5, requires_grad=True)
values = mixer.counterfactual(qs[..., 0], qs, torch.randn(2, 4, 7))
q, avail = torch.randn(4, 3, 21, requires_grad=True), torch.rand(4, 3, 21) < 0.6
sums, policies = logsumexp(q, avail, 0.3), log_softmax(q, avail, 0.3)
layer, rows = linear.Linear(19, 37), torch.randn(5, 13, 19, requires_grad=True)
outputs = layer(rows)
(outputs * torch.randn_like(outputs)).sum().backward()
(memories * torch.randn_like(memories)).sum().backward()
(values * torch.randn_like(values)).sum().backward()
((sums * torch.randn_like(sums)).sum() + (torch.randn_like(q) * policies)[avail].sum()).backward()
found = [outputs, rows.grad, memories, values, x.grad, h.grad, qs.grad, sums, policies, q.grad]
found += [best_action(q, avail).float()]
found += [p.grad for module in (cell, mixer, layer) for n, p in sorted(module.named_parameters()) if p.grad is not None]
torch.save([one.detach() for one in found], sys.argv[1])
print(native.is_there())
"""


def compared(path: Path, src: Path = SRC, **env: str) -> tuple[list[torch.Tensor], str]:
    """What COMPARED finds with these environment variables, and what it prints."""
    environment = os.environ | {"PYTHONPATH": str(src)} | env
    done = subprocess.run(
        [sys.executable, "-c", COMPARED, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return torch.load(path, weights_only=True), done.stderr + done.stdout


def test_every_processors_kernels_and_torchs_own_operations_agree(tmp_path):
    expected, said = compared(tmp_path / "off", GREED_KERNELS="off")
    assert said == "False\n"
    levels = ["DEFAULT", "AVX2", "AVX512"]
    here = torch.backends.cpu.get_cpu_capability()
    for processor in levels[: levels.index(here) + 1] if here in levels else [here]:
        found, said = compared(tmp_path / processor, ATEN_CPU_CAPABILITY=processor.lower())
        assert said == "True\n"
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
            assert one.any()


@pytest.mark.parametrize("compiler", ["false", "/no/compiler"])
def test_without_a_compiler_a_line_says_so_and_torchs_operations_do_it(tmp_path, compiler):
    expected, _ = compared(tmp_path / "off", GREED_KERNELS="off")
    found, said = compared(tmp_path / "found", CXX=compiler, HOME=str(tmp_path))
    assert said.endswith("False\n")
    assert said.count("Kernels for this CPU cannot be compiled") == 1
    assert "install a C++ compiler" in said
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_user_without_a_home_does_without(monkeypatch, caplog):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    assert native._library.__wrapped__() is None
    assert "Could not determine home directory" in caplog.text


def test_they_are_compiled_once_and_again_if_their_sources_change(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "SOURCES", tmp_path / "kernels")
    native.SOURCES.mkdir()
    source = native.SOURCES / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }')
    files = []
    for text in (source.read_text(), 'extern "C" int one() { return 2; }'):
        source.write_text(text)
        native._name.cache_clear()
        files.append(native.compile_for("any", tmp_path / "built"))
    native._name.cache_clear()
    assert files[0] != files[1]
    assert set((tmp_path / "built").iterdir()) == set(files)


def test_what_was_compiled_ahead_of_time_is_used_where_nothing_can_be_compiled(tmp_path):
    src = tmp_path / "src"
    for part in ("kernels", "utils", "modules", "objectives"):
        shutil.copytree(SRC / part, src / part, ignore=shutil.ignore_patterns("built", "__pycache__"))
    done = subprocess.run([sys.executable, str(src / "kernels/build.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {str(file) for file in (src / "kernels/built").iterdir()}
    _, said = compared(tmp_path / "found", src, CXX="/no/compiler", HOME=str(tmp_path))
    assert said == "True\n"


def test_tensors_with_gaps_or_of_other_types_are_refused():
    x = torch.zeros(4, 4)
    with pytest.raises(ValueError, match="argument 0 is not a contiguous"):
        native.call("gru_forward", x.t()[:2])
    with pytest.raises(ValueError, match=r"argument 1 is torch\.float64, the first torch\.float32"):
        native.call("gru_forward", x, x.double())


def test_exponentials_at_the_ends_of_their_range():
    """The sigmoid of a bias, by a GRU of one step: n = 0, h = 1, so h' = z = s(b)."""
    from modules.agents.gru import run_gru

    cell = torch.nn.GRUCell(1, 1)
    for parameter in cell.parameters():
        torch.nn.init.zeros_(parameter)
    for bias in (-1e30, -100.0, -87.0, -1e-7, 0.0, 1e-7, 20.0, 88.0, 100.0, 1e30, float("inf"), float("-inf")):
        with torch.no_grad():
            cell.bias_ih[1] = bias
            found = run_gru(torch.zeros(1, 1), torch.ones(1, 1), cell, [1]).item()
        assert found == pytest.approx(torch.sigmoid(torch.tensor(bias)).item(), rel=1e-6, abs=1e-30)
    with torch.no_grad():
        cell.bias_ih[1] = float("nan")
    assert run_gru(torch.zeros(1, 1), torch.ones(1, 1), cell, [1]).isnan().all()


def some_work(rows: int = 999) -> tuple[list, list]:
    """Arguments of a kernel, without and with the number of cores; and what it found."""
    torch.manual_seed(0)
    found = [torch.empty(33, 17), torch.empty(33)]
    return [torch.randn(rows, 33), torch.randn(rows, 17), rows, 33, 17], found


def test_callers_at_the_same_time_share_the_second_core():
    """Each has what it would have alone, although there is one thread for the halves of all."""
    given, expected = some_work()
    native.call("linear_gradients", *given, 1, *expected)

    def often(_: int) -> bool:
        same = []
        for _ in range(200):
            found = [torch.empty_like(x) for x in expected]
            native.call("linear_gradients", *given, 2, *found)
            same.append(all(map(torch.equal, found, expected)))
        return all(same)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(often, range(3))) == [True] * 3


def test_a_fork_has_a_thread_of_its_own():
    given, expected = some_work()
    native.call("linear_gradients", *given, 2, *expected)  # so that there is one here
    child = os.fork()
    if not child:
        signal.alarm(30)  # where it would wait for ever
        found = [torch.empty_like(x) for x in expected]
        native.call("linear_gradients", *given, 2, *found)
        os._exit(0 if all(map(torch.equal, found, expected)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_denormals_are_flushed_in_both_halves_if_the_caller_flushes_them():
    small = torch.full((200, 1), 1e-20)
    for flushed, expected in ((True, 0.0), (False, 1e-40)):
        torch.set_flush_denormal(flushed)
        for _ in range(20):  # now by the other thread, now by the caller
            found = torch.empty(200, 1)
            native.call("linear", small, torch.tensor([[1e-20]]), 1, 1, None, 200, 1, 1, 2, found)
            assert found.double().sum().item() == pytest.approx(200 * expected, rel=1e-4)
