"""Training in the background: what a target learns in tasks, while it is read and written."""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from small_methods import SMALL, small

import streamvos
from streamvos.methods.background import TrainingTask
from streamvos.methods.base import Method
from streamvos.segmenter import Extraction, StreamState, check_mask, decide
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo

LEARNING = {
    "frtm": {"update_interval": 2, "memory_size": 7},
    "joint": {"update_interval": 2, "memory_size": 3, "init_iterations": 8},
}
"""Methods that learn -> options with which everything happens within a few frames."""
ITERATIONS = {"frtm": (5, 10, 10), "joint": 20}
LEARNS = pytest.mark.parametrize("method", sorted(LEARNING))


class Stream:
    """A target whose frames are decoded as the truth says: random networks would lose the objects."""

    def __init__(self, method: Method, clip: SyntheticVideo, defer: bool = True):
        self.method, self.clip, self.defer = method.eval(), clip, defer
        self.begin()

    def begin(self) -> None:
        self.target = self.method.target()
        self.target.defer = self.defer

    @torch.inference_mode()
    def step(self, t: int, *given: int) -> dict[str, torch.Tensor]:
        """What the target says of frame t, before it remembers it; objects may be given on it."""
        target = self.target
        image = torch.from_numpy(self.clip[t].image).permute(2, 0, 1)[None].float() / 255
        features = self.method.extractor(image)
        said = dict(target.read(features).maps) if target.object_ids else {}
        ids = tuple(sorted({*target.object_ids, *given}))
        truth = torch.from_numpy(self.clip[t].label_map.astype(np.int64))
        truth = torch.where(torch.isin(truth, torch.tensor((0, *ids))), truth, 0)
        hard = torch.stack([truth == i for i in (0, *ids)]).float()
        soft = 0.9 * hard + 0.1 / len(hard)
        if given:
            target.annotate(features, truth, ids, tuple(given), soft if target.object_ids else None)
        else:
            target.write(features, soft)
        return said

    def learn_at_once(self) -> list[bool]:
        tasks = self.target.take_tasks()
        for task in tasks:
            task.run()
        return [self.target.take_over(task) for task in tasks]


def make(method: str, clip: SyntheticVideo, defer: bool = True, **options: Any) -> Stream:
    return Stream(small(method, **{**LEARNING.get(method, {}), **options}).method, clip, defer)


@pytest.fixture(scope="module")
def clip() -> SyntheticVideo:
    return SyntheticVideo(3, SyntheticOptions(size=(64, 96), length=24, objects=3, leave=0.0))


@pytest.fixture
def worker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def state_of(stream: Stream) -> dict[str, torch.Tensor]:
    return stream.target.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", sorted(set(SMALL) - {"frtm", "frtm-fast", "joint"}))
def test_a_target_that_does_not_learn_has_no_tasks(method, clip):
    background, inline = make(method, clip), make(method, clip, defer=False)
    for t in range(6):
        given = {0: (1,), 3: (2, 3)}.get(t, ())
        assert same(background.step(t, *given), inline.step(t, *given))
        assert background.target.take_tasks() == []
    stranger = TrainingTask((1,), lambda: None, torch.device("cpu"))
    stranger.run()
    assert stranger.succeeded
    assert not background.target.take_over(stranger)


@LEARNS
def test_inline_there_are_no_tasks(method, clip):
    stream = make(method, clip, defer=False)
    for t in range(6):
        stream.step(t, *((1, 2) if t == 0 else ()))
        assert stream.target.take_tasks() == []


@LEARNS
def test_tasks_taken_over_at_once_are_inline_bit_for_bit(method, clip):
    """One object: several are learned one by one, which rounds otherwise than all together."""
    background, inline, count = make(method, clip), make(method, clip, defer=False), 0
    for t in range(24):
        given = (1,) if t in (0, 10) else ()  # given, and corrected
        assert same(background.step(t, *given), inline.step(t, *given)), t
        count += sum(background.learn_at_once())
        assert same(state_of(background), state_of(inline)), t
    assert count >= 12


@LEARNS
def test_several_objects_learn_at_once_what_they_learn_inline(method, clip):
    background, inline = make(method, clip), make(method, clip, defer=False)
    for t in range(16):
        given = {0: (1, 3), 5: (2,)}.get(t, ())
        a, b = background.step(t, *given), inline.step(t, *given)
        for name, value in b.items():
            # one by one or together: sums in another order, float32; 2e-6 was seen
            assert torch.allclose(a[name].float(), value.float(), rtol=1e-4, atol=1e-4), (t, name)
        background.learn_at_once()


@LEARNS
def test_what_is_learned_does_not_depend_on_what_happens_meanwhile(method, clip, worker):
    """Tasks that a thread learns while frames come and go, against ones learned before the next frame."""
    lag = 3

    def run(threaded: bool) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor], int]:
        stream, said, used = make(method, clip), [], 0
        under_way: deque[tuple[int, TrainingTask, Future[None]]] = deque()

        def come_back(until: int) -> int:
            count = 0
            while under_way and under_way[0][0] <= until:
                _, task, future = under_way.popleft()
                future.result()
                count += stream.target.take_over(task)
            return count

        for t in range(20):
            used += come_back(t - lag)
            if t == 12:
                stream.target.forget(2)
            said.append(stream.step(t, *{0: (1, 2), 5: (3,)}.get(t, ())))
            for task in stream.target.take_tasks():
                under_way.append((t, task, worker.submit(task.run)))
                if not threaded:
                    under_way[-1][2].result()
            state_of(stream)
        return said, state_of(stream), used + come_back(20)

    (a, a_state, a_used), (b, b_state, b_used) = run(False), run(True)
    assert all(same(x, y) for x, y in zip(a, b, strict=True))
    assert same(a_state, b_state)
    assert a_used == b_used > 10


@LEARNS
def test_a_new_object_is_followed_at_once_and_its_full_model_comes_later(method, clip):
    stream = make(method, clip, init_iterations=ITERATIONS[method])
    stream.step(0, 1)
    stream.learn_at_once()
    stream.step(1, 2)
    assert stream.target.object_ids == (1, 2)
    quick = stream.step(2)
    assert {len(value) for name, value in quick.items() if name in ("scores", "encoding")} == {2}
    inline = make(method, clip, defer=False, init_iterations=ITERATIONS[method])
    inline.step(1, 2)
    expected = state_of(inline)
    assert (2,) in [task.object_ids for task in learned(stream)]
    own = {"frtm": "2.filter", "joint": "memory.1.filters"}[method]
    assert torch.equal(state_of(stream)[own], expected[{"frtm": own, "joint": "memory.0.filters"}[method]])


@LEARNS
def test_an_object_has_one_task_on_its_way_at_most(method, clip):
    stream = make(method, clip)
    stream.step(0, 1, 2, 3)
    tasks = stream.target.take_tasks()
    assert [task.object_ids for task in tasks] == [(1,), (2,), (3,)]
    for t in range(1, 24):
        stream.step(t)
        assert stream.target.take_tasks() == []
    for task in tasks:
        task.run()
        assert stream.target.take_over(task)
        assert not stream.target.take_over(task)  # once
    again = []
    for t in (1, 2):
        stream.step(t)
        again += stream.target.take_tasks()
    assert [task.object_ids for task in again] == [(1,), (2,), (3,)]


@LEARNS
def test_what_waits_for_a_task_that_never_comes_back_is_bounded(method):
    clip = SyntheticVideo(3, SyntheticOptions(size=(32, 48), length=20, objects=2, leave=0.0))
    stream = make(method, clip)
    stream.step(0, 1, 2)
    for t in range(1, 20):
        stream.step(t)
    before = allocated()
    for t in range(80):
        stream.step(t % 20)
    assert allocated() - before < 40  # one for each frame would be 80 at least


def allocated() -> int:
    """How many tensors there are."""
    gc.collect()
    return sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())


def learned(stream: Stream) -> list[TrainingTask]:
    """The tasks that were taken over."""
    tasks = stream.target.take_tasks()
    for task in tasks:
        task.run()
    return [task for task in tasks if stream.target.take_over(task)]


@LEARNS
@pytest.mark.parametrize("kind", ["start", "update"])
@pytest.mark.parametrize("change", ["forget", "annotate", "load", "begin"])
def test_what_comes_too_late_is_ignored(method, kind, change, clip):
    stream = make(method, clip)
    stream.step(0, 1, 2)
    if kind == "update":
        assert len(learned(stream)) == 2
        stream.step(1)
        stream.step(2)
    late = [task for task in stream.target.take_tasks() if task.object_ids == (1,)]
    assert len(late) == 1
    late[0].run()
    if change == "forget":
        stream.target.forget(1)
    elif change == "annotate":
        stream.step(3, 1)
    elif change == "load":
        stream.target.load_state_dict(state_of(stream))
    else:
        stream.begin()
        stream.step(0, 1)
    before = state_of(stream)
    assert late[0].succeeded
    assert not stream.target.take_over(late[0])
    assert same(before, state_of(stream))
    stream.step(4)


@pytest.mark.parametrize(
    ("method", "options"), [("frtm", {"augmentations": 1}), ("joint", {"init_iterations": 4})]
)
def test_an_object_that_begins_anew_without_a_task_takes_over_no_old_one(method, options, clip):
    stream = make(method, clip, **options)
    stream.step(0, 1)
    assert stream.target.take_tasks() == []
    stream.step(1)
    stream.step(2)
    (late,) = stream.target.take_tasks()
    stream.step(3, 1)
    before = state_of(stream)
    late.run()
    assert not stream.target.take_over(late)
    assert same(before, state_of(stream))


@LEARNS
def test_a_task_that_is_not_wanted_any_more_is_not_learned(method, clip):
    stream = make(method, clip)
    stream.step(0, 1, 2)
    first, second = stream.target.take_tasks()
    stream.target.forget(1)
    for task in (first, second):
        task.run()
    assert (first.succeeded, second.succeeded) == (False, True)
    assert stream.target.take_over(second)
    stream.step(1, 3)
    stream.target.forget(3)
    assert (3,) not in [task.object_ids for task in stream.target.take_tasks()]


def test_a_task_that_raises_has_learned_nothing_and_is_not_tried_again():
    task = TrainingTask((1,), lambda: 1 / 0, torch.device("cpu"))
    with pytest.raises(ZeroDivisionError):
        task.run()
    task.run()
    assert not task.succeeded


@LEARNS
def test_after_a_task_that_failed_the_object_goes_on_and_learns_again(method, clip):
    stream = make(method, clip)
    stream.step(0, 1)
    (task,) = stream.target.take_tasks()
    before = state_of(stream)
    assert not stream.target.take_over(task)  # it learned nothing
    assert same(before, state_of(stream))
    stream.step(1)
    stream.step(2)
    assert [task.object_ids for task in learned(stream)] == [(1,)]
    assert not same(before, state_of(stream))


@LEARNS
def test_a_snapshot_during_tasks_is_whole(method, clip, worker):
    stream = make(method, clip)
    stream.step(0, 1, 2)
    for t in range(1, 7):
        learned(stream)
        stream.step(t, *((3,) if t == 6 else ()))
    tasks = stream.target.take_tasks()
    assert sorted(task.object_ids for task in tasks) == [(1,), (2,), (3,)]
    futures = [worker.submit(task.run) for task in tasks]
    state = state_of(stream)
    for future in futures:
        future.result()
    assert same(state, state_of(stream))  # a task changes nothing before it is taken over
    other = make(method, clip)
    other.target.load_state_dict(state)
    assert other.target.object_ids == (1, 2, 3)
    assert same(other.step(7), stream.step(7))
    ids = set()
    for t in (8, 9, 10):
        other.step(t)
        ids |= {task.object_ids for task in learned(other)}
    assert ids == {(1,), (2,), (3,)}


def test_objects_that_share_a_memory_may_leave_it_during_a_task(clip):
    stream = make("joint/efficientnet", clip)
    stream.step(0, 1, 2, 3)
    (task,) = stream.target.take_tasks()
    assert task.object_ids == (1, 2, 3)
    stream.target.forget(2)
    task.run()
    assert stream.target.take_over(task)
    assert stream.target.object_ids == (1, 3)
    never = make("joint/efficientnet", clip, defer=False)
    never.step(0, 1, 2, 3)
    never.target.forget(2)
    assert same(stream.step(1), never.step(1))


@LEARNS
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_task_learns_in_the_mode_of_its_stream(method, mode, clip):
    """A thread begins in neither mode; what it makes is changed in place by later frames."""
    network = small(method, **LEARNING[method]).method
    target = network.target()
    target.defer = True
    count = 0
    for t in range(5):
        with mode():
            truth = torch.from_numpy(clip[t].label_map.astype(np.int64))
            features = network.extractor(torch.from_numpy(clip[t].image).permute(2, 0, 1)[None].float() / 255)
            if t == 0:
                target.annotate(features, truth, (1, 2, 3))
            else:
                target.write(features, torch.stack([truth == i for i in range(4)]).float())
        tasks = target.take_tasks()
        thread = threading.Thread(target=lambda tasks=tasks: [task.run() for task in tasks])
        thread.start()
        thread.join()
        assert [target.take_over(task) for task in tasks] == [True] * len(tasks)
        count += len(tasks)
    assert count >= 6
    assert not any(value.requires_grad for value in target.state_dict().values())


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """J, of all objects of b together with their ids."""
    ids = [i for i in np.unique(b) if i]
    return float(np.mean([((a == i) & (b == i)).sum() / ((a == i) | (b == i)).sum() for i in ids]))


def test_masks_in_the_background_are_as_good_as_inline(worker, capsys):
    """With trained weights; tasks come back two frames later."""
    clip = SyntheticVideo(4, SyntheticOptions(size=(120, 208), length=14, objects=2, leave=0.0))
    method = streamvos.load("frtm-fast", device="cpu").method
    scores: dict[bool, list[float]] = {}
    longest: dict[bool, float] = {}
    for defer in (False, True):
        extract = Extraction(method, "cpu")
        under_way: deque[tuple[int, TrainingTask, Future[None]]] = deque()
        state = StreamState(method, extract.device)
        state.target.defer = defer
        scores[defer], times = [], []
        for t in range(14):
            while under_way and under_way[0][0] <= t - 2:
                _, task, future = under_way.popleft()
                future.result()
                assert state.target.take_over(task)
            given = check_mask(clip[t].label_map, (120, 208), extract.device) if t == 0 else None
            features = extract([torch.from_numpy(clip[t].image)])
            question = state.ask(features, given)
            decision = decide(method, question)
            begun = time.perf_counter()
            state.learn(features, question, decision)
            times.append(time.perf_counter() - begun)
            scores[defer].append(overlap(decision.shown().argmax(0).numpy(), clip[t].label_map))
            under_way += [(t, x, worker.submit(x.run)) for x in state.target.take_tasks()]
        longest[defer] = max(times)
    with capsys.disabled():
        print(f"\n  J: inline {np.mean(scores[False]):.3f}, background {np.mean(scores[True]):.3f}")
        print(f"  longest annotate or write: inline {longest[False]:.3f} s, background {longest[True]:.3f} s")
    # measured 0.844 both; the models see other samples at other times
    assert np.mean(scores[True]) > np.mean(scores[False]) - 0.05
    assert min(scores[True]) > min(scores[False]) - 0.1


@pytest.mark.parametrize("defer", [False, True], ids=["at once", "background"])
def test_frtm_learning_at_the_next_call_as_on_a_gpu_changes_nothing(clip, defer):
    soon, late = (make("frtm", clip, defer, update_interval=2) for _ in range(2))
    late.target.late = True
    for t in range(10):
        given = {0: (1, 2), 5: (3,)}.get(t, ())
        assert same(late.step(t, *given), soon.step(t, *given))
        if t == 7:
            for stream in (soon, late):
                stream.target.forget(2)
        if t == 8:
            assert same(state_of(late), state_of(soon))
        assert late.learn_at_once() == soon.learn_at_once()
    assert same(state_of(late), state_of(soon))
