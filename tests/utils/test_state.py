"""State of any object as plain data, and back."""

import copy
import io
import random
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from utils.state import restore, state_of


@dataclass
class Counts:
    steps: int = 0
    best: float = -1.0
    seen: list = field(default_factory=list)


class Learner:
    """What learners and plug-ins are made of."""

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        self.args = SimpleNamespace(lr=0.1)
        self.logger = object()
        self.network = nn.Linear(3, 2)
        self.params = list(self.network.parameters())
        self.optimisers = {"agent": torch.optim.Adam(self.params, lr=0.1)}
        self.moments = None
        self.levels = torch.zeros(2)
        self.counts = Counts()
        self.recent = deque([1, 2], maxlen=4)
        self.names = {"b", "a"}
        self.history = {"loss": [(0, 0.5)]}
        self.table = np.arange(6, dtype=np.int16).reshape(2, 3)
        self.draws = (torch.Generator().manual_seed(seed), np.random.default_rng(seed), random.Random(seed))
        self.transform = lambda x: x
        self.itself = self

    def work(self) -> None:
        draw, more, most = self.draws
        noise = torch.randn(4, 3, generator=draw) + float(more.normal()) + most.random()
        loss = self.network(noise).square().mean()
        self.optimisers["agent"].zero_grad()
        loss.backward()
        self.optimisers["agent"].step()
        self.levels = self.levels + loss.detach()
        self.moments = torch.stack([loss.detach(), loss.detach() ** 2])
        self.counts.steps += 1
        self.counts.best = float("inf") if self.counts.steps == 1 else loss.item()
        self.counts.seen.append((self.counts.steps, loss.item()))
        self.recent.append(self.counts.steps)
        self.names.add(f"step {self.counts.steps}")
        self.history["loss"].append((self.counts.steps, loss.item()))
        self.table = self.table + 1

    def seen(self) -> list:
        return [
            *[p.detach().clone() for p in self.params],
            self.levels,
            self.moments,
            copy.deepcopy(self.counts),
            list(self.recent),
            sorted(self.names),
            copy.deepcopy(self.history),
            self.table.tolist(),
            self.table.dtype,
        ]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # refuses whatever is not plain data


def assert_same(left: list, right: list) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("worked", [0, 3])
def test_what_goes_on_from_a_state_goes_the_same_way(worked):
    one, other = Learner(1), Learner(2)
    other.work()  # attributes that are None in one of them
    for _ in range(worked):
        one.work()
    state = through_a_file(state_of(one))
    assert restore(other, state) is other
    for _ in range(2):
        one.work()
        other.work()
    assert_same(one.seen(), other.seen())
    assert other.recent.maxlen == 4


def test_a_state_does_not_change_with_its_object():
    learner = Learner(1)
    state = state_of(learner)
    before = through_a_file(state)
    learner.work()
    learner.levels += 1
    again = through_a_file(state)
    assert torch.equal(dict(before["values"])["levels"], dict(again["values"])["levels"])


def test_settings_logs_and_functions_stay_as_they_are():
    learner = Learner(1)
    values = state_of(learner)["values"]
    assert values.keys().isdisjoint({"args", "logger"})
    transform = learner.transform
    restore(learner, through_a_file(state_of(learner)))
    assert learner.transform is transform


def test_what_cannot_be_saved_is_named():
    learner = Learner(1)
    learner.counts.seen = [3, iter([1])]
    with pytest.raises(TypeError, match=r"learner\.counts\.seen\[1\] is a list_iterator"):
        state_of(learner, "learner")


def test_attributes_need_an_object():
    with pytest.raises(ValueError, match="cannot restore"):
        restore(5, state_of(Counts()))
