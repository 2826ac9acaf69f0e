"""What JOINT remembers of an object.

A memory holds features and encoded masks of at most `memory_size` pictures, the filters fitted to them, and
the keys of the encoded pictures, so that reading encodes nothing but the present frame.

Encoding lets every remembered cell attend to all remembered cells. When one picture replaces another, the
sums of that attention change by the shares of these two, so a refresh costs a multiple of the pictures, not
of their square. Every picture but the first is dropped after a bounded number of exchanges, and the first
is summed up again piece by piece, so rounding errors cannot accumulate (docs/methods.md, JOINT, remark 9).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from streamvos.methods.joint.few_shot import FewShotProblem, convolve, steepest_descent
from streamvos.methods.joint.network import JOINTNetwork, Labels
from streamvos.methods.joint.options import JOINTOptions
from streamvos.methods.joint.transformer import attention_sums, residual_norm
from streamvos.methods.state_dicts import check_shapes, part_of, with_prefix
from streamvos.nn.precision import Precision, resolve_precision
from streamvos.nn.target_model.sample_weights import SampleWeights
from streamvos.types import InputError

OF_PICTURES = ("induction", "transduction", "self_keys", "numerator", "denominator", "memory_keys", "carried")
OF_OBJECTS = ("labels", "importance")
SUMS = ("numerator", "denominator")


class JOINTMemory:
    """Pictures, masks and filters of K objects.

    Args:
        network: the weights.
        options: the method's options.
        object_ids: the K ids.
        grid: (h, w) cells of a picture.

    Attributes:
        frames: how many frames the objects have been followed, the first included.
        together: whether pictures attend to each other in one operation rather than one by one; None = on a
            GPU, where launches cost more than the memory.
    """

    def __init__(
        self,
        network: JOINTNetwork,
        options: JOINTOptions,
        object_ids: tuple[int, ...],
        grid: tuple[int, int],
    ):
        self.network, self.options, self.object_ids, self.grid = network, options, object_ids, grid
        self.frames = 1
        self.together: bool | None = None
        self.weights = SampleWeights(
            options.memory_size,
            options.learning_rate,
            torch.ones(1),
            first_kept=True,
            floor=options.first_weight_floor,
        )
        self.pictures = 0
        self.filters = torch.empty(0)
        self._stored: dict[str, torch.Tensor] = {}
        self._borrowed = False  # the stored tensors belong to another memory and must not be written to

    @property
    def _precision(self) -> Precision:
        return resolve_precision(self.options.precision, self.filters.device)

    @property
    def capacity(self) -> int:
        """Pictures for which there is room now; it doubles when more is needed."""
        return len(self._stored["induction"]) if self._stored else 0

    def begin(
        self, induction: torch.Tensor, transduction: torch.Tensor, labels: Labels, filters: torch.Tensor
    ) -> None:
        """The first picture.

        Args:
            induction, transduction: (h*w, C).
            labels: (K, D, h, w) each.
            filters: (K, D, C, 3, 3), fitted to it.
        """
        self.filters = filters
        self._store(0, induction, transduction, labels)
        self._exchange(0, None)

    def read(self, induction: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """The encoding of a picture's mask by both branches.

        Args:
            induction: (h*w, C).
            queries: (h*w, E).

        Returns:
            (K, D, h, w), the sum of both.
        """
        induced = convolve(induction[None], self.filters[None], self.grid)[0, :, 0]  # (K, D, h, w)
        keys, carried = (self._used(name).flatten(0, 1) for name in ("memory_keys", "carried"))
        numerator, denominator = attention_sums(queries, keys, carried)  # (h*w, K*D), (h*w, 1)
        transduced = (numerator / denominator).t().reshape_as(induced)
        return induced + transduced

    def is_due(self) -> bool:
        """Whether this frame is to be remembered."""
        return (self.frames + 1) % self.options.update_interval == 0

    def remember(self, induction: torch.Tensor, transduction: torch.Tensor, labels: Labels) -> None:
        """Add a picture, in place of the oldest but the first if there is no room, and learn.

        Args:
            induction, transduction: (h*w, C).
            labels: (K, D, h, w) each, of the predicted masks.
        """
        if self._borrowed:
            self._stored = {name: value.clone() for name, value in self._stored.items()}
            self._borrowed = False
        weights = self.weights.copy()
        slot = weights.insert()
        gone = None
        if slot < self.pictures:
            gone = self._stored["self_keys"][slot].clone(), self._stored["transduction"][slot].clone()
        self._store(slot, induction, transduction, labels)
        self.weights = weights
        self._exchange(slot, gone)
        self._learn()

    def refit(self, steps: int) -> JOINTMemory:
        """Fit the filters again to the first picture alone, as on an object's first frame; returns itself."""
        tokens, labels, importance = (
            self._stored[name][:1] for name in ("induction", "labels", "importance")
        )
        problem = FewShotProblem(
            tokens, labels.transpose(0, 1)[None], importance.transpose(0, 1)[None], self.grid
        )
        fresh = self.network.no_filters(1, len(self.object_ids), tokens)
        self.filters = steepest_descent(fresh, problem, self.network.learner.regularization, steps)[0]
        return self

    def draft(self) -> JOINTMemory:
        """An independent copy, whose stored tensors are copied only when it remembers something.

        That may happen in another thread: this one may be read meanwhile, but not remember.
        """
        other = JOINTMemory(self.network, self.options, self.object_ids, self.grid)
        other.frames, other.weights, other.together = self.frames, self.weights, self.together
        other.pictures, other.filters = self.pictures, self.filters
        other._stored, other._borrowed = dict(self._stored), True
        return other

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that it holds on the device of the features."""
        return self.filters, *self._stored.values()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Tensors only, of the pictures there are."""
        state = {name: self._used(name).clone() for name in self._stored}
        state |= with_prefix("weights.", self.weights.state_dict())
        state["filters"] = self.filters.clone()
        state["frames"] = torch.tensor(self.frames)
        state["object_ids"] = torch.tensor(self.object_ids)
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from a `state_dict`, with the ids of the constructor.

        Raises:
            InputError: something is missing or does not fit; this memory is then unusable.
        """
        pictures, shapes = len(state.get("induction", ())), self._shapes()
        if not 1 <= pictures <= self.options.memory_size:
            raise InputError(
                f"the state has {pictures} pictures, the memory holds 1 to {self.options.memory_size}"
            )
        expected = {name: (pictures, *shape) for name, shape in shapes.items()}
        channels = self.network.learner.adjust.out_channels
        filters = (len(self.object_ids), self.network.labels, channels, 3, 3)
        check_shapes(state, {**expected, "filters": filters, "frames": ()})
        self.weights.load_state_dict(part_of(state, "weights."))
        if len(self.weights) != pictures:
            raise InputError(f"the state has {len(self.weights)} weights for {pictures} pictures")
        self._stored = {name: state[name].clone() for name in shapes}
        self.filters, self.pictures, self.frames = state["filters"].clone(), pictures, int(state["frames"])

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        (h, w), count, labels = self.grid, len(self.object_ids), self.network.labels
        keys, channels = self.network.transformer.self_attention.weight.shape
        of_cells = {
            "induction": channels,
            "transduction": channels,
            "numerator": channels,
            "self_keys": keys,
            "memory_keys": keys,
            "denominator": 1,
            "carried": count * labels,
        }
        return {
            **{name: (h * w, width) for name, width in of_cells.items()},
            **dict.fromkeys(OF_OBJECTS, (count, labels, h, w)),
        }

    def _used(self, name: str) -> torch.Tensor:
        return self._stored[name][: self.pictures]

    def _store(self, slot: int, induction: torch.Tensor, transduction: torch.Tensor, labels: Labels) -> None:
        if slot >= self.capacity:
            self._grow(induction)
        self.pictures = max(self.pictures, slot + 1)
        new = {
            "induction": induction,
            "transduction": transduction,
            "self_keys": self.network.transformer.self_keys(transduction),
            "labels": labels.induction,
            "importance": labels.importance,
            "carried": labels.transduction.permute(2, 3, 0, 1).flatten(2).flatten(0, 1),
        }
        for name, value in new.items():
            self._stored[name][slot] = value

    def _grow(self, like: torch.Tensor) -> None:
        room = min(max(2 * self.capacity, 1), self.options.memory_size)
        larger = {name: like.new_empty(room, *shape) for name, shape in self._shapes().items()}
        if self.pictures:
            for name, value in larger.items():
                value[: self.pictures] = self._used(name)
        self._stored = larger

    def _exchange(self, slot: int, gone: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        """Update the attention among the pictures.

        Args:
            slot: the slot of the new picture.
            gone: keys and values of the picture that was there before.
        """
        for pictures in self._portions():
            if pictures == slice(slot, slot + 1):
                continue
            queries = self._stored["self_keys"][pictures].flatten(0, 1)  # (n*h*w, E)
            new = self._stored["self_keys"][slot], self._stored["transduction"][slot]
            sums = attention_sums(queries, *new, self._precision)
            if gone is not None:
                taken = attention_sums(queries, *gone, self._precision)
                sums = sums[0] - taken[0], sums[1] - taken[1]
            for name, change in zip(SUMS, sums, strict=True):
                place = self._stored[name][pictures]
                place += change.view_as(place)
        self._encode(slot, slice(None))  # replaces what was added to the new picture itself
        if gone is not None:
            # slots are replaced in turn: after a round of them all cells of the first picture are exact again
            cells, rounds = self.grid[0] * self.grid[1], self.options.memory_size - 1
            first, end = cells * (slot - 1) // rounds, cells * slot // rounds
            if first < end:  # there may be fewer cells than rounds
                self._encode(0, slice(first, end))
        self._make_memory_keys()

    def _encode(self, slot: int, cells: slice) -> None:
        """Sums over all pictures for some cells of one."""
        for name in SUMS:
            self._stored[name][slot, cells] = 0
        keys, values = self._stored["self_keys"], self._stored["transduction"]
        for others in self._portions():
            seen = keys[others].flatten(0, 1), values[others].flatten(0, 1)
            sums = attention_sums(keys[slot, cells], *seen, self._precision)
            for name, share in zip(SUMS, sums, strict=True):
                self._stored[name][slot, cells] += share

    def _make_memory_keys(self) -> None:
        for pictures in self._portions():
            attended = self._stored["numerator"][pictures] / self._stored["denominator"][pictures]
            encoded = residual_norm(self._stored["transduction"][pictures], attended)
            self._stored["memory_keys"][pictures] = self.network.transformer.memory_keys(encoded)

    def _portions(self) -> list[slice]:
        """The pictures one at a time, so that little else is in memory, or all at once."""
        together = self.filters.device.type != "cpu" if self.together is None else self.together
        return [slice(0, self.pictures)] if together else [slice(k, k + 1) for k in range(self.pictures)]

    def _learn(self) -> None:
        gamma = self.weights.values[: self.pictures].to(self.filters, non_blocking=True)
        problem = FewShotProblem(
            self._used("induction").flatten(0, 1)[None],
            self._used("labels").transpose(0, 1)[None],
            (self._used("importance") * gamma[:, None, None, None, None]).transpose(0, 1)[None],
            self.grid,
        )
        regularization = self.network.learner.regularization
        steps = self.options.update_iterations
        self.filters = steepest_descent(self.filters[None], problem, regularization, steps)[0]
