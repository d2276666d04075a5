"""Compile the kernels ahead of time, as images do whose last stage has no compiler.

`python src/kernels/build.py` writes those for all processors of this architecture to src/kernels/built, where runs look
first.
"""

import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the import root, as this file is run as a script

import torch

from utils.native import BUILT, PROCESSORS, compile_for


def main() -> None:
    here = torch.backends.cpu.get_cpu_capability()
    for processor in (*PROCESSORS, "DEFAULT") if platform.machine() == "x86_64" else (here,):
        print(compile_for(processor, BUILT))


if __name__ == "__main__":
    main()
