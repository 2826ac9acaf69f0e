"""The loop: the same bits by seed, after an interruption, after a kill; and what it refuses.

Run as a script, this file trains its tiny network in a process that can be killed:

    python test_loop.py FOLDER kill|save
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import streamvos
from streamvos.training.loop import Trained, TrainingOptions, learning_rate_at, train
from streamvos.training.tvos_authors import authors_training
from streamvos.types import InputError, SinkError, SourceError

# two are enough to tell one from several, also on a machine with one core
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

OPTIONS = TrainingOptions(
    steps=12, batch=6, learning_rate=0.02, warmup=3, average=0.9, checkpoint_seconds=0, workers=0
)


class Tiny(nn.Module):
    """Has all that can go wrong on resuming: batch statistics, and random numbers in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)[:, 0]


def make_model() -> Tiny:
    torch.manual_seed(7)
    return Tiny()


def make_batch(step: int, size: int = 6) -> dict[str, torch.Tensor]:
    rng = np.random.Generator(np.random.PCG64([1, step]))
    x = torch.tensor(rng.standard_normal((size, 4)), dtype=torch.float32)
    return {"x": x, "y": x.sum(1)}


def squares(model: nn.Module, batch) -> dict[str, torch.Tensor]:
    error = model(batch["x"]).float() - batch["y"]
    return {"total": (error**2).mean(), "distance": error.abs().mean()}


def run(
    folder: Path, options: TrainingOptions = OPTIONS, batches=make_batch, loss=squares, **more
) -> Trained:
    return train(make_model(), loss, batches, options, folder, **more)


def with_options(**changes) -> TrainingOptions:
    return OPTIONS.model_copy(update=changes)


def assert_same(one, other) -> None:
    """Bit for bit, through all nesting."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same_runs(one: Path, other: Path) -> None:
    assert (one / "losses.jsonl").read_bytes() == (other / "losses.jsonl").read_bytes()
    assert_same(checkpoint(one), checkpoint(other))


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "losses.jsonl").read_text().splitlines()]


class Stop(Exception):  # noqa: N818, it is no error
    pass


def stop_at(last: int, pause_at: int | None = None):
    """A report that ends the run after step `last`, as a crash would."""

    def report(step: int, losses: dict[str, float], seconds: float) -> None:
        if step == pause_at:
            time.sleep(0.3)
        if step == last:
            raise Stop

    return report


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Runs are compared bit for bit, and sums depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


class TestLearningRate:
    def test_rises_evenly_then_falls_along_half_a_cosine_to_its_end(self):
        options = TrainingOptions(steps=110, warmup=10, learning_rate=1.0, final_learning_rate=0.1)
        rates = [learning_rate_at(step, options) for step in range(111)]
        assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
        assert rates[10] == 1.0
        assert rates[60] == pytest.approx(0.55)  # half way
        assert rates[110] == pytest.approx(0.1)
        assert all(a > b for a, b in pairwise(rates[10:]))

    def test_of_the_authors_is_torchs_cosine_per_epoch(self):
        per_epoch = 5
        options = authors_training(steps_per_epoch=per_epoch)
        assert (options.steps, options.batch, options.learning_rate) == (240 * per_epoch, 16, 0.02)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=240, eta_min=4e-5)
        for epoch in range(240):
            expected = pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
            within = [learning_rate_at(epoch * per_epoch + k, options) for k in range(per_epoch)]
            assert len(set(within)) == 1
            assert within[0] == expected
            optimizer.step()
            schedule.step()
        assert learning_rate_at(options.steps, options) == pytest.approx(4e-5)

    def test_reaches_the_optimizer(self, tmp_path):
        """Plain gradient descent on a slope of 1 moves by the learning rates; momentum is told apart."""

        class Slope(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.at = nn.Parameter(torch.zeros(()))

        options = TrainingOptions(
            steps=6,
            batch=1,
            optimizer="sgd",
            weight_decay=0,
            warmup=2,
            average=0,
            clip_gradient=None,
            workers=0,
        )
        trained = train(
            Slope(), lambda model, batch: {"total": model.at * 1.0}, make_batch, options, tmp_path
        )
        position, speed = 0.0, 0.0
        for step in range(6):
            speed = 0.9 * speed + 1
            position -= learning_rate_at(step, options) * (1 + 0.9 * speed)  # Nesterov
        assert float(trained.weights["at"]) == pytest.approx(position, rel=1e-5)


class TestDeterminism:
    def test_two_runs_are_equal_bit_for_bit(self, whole, tmp_path):
        torch.rand(5)  # what the caller did before must not matter
        run(tmp_path)
        assert_same_runs(whole, tmp_path)
        assert logged_steps(whole) == list(range(12))

    def test_another_seed_gives_another_run(self, whole, tmp_path):
        run(tmp_path, with_options(seed=1))  # the weights and batches are given here; dropout is what differs
        assert (whole / "losses.jsonl").read_bytes() != (tmp_path / "losses.jsonl").read_bytes()

    @pytest.mark.parametrize("workers", [1, 2])
    def test_the_number_of_workers_changes_nothing(self, whole, tmp_path, workers):
        # a process whose OpenCV has threads at work must be able to fork workers
        cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (1500, 1500))
        run(tmp_path, with_options(workers=workers))
        assert_same_runs(whole, tmp_path)

    def test_the_callers_random_numbers_are_left_alone(self, tmp_path):
        model = make_model()
        before = torch.get_rng_state()
        train(model, squares, make_batch, OPTIONS, tmp_path)
        assert torch.equal(torch.get_rng_state(), before)

    def test_dropout_draws_anew_in_every_step(self, tmp_path):
        noise = []

        def loss(model, batch):
            noise.append(torch.rand(()).item())
            return squares(model, batch)

        run(tmp_path, loss=loss)
        assert len(set(noise)) == 12


class TestResuming:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize(
        ("seconds", "pause_at"),
        [(0.0, None), (0.25, 4), (1000.0, None)],
        ids=["a checkpoint every step", "one in the middle", "none yet"],
    )
    def test_an_interrupted_run_ends_as_if_it_had_not_been(self, whole, tmp_path, seconds, pause_at, workers):
        options = with_options(checkpoint_seconds=seconds, workers=workers)
        with pytest.raises(Stop):
            run(tmp_path, options, report=stop_at(7, pause_at))
        sentences: list[str] = []
        trained = run(tmp_path, options, say=sentences.append)
        assert_same_runs(whole, tmp_path)
        assert_same(trained.weights, checkpoint(whole)["average"])
        assert 0 <= trained.first <= 8
        assert len(sentences) == (trained.first > 0)

    def test_many_interruptions_are_as_good_as_none(self, whole, tmp_path):
        for last in range(11):
            with pytest.raises(Stop):
                run(tmp_path, report=stop_at(last))
        run(tmp_path)
        assert_same_runs(whole, tmp_path)

    def test_a_line_that_a_crash_left_half_written_is_written_again(self, whole, tmp_path):
        with pytest.raises(Stop):
            run(tmp_path, report=stop_at(5))
        with open(tmp_path / "losses.jsonl", "a") as log:
            log.write('{"step": 6, "total": 1.0}\n{"step": 7, "tot')
        run(tmp_path)
        assert_same_runs(whole, tmp_path)

    def test_workers_checkpoints_and_device_may_change_on_the_way(self, whole, tmp_path):
        with pytest.raises(Stop):
            run(tmp_path, report=stop_at(5))
        run(tmp_path, with_options(workers=1, checkpoint_seconds=50.0, device="auto"))
        if not torch.cuda.is_available():
            assert_same_runs(whole, tmp_path)

    def test_a_finished_run_is_left_alone_and_says_so(self, whole):
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.iterdir()}
        sentences: list[str] = []
        trained = run(whole, say=sentences.append, report=stop_at(0))
        assert trained.first == 12
        assert_same(trained.weights, checkpoint(whole)["average"])
        assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.iterdir()} == before
        assert sentences == [f"nothing to do: the run in {whole} has done its 12 steps"]


class TestProcesses:
    """What happens to a real process: this file, run as a script."""

    @staticmethod
    def start(folder: Path, how: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(Path(streamvos.__file__).parents[1])}
        return subprocess.Popen([sys.executable, __file__, str(folder), how], env=environment)

    @staticmethod
    def wait_for_lines(folder: Path, count: int, process: subprocess.Popen) -> None:
        log = folder / "losses.jsonl"
        while not (log.exists() and log.read_bytes().count(b"\n") >= count):
            assert process.poll() is None, "the process ended by itself"
            time.sleep(0.01)

    def test_a_killed_run_is_resumed_and_a_running_one_is_not_joined(self, whole, tmp_path):
        process = self.start(tmp_path, "kill")
        try:
            self.wait_for_lines(tmp_path, 4, process)
            with pytest.raises(InputError, match="another process is training"):
                run(tmp_path)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        assert 4 <= len(logged_steps(tmp_path)) < 12
        assert run(tmp_path).first >= 3
        assert_same_runs(whole, tmp_path)

    def test_a_process_killed_while_it_saves_leaves_the_last_checkpoint(self, whole, tmp_path):
        process = self.start(tmp_path, "save")
        assert process.wait() == -signal.SIGXFSZ
        assert checkpoint(tmp_path)["step"] == 6
        assert len(list(tmp_path.glob(".checkpoint.pt.*"))) == 1  # the half of the next one
        assert run(tmp_path).first == 6
        assert_same_runs(whole, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "losses.jsonl"]

    def test_a_worker_that_dies_is_reported(self, tmp_path):
        with pytest.raises(SourceError, match=r"makes batches ended .*fewer workers"):
            run(tmp_path, with_options(workers=1), batches=partial(_die_at, 5))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_what_a_batch_refuses_arrives_as_it_was_said(self, tmp_path, workers):
        with pytest.raises(InputError) as caught:
            run(tmp_path, with_options(workers=workers), batches=partial(_refuse_at, 5))
        assert str(caught.value) == "the picture of step 5 is missing"
        assert checkpoint(tmp_path)["step"] == 5


def _die_at(last: int, step: int) -> dict[str, torch.Tensor]:
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_batch(step)


def _refuse_at(last: int, step: int) -> dict[str, torch.Tensor]:
    if step == last:
        raise InputError(f"the picture of step {step} is missing")
    return make_batch(step)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "difference"),
        [
            ({"steps": 20}, "steps: 12 there, 20 here"),
            ({"learning_rate": 0.5}, "learning_rate: 0.02 there, 0.5 here"),
            ({"clip_gradient": None}, "clip_gradient: 5.0 there, None here"),
        ],
    )
    def test_other_options_are_refused_by_name(self, whole, change, difference):
        before = (whole / "checkpoint.pt").read_bytes()
        with pytest.raises(InputError, match=difference):
            run(whole, with_options(**change))
        assert (whole / "checkpoint.pt").read_bytes() == before
        assert logged_steps(whole) == list(range(12))

    def test_another_description_is_refused_by_name(self, tmp_path):
        run(tmp_path, describe={"recipe": {"clips": {"size": 32}, "initial": None}})
        with pytest.raises(InputError, match=r"recipe\.clips\.size: 32 there, 64 here") as caught:
            run(tmp_path, describe={"recipe": {"clips": {"size": 64}, "initial": None}})
        assert "initial" not in str(caught.value)
        with pytest.raises(InputError, match=r"recipe\.loss: absent there, 3 here"):
            run(tmp_path, describe={"recipe": {"clips": {"size": 32}, "initial": None, "loss": 3}})

    def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_checkpoint(self, tmp_path):
        def loss(model, batch):
            losses = squares(model, batch)
            return {**losses, "total": losses["total"] * (math.nan if spoiled() else 1)}

        def spoiled() -> bool:
            return (tmp_path / "losses.jsonl").read_bytes().count(b"\n") == 5

        with pytest.raises(
            InputError, match=r"diverged at step 5: the loss is nan.*learning_rate below 0.02"
        ):
            run(tmp_path, loss=loss)
        assert logged_steps(tmp_path) == [0, 1, 2, 3, 4]
        saved = checkpoint(tmp_path)
        assert saved["step"] == 5
        assert all(torch.isfinite(value.float()).all() for value in saved["model"].values())

    @pytest.mark.parametrize("clip", [5.0, None])
    def test_a_gradient_that_is_not_finite_never_reaches_the_weights(self, tmp_path, clip):
        def loss(model, batch):
            error = model(batch["x"]).float() - batch["y"]
            if (tmp_path / "losses.jsonl").read_bytes().count(b"\n") == 5:
                error = error * 0
            return {"total": error.square().sum().sqrt()}  # at 0 the root has no slope

        with pytest.raises(
            InputError, match=r"diverged at step 5: the loss is 0\.0, the norm of its gradient nan"
        ):
            run(tmp_path, with_options(clip_gradient=clip), loss=loss)
        saved = checkpoint(tmp_path)
        assert saved["step"] == 5
        assert all(torch.isfinite(value.float()).all() for value in saved["model"].values())

    @pytest.mark.parametrize("damage", ["empty", "cut", "text", "entries", "code", "network", "average"])
    def test_a_damaged_checkpoint_is_refused_and_kept(self, whole, tmp_path, damage):
        content = (whole / "checkpoint.pt").read_bytes()
        path = tmp_path / "checkpoint.pt"
        saved = checkpoint(whole)
        if damage in ("empty", "cut", "text"):
            path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello"}[damage])
        elif damage == "entries":
            torch.save({"step": 3}, path)
        elif damage == "code":
            torch.save({**saved, "step": Path("x")}, path)  # would need more than tensors to be read
        elif damage == "network":
            saved["model"]["layers.0.weight"] = torch.zeros(2, 2)
            torch.save(saved, path)
        else:
            del saved["average"]["layers.0.weight"]
            torch.save(saved, path)
        before = path.read_bytes()
        with pytest.raises(InputError, match=r"checkpoint\.pt cannot be used .*remove it") as caught:
            run(tmp_path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before

    def test_a_device_that_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="'nonsense' cannot be used"):
            run(tmp_path / "run", with_options(device="nonsense"))
        assert not (tmp_path / "run").exists()

    def test_a_file_in_place_of_the_folder_is_refused(self, tmp_path):
        (tmp_path / "run").touch()
        with pytest.raises(SinkError, match=r"cannot write .*run"):
            run(tmp_path / "run")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"steps": 0},
            {"learning_rate": math.nan},
            {"learning_rate": math.inf},
            {"clip_gradient": 0},
            {"seed": -1},
            {"batch": 6, "parts": 4},
            {"optimizer": "adam"},
            {"stepz": 3},
        ],
    )
    def test_options_out_of_range_are_refused(self, wrong):
        with pytest.raises(ValidationError):
            TrainingOptions(**wrong)


class TestFullDisk:
    """The limit on the size of a file stands for the end of the disk: the same call fails."""

    @pytest.fixture(autouse=True)
    def _limit_is_lifted(self):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @staticmethod
    def fill(step: int, size: int):
        def report(now: int, losses: dict[str, float], seconds: float) -> None:
            if now == step:
                resource.setrlimit(
                    resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
                )

        return report

    @pytest.mark.parametrize(
        ("file", "seconds", "size"), [("checkpoint.pt", 0.0, 2000), ("losses.jsonl", 1000.0, 300)]
    )
    def test_says_so_and_leaves_the_last_checkpoint(self, whole, tmp_path, file, seconds, size):
        assert (whole / "losses.jsonl").stat().st_size < 2000 < (whole / "checkpoint.pt").stat().st_size
        with pytest.raises(Stop):
            run(tmp_path, report=stop_at(5))  # step 5 is in the log, not in the checkpoint
        with pytest.raises(SinkError, match=rf"cannot write .*{file}.*free some space"):
            run(tmp_path, report=self.fill(5, size), options=with_options(checkpoint_seconds=seconds))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "losses.jsonl"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
        assert run(tmp_path).first == 5
        assert_same_runs(whole, tmp_path)


class TestSteps:
    def test_the_average_follows_the_weights(self, tmp_path):
        """By hand, from the weights after every step."""
        model, expected = make_model(), {}
        expected = {name: value.clone() for name, value in model.state_dict().items()}

        def report(step: int, losses: dict[str, float], seconds: float) -> None:
            decay = min(0.9, (step + 1) / (step + 10))
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    expected[name] = decay * expected[name] + (1 - decay) * value

        trained = train(model, squares, make_batch, OPTIONS, tmp_path, report)
        for name, value in trained.weights.items():
            if value.is_floating_point():
                torch.testing.assert_close(value, expected[name])
        assert not torch.equal(trained.weights["layers.0.weight"], model.state_dict()["layers.0.weight"])

    def test_without_average_the_weights_are_the_last_ones(self, tmp_path):
        model = make_model()
        trained = train(model, squares, make_batch, with_options(average=0), tmp_path)
        assert_same(dict(trained.weights), dict(model.state_dict()))

    def test_parts_average_their_gradients(self, tmp_path):
        """Without batch norm and dropout a batch in parts is the batch."""

        def train_linear(parts: int) -> dict[str, torch.Tensor]:
            torch.manual_seed(3)
            model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
            options = with_options(parts=parts, precision="float32")
            return train(model, squares, make_batch, options, tmp_path / str(parts)).weights

        once, thrice = train_linear(1), train_linear(3)
        for name in once:
            torch.testing.assert_close(once[name], thrice[name], rtol=1e-4, atol=1e-5)
        logs = [(tmp_path / str(parts) / "losses.jsonl").read_text() for parts in (1, 3)]
        totals = [[json.loads(line)["total"] for line in log.splitlines()] for log in logs]
        assert totals[0] == pytest.approx(totals[1], rel=1e-3)

    def test_parts_are_seen_one_at_a_time(self, tmp_path):
        sizes = []

        def loss(model, batch):
            sizes.append(len(batch["x"]))
            return squares(model, batch)

        run(tmp_path, with_options(parts=2, steps=2), loss=loss)
        assert sizes == [3, 3, 3, 3]

    @pytest.mark.parametrize("clip", [0.5, None])
    def test_the_gradient_is_clipped(self, tmp_path, clip):
        model = nn.Linear(4, 1, bias=False)
        before = model.weight.detach().clone()
        options = TrainingOptions(
            steps=1, batch=1, optimizer="sgd", learning_rate=0.1, weight_decay=0, warmup=0, average=0,
            clip_gradient=clip, workers=0,
        )  # fmt: skip

        def steep(model, batch):
            return {"total": 30 * model.weight.sum()}

        train(model, steep, make_batch, options, tmp_path)
        moved = float((model.weight.detach() - before).norm())
        length = 0.5 if clip else 60.0  # of (30, 30, 30, 30)
        assert moved == pytest.approx(0.1 * 1.9 * length, rel=1e-4)  # Nesterov's first step is 1.9 times

    def test_reports_every_step_with_its_losses_and_duration(self, tmp_path):
        reports = []
        run(tmp_path, report=lambda *values: reports.append(values))
        assert [step for step, _, _ in reports] == list(range(12))
        lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
        assert [{"step": step, **losses} for step, losses, _ in reports] == lines
        assert all(set(losses) == {"total", "distance"} and seconds > 0 for _, losses, seconds in reports)


@pytest.mark.cuda
def test_a_gpu_trains_the_same_way(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    for folder, device in (("cpu", "cpu"), ("gpu", "cuda")):
        run(tmp_path / folder, with_options(device=device, workers=2, precision="float32", steps=1))
    first = [json.loads((tmp_path / one / "losses.jsonl").read_text())["distance"] for one in ("cpu", "gpu")]
    assert all(math.isfinite(value) for value in first)  # dropout differs between the two
    with pytest.raises(Stop):
        run(tmp_path / "run", with_options(device="cuda"), report=stop_at(5))
    assert run(tmp_path / "run", with_options(device="cuda")).first == 5


def main(folder: Path, how: str) -> None:
    """Train slowly, to be killed from outside; or be killed by the kernel in the middle of a save."""

    def report(step: int, losses: dict[str, float], seconds: float) -> None:
        if how == "kill":
            time.sleep(0.2)
        elif step == 6:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)

    torch.set_num_threads(1)
    run(folder, report=report)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
