"""N learners that differ in their seeds alone, updated and asked for actions by one set of batched kernels.

Each of them stays a whole learner. What they hold lies in tables with a row for each, of which their parameters,
buffers and optimiser states are views; so whatever reads or writes one learner sees what the batched update left, and
the other way round. An update maps the learner's own `objective` over rows (`torch.vmap`), and the optimiser, the clip
and the target networks are elementwise in them. Rows never meet: a seed's results depend on no other seed's.
Legend: that of `q_learner`, and K seeds at hand of the N, D numbers of a learner.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from components.episode_buffer import EpisodeBatch
from learners.q_learner import QLearner
from utils.networks import NonFiniteError, set_step_size

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "rmsprop": ("square_avg",)}  # as torch's optimisers call them
BETAS = (0.9, 0.999)  # of Adam


class Table:
    """The tensors of N learners, one row for each, in `rows` (N, D); these tensors become views of it."""

    def __init__(self, tensors: Sequence[Mapping[str, torch.Tensor]]):
        self.shapes = {name: tensor.shape for name, tensor in tensors[0].items()}
        self.rows = torch.stack([torch.cat([x.detach().flatten() for x in one.values()]) for one in tensors])
        for row, one in zip(self.rows, tensors, strict=True):
            for name, view in self.split(row).items():
                one[name].data = view

    def split(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rows (..., D) as tensors by name, (..., *shape) each."""
        parts = rows.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.view((*rows.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


class ManySeeds:
    """
    Args:
        learners: of one configuration, each with the weights that it starts from.

    Raises:
        ValueError: their class has an update of its own.
    """

    def __init__(self, learners: Sequence[QLearner]):
        first = learners[0]
        if type(first).train is not QLearner.train:
            raise ValueError(f"{type(first).__name__} has an update of its own, which is not mapped over seeds")
        self.learners = learners
        self.args = first.args
        # Runs with the weights of whichever rows it is given.
        self.model = copy.deepcopy(first, {id(x): x for x in (first.logger, first.args)})
        self.networks = _Networks(self.model)
        modules: Any = self.networks.modules()
        for module in modules:
            if hasattr(module, "fused"):
                module.fused = False  # torch's own GRU cannot be mapped
        held = [_tensors(_Networks(learner)) for learner in learners]
        ours = [{id(p) for p in learner.params} for learner in learners]
        self.trained = Table(
            [{name: x for name, x in one.items() if id(x) in own} for one, own in zip(held, ours, strict=True)]
        )
        rest = [name for name in held[0] if name not in self.trained.shapes]
        kinds = dict.fromkeys(held[0][name].dtype for name in rest)
        self.others = [
            Table([{name: one[name] for name in rest if one[name].dtype == kind} for one in held]) for kind in kinds
        ]
        self.steps = self.trained.rows.new_zeros(len(learners), 1)
        self.moments = [torch.zeros_like(self.trained.rows) for _ in MOMENTS[self.args.optimizer]]
        for n, (learner, one) in enumerate(zip(learners, held, strict=True)):
            views = [self.trained.split(moment[n]) for moment in self.moments]
            for name in self.trained.shapes:
                kept = {key: view[name] for key, view in zip(MOMENTS[self.args.optimizer], views, strict=True)}
                learner.optimiser.state[one[name]] = {"step": self.steps[n, 0], **kept}

    def train(
        self, seeds: list[int], batch: EpisodeBatch, t_env: int, episode_nums: list[int]
    ) -> list[NonFiniteError | None]:
        """One gradient step of these seeds' learners, as `QLearner.train` makes it of one.

        Args:
            batch: their batches of B episodes, one behind the other: K * B episodes.
            episode_nums: episodes that each of them has collected.

        Returns:
            For each of them, why its step was left out; its learner is as it was.
        """
        found: dict[int, NonFiniteError | None] = {}
        kinds: dict[tuple[str, ...], list[int]] = {}  # before its first batch a learner has statistics that are None
        for k, seed in enumerate(seeds):
            kinds.setdefault(tuple(_known(self.learners[seed])), []).append(k)
        fields = {key: x.unflatten(0, (len(seeds), -1)) for key, x in batch.data.transition_data.items()}
        for known, places in kinds.items():
            mine = [seeds[k] for k in places]
            data = fields if len(places) == len(seeds) else {key: x[places] for key, x in fields.items()}
            errors = self._step(mine, known, batch, data, t_env)
            found |= dict(zip(mine, errors, strict=True))
        done = {seed: number for seed, number in zip(seeds, episode_nums, strict=True) if found[seed] is None}
        shares: dict[float, list[int]] = {}
        for seed, episode_num in done.items():
            shares.setdefault(self.learners[seed].share_due(episode_num), []).append(seed)
        for share, mine in shares.items():
            if share > 0:
                self._move_targets(mine, share)
        for seed in done:
            self.learners[seed].settle()
        return [found[seed] for seed in seeds]

    def acting_mac(self) -> Any:
        """A controller whose agents are those of all seeds: what it is given has N equal parts, one for each."""
        mac = copy.copy(self.model.mac)
        prefix = _Networks.name_of("mac.agent")
        state = {}
        for table in (self.trained, *self.others):
            views = table.split(table.rows)
            state |= {name.removeprefix(prefix): x for name, x in views.items() if name.startswith(prefix)}
        mac.agent = AllAgents(mac.agent, state, len(self.learners))
        return mac

    def _step(
        self, seeds: list[int], known: Sequence[str], batch: EpisodeBatch, fields: dict[str, torch.Tensor], t_env: int
    ) -> list[NonFiniteError | None]:
        learners, index = [self.learners[seed] for seed in seeds], self._index(seeds)
        trained = self.trained.rows[index].detach().requires_grad_()
        state = self._split(trained, [table.rows[index] for table in self.others])
        before = {name: torch.stack([getattr(learner, name) for learner in learners]) for name in known}

        def objective(state, statistics, fields):
            for name in self.model.statistics:
                setattr(self.model, name, statistics.get(name))
            one = batch.over(SimpleNamespace(transition_data=fields, episode_data={}))
            found = functional_call(self.networks, state, (self.model.objective, one))
            after = {name: getattr(self.model, name) for name in _known(self.model)}
            shown = {name: getattr(self.model, name) for name in self.model.shown}
            return found.loss, found.terms, found.stats, after, shown

        loss, terms, stats, after, shown = torch.vmap(objective)(state, before, fields)
        (grad,) = torch.autograd.grad((2 * loss).sum(), trained)
        loss = loss.detach()
        norm = torch.linalg.vector_norm(grad, dim=1)  # (K,)
        finite = torch.isfinite(norm + loss)
        grad = grad * (self.args.grad_norm_clip / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1)
        for learner in learners:
            set_step_size(learner.optimiser, t_env, self.args)
        steps = self.steps[index] + 1
        moments = [moment[index] for moment in self.moments]
        change, moments = OPTIMISERS[self.args.optimizer](
            grad, moments, steps, learners[0].optimiser.param_groups[0]["lr"], self.args
        )
        kept = finite.unsqueeze(1)
        new = [(self.trained.rows, trained.detach() + change), (self.steps, steps)]
        for place, value in [*new, *zip(self.moments, moments, strict=True)]:
            place[index] = torch.where(kept, value, place[index])
        flags = finite.tolist()
        for k, (learner, taken) in enumerate(zip(learners, flags, strict=True)):
            for name, value in {**(after if taken else {}), **shown}.items():
                setattr(learner, name, _part(value, k))
        self._log(learners, flags, {"loss": 2 * loss, "grad_norm": norm} | stats, t_env)
        return [
            None if taken else NonFiniteError({name: x[k] for name, x in {**terms, "gradient norm": norm}.items()})
            for k, taken in enumerate(flags)
        ]

    def _move_targets(self, seeds: list[int], share: float) -> None:
        index = self._index(seeds)
        rows = [table.rows[index] for table in self.others]
        state = self._split(self.trained.rows[index], rows)
        with torch.no_grad():
            functional_call(self.networks, state, (self.model._move_targets, share))
        for table, values in zip(self.others, rows, strict=True):
            table.rows[index] = values

    def _log(self, learners, flags: list[bool], stats: dict[str, torch.Tensor], t_env: int) -> None:
        due = [
            taken and t_env - learner.log_stats_t >= self.args.learner_log_interval
            for learner, taken in zip(learners, flags, strict=True)
        ]
        if any(due):
            values = torch.stack(list(stats.values()), dim=1).tolist()  # (K, statistics)
            for learner, row, wanted in zip(learners, values, due, strict=True):
                if wanted:
                    learner.log(dict(zip(stats, row, strict=True)), t_env)

    def _split(self, trained: torch.Tensor, others: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        state = self.trained.split(trained)
        for table, rows in zip(self.others, others, strict=True):
            state |= table.split(rows)
        return state

    def _index(self, seeds: list[int]) -> slice | torch.Tensor:
        """Where the rows of these seeds are; all of them are there already."""
        if seeds == list(range(len(self.learners))):
            return slice(None)
        return torch.tensor(seeds, device=self.steps.device)


class AllAgents(nn.Module):
    """The acting agents of N learners behind the interface of one.

    Args:
        network: an agent of theirs.
        state: their parameters and buffers, (N, ...) each.
    """

    def __init__(self, network: nn.Module, state: dict[str, torch.Tensor], n_seeds: int):
        super().__init__()
        self.network: Any = network
        self.state, self.n_seeds = state, n_seeds

    def init_hidden(self) -> torch.Tensor:
        return self.network.init_hidden()

    def forward(self, inputs: torch.Tensor, hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (R, I), memory of R rows -> values (R, A), memory (R, H), of R / N rows for each learner."""
        rows = [x.reshape(self.n_seeds, len(inputs) // self.n_seeds, -1) for x in (inputs, hidden_state)]
        values, memory = torch.vmap(lambda state, *own: functional_call(self.network, state, own))(self.state, *rows)
        return values.flatten(0, 1), memory.flatten(0, 1)


class _Networks(nn.Module):
    """All networks of a learner and of its controllers, in which weights can be replaced while something is called."""

    def __init__(self, learner: QLearner):
        super().__init__()
        found = {}
        for name, part in vars(learner).items():
            if isinstance(part, nn.Module):
                found[name] = part
            elif hasattr(part, "init_hidden"):  # a controller
                found |= {f"{name}.{key}": x for key, x in vars(part).items() if isinstance(x, nn.Module)}
        self.all = nn.ModuleDict({name.replace(".", "/"): part for name, part in found.items()})

    @staticmethod
    def name_of(path: str) -> str:
        """What the names of this network's tensors begin with."""
        return f"all.{path.replace('.', '/')}."

    def forward(self, call: Callable, *inputs):
        return call(*inputs)


def _tensors(networks: nn.Module) -> dict[str, torch.Tensor]:
    return dict(networks.named_parameters()) | dict(networks.named_buffers())


def _known(learner: QLearner) -> list[str]:
    return [name for name in learner.statistics if getattr(learner, name) is not None]


def _part(value, k: int):
    return tuple(_part(x, k) for x in value) if isinstance(value, tuple) else value[k]


def _adam(grad, moments, steps, lr, args):
    first, second = moments
    first = BETAS[0] * first + (1 - BETAS[0]) * grad
    second = BETAS[1] * second + (1 - BETAS[1]) * grad**2
    spread = (second / (1 - BETAS[1] ** steps)).sqrt() + args.optim_eps
    return -lr * first / (1 - BETAS[0] ** steps) / spread, [first, second]


def _rmsprop(grad, moments, steps, lr, args):
    square = args.optim_alpha * moments[0] + (1 - args.optim_alpha) * grad**2
    return -lr * grad / (square.sqrt() + args.optim_eps), [square]


# Steps of torch's optimisers for rows that may have made different numbers of them: gradients and moments (K, D), steps
# (K, 1) -> the change of the parameters, the new moments.
OPTIMISERS = {"adam": _adam, "rmsprop": _rmsprop}
