"""Transfers keep the values; that the host does not wait is tested in tests/methods/test_host_waits.py."""

from __future__ import annotations

import torch

from streamvos.nn.transfer import Arrival, send, take


def test_tables_arrive_as_they_are():
    cpu = torch.device("cpu")
    assert send([[1, 2], [3, 4]], torch.int64, cpu).tolist() == [[1, 2], [3, 4]]
    assert send((0.5, 2), torch.float32, cpu).dtype == torch.float32


def test_taking_rows_is_indexing_by_their_list():
    values = torch.rand(5, 2, 3)
    for rows in ([], [4], [3, 0, 3], list(range(5))):
        assert torch.equal(take(values, rows), values[rows])
        assert torch.equal(take(values[:, 1:], rows), values[:, 1:][rows])


def test_values_that_are_there_arrive_at_once():
    arrival = Arrival(torch.arange(4) > 1)
    assert arrival.ready()
    assert arrival.values().tolist() == [False, False, True, True]
