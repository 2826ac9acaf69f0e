"""Where a tracker looks, and the cutting and pasting of what it looks at.

JOINT (like LWL and the trackers of its family) sees one object at a time, in a window about five times its
size that is resized to one shape. Here K windows are computed, cut and pasted at once, as tensors on the
device of the frame: no value is read back from it.

    state = begin(masks, area=25.0, output=(480, 832))          # K objects on their first frame
    windows = search_windows(state, (480, 854), (480, 832))     # where they are looked for
    crops = cut_image(frame, windows)                           # (K, 3, 480, 832)
    logits = paste(scores, windows.boxes(), (480, 854))         # (K, 480, 854), -100 outside
    state = follow(state, probabilities)                        # where they are now

State is float32 whatever the networks compute in, because rounding shows: the window of a wide crop is 853
or 854 columns, as the last bit of the scale falls (the authors' code computes so, docs/methods.md, JOINT).
Positions and sizes are (row, column), in pixels, counted from 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from streamvos.nn.transfer import send, take
from streamvos.types import InputError

OUTSIDE = -100.0
"""The logit of a pixel that no window covers (the authors' code)."""

STRIDE = 16
"""Pixels of a crop per feature cell."""


class TargetState(NamedTuple):
    """Place and size of K objects.

    Attributes:
        center: (K, 2) float32, pixels.
        scale: (K,) float32, frame pixels per crop pixel, before any shrinking to the frame.
        base: (K, 2) float32, size of the object on the first frame in crop pixels; its aspect is kept.
    """

    center: torch.Tensor
    scale: torch.Tensor
    base: torch.Tensor

    @property
    def size(self) -> torch.Tensor:
        """(K, 2) float32: height and width in pixels."""
        return self.base * self.scale[:, None]

    def pick(self, rows: list[int]) -> TargetState:
        """The state of some objects, in the order given."""
        return TargetState(*(take(values, rows) for values in self))

    @staticmethod
    def join(states: list[TargetState]) -> TargetState:
        """The objects of several states, one after the other."""
        return TargetState(*map(torch.cat, zip(*states, strict=True)))


class Windows(NamedTuple):
    """K rectangles of a frame, and the shape that they are resized to.

    A large window is thinned out first: only every `step`-th pixel from `offset` on exists, and `corner` and
    `extent` count those. Of the resized rectangle, `full` cells, the `output` cells from `start` on are used.

    Attributes:
        corner: (K, 2) int64, first row and column; may lie outside the frame.
        extent: (K, 2) int64, rows and columns.
        step, offset: (K, 1), (K, 2) int64.
        start: (K, 2) int64.
        full, output: (h, w).
    """

    corner: torch.Tensor
    extent: torch.Tensor
    step: torch.Tensor
    offset: torch.Tensor
    start: torch.Tensor
    full: tuple[int, int]
    output: tuple[int, int]

    def boxes(self) -> torch.Tensor:
        """(K, 4) int64: top, left, bottom, right (exclusive) in frame pixels. Authors: without `offset`."""
        return torch.cat([self.corner, self.corner + self.extent], dim=1) * self.step

    def pick(self, rows: slice | list[int]) -> Windows:
        """Some of the windows."""
        corner, extent, step, offset, start = (
            values[rows] if isinstance(rows, slice) else take(values, rows)
            for values in (self.corner, self.extent, self.step, self.offset, self.start)
        )
        return Windows(corner, extent, step, offset, start, self.full, self.output)


def begin(masks: torch.Tensor, area: float, output: tuple[int, int]) -> TargetState:
    """The state of objects on the frame where their masks are given.

    The size of an object is last - first row and column, as in the authors' data sets, and at least one
    pixel, since their code cannot follow less.

    Args:
        masks: (K, H, W), not 0 where the object is; each has a pixel.
        area: the window's area in those of the object's box (search factor squared).
        output: (h, w) of the crops.
    """
    present = masks != 0
    first, last = [], []
    for line in (present.any(2), present.any(1)):  # rows, columns
        counted = line.to(torch.uint8)
        first.append(counted.argmax(1))
        last.append(line.shape[1] - 1 - counted.flip(1).argmax(1))
    start, end = torch.stack(first, 1).float(), torch.stack(last, 1).float()  # (K, 2)
    size = (end - start).clamp_min(1)
    center = start + (size - 1) / 2
    sides = size * area**0.5
    scale = sides.prod(1).sqrt() / _pair(output, sides).prod().sqrt()
    return TargetState(center, scale, size / scale[:, None])


def follow(
    state: TargetState,
    probabilities: torch.Tensor,
    visible: float = 100.0,
    limits: tuple[float, float] = (0.95, 1.1),
) -> TargetState:
    """The state after a frame: center of mass, and four standard deviations for a size.

    Args:
        state: before.
        probabilities: (K, H, W) float of the objects on that frame, after they competed.
        visible: an object whose probabilities sum to less keeps its state.
        limits: least and largest factor by which the scale may change.
    """
    # sums in float64: those of float32 would depend on the number of threads, by the last bit of the scale
    total = probabilities.sum((1, 2), dtype=torch.float64)
    weight = total.clamp_min(torch.finfo(torch.float32).tiny)
    centers, deviations = [], []
    for axis in (0, 1):
        share = probabilities.sum(2 - axis, dtype=torch.float64)  # of every row, of every column
        places = torch.arange(share.shape[1], device=share.device, dtype=torch.float64)
        center = (share * places).sum(1) / weight
        variance = (share * (places - center[:, None]).square()).sum(1) / weight  # (K,)
        centers.append(center)
        deviations.append(variance.sqrt())
    center, size = torch.stack(centers, 1).float(), 4 * torch.stack(deviations, 1).float()
    scale = (size.prod(1) / state.base.prod(1)).sqrt()
    scale = torch.minimum(torch.maximum(scale, limits[0] * state.scale), limits[1] * state.scale)
    seen = total >= visible
    return TargetState(
        torch.where(seen[:, None], center, state.center), torch.where(seen, scale, state.scale), state.base
    )


def search_centers(state: TargetState, output: tuple[int, int], kernel: int = 3) -> torch.Tensor:
    """(K, 2) float32: the middle of the search windows.

    Where cells and kernel together are odd, as they are for 30 x 52 cells, the window lies half a cell
    further to the bottom right.
    """
    shift = [((side // STRIDE + kernel) % 2) * STRIDE / 2 for side in output]
    return state.center + send(shift, torch.float32, state.center.device) * state.scale[:, None]


def search_windows(state: TargetState, image: tuple[int, int], output: tuple[int, int]) -> Windows:
    """Where objects are looked for: windows shrunk until one axis fits the frame, then moved inside.

    On the axis that does not fit, the window is centered on the frame.

    Args:
        state: of the K objects.
        image: (H, W) of the frame.
        output: (h, w) of the crops.
    """
    center, frame = search_centers(state, output), _pair(image, state.center)
    wanted = state.scale[:, None] * _pair(output, center)
    shrink = (wanted / frame).amin(1, keepdim=True).clamp_min(1)
    windows = _windows(center, (wanted / shrink).trunc(), output)
    limit = _thinned(image, windows)
    excess = windows.extent - limit
    inside = torch.minimum(windows.corner.clamp_min(0), -excess)
    off_by_one = torch.where(windows.corner < 0, 0, -1)  # the authors' halving loses an excess of one
    centered = torch.where(excess == 1, off_by_one, -(excess // 2))
    corner = torch.where(excess > 0, centered, inside)
    return windows._replace(corner=corner)


def first_windows(state: TargetState, image: tuple[int, int], output: tuple[int, int]) -> Windows:
    """The windows of first frames: those that contain as much of the frame as they can.

    A rectangle of twice the size around the object is resized to twice the output; the crop is taken out of
    it, moved towards the frame by as much as a centered one would stick out.
    """
    frame, wanted = _pair(image, state.center), state.scale[:, None] * _pair(output, state.center)
    wanted = wanted / (wanted / frame).amin(1, keepdim=True).clamp_min(1)
    scale = (wanted / _pair(output, wanted)).prod(1, keepdim=True).sqrt()
    before = (-(state.center - (wanted - 1) / 2)).clamp_min(0)
    behind = (state.center + wanted / 2 + 1 - frame).clamp_min(0)
    moved = ((behind - before) / scale).trunc().long()
    double = (2 * output[0], 2 * output[1])
    windows = _windows(state.center.round(), scale * _pair(double, scale), double)
    margin = send((output[0] // 2, output[1] // 2), torch.int64, moved.device)
    return windows._replace(start=margin - moved, output=output)


def cut_image(image: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Crops of a frame, resized bilinearly (align_corners=False, no antialiasing), with repeated borders.

    Args:
        image: (1, C, H, W) float.
        windows: K of them.

    Returns:
        (K, C, h, w).
    """
    limit = _thinned((image.shape[2], image.shape[3]), windows)
    taken = []
    for axis in (0, 1):
        ratio = windows.extent[:, axis, None].to(image.dtype) / windows.full[axis]
        position = ((_cells(windows, axis) + 0.5) * ratio - 0.5).clamp_min(0)
        first, second, fraction = _neighbors(position, windows.extent[:, axis, None])
        taken.append((_pixels(windows, axis, first, limit), _pixels(windows, axis, second, limit), fraction))
    (top, bottom, down), (left, right, across) = taken  # (K, h) each, (K, w) each
    picture = image[0].transpose(0, 1)  # rows first: (H, C, W), so that a row of pixels is copied at once
    rows = picture[top].lerp(picture[bottom], down[:, :, None, None])  # (K, h, C, W)
    shape = (*rows.shape[:3], left.shape[1])
    left, right = (index[:, None, None, :].expand(shape) for index in (left, right))
    crops = rows.gather(3, left).lerp(rows.gather(3, right), across[:, None, None, :].expand(shape))
    return crops.transpose(1, 2)


def cut_masks(masks: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Crops of each object's own mask, resized to the nearest pixel, with nothing outside the frame.

    Args:
        masks: (K, H, W) float.
        windows: K of them.

    Returns:
        (K, h, w).
    """
    limit = _thinned((masks.shape[1], masks.shape[2]), windows)
    places, inside = [], []
    for axis in (0, 1):
        extent = windows.extent[:, axis, None]
        nearest = (_cells(windows, axis) * (extent.float() / windows.full[axis])).floor().long()
        place = windows.corner[:, axis, None] + nearest.minimum(extent - 1)
        inside.append((place >= 0) & (place < limit[:, axis, None]))
        places.append(_pixels(windows, axis, nearest.minimum(extent - 1), limit))
    objects = torch.arange(len(masks), device=masks.device)[:, None, None]
    known = inside[0][:, :, None] & inside[1][:, None, :]  # (K, h, w)
    return masks[objects, places[0][:, :, None], places[1][:, None, :]] * known


def paste(scores: torch.Tensor, boxes: torch.Tensor, image: tuple[int, int]) -> torch.Tensor:
    """Scores of crops back at their place in the frame.

    They are resized bilinearly by one factor for both axes, the geometric mean, down to whole pixels, and
    laid around the middle of the window; what falls outside the frame is lost.

    Args:
        scores: (K, h, w) float, logits.
        boxes: (K, 4) int64, see `Windows.boxes`.
        image: (H, W) of the frame.

    Returns:
        (K, H, W), `OUTSIDE` where no window is.
    """
    output = (scores.shape[1], scores.shape[2])
    sides = (boxes[:, 2:] - boxes[:, :2]).float()
    factor = (sides / _pair(output, sides)).prod(1, keepdim=True).sqrt().double()
    wanted = send(output, torch.int64, boxes.device)
    sizes = (factor * wanted).floor()
    middle = 0.5 * (boxes[:, :2] + boxes[:, 2:] - 1).double()
    corner = (middle - 0.5 * sizes).trunc().long()
    # PyTorch copies what keeps its size, whatever the factor
    kept = (sizes == wanted).all(1, keepdim=True)
    ratio = torch.where(kept, 1, 1 / factor).to(scores.dtype)
    return _lay(scores, corner, sizes.long(), ratio.expand(-1, 2), image)


def _lay(
    scores: torch.Tensor,
    corner: torch.Tensor,
    sizes: torch.Tensor,
    ratio: torch.Tensor,
    image: tuple[int, int],
) -> torch.Tensor:
    index, inside = [], []
    for axis in (0, 1):
        place = torch.arange(image[axis], device=scores.device) - corner[:, axis, None]
        inside.append((place >= 0) & (place < sizes[:, axis, None]))
        length = scores.shape[1 + axis]
        position = ((place + 0.5) * ratio[:, axis, None] - 0.5).clamp(0, length - 1)
        index.append(_neighbors(position, torch.full_like(sizes[:, :1], length)))
    (top, bottom, down), (left, right, across) = index
    objects = torch.arange(len(scores), device=scores.device)[:, None]
    rows = scores[objects, top].lerp(scores[objects, bottom], down[:, :, None])  # (K, H, w)
    shape = (len(scores), *image)
    left, right = (places[:, None, :].expand(shape) for places in (left, right))
    laid = rows.gather(2, left).lerp(rows.gather(2, right), across[:, None, :].expand(shape))
    return laid.masked_fill(~(inside[0][:, :, None] & inside[1][:, None, :]), OUTSIDE)


def _windows(center: torch.Tensor, size: torch.Tensor, output: tuple[int, int]) -> Windows:
    """Windows of a size around a center, thinned out where they are more than twice the output."""
    if min(output) < 1:
        raise InputError(f"a crop needs at least one row and one column, got {output}")
    ratio = (size / _pair(output, size)).amin(1, keepdim=True)
    step = (ratio.double() - 0.1).trunc().long().clamp_min(1)
    middle = center.trunc().long()
    offset = middle % step
    middle = (middle - offset) // step
    extent = (size / step).round().long().clamp_min(2)
    corner = middle - (extent - 1) // 2
    return Windows(corner, extent, step, offset, torch.zeros_like(corner), output, output)


def _thinned(image: tuple[int, int], windows: Windows) -> torch.Tensor:
    """(K, 2) int64: how many rows and columns of the frame remain."""
    frame = send(image, torch.int64, windows.corner.device)
    return (frame - windows.offset + windows.step - 1) // windows.step


def _cells(windows: Windows, axis: int) -> torch.Tensor:
    """(K, n) int64: the used cells of the resized rectangle, along one axis."""
    return torch.arange(windows.output[axis], device=windows.corner.device) + windows.start[:, axis, None]


def _pixels(windows: Windows, axis: int, index: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """(K, n) int64: the frame's row or column for a row or column of the rectangle; borders are repeated."""
    place = (windows.corner[:, axis, None] + index).clamp_min(0).minimum(limit[:, axis, None] - 1)
    return windows.offset[:, axis, None] + windows.step * place


def _neighbors(
    position: torch.Tensor, length: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Between which two of `length` places a position lies, and how far towards the second (0..1)."""
    first = position.floor().long().minimum(length - 1)
    return first, (first + 1).minimum(length - 1), (position - first).clamp(0, 1)


def _pair(values: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """(2,) float32."""
    return send(values, torch.float32, like.device)
