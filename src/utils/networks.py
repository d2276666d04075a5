"""Helpers around networks that several learners share."""

import operator
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TypeVar

import torch
from torch import nn

from utils.shapes import may_look_at

Found = TypeVar("Found")
_LOCK = Lock()


class NonFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite. `terms` are the parts it was made of, `culprit` the first bad one."""

    def __init__(self, terms: dict[str, torch.Tensor]):
        self.terms = {name: float(value.detach()) for name, value in terms.items()}
        bad = [name for name, value in terms.items() if not torch.isfinite(value).all()]
        self.culprit = bad[0] if bad else "unknown"
        super().__init__(f"{self.culprit} is {self.terms.get(self.culprit)}; terms: {self.terms}")


def unroll(mac, batch, test_mode: bool = False) -> torch.Tensor:
    """The controller's outputs for every step, (B, T, N, A); controllers without `unroll` are stepped.

    `test_mode`: policies without exploration.
    """
    mode = {"test_mode": True} if test_mode else {}
    if hasattr(mac, "unroll"):
        return mac.unroll(batch, **mode)
    mac.init_hidden(batch.batch_size)
    return torch.stack([mac.forward(batch, t=t, **mode) for t in range(batch.max_seq_length)], dim=1)


class Packing:
    """Sequences without their padding: the longest first, step by step.

    Args:
        lengths: of B sequences of up to T steps.
    """

    def __init__(self, lengths: torch.Tensor, T: int):
        order = lengths.argsort(descending=True, stable=True)
        reached = torch.arange(int(lengths.max())).unsqueeze(1) < lengths[order]  # (steps, B)
        self.counts: list[int] = reached.sum(dim=1).tolist()  # sequences that reach step t
        steps, ranks = reached.nonzero(as_tuple=True)
        self.index = steps * len(lengths) + order[ranks]  # (P,) rows of (T * B)
        self.T, self.B = T, len(lengths)

    @classmethod
    def of(cls, batch) -> "Packing | None":
        """That of the batch's episodes; None where it would not pay.

        It pays on a CPU only: on a GPU shapes that change with every batch cost more than rows that tell nothing.
        """
        filled = batch["filled"]
        if not may_look_at(filled):
            return None

        def build() -> "Packing | None":
            lengths, T = filled.sum(dim=(1, 2)), filled.shape[1]
            dense = lengths.sum() > 0.9 * T * len(lengths)
            return None if dense or lengths.min() < 1 else cls(lengths, T)

        return keep(batch, "packing", (filled,), build)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """(T, B, ...) -> (P, ...)"""

        def build() -> torch.Tensor:
            return x.flatten(0, 1).index_select(0, self.index)

        return build() if x.requires_grad else keep(self, "packed", (x,), build)

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """(P, ...) -> (T, B, ...), 0 in padding."""
        return x.new_zeros(self.T * self.B, *x.shape[1:]).index_copy(0, self.index, x).unflatten(0, (self.T, self.B))


def unroll_network(network, inputs: torch.Tensor, packing: Packing | None = None) -> torch.Tensor:
    """An agent's network on sequences from fresh memory, stepped if it offers no `unroll`.

    (T, B, N, I) -> (T, B, N, A). With a packing, what lies behind a sequence's end is not computed, and 0.
    """
    if packing is not None and offers(network, "unroll_packed") and knows(network, "unroll_packed", "unroll"):
        return packing.unpack(_unroll_packed(network, inputs, packing)[0])
    T, B, N, _ = inputs.shape
    rows, hidden = inputs.reshape(T, B * N, -1), _fresh_memory(network, B * N)
    if offers(network, "unroll"):
        return network.unroll(rows, hidden)[0].view(T, B, N, -1)
    outputs = []
    for step in rows:
        values, hidden = network(step, hidden)
        outputs.append(values)
    return torch.stack(outputs).view(T, B, N, -1)


def unroll_network_features(
    network, inputs: torch.Tensor, packing: Packing | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`unroll_network`, and the network's features, (T, B, N, H)."""
    T, B, N, _ = inputs.shape
    if packing is None or not knows(network, "unroll_packed", "unroll_features"):
        found = network.unroll_features(inputs.reshape(T, B * N, -1), _fresh_memory(network, B * N))
        return found[0].view(T, B, N, -1), found[1].view(T, B, N, -1)
    values, features = map(packing.unpack, _unroll_packed(network, inputs, packing))
    return values, features


def _unroll_packed(network, inputs: torch.Tensor, packing: Packing) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network says of the steps that were played, (P, N, A), and its features there, (P, N, H)."""
    B, N = inputs.shape[1:3]
    counts = [count * N for count in packing.counts]
    found = network.unroll_packed(packing.pack(inputs).flatten(0, 1), counts, _fresh_memory(network, B * N))
    return found[0].unflatten(0, (-1, N)), found[1].unflatten(0, (-1, N))


def knows(network, fast: str, plain: str) -> bool:
    """Whether the method `fast` is there and says what `plain` does: a subclass may override `plain` alone."""
    classes = list(enumerate(type(network).__mro__))
    of_fast, of_plain = (next((n for n, cls in classes if name in vars(cls)), len(classes)) for name in (fast, plain))
    return of_fast < len(classes) and of_fast <= of_plain


def offers(network, fast: str) -> bool:
    """Whether the network has the method `fast` and no subclass overrides `forward`, which acts, but not that."""
    return hasattr(network, fast) and (not hasattr(type(network), fast) or knows(network, fast, "forward"))


def _fresh_memory(network, rows: int) -> torch.Tensor:
    start = network.init_hidden()  # (1, H), or a row for every agent
    return start.repeat(rows // len(start), 1)


def sequence_inputs(batch, args) -> torch.Tensor:
    """What each agent sees at every step: observation, last action, own number, as the obs_ keys say: (T, B, N, I)."""

    def build() -> torch.Tensor:
        obs = batch["obs"].transpose(0, 1)
        inputs = [obs]
        if args.obs_last_action:
            onehot = batch["actions_onehot"].transpose(0, 1)
            inputs.append(torch.cat([torch.zeros_like(onehot[:1]), onehot[:-1]]))
        if args.obs_agent_id:
            inputs.append(torch.eye(args.n_agents, device=obs.device).expand(*obs.shape[:2], -1, -1))
        return torch.cat(inputs, dim=-1)

    name = f"inputs {args.obs_last_action} {args.obs_agent_id}"
    return keep(batch, name, tuple(batch[key] for key in ("obs", "actions", "filled")), build)


def keep(owner, name: str, sources: tuple[torch.Tensor, ...], compute: Callable[[], Found]) -> Found:
    """What `compute` makes of the sources, without gradient, kept by the owner until one of them changes.

    Online, target and alternative networks read the same inputs, on two threads. Compiled code computes equal things
    once by itself.
    """
    if torch.compiler.is_compiling():
        return compute()
    with _LOCK:
        kept = vars(owner).setdefault("_kept", {})
        versions = [source._version for source in sources]
        if name in kept:
            of_sources, of_versions, value = kept[name]
            if of_versions == versions and all(map(operator.is_, of_sources, sources)):
                return value
        kept[name] = (sources, versions, compute())
        return kept[name][2]


def sequence_input_size(scheme, args) -> int:
    """I of `sequence_inputs`."""
    size = scheme["obs"]["vshape"]
    if args.obs_last_action:
        size += scheme["actions_onehot"]["vshape"][0]
    if args.obs_agent_id:
        size += args.n_agents
    return size


def build_optimiser(params: list[nn.Parameter], lr: float, args) -> torch.optim.Optimizer:
    """The optimiser that `args.optimizer` names, with step size `lr`, which treats all parameters in few calls."""
    if args.optimizer == "adam":
        return torch.optim.Adam(params, lr=lr, eps=args.optim_eps, fused=True)
    return torch.optim.RMSprop(params, lr=lr, alpha=args.optim_alpha, eps=args.optim_eps, foreach=True)


def set_step_size(optimiser: torch.optim.Optimizer, t_env: int, args) -> None:
    """On the line from `args.lr` at step 0 to `args.lr_finish` at `args.t_max`; nothing without `lr_finish`."""
    if args.lr_finish is None:
        return
    done = min(1.0, t_env / args.t_max)
    for group in optimiser.param_groups:
        group["lr"] = args.lr + done * (args.lr_finish - args.lr)


def unroll_features(mac, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """`unroll`, and the agents' features, (B, T, N, H): their memories after every step, if they have any."""
    return mac.unroll_features(batch) if hasattr(mac, "unroll_features") else step_features(mac, batch)


def step_features(mac, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What `unroll_features` gives, by the controller's `forward`, one step after another."""
    mac.init_hidden(batch.batch_size)
    outputs, memories = [], []
    for t in range(batch.max_seq_length):
        outputs.append(mac.forward(batch, t=t))
        memories.append(mac.hidden_states.reshape(*outputs[-1].shape[:2], -1))
    return torch.stack(outputs, dim=1), torch.stack(memories, dim=1)


@torch.no_grad()
def blend(target: nn.Module, source: nn.Module, share: float) -> None:
    """target <- (1 - share) target + share source; a share of 1 copies."""
    if share == 1.0:
        target.load_state_dict(source.state_dict())
        return
    (mine, my_buffers), (theirs, their_buffers) = _tensors(target), _tensors(source)
    if len(mine) != len(theirs) or len(my_buffers) != len(their_buffers):
        raise ValueError(f"{len(mine)} parameters cannot follow {len(theirs)}")
    if mine:
        torch._foreach_lerp_(mine, theirs, share)  # pyright: ignore[reportPrivateImportUsage]
    if my_buffers:
        torch._foreach_copy_(my_buffers, their_buffers)  # pyright: ignore[reportPrivateImportUsage]


def _tensors(network: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Its parameters and its buffers, each once, in a fraction of the time that their names take."""
    parameters, buffers = {}, {}
    for module in network.modules():
        parameters |= {id(x): x for x in module._parameters.values() if x is not None}
        buffers |= {id(x): x for x in module._buffers.values() if x is not None}
    return list(parameters.values()), list(buffers.values())


def copy_state(path: Path, target: nn.Module, source: nn.Module) -> None:
    """Load `target` from the file, or from `source` if there is no such file."""
    if path.exists():
        target.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    else:
        target.load_state_dict(source.state_dict())
