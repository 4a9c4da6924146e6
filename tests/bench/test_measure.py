"""The clock of a process and the limit of its machine."""

from __future__ import annotations

import torch
from bench_matrix import Matrix
from conftest import REPOSITORY

from fasttune.bench import measure
from fasttune.bench.flops import layer_shapes

pytest_plugins = ["bench_matrix"]


def test_a_clock_takes_the_time_from_the_first_forward_pass_on() -> None:
    clock = measure.Clock(first_forward=10.0, step_ends=[12.0, 12.5])
    assert clock.step_seconds == [2.0, 0.5]


def test_the_limit_is_measured_at_the_shapes_of_the_base(matrix: Matrix) -> None:
    shapes = ("256 to 256", "256 to 768", "768 to 256")
    found = matrix.entry["limit_gflops"]
    assert set(found) == {f"{product} {shape}" for product in ("F.linear", "oneDNN") for shape in shapes}
    assert min(found.values()) > 0
    assert layer_shapes(REPOSITORY / "fasttune/tiny")["up_proj"] == (256, 768)


def test_every_product_is_the_same_product() -> None:
    rows, weight = torch.randn(5, 4), torch.randn(3, 4)
    for product in measure.products("cpu").values():
        assert torch.allclose(product(rows, weight), rows @ weight.T, atol=1e-5)
