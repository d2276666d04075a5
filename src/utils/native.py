"""Kernels in C++ for a CPU (src/kernels), compiled when they are first asked for.

They do in one pass what torch's operations do in many, and need no lock of Python's meanwhile. To compile them takes a
few seconds, once, and a C++ compiler (`c++`, or what the environment variable CXX names; GCC 11, Clang 12 or newer);
without one, callers have another way. `python src/kernels/build.py` compiles them ahead of time. GREED_KERNELS=off
leaves them alone.
"""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

SOURCES = Path(__file__).resolve().parents[1] / "kernels"
BUILT = SOURCES / "built"  # what was compiled ahead of time
CACHE = Path("~/.cache/greed_is_good/kernels")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-Wno-psabi")
VECTOR = 16  # numbers: kernels want rows of whole vectors, and no processor's are longer
PROCESSORS = {  # as torch calls them, and what the compiler is told
    "AVX512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "AVX2": ("-march=x86-64-v3",),
}


@torch.compiler.assume_constant_result
def is_there() -> bool:
    """Whether `call` works here."""
    return _library() is not None


def call(name: str, *arguments: torch.Tensor | int | None) -> None:
    """Call a kernel for the type of the first tensor, float32 or float64, with pointers to the tensors' values.

    Raises:
        ValueError: a tensor is not on the CPU, has gaps, or another type than the first (int64 and uint8 are for
            whole numbers and flags).
    """
    library = _library()
    assert library is not None, "ask is_there() first"
    first = arguments[0]
    assert isinstance(first, torch.Tensor)
    given = []
    for n, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor):
            if not argument.is_contiguous() or argument.device.type != "cpu":
                raise ValueError(f"{name}: argument {n} is not a contiguous tensor on the CPU")
            if argument.dtype not in (first.dtype, torch.int64, torch.uint8):
                raise ValueError(f"{name}: argument {n} is {argument.dtype}, the first {first.dtype}")
            given.append(ctypes.c_void_p(argument.data_ptr()))
        else:
            given.append(ctypes.c_void_p(None) if argument is None else ctypes.c_int64(argument))
    getattr(library, f"{name}_{str(first.dtype).removeprefix('torch.')}")(*given)


def takes(*tensors: torch.Tensor) -> bool:
    """Whether these are tensors that kernels are for: of one type, float32 or float64, on the CPU."""
    places = {x.device.type for x in tensors}
    return places == {"cpu"} and {x.dtype for x in tensors} in ({torch.float32}, {torch.float64})


def padded(x: torch.Tensor, size: int) -> torch.Tensor:
    """x (..., K) without gaps, as a kernel wants it, and with zeros behind: (..., size)."""
    return (x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))).contiguous()


@cache
def _library() -> ctypes.CDLL | None:
    """The kernels for this processor; None, and a line that says why, where there are none."""
    if os.environ.get("GREED_KERNELS") == "off" or not SOURCES.is_dir():
        return None
    processor = torch.backends.cpu.get_cpu_capability()
    for folder in (BUILT, CACHE):
        try:
            file = folder.expanduser() / _name(processor)
            if not file.exists():
                if folder == BUILT:
                    continue
                compile_for(processor, file.parent)
            return ctypes.CDLL(str(file))
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: the user has no home
            said = getattr(error, "stderr", None) or str(error)
            logging.getLogger("greed").warning(
                "Kernels for this CPU cannot be compiled: %s. Recurrent networks and mixers take up to twice as long "
                "on it; install a C++ compiler (g++), or name one by CXX",
                " ".join(said.split())[:300],
            )
    return None


def compile_for(processor: str, folder: Path) -> Path:
    """Compile all kernels to one file in the folder, for a processor that PROCESSORS has, or any.

    Raises:
        FileNotFoundError: there is no compiler.
        subprocess.CalledProcessError: it refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = map(str, sorted(SOURCES.glob("*.cpp")))
    with tempfile.TemporaryDirectory(dir=folder) as place:  # others may be at it
        made = Path(place) / "kernels.so"
        command = [_compiler(), *FLAGS, *PROCESSORS.get(processor, ()), *sources, "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return made.rename(folder / _name(processor))


def _compiler() -> str:
    return os.environ.get("CXX") or "c++"


@cache
def _name(processor: str) -> str:
    """Of the file: it changes with sources, architecture and flags."""
    parts = [file.read_bytes() for file in sorted(SOURCES.iterdir()) if file.is_file()]
    parts.append(" ".join([platform.machine(), *FLAGS, *PROCESSORS.get(processor, ())]).encode())
    return f"kernels-{processor}-{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}.so"
