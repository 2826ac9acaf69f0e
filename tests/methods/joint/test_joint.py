"""JOINT against the outputs of the authors' code, and what must hold of every piece of its state.

Tolerances: labels within 5 pixels per frame, probabilities within
2e-4, filters within 1e-5.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from joint_weights import golden, relative, with_overrides
from PIL import Image

from streamvos.methods.joint import JOINT, JOINTOptions
from streamvos.methods.joint.crops import OUTSIDE, search_centers
from streamvos.methods.joint.few_shot import FewShotProblem, convolve, steepest_descent
from streamvos.methods.joint.network import JOINTNetwork, Labels
from streamvos.methods.joint.transformer import attend
from streamvos.segmenter import Segmenter
from streamvos.types import Annotation, Features, InputError
from streamvos.weights.joint import from_authors

SMALL = {
    "depth": 18,
    "planes": (4, 4, 8, 8),
    "channels": 8,
    "keys": 4,
    "labels": 4,
    "label_widths": (2, 4, 4),
    "widths": (8, 4, 4, 4),
}


def authors(**options) -> JOINT:
    tensors, follows = from_authors(with_overrides())
    method = JOINT(JOINTOptions(**follows, **options)).eval()
    method.networks.load_state_dict(tensors, strict=False)  # counters of batches are not in it
    return method


def train_on(
    network: JOINTNetwork, frames: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, Labels, torch.Tensor, torch.Tensor]:
    """The authors' way through a clip in training: every frame is remembered, and encoded anew each time.

    Args:
        frames: (1 + F, 3, H, W) BGR of 0..255, mean subtracted.
        mask: (1, H, W) of the first one, 0 or 1.

    Returns:
        logits (F, H, W), labels of all masks (1 + F, D, h, w), outputs of filters and attention (F, D, h, w).
    """
    view = network.see(frames)
    queries = network.transformer.queries(view.transduction)
    grid = view.layers["layer3"].shape[-2:]
    filters = network.no_filters(1, 1, view.induction)
    remembered = [network.label_encoder(mask[:, None].to(frames))]
    logits, induced, transduced = [], [], []
    for now in range(1, len(frames)):
        labels = Labels(*(torch.cat(parts) for parts in zip(*remembered, strict=True)))
        problem = FewShotProblem(
            view.induction[:now].flatten(0, 1)[None],
            labels.induction[None, None],
            labels.importance[None, None],
            grid,
        )
        filters = steepest_descent(filters, problem, network.learner.regularization, 5 if now == 1 else 2)
        induced.append(convolve(view.induction[None, now], filters, grid)[0, 0])  # (1, D, h, w)
        keys = network.transformer.memory_keys(network.transformer.encode(view.transduction[None, :now]))
        carried = labels.transduction.permute(0, 2, 3, 1).flatten(0, 2)  # (now*h*w, D)
        answer = attend(queries[None, now], keys.flatten(1, 2), carried[None])  # (1, h*w, D)
        transduced.append(answer.transpose(1, 2).unflatten(2, grid))
        layers = {name: layer[now : now + 1] for name, layer in view.layers.items()}
        size = (frames.shape[-2], frames.shape[-1])
        logits.append(network.decoder(induced[-1] + transduced[-1], layers, size))
        remembered.append(network.label_encoder(logits[-1].sigmoid()[:, None]))
    labels = Labels(*(torch.cat(parts) for parts in zip(*remembered, strict=True)))
    return torch.cat(logits), labels, torch.cat(induced), torch.cat(transduced)


@torch.inference_mode()
def test_a_clip_runs_through_the_networks_as_in_the_authors_training():
    expected, method = golden("net"), authors().double()
    images = torch.from_numpy(expected["images_rgb"]).permute(0, 3, 1, 2).double() / 255
    prepared = images.flip(1) * 255 - method.extractor.mean.float().double()
    logits, labels, induced, transduced = train_on(
        method.network, prepared, torch.from_numpy(expected["mask0"])[None] != 0
    )
    # float64 against float64: the same computation, in another order
    assert relative(logits[:, None], expected["f64_logits"]) < 1e-10
    # the rest was saved in float32, which was 4e-6 off for the logits
    for own, name in (
        (logits, "logits"),
        (labels.induction, "enc_tm"),
        (labels.transduction, "enc_tr"),
        (induced, "enc_induced"),
        (transduced, "enc_transduced"),
    ):
        assert relative(own[:, None], expected[name]) < 5e-6, name
    layers = method.network.see(prepared[:1]).layers
    for name, step in (("layer1", 4), ("layer3", 1), ("layer4", 1)):
        own = layers[name][:, ::32, ::step, ::step]
        assert relative(own, expected[f"feat_{name}_sub"]) < 5e-6, name
    spread = [(layers[f"layer{k}"].mean(), layers[f"layer{k}"].std()) for k in range(1, 5)]
    assert np.abs(np.array(spread) / expected["feat_mean_std"] - 1).max() < 1e-5


def test_two_objects_are_tracked_as_by_the_authors(shared):
    expected, method = golden("tracker"), authors(update_interval=2, memory_size=3)
    folder = shared / "data" / "davis2016-dev" / "JPEGImages" / "480p" / "blackswan"
    encoded: list[torch.Tensor] = []
    hook = method.network.label_encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(inputs[0]))
    target = method.target()
    for t in range(8):
        image = torch.from_numpy(np.array(Image.open(folder / f"{t:05d}.jpg")))
        with torch.inference_mode():
            features = method.extractor(image.permute(2, 0, 1)[None].float() / 255)
            if t == 0:
                target.annotate(features, torch.from_numpy(expected["label0"]).long(), (1, 2))
                continue
            check_state(target, expected, t - 1)
            evidence = target.read(features)
            if t == 1:
                check_logits(method.decoder.logits(evidence, features.size), expected["scores_crop_frame1"])
            probabilities = method.decoder(evidence, features.size)
            target.write(features, probabilities)
        label_map = probabilities.argmax(0).numpy()
        assert (label_map != expected["segmentation"][t]).sum() <= 5, f"frame {t}"
        assert np.abs(probabilities[1:, ::4, ::4].numpy() - expected["prob_sub4"][t]).max() < 2e-4
    for k, memory in enumerate(target.memories):
        assert np.abs(memory.filters[0, :, ::4].numpy() - expected["filters"][k]).max() < 1e-5
    hook.remove()
    # remembered: frame 0 in slot 0, frame 4 in slot 2, and frame 6 in slot 1, where frame 2 had been
    masks = torch.cat([encoded[0], encoded[3], encoded[2]], dim=1).numpy() > 0.5
    kept = np.unpackbits(expected["mask_mem"], axis=-1)[..., : masks.shape[-1]].astype(bool)
    assert (masks != kept).sum((2, 3)).max() <= 5


def check_state(target, expected: dict[str, np.ndarray], row: int) -> None:
    """Where the objects are looked for on a frame, and the weights of what is remembered by then."""
    state = target.state
    # one unit in the last place of float32 where sums of equal probabilities are the input
    assert np.abs(state.scale.numpy() - expected["scale"][row]).max() < 3e-7
    assert np.abs(state.size.numpy() - expected["sz"][row]).max() < 1e-4
    # probabilities differ by up to 1e-4, and a position is their mean over hundreds of pixels
    assert np.abs(state.center.numpy() - expected["pos"][row]).max() < 5e-3
    centers = search_centers(state, (480, 832)).numpy()
    assert np.abs(centers - expected["ppos"][row]).max() < 5e-3
    for k, memory in enumerate(target.memories):
        assert memory.pictures == expected["nstored"][row, k]
        values = memory.weights.values[: memory.pictures].numpy()
        assert np.abs(values - expected["sw"][row, k][: memory.pictures]).max() < 1e-6


def check_logits(logits: torch.Tensor, expected: np.ndarray) -> None:
    outside = expected == OUTSIDE
    assert np.array_equal(logits.numpy() == OUTSIDE, outside)
    assert np.abs(logits.numpy() - expected.astype(np.float32))[~outside].max() < 0.01  # saved in float16


# ---- properties, with small random networks in float64 where rounding would hide something


def small(dtype: torch.dtype = torch.float64, **options) -> JOINT:
    torch.manual_seed(3)
    given = {"network": SMALL, "crop_size": (64, 96), "memory_size": 4, "update_interval": 2, **options}
    return JOINT(JOINTOptions(**given)).eval().to(dtype)


def clip(count: int, size: tuple[int, int] = (60, 80), dtype=torch.float64) -> torch.Tensor:
    """(count, 3, H, W): noise that moves."""
    base = torch.rand(3, *size, generator=torch.Generator().manual_seed(5), dtype=dtype)
    return torch.stack([base.roll(2 * k, 2) for k in range(count)])


def a_mask(ids: tuple[int, ...] = (1, 2), size: tuple[int, int] = (60, 80)) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.int64)
    for k, i in enumerate(ids):
        mask[5 + 7 * k : 30 + 7 * k, 4 + 20 * k : 20 + 20 * k] = i
    return mask


def start(method: JOINT, frames: torch.Tensor, mask: torch.Tensor, ids: tuple[int, ...]):
    target = method.target()
    target.annotate(method.extractor(frames[:1]), mask, ids)
    return target


def advance(method: JOINT, target, frames: torch.Tensor) -> list[torch.Tensor]:
    answers = []
    for frame in frames:
        features = method.extractor(frame[None])
        answers.append(method.decoder(target.read(features), features.size))
        target.write(features, answers[-1])
    return answers


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def test_refreshing_by_exchange_is_encoding_anew():
    method, frames = small(), clip(24)  # eleven are remembered, in four slots
    target = start(method, frames, a_mask(), (1, 2))
    transformer = method.network.transformer
    for frame in frames[1:]:
        advance(method, target, frame[None])
        for memory in target.memories:
            state = memory.state_dict()
            anew = transformer.memory_keys(transformer.encode(state["transduction"][None])[0])
            assert (anew - state["memory_keys"]).abs().max() < 1e-9
    assert target.memories[0].pictures == 4


def test_pictures_all_at_once_as_on_a_gpu_are_pictures_one_by_one():
    method, frames = small(), clip(14)
    targets = [start(method, frames, a_mask(), (1, 2)) for _ in range(2)]
    for memory in targets[0].memories:
        memory.together = True
    answers = [advance(method, target, frames[1:]) for target in targets]
    for a, b in zip(*answers, strict=True):
        assert (a - b).abs().max() < 1e-9  # the sums have another order, in float64


def test_probabilities_sum_to_one_and_have_the_size_of_the_frame():
    method, frames = small(torch.float32), clip(4, dtype=torch.float32)
    for answer in advance(method, start(method, frames, a_mask(), (1, 2)), frames[1:]):
        assert answer.shape == (3, 60, 80)
        assert answer.dtype == torch.float32
        assert (answer.sum(0) - 1).abs().max() < 1e-5


def test_ids_and_company_do_not_matter():
    method, frames = small(objects_at_once=2), clip(6)
    ids, others = (1, 2, 3), (9, 4, 200)
    plain = advance(method, start(method, frames, a_mask(ids), ids), frames[1:])
    swapped = advance(method, start(method, frames, a_mask(others), tuple(sorted(others))), frames[1:])
    for a, b in zip(plain, swapped, strict=True):
        assert (a[[0, 2, 1, 3]] - b).abs().max() < 1e-10


def test_a_forgotten_object_leaves_the_others_as_if_it_had_never_been():
    method, frames = small(), clip(8)
    target, alone = (start(method, frames, a_mask(), ids) for ids in ((1, 2), (2,)))
    target.forget(1)
    assert target.object_ids == (2,)
    for a, b in zip(advance(method, target, frames[1:]), advance(method, alone, frames[1:]), strict=True):
        assert (a - b).abs().max() < 1e-10
    target.forget(2)
    assert target.object_ids == ()
    with pytest.raises(InputError, match="not followed"):
        target.forget(2)


@pytest.mark.parametrize("after", [1, 2, 13])
def test_a_restored_state_goes_on_to_the_bit(after):
    method, frames = small(torch.float32), clip(after + 7, dtype=torch.float32)
    target = start(method, frames, a_mask(), (1, 2))
    advance(method, target, frames[1:after])
    state = target.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    copies = {name: value.clone() for name, value in state.items()}
    restored = method.target()
    restored.load_state_dict(state)
    rest = frames[after:]
    for a, b in zip(advance(method, target, rest), advance(method, restored, rest), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(copies[name], value) for name, value in state.items())  # nobody wrote into it


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    method, frames = small(torch.float32), clip(3, dtype=torch.float32)
    target = start(method, frames, a_mask(), (1, 2))
    good = target.state_dict()
    bad = [
        {},
        {n: v for n, v in good.items() if not n.startswith("memory.1.")},
        {n: v for n, v in good.items() if n != "memory.0.filters"},
        {n: v for n, v in good.items() if n != "state.scale"},
        {**good, "memory.0.filters": good["memory.0.filters"][:, :2]},
        {**good, "memory.0.induction": good["memory.0.induction"][:, :5]},
        {**good, "memory.0.weights.values": torch.zeros(3)},
        {**good, "state.center": good["state.center"][:1]},
    ]
    for state in bad:
        with pytest.raises(InputError):
            target.load_state_dict(state)
        after = target.state_dict()
        assert after.keys() == good.keys()
        assert all(torch.equal(after[name], value) for name, value in good.items())


def test_a_new_object_joins_and_a_named_one_begins_anew():
    method, frames = small(), clip(9)
    target = start(method, frames, a_mask(), (1, 2))
    advance(method, target, frames[1:4])
    features = method.extractor(frames[4:5])
    plain = method.target()
    plain.load_state_dict(target.state_dict())
    given = torch.zeros(60, 80, dtype=torch.int64)
    given[40:55, 50:70], given[:20, :20] = 7, 1
    annotation = Annotation(given, (1, 7))
    probabilities = method.decoder(target.read(features), features.size, annotation)
    assert probabilities.shape == (4, 60, 80)
    assert (probabilities[3][given == 7] > 0.999).all()
    assert (probabilities[1][given == 1] > 0.999).all()
    label_map = probabilities.argmax(0)
    ids = torch.tensor([0, 1, 2, 7])
    target.annotate(features, ids[label_map], (1, 2, 7), (1, 7), probabilities)
    assert target.object_ids == (1, 2, 7)
    frames_of = {i: memory.frames for memory in target.memories for i in memory.object_ids}
    assert frames_of == {1: 1, 2: 5, 7: 1}
    # the corrected object's target is that of an object that starts here
    fresh = start(method, frames[4:5], torch.where(ids[label_map] == 1, 1, 0), (1,))
    own = next(memory for memory in target.memories if 1 in memory.object_ids)
    assert (own.filters[own.object_ids.index(1)] - fresh.memories[0].filters[0]).abs().max() < 1e-12
    assert torch.equal(target.state.center[0], fresh.state.center[0])
    # and the object that went on is where it would be with a plain write
    plain.read(features)
    plain.write(features, probabilities[:3])
    assert torch.equal(target.state.center[1], plain.state.center[1])
    went_on, written = (
        next(memory for memory in one.memories if 2 in memory.object_ids) for one in (target, plain)
    )
    assert went_on.frames == written.frames
    a, b = (memory.filters[memory.object_ids.index(2)] for memory in (went_on, written))
    assert (a - b).abs().max() < 1e-12
    advance(method, target, frames[5:])


def test_a_memory_of_more_pictures_than_a_window_has_cells_goes_on():
    method, frames = small(crop_size=(32, 48), memory_size=12, update_interval=1), clip(30)
    target = start(method, frames, a_mask(), (1, 2))
    advance(method, target, frames[1:])
    assert target.memories[0].pictures == 12


def test_what_was_read_of_another_frame_is_not_remembered():
    method, frames = small(), clip(3)
    target, twin = (start(method, frames, a_mask(), (1, 2)) for _ in range(2))
    first, second = (method.extractor(frames[t : t + 1]) for t in (1, 2))
    probabilities = method.decoder(target.read(first), first.size)
    for one in (target, twin):
        one.write(first, probabilities)
    target.read(first)  # and then the frame changes
    for one in (target, twin):
        one.write(second, probabilities)
    a, b = target.state_dict(), twin.state_dict()
    assert all((a[name] - b[name]).abs().max() < 1e-12 for name in a)


def test_frames_are_remembered_when_the_authors_would():
    method, frames = small(update_interval=5, memory_size=3), clip(20)
    target = start(method, frames, a_mask(), (1, 2))
    stored = []
    for t in range(1, 20):
        before = target.memories[0].weights.values.clone()
        advance(method, target, frames[t : t + 1])
        if not torch.equal(before, target.memories[0].weights.values):
            stored.append(t)
    assert stored == [3, 8, 13, 18]
    assert target.memories[0].weights.values[0] >= 0.25


def test_the_memory_is_bounded():
    method, frames = small(torch.float32), clip(40, dtype=torch.float32)
    target = start(method, frames, a_mask(), (1, 2))
    advance(method, target, frames[1:12])
    size = sum(value.numel() for value in target.state_dict().values())
    room = [memory.capacity for memory in target.memories]
    advance(method, target, frames[12:])
    assert sum(value.numel() for value in target.state_dict().values()) == size
    assert [memory.capacity for memory in target.memories] == room == [4, 4]


def test_writing_without_having_read_looks_first():
    method, frames = small(), clip(6)
    one, other = (start(method, frames, a_mask(), (1, 2)) for _ in range(2))
    for k in range(1, 5):
        features = method.extractor(frames[k : k + 1])
        probabilities = method.decoder(one.read(features), features.size)
        one.write(features, probabilities)
        other.write(features, probabilities)
    a, b = (advance(method, target, frames[5:])[0] for target in (one, other))
    assert torch.equal(a, b)


def test_one_object_competes_with_the_background():
    method, frames = small(), clip(2)
    target = start(method, frames, a_mask((1,)), (1,))
    features = method.extractor(frames[1:])
    evidence = target.read(features)
    logits = method.decoder.logits(evidence, features.size)
    # the clamp of the background's probability is 1e-7
    assert (method.decoder(evidence, features.size)[1] - (2 * logits[0]).sigmoid()).abs().max() < 1e-6


def test_half_precision_stays_close():
    exact, frames = small(torch.float32), clip(6, dtype=torch.float32)
    half = small(torch.float32, precision="bfloat16")
    features = exact.extractor(frames[:1])
    targets = [start(method, frames, a_mask(), (1, 2)) for method in (exact, half)]
    one, other = (target.read(features)["encoding"] for target in targets)
    # eight bits through a dozen layers; random networks are not forgiving
    assert (one - other).abs().max() < 0.1 * one.abs().max()
    for answer in advance(half, targets[1], frames[1:]):
        assert torch.isfinite(answer).all()
        assert answer.dtype == torch.float32


def test_a_picture_that_stands_still_and_tiny_objects_do_no_harm():
    method = small(torch.float32)
    vos, image = Segmenter(method, "cpu"), np.full((33, 47, 3), 90, np.uint8)
    mask = np.zeros((33, 47), np.uint8)
    mask[0, 0], mask[32, 46], mask[10:12, 3] = 1, 5, 255
    result = vos.step(image, mask)
    for _ in range(5):
        result = vos.step(image)
    assert np.isfinite(result.probabilities).all()
    assert set(np.unique(result.mask)) <= {0, 1, 5}


def test_an_annotation_that_names_nobody_is_a_write():
    method, frames = small(), clip(5)
    one, other = (start(method, frames, a_mask(), (1, 2)) for _ in range(2))
    for k in range(1, 5):
        features = method.extractor(frames[k : k + 1])
        probabilities = method.decoder(one.read(features), features.size)
        one.write(features, probabilities)
        other.read(features)
        other.annotate(features, probabilities.argmax(0), (1, 2), (), probabilities)
    assert all(torch.equal(a, b) for a, b in zip(one.state, other.state, strict=True))
    assert torch.equal(one.memories[0].filters, other.memories[0].filters)


def test_bad_calls_are_refused_and_leave_the_state():
    method, frames = small(torch.float32), clip(3, dtype=torch.float32)
    features = method.extractor(frames[:1])
    with pytest.raises(InputError, match="annotate a frame first"):
        method.target().read(features)
    target = start(method, frames, a_mask(), (1, 2))
    before = target.state_dict()
    with pytest.raises(InputError, match="probabilities"):
        target.write(features, torch.zeros(2, 60, 80))
    with pytest.raises(InputError, match="have no mask yet"):
        target.annotate(features, a_mask(), (1, 2, 3), (1,))
    with pytest.raises(InputError, match="probabilities"):
        target.annotate(features, a_mask(), (1, 2), (1,), torch.zeros(2, 60, 80))
    after = target.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    "options",
    [
        {"crop_size": (480, 850)},
        {"crop_size": (16, 16)},
        {"scale_limits": (1.1, 1.2)},
        {"update_interval": 0},
        {"memory_size": 1},
        {"backbone": "vgg"},
        {"t": 3},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        JOINTOptions(**options)


def test_the_extractor_knows_nothing_of_masks():
    method = small(torch.float32)
    frames = clip(2, dtype=torch.float32)
    together, alone = method.extractor(frames), method.extractor(frames[1:])
    assert isinstance(together, Features)
    assert set(together.maps) == {"frame"}
    assert torch.equal(together["frame"][1:], alone["frame"])
    blue = together["frame"][0, 0] + method.extractor.mean[0, 0]
    assert (blue - 255 * frames[0, 2]).abs().max() < 1e-4  # BGR, 0..255
