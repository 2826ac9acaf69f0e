"""The target model against the authors' numbers, and against the loss differentiated by PyTorch.

Golden tolerances, relative to the largest value. Steps of conjugate gradient enlarge rounding, with the real
iteration counts by ten orders and with the stable ones by two or three; and it is other rounding here:
normal equations instead of products at full size. float64: 1e-11 and, with the real counts, 1e-4 (the
authors' code itself differed by 6e-6 between one and two threads, and in float32 by 1e-2). float32, stable:
the golden lies 2.4e-6 from its float64 twin, and so may we, on the other side. float32, real counts: the
golden lies 4e-2 from its float64 twin after the first step, and in the end 3.4e-3 (projection), 7e-3
(filters) and 9.3e-3 (scores), where the notes ask for 3e-3, 2e-2 and 8e-3; scores may be twice as far here,
since they depend on the number of threads (1.4e-2 with two, below 1e-2 with one).
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from streamvos.nn.target_model.learning import (
    LearningRule,
    Samples,
    TargetWeights,
    draw_weights,
    learn_both,
    learn_filters,
    make_samples,
    normal_equations,
    pixel_weights,
    project,
    score,
)
from streamvos.nn.target_model.sample_weights import SampleWeights

GRID, SIZE = (30, 54), (480, 864)


class Tolerance(NamedTuple):
    steps: float
    projection: float
    filter: float
    scores: float
    losses: float


class Case(NamedTuple):
    file: str
    prefix: str
    dtype: torch.dtype
    init: tuple[int, ...]
    update: int
    rule: LearningRule
    tolerance: Tolerance


STABLE, REAL = "frtm_target_model_stable.npz", "frtm_target_model.npz"
AFRESH, KEPT, AUTHORS = LearningRule(), LearningRule(forgetting=75), LearningRule(forgetting=750)
SHORT, LONG = ((2, 3, 3), 3), ((5, 10, 10, 10, 10), 10)
EXACT, ROUNDED = Tolerance(*[1e-11] * 5), Tolerance(*[4.8e-6] * 4, 2e-5)
# with 75 the golden exists in float32 only; from it to a computation in float64 it is one rounding, not two
HALF_ROUNDED = Tolerance(*[2.4e-6] * 4, 1e-5)
# "data losses agree to 6e-4 (updates)" between float32 and float64; with two threads 1.01e-3 was seen here
CHAOTIC, NEARLY = Tolerance(5e-2, 4e-3, 2e-2, 2e-2, 2e-3), Tolerance(*[1e-4] * 4, 1e-5)
CASES = {
    "stable float64": Case(STABLE, "f64_", torch.float64, *SHORT, AFRESH, EXACT),
    "stable float32": Case(STABLE, "", torch.float32, *SHORT, AFRESH, ROUNDED),
    "stable float32, 75": Case(STABLE, "forget75_", torch.float32, *SHORT, KEPT, ROUNDED),
    "stable, 75": Case(STABLE, "forget75_", torch.float64, *SHORT, KEPT, HALF_ROUNDED),
    "real float64": Case(REAL, "f64_", torch.float64, *LONG, AFRESH, NEARLY),
    "real float32": Case(REAL, "", torch.float32, *LONG, AFRESH, CHAOTIC),
    "real float32, 75": Case(REAL, "forget75_", torch.float32, *LONG, KEPT, CHAOTIC),
}


def proc(name: str, shape: tuple[int, ...]) -> np.ndarray:
    draws = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return draws.standard_normal(shape).astype(np.float32)


def mask_of(k: int) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    tall, wide = (170, 260) if k == 3 else (60, 90)
    inside = ((y - (200 + 15 * k)) / tall) ** 2 + ((x - (300 + 25 * k)) / wide) ** 2 <= 1
    return inside.astype(np.float32)


def features_of(k: int) -> np.ndarray:
    mean = mask_of(k).reshape(30, 16, 54, 16).mean((1, 3), dtype=np.float32)
    direction = proc("frtm.dir", (64,))[:, None, None]
    return np.maximum(proc(f"frtm.feat.{k}", (64, *GRID)) + np.float32(0.8) * mean * direction, 0)


def online_label(t: int) -> np.ndarray:
    label = np.float32(0.9) * mask_of(5 + t)
    if t == 4:  # five pixels: not believed
        label[:] = 0
        label[100, 100:105] = 0.9
    label[:3, :3] = 0.4
    return label


class Remembered(NamedTuple):
    """A sample's squared error as a quadratic form of the filter, float64."""

    matrix: torch.Tensor
    right: torch.Tensor
    constant: torch.Tensor

    @classmethod
    def of(cls, projected: torch.Tensor, label: torch.Tensor) -> Remembered:
        matrices, rights = normal_equations(projected, make_samples(label, GRID))
        constant = (pixel_weights(label > 0.5).double() * label.double()).square().sum()
        return cls(matrices[0].double(), rights[0].double(), constant)

    def losses(self, filters: torch.Tensor) -> tuple[float, float]:
        """Data, and regularizer."""
        flat = filters.flatten().double()
        data = flat @ (self.matrix @ flat - 2 * self.right) + self.constant
        return float(data), float((1e-2 * flat).square().sum())


def off(value: torch.Tensor, golden: np.ndarray) -> float:
    expected = torch.from_numpy(np.asarray(golden, np.float64))
    return float((value.double().view_as(expected) - expected).abs().max() / expected.abs().max())


def losses(features, labels, importance, weights: TargetWeights) -> list[float]:
    """Data, projection and filter terms at full size, in float64."""
    scores = F.conv2d(
        F.conv2d(features.double(), weights.projection.double()), weights.filter.double(), padding=1
    )
    enlarged = F.interpolate(scores, SIZE, mode="bilinear", align_corners=False)[:, 0]
    errors = (pixel_weights(labels > 0.5) * (enlarged - labels.double())).square().sum((1, 2))
    sizes = (1e-4 * weights.projection.double()).square(), (1e-2 * weights.filter.double()).square()
    return [float((importance.double() * errors).sum()), *(float(size.sum()) for size in sizes)]


class Watch:
    """Writes down the inner products of conjugate gradient."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        answer = (a * b).sum(-1, keepdim=True)
        self.values.append(float(answer))
        return answer


def after_each_step(features, samples, importance, initial, iterations, rule) -> list[TargetWeights]:
    """The weights of `learn_both` after each of its steps."""
    return [
        learn_both(features, samples, importance, initial, iterations[: k + 1], rule)
        for k in range(len(iterations))
    ]


@pytest.fixture(scope="module")
def goldens(shared) -> dict[str, dict[str, np.ndarray]]:
    return {name: dict(np.load(shared / "goldens" / name)) for name in (STABLE, REAL)}


def test_the_recipe_of_the_goldens_is_understood(goldens):
    for golden in goldens.values():
        masks = np.unpackbits(golden["masks"], axis=-1)[:, 0]
        for k in range(5):
            assert np.array_equal(features_of(k), golden["feats"][k])
            assert np.array_equal(mask_of(k), masks[k])


def test_pixel_weights_are_the_authors(goldens):
    masks = torch.stack([torch.from_numpy(mask_of(k)) > 0 for k in range(5)])
    weights = pixel_weights(masks)
    assert weights.dtype == torch.float32
    for prefix in ("", "f64_"):
        for k, expected in enumerate(goldens[STABLE][f"{prefix}pixel_weights_fg_bg"]):
            # the goldens are means over the pixels, in float32
            assert weights[k][masks[k]].unique().tolist() == pytest.approx([expected[0]], rel=3e-7)
            assert weights[k][~masks[k]].unique().tolist() == pytest.approx([expected[1]], rel=3e-7)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_learning_is_the_authors(goldens, case):
    """First frame, then nine frames with a full memory of eight: every array of the goldens but losses."""
    golden, tolerance = goldens[case.file], case.tolerance

    def expected(name: str) -> np.ndarray:
        return golden[case.prefix + name]

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array)).to(case.dtype)

    features, labels = tensor(golden["feats"]), tensor(np.stack([mask_of(k) for k in range(5)]))
    samples = make_samples(labels, GRID)
    importance = SampleWeights(8, 0.1, torch.tensor([2, 1, 1, 1, 1], dtype=case.dtype) / 6)
    first = importance.values[:5].clone()
    initial = TargetWeights(tensor(golden["init_w1"]), tensor(golden["init_w2"]))
    steps = after_each_step(features, samples, first, initial, case.init, case.rule)
    weights = steps[-1]
    for k, step in enumerate(steps):
        assert off(step.filter, expected("init_w2_steps")[k]) < tolerance.steps
    if case.prefix != "forget75_":
        places = (0, 1, 2) if case.file == STABLE else (0, 1, 4)
        for place, golden_step in zip(places, expected("init_w1_steps"), strict=True):
            assert off(steps[place].projection, golden_step) < tolerance.steps
        mem_weights = expected("mem_weights_0")
        assert np.abs(importance.values.numpy() - mem_weights).max() < 1e-7
    assert off(weights.projection, expected("init_w1_final")) < tolerance.projection

    stored: list[Remembered] = [
        Remembered.of(project(x[None], weights.projection), labels[k : k + 1]) for k, x in enumerate(features)
    ]
    stored += stored[:3]  # empty slots: their weight is zero

    def summed() -> Remembered:
        shares = importance.values.double()
        return Remembered(
            *(sum(s * x for s, x in zip(shares, part, strict=True)) for part in zip(*stored, strict=True))
        )

    def update(filters, directions):
        total = summed()
        return learn_filters(
            filters, total.matrix[None], total.right[None], case.update, case.rule, directions
        )

    filters, directions = update(weights.filter, None)
    assert off(filters, expected("init_w2_steps")[len(case.init)]) < tolerance.filter
    of_updates = iter(expected("upd_losses"))
    for t in range(9):
        projected = project(tensor(features_of(5 + t))[None], weights.projection)
        assert off(score(projected, filters), expected("upd_scores")[t]) < tolerance.scores, f"frame {t}"
        label = tensor(online_label(t))[None]
        if (label > 0.5).sum() >= 10:
            slot = importance.insert()
            if case.prefix != "forget75_":
                assert slot == expected("upd_replace_ind")[t]
            stored[slot] = Remembered.of(projected, label)
            if (t + 1) % 2 == 0:
                before = filters
                filters, directions = update(filters, directions)
                for one in (before, filters):
                    assert summed().losses(one)[0] == pytest.approx(next(of_updates)[0], rel=tolerance.losses)
        assert off(filters, expected("upd_w2")[t]) < tolerance.filter, f"frame {t}"
        if case.prefix != "forget75_":
            assert np.abs(importance.values.numpy() - expected("upd_weights")[t]).max() < 3e-8


@pytest.mark.parametrize(
    # in float32 regularizers differ by up to a factor; "data losses agree to ~1e-6 (phase 1 end)"
    ("file", "prefix", "dtype", "init", "tolerance"),
    [
        (STABLE, "f64_", torch.float64, (2, 3, 3), 1e-9),
        (STABLE, "", torch.float32, (2, 3, 3), 1e-5),
        (REAL, "f64_", torch.float64, (5, 10, 10, 10, 10), 1e-5),
        (REAL, "", torch.float32, (5, 10, 10, 10, 10), 5e-6),
    ],
)
def test_losses_of_the_first_frame_are_the_authors(goldens, file, prefix, dtype, init, tolerance):
    golden = goldens[file]
    features = torch.from_numpy(golden["feats"]).to(dtype)
    labels = torch.stack([torch.from_numpy(mask_of(k)) for k in range(5)]).to(dtype)
    importance = torch.tensor([2, 1, 1, 1, 1], dtype=dtype) / 6
    initial = TargetWeights(*(torch.from_numpy(golden[f"init_{name}"]).to(dtype) for name in ("w1", "w2")))
    samples = make_samples(labels, GRID)
    steps = [initial, *after_each_step(features, samples, importance, initial, init, AFRESH)]
    rows = golden[f"{prefix}init_losses"]
    assert losses(features, labels, importance, steps[0]) == pytest.approx(rows[0], rel=1e-6)
    last = 2 * len(init) - 1
    assert losses(features, labels, importance, steps[-1])[0] == pytest.approx(rows[last][0], rel=tolerance)
    if dtype == torch.float64:
        for k, step in enumerate(steps[1:]):
            assert losses(features, labels, importance, step) == pytest.approx(rows[2 * k + 1], rel=1e-5)


@pytest.mark.parametrize(
    # in float32 the last step begins where the gradient is nearly gone and half of its digits are rounding
    ("prefix", "dtype", "tolerance"),
    [("f64_", torch.float64, 1e-9), ("", torch.float32, 2e-3)],
)
def test_inner_products_are_the_authors(goldens, prefix, dtype, tolerance, monkeypatch):
    """Every number that steers conjugate gradient, but products of orthogonal residuals (all rounding)."""
    golden = goldens[STABLE]
    features = torch.from_numpy(golden["feats"]).to(dtype)
    labels = torch.stack([torch.from_numpy(mask_of(k)) for k in range(5)]).to(dtype)
    importance = torch.tensor([2, 1, 1, 1, 1], dtype=dtype) / 6
    initial = TargetWeights(*(torch.from_numpy(golden[f"init_{name}"]).to(dtype) for name in ("w1", "w2")))
    watch, samples = Watch(), make_samples(labels, GRID)
    monkeypatch.setattr("streamvos.nn.target_model.conjugate_gradient.inner_product", watch)
    weights = learn_both(features, samples, importance, initial, (2, 3, 3), AUTHORS)
    matrices, rights = normal_equations(project(features, weights.projection), samples)
    matrix = (importance.view(-1, 1, 1) * matrices).sum(0, keepdim=True).double()
    right = (importance.view(-1, 1) * rights).sum(0, keepdim=True).double()
    learn_filters(weights.filter, matrix, right, 3, AUTHORS)
    recorded = iter(watch.values)
    for step in range(4):
        for position, wanted in enumerate(golden[f"{prefix}init_ip_{step}"]):
            value = next(recorded)
            # from the second iteration on, r_prev.z is zero in exact arithmetic
            within = position >= (2 if step in (0, 3) else 3)
            if within and (position - (2 if step in (0, 3) else 3)) % 3 == 1:
                continue
            # likewise the first r_prev.z of a run has the size of rounding in float32
            if dtype == torch.float64 or position != 1 or step in (0, 3):
                assert value == pytest.approx(wanted, rel=tolerance), (step, position)
    assert next(recorded, None) is None


def tiny(samples: int = 3, dtype: torch.dtype = torch.float64):
    """Features, labels and weights small enough for dense matrices."""
    features = torch.rand(samples, 5, 4, 6, dtype=dtype)
    labels = (torch.rand(samples, 20, 33) > 0.8).to(dtype) * torch.rand(samples, 20, 33, dtype=dtype)
    initial = TargetWeights(torch.randn(3, 5, 1, 1, dtype=dtype), torch.randn(1, 3, 3, 3, dtype=dtype))
    return features, labels, initial


def residuals(features, labels, importance, projection, filters, weighting="authors", penalties=(1e-8, 1e-4)):
    """The vector whose square is the loss, at full size."""
    scores = F.conv2d(F.conv2d(features, projection), filters, padding=1)
    enlarged = F.interpolate(scores, labels.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    weights = pixel_weights(labels > 0.5).to(labels.dtype)
    weights = weights if weighting == "authors" else weights.square()
    data = importance.sqrt().view(-1, 1, 1) * weights * (enlarged - labels)
    return torch.cat(
        [data.flatten(), penalties[0] ** 0.5 * projection.flatten(), penalties[1] ** 0.5 * filters.flatten()]
    )


@pytest.mark.parametrize("weighting", ["authors", "paper"])
@pytest.mark.parametrize("form", ["authors", "paper"])
def test_a_step_of_many_iterations_is_gauss_newton(weighting, form):
    """Against the Jacobian at full size, made by automatic differentiation, and a dense solver."""
    features, labels, initial = tiny()
    importance = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    # strong enough that the dense system is well conditioned
    rule = LearningRule((3.0, 5.0), form)
    penalties = (9.0, 25.0) if form == "authors" else (3.0, 5.0)
    samples = make_samples(labels, (4, 6), weighting=weighting)
    learned = learn_both(features, samples, importance, initial, (150,), rule)

    def function(projection, filters):
        return residuals(features, labels, importance, projection, filters, weighting, penalties)

    columns = torch.func.jacfwd(function, argnums=(0, 1))(*initial)
    jacobian = torch.cat([part.flatten(1) for part in columns], 1)
    step = torch.linalg.solve(jacobian.t() @ jacobian, -jacobian.t() @ function(*initial))
    expected = torch.cat([part.flatten() for part in initial]) + step
    assert torch.allclose(torch.cat([part.flatten() for part in learned]), expected, rtol=1e-7, atol=1e-8)


def test_learning_lowers_the_loss():
    features, labels, initial = tiny()
    importance = torch.full((3,), 1 / 3, dtype=torch.float64)
    steps = after_each_step(features, make_samples(labels, (4, 6)), importance, initial, (10,) * 4, AFRESH)
    values = [
        float(residuals(features, labels, importance, *weights).square().sum())
        for weights in (initial, *steps)
    ]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.5 * values[0]


def test_normal_equations_are_the_loss_in_the_filter():
    features, labels, initial = tiny()
    samples = make_samples(labels, (4, 6))
    projected = project(features, initial.projection)
    matrices, rights = normal_equations(projected, samples)
    assert torch.allclose(matrices, matrices.transpose(1, 2), rtol=1e-13, atol=1e-12)
    for k in range(3):
        one = torch.ones(1, dtype=torch.float64)

        def loss(filters, k=k, one=one):
            return (
                residuals(
                    features[k : k + 1], labels[k : k + 1], one, initial.projection, filters, penalties=(0, 0)
                )
                .square()
                .sum()
            )

        hessian = torch.autograd.functional.hessian(loss, initial.filter).view(27, 27)
        gradient = torch.autograd.functional.jacobian(loss, initial.filter).flatten()
        assert torch.allclose(2 * matrices[k], hessian, rtol=1e-10, atol=1e-10)
        assert torch.allclose(
            2 * (matrices[k] @ initial.filter.flatten() - rights[k]), gradient, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("blocks", [None, 1])  # one, as on a GPU
@pytest.mark.parametrize("channels", [1, 2, 5, 96])
def test_normal_equations_have_any_size(channels, blocks):
    projected = torch.randn(2, channels, 4, 5, dtype=torch.float64)
    samples = make_samples(torch.rand(2, 64, 80, dtype=torch.float64), (4, 5))
    matrices, rights = normal_equations(projected, samples, blocks)
    filters = torch.randn(9 * channels, dtype=torch.float64)
    scores = score(projected, filters.view(1, channels, 3, 3).expand(2, -1, -1, -1))
    from streamvos.nn.target_model.stencil import apply_stencil

    product = apply_stencil(samples.stencil, scores[:, None])[:, 0]
    assert torch.allclose(matrices @ filters @ filters, (scores * product).sum((1, 2)), rtol=1e-10)
    assert torch.allclose(rights @ filters, (scores * samples.right).sum((1, 2)), rtol=1e-10)


def test_many_iterations_solve_for_the_filter():
    features, labels, initial = tiny()
    matrices, rights = normal_equations(project(features, initial.projection), make_samples(labels, (4, 6)))
    rule = LearningRule((0.1, 0.7))
    learned, _ = learn_filters(initial.filter.expand(3, -1, -1, -1), matrices, rights, 80, rule)
    regular = matrices + 0.49 * torch.eye(27, dtype=torch.float64)
    assert torch.allclose(learned.flatten(1), torch.linalg.solve(regular, rights), rtol=1e-7, atol=1e-8)


def test_scores_are_two_convolutions():
    features, _, _ = tiny(1)
    projections, filters = torch.randn(4, 3, 5, 1, 1).double(), torch.randn(4, 3, 3, 3).double()
    got = score(project(features, projections), filters)
    for k in range(4):
        expected = F.conv2d(F.conv2d(features, projections[k]), filters[k : k + 1], padding=1)
        assert torch.allclose(got[k], expected[0, 0], rtol=1e-12, atol=1e-13)


def test_an_object_does_not_feel_the_others():
    features = torch.rand(1, 64, 12, 20).double()
    projections, filters = torch.randn(7, 24, 64, 1, 1).double(), torch.randn(7, 24, 3, 3).double()
    labels = torch.rand(7, 192, 320).double()
    projected, samples = project(features, projections), make_samples(labels, (12, 20))
    matrices, rights = normal_equations(projected, samples)
    learned, _ = learn_filters(filters, matrices, rights, 5, AFRESH)

    def same(a: torch.Tensor, b: torch.Tensor) -> bool:
        # a product of several objects may be cut up among threads in another way than that of one
        return bool((a - b).abs().max() < 1e-9 * b.abs().max())

    for k in (0, 3):
        one = slice(k, k + 1)
        alone = project(features, projections[one])
        assert same(alone, projected[one])
        assert same(score(alone, filters[one]), score(projected, filters)[one])
        sample = make_samples(labels[one], (12, 20))
        assert same(sample.stencil, samples.stencil[one])
        matrix, right = normal_equations(alone, sample)
        assert same(matrix, matrices[one])
        assert same(learn_filters(filters[one], matrix, right, 5, AFRESH)[0], learned[one])


@pytest.mark.parametrize("pixels", [0, 3, 9, 10, 100, 5000, 64 * 96])
def test_pixel_weights_give_small_targets_their_share(pixels):
    mask = (torch.arange(64 * 96) < pixels).view(1, 64, 96)
    squared = pixel_weights(mask).double().square()
    assert torch.isfinite(squared).all()
    share = pixels / mask.numel()
    if pixels < 10 or share >= 0.1:
        assert torch.allclose(squared, torch.ones_like(squared))
    if 10 <= pixels < mask.numel():
        assert float(squared[mask].sum() / squared.sum()) == pytest.approx(max(share, 0.1), rel=1e-5)
        assert float(squared.mean()) == pytest.approx(1, rel=1e-5)


def test_nothing_to_learn_from_is_no_reason_to_fail():
    initial = draw_weights(5, 3)
    features, samples = torch.zeros(1, 5, 4, 6), Samples(torch.zeros(1, 9, 4, 6), torch.zeros(1, 4, 6))
    learned = learn_both(features, samples, torch.ones(1), initial, (5, 5), AFRESH)
    assert all(torch.isfinite(part).all() for part in learned)
    filters, _ = learn_filters(
        learned.filter, torch.zeros(1, 27, 27).double(), torch.zeros(1, 27).double(), 9, AFRESH
    )
    assert torch.isfinite(filters).all()


def test_initial_weights_are_pytorchs():
    """Two convolutions created after a seed: what the authors' code gives to all objects but the first."""
    drawn = draw_weights(64, 96, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Conv2d(64, 96, 1, bias=False), torch.nn.Conv2d(96, 1, 3, bias=False)
    assert torch.equal(drawn.projection, layers[0].weight)
    assert torch.equal(drawn.filter, layers[1].weight)
    before = torch.random.get_rng_state()
    draw_weights(64, 96, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
