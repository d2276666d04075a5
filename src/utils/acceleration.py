"""What makes updates cheaper on a GPU without another line in a learner: lower precision, and compiled code.

Acting is left as it is. Nothing here has run on a GPU yet; what a CPU can check is checked in tests.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import UserError
from utils.linear import Linear

SHAPES = 64  # compiled versions of an update that may be kept: one for each length of batches, and some to spare

_lowered = False  # whether linear layers that may compute in bfloat16 do so now; seen by every thread


def accelerate(learner, args) -> None:
    """Let the learner compute as the keys `precision` and `compile` say."""
    tf32 = args.precision != "float32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    if args.precision == "bf16":
        _lower(learner)
    if args.compile and not args.evaluate:
        _compile(learner, args)


# Precision


def _lower(learner) -> None:
    """Let the linear layers of all networks multiply in bfloat16 while the learner trains.

    Their inputs and outputs, the recurrence, mixing, targets, losses, parameters and optimisers stay as they are: sums
    of many small terms need the digits, and a value that is only known to 1 in 256 would drown TD errors.
    """
    for network in _networks(learner):
        for module in network.modules():
            if type(module).forward in (nn.Linear.forward, Linear.forward):
                module.forward = MethodType(_linear, module)
    train = learner.train

    def train_lowered(*args, **kwargs):
        global _lowered
        _lowered = True
        try:
            return train(*args, **kwargs)
        finally:
            _lowered = False

    learner.train = train_lowered


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if not _lowered:
        return F.linear(x, layer.weight, layer.bias)
    bias = None if layer.bias is None else layer.bias.bfloat16()
    return F.linear(x.bfloat16(), layer.weight.bfloat16(), bias).to(x.dtype)


def _networks(learner) -> Iterator[nn.Module]:
    """Every network among a learner's attributes, those of its controllers included."""
    for attribute in vars(learner).values():
        for part in attribute.values() if isinstance(attribute, dict) else (attribute,):
            network = getattr(part, "agent", part)
            if isinstance(network, nn.Module):
                yield network


# Compiled code


def _compile(learner, args) -> None:
    """Compile the learner's `objective`, and with it what differentiates it; CUDA graphs replay both.

    It becomes one graph, or an error: pieces with Python between them could be slower than none. What outlives the call
    is copied, because a CUDA graph writes its results to the same place each time.
    """
    if not getattr(learner, "compiles", False):
        raise UserError(f"compile=True: learner={args.learner} says nothing of being compiled; set compile=False")
    _check_compiler(args.device)
    from torch._dynamo import config, exc  # takes seconds, and only here is it wanted

    config.recompile_limit = SHAPES
    plain = learner.objective
    kept = (*learner.statistics, *learner.shown)

    def detached(batch):
        found = plain(batch)
        _copy(learner, kept)  # they may be views of each other, which torch cannot hand out
        terms, stats = ({k: v.detach().clone() for k, v in some.items()} for some in (found.terms, found.stats))
        return replace(found, terms=terms, stats=stats)

    fast = torch.compile(detached, mode="reduce-overhead", dynamic=False, fullgraph=True)
    learner.updated = False  # an attribute, so that a run that is resumed goes on with compiled code, too

    def objective(batch):
        learner.measures = True  # always: it would be compiled for both
        if not learner.updated:  # running statistics begin as None, which would be compiled for once
            learner.updated = True
            return plain(batch)
        torch.compiler.cudagraph_mark_step_begin()
        try:
            found = fast(batch)
        except exc.TorchDynamoException as error:
            why = str(error).splitlines()[0]
            raise UserError(
                f"compile=True: learner={args.learner} cannot be compiled as configured ({why}); set compile=False"
            ) from error
        if args.device != "cpu":
            _copy(learner, kept)
        return found

    learner.objective = objective


def _copy(learner, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(learner, name)
        if isinstance(value, tuple):
            setattr(learner, name, tuple(part.clone() for part in value))
        elif value is not None:
            setattr(learner, name, value.clone())


def _check_compiler(device: str) -> None:
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        raise UserError(
            f"compile=True: torch compiles with {name}, which is not on PATH; install it, let CXX name a compiler, "
            "or set compile=False"
        )
    if device != "cpu" and importlib.util.find_spec("triton") is None:
        raise UserError("compile=True: torch writes GPU code with the package triton, which is missing; install it")
