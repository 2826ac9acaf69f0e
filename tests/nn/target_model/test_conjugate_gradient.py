"""Conjugate gradient against direct solutions."""

from __future__ import annotations

import pytest
import torch

from streamvos.nn.target_model.conjugate_gradient import Directions, conjugate_gradient, inner_product


@pytest.fixture
def system() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three positive systems of 8 unknowns, and a preconditioner."""
    root = torch.randn(3, 8, 12, dtype=torch.float64)
    return (
        root @ root.transpose(1, 2) + 0.1 * torch.eye(8, dtype=torch.float64),
        torch.randn(3, 8, dtype=torch.float64),
        torch.rand(8, dtype=torch.float64) + 0.5,
    )


def product(matrices: torch.Tensor):
    return lambda p: (matrices @ p[..., None])[..., 0]


@pytest.mark.parametrize("beta", ["polak-ribiere", "fletcher-reeves"])
def test_as_many_steps_as_unknowns_solve(system, beta):
    matrices, right, preconditioner = system
    answer, _ = conjugate_gradient(product(matrices), right, preconditioner, 8, beta)
    assert torch.allclose(answer, torch.linalg.solve(matrices, right), rtol=1e-8, atol=1e-8)


def test_every_step_is_the_best_in_the_space_searched_so_far(system):
    """Step k minimizes x'Ax/2 - x'b over span{z, Mz, ...}: the definition of the method."""
    matrices, right, preconditioner = system
    space = [right / preconditioner]
    for k in range(1, 6):
        answer, _ = conjugate_gradient(product(matrices), right, preconditioner, k)
        basis = torch.linalg.qr(torch.stack(space, dim=-1)).Q
        inside = torch.linalg.solve(
            basis.transpose(1, 2) @ matrices @ basis, (basis.transpose(1, 2) @ right[..., None])[..., 0]
        )
        assert torch.allclose(answer, (basis @ inside[..., None])[..., 0], rtol=1e-7, atol=1e-9)
        space.append(product(matrices)(space[-1]) / preconditioner)


def test_systems_side_by_side_do_not_meet(system):
    matrices, right, preconditioner = system
    together, _ = conjugate_gradient(product(matrices), right, preconditioner, 4)
    alone, _ = conjugate_gradient(product(matrices[1:2]), right[1:2], preconditioner, 4)
    assert torch.equal(together[1:2], alone)


def test_what_is_solved_stays_solved(system):
    matrices, right, preconditioner = system
    right = right * torch.tensor([[1.0], [0.0], [1.0]])
    answer, directions = conjugate_gradient(product(matrices), right, preconditioner, 12)
    assert torch.equal(answer[1], torch.zeros(8, dtype=torch.float64))
    assert torch.isfinite(answer).all()
    again, _ = conjugate_gradient(product(matrices), 0 * right, preconditioner, 3, before=directions)
    assert torch.isfinite(again).all()


def test_directions_of_an_earlier_run_count_until_they_are_forgotten(system):
    matrices, right, preconditioner = system
    fresh, before = conjugate_gradient(product(matrices), right, preconditioner, 2)
    kept, _ = conjugate_gradient(product(matrices), right, preconditioner, 2, before=before)
    assert not torch.allclose(fresh, kept, rtol=1e-3)
    # the authors' 750 frames: "in effect a full restart"
    lost, _ = conjugate_gradient(product(matrices), right, preconditioner, 2, before=before.forget(750))
    assert torch.allclose(fresh, lost, rtol=1e-12)
    # of a rho as large as on real features nothing finite is left in float32
    single = Directions(*(value.float() for value in before))
    single = single._replace(rho=single.rho * 1e12).forget(750)
    assert torch.isinf(single.rho).all()
    lost, _ = conjugate_gradient(
        product(matrices.float()), right.float(), preconditioner.float(), 2, before=single
    )
    assert torch.allclose(fresh.float(), lost, rtol=1e-4)
    none = Directions.none(right)
    assert torch.equal(conjugate_gradient(product(matrices), right, preconditioner, 2, before=none)[0], fresh)


def test_the_inner_product_is_used_for_all(system, monkeypatch):
    matrices, right, preconditioner = system
    calls = []

    def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return inner_product(a, b)

    monkeypatch.setattr("streamvos.nn.target_model.conjugate_gradient.inner_product", inner)
    conjugate_gradient(product(matrices), right, preconditioner, 3)
    assert len(calls) == 2 + 3 + 3  # rho and p.q; later iterations also compare with the residual before
