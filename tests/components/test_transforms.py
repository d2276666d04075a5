"""One-hot vectors."""

import torch

from components.transforms import OneHot


def test_one_hot_by_hand():
    onehot = OneHot(3).transform(torch.tensor([[[0], [2]], [[1], [1]]]))
    assert onehot.tolist() == [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [0, 1, 0]]]
    assert onehot.dtype == torch.float32


def test_integers_of_any_type():
    assert OneHot(2).transform(torch.tensor([[1]], dtype=torch.uint8)).tolist() == [[0, 1]]


def test_a_single_agent_keeps_its_dimension():
    assert OneHot(4).transform(torch.zeros(5, 7, 1, 1, dtype=torch.long)).shape == (5, 7, 1, 4)


def test_output_info():
    assert OneHot(5).infer_output_info((1,), torch.long) == ((5,), torch.float32)
