"""A ROS 2 node that follows objects in a camera's pictures.

    node = Node(transport, load=lambda: streamvos.load(), options=NodeOptions(image="/camera/image_raw"))
    node.run()

One loop owns the segmenter: it takes the newest picture, the requests that came since, and publishes. All
else happens in the transport's threads, and waits for the loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamvos.masks.checks import object_ids
from streamvos.masks.pointing import Pointing
from streamvos.ros2.diagnostics import Diagnostics
from streamvos.ros2.followed import Followed, merged, object_mask
from streamvos.ros2.history import History
from streamvos.ros2.inbox import Inbox, Order, carry_out
from streamvos.ros2.lifecycle import ACTIVE, FINALIZED, STATES, Lifecycle
from streamvos.ros2.parameters import Parameter, Parameters
from streamvos.ros2.transport import Qos, Transport
from streamvos.rosmsg.pictures import COMPRESSED, IMAGE, label_map_image, mask_of, rgb_of
from streamvos.rosmsg.results import detections, label_info
from streamvos.rosmsg.types import decode, make, stamp_ns, time_ns
from streamvos.segmenter import Segmenter
from streamvos.selection.objects import Selects, select_objects
from streamvos.types import InputError, ObjectResult, StreamvosError

logger = logging.getLogger(__name__)

_FRAME_SECONDS = 5.0
"""Longest time that a request waits for a picture."""

_TURN_SECONDS = 60.0
"""Longest time that a request waits for the loop, which may be loading networks."""

_PICTURE_DEPTH = 4
_RESULT_DEPTH = 4


@dataclass(frozen=True)
class NodeOptions:
    """What cannot change while the node runs.

    Attributes:
        image: topic of the pictures.
        name: of the node; its topics and services begin with it.
        compressed: whether the pictures are CompressedImage.
        reliable: whether lost pictures are sent again.
        autostart: whether it becomes active by itself.
    """

    image: str
    name: str = "streamvos"
    compressed: bool = False
    reliable: bool = False
    autostart: bool = True


class Node:
    """The node; `run` is its life.

    Args:
        transport: its connections; the caller closes them.
        load: makes a fresh segmenter.
        options: see there.
        make_selector: makes what selects objects by points and boxes, when it is needed first.
        first_mask: (H, W) uint8 label map of the first picture.
        first_pointing: further objects in the first picture.
    """

    def __init__(
        self,
        transport: Transport,
        load: Callable[[], Segmenter],
        options: NodeOptions,
        make_selector: Callable[[], Selects],
        first_mask: np.ndarray | None = None,
        first_pointing: Pointing | None = None,
    ) -> None:
        self.options, self.frames = options, 0
        self._transport, self._load, self._make_selector = transport, load, make_selector
        self._first = (first_mask, first_pointing or Pointing())
        self._inbox, self._followed, self._history = Inbox(), Followed(), History()
        self._vos: Segmenter | None = None
        self._selector: Selects | None = None
        self._objects: dict[int, ObjectResult] = {}
        self._label_map: np.ndarray | None = None
        self._last_step = 0.0
        self._header = make("std_msgs/msg/Header")
        self._open()

    @property
    def dropped(self) -> int:
        """Pictures that were dropped for newer ones."""
        return self._inbox.dropped

    def _open(self) -> None:
        transport, name = self._transport, self.options.name
        self._publish_map = transport.publisher(f"/{name}/label_map", IMAGE, Qos(depth=_RESULT_DEPTH))
        self._publish_detections = transport.publisher(
            f"/{name}/detections", "vision_msgs/msg/Detection2DArray", Qos(depth=_RESULT_DEPTH)
        )
        self._publish_labels = transport.publisher(
            f"/{name}/labels", "vision_msgs/msg/LabelInfo", Qos(latched=True)
        )
        self._diagnostics = Diagnostics(transport, name)
        self._parameters = Parameters(
            transport,
            name,
            {
                "max_rate": Parameter(
                    0.0, "largest number of frames a second; 0: all that time allows", (0.0, 1000.0), False
                ),
                "label_map": Parameter(True, "whether the label map is published", read_only=False),
                "detections": Parameter(True, "whether detections are published", read_only=False),
                "image": Parameter(self.options.image, "topic of the pictures"),
                "compressed": Parameter(self.options.compressed, "whether they are CompressedImage"),
                "reliable": Parameter(self.options.reliable, "whether lost pictures are sent again"),
            },
        )
        self.lifecycle = Lifecycle(
            transport,
            name,
            {
                "configure": self._configure,
                "activate": self._activate,
                "deactivate": self._inbox.discard_picture,
                "cleanup": self._clean_up,
                "shutdown": self._inbox.discard_picture,
            },
            lambda work: self._inbox.ask(work, _TURN_SECONDS),
        )
        select = "streamvos_msgs/srv/SelectObject"
        transport.serve(
            f"/{name}/add", select, lambda request: self._answer(select, self._select, request, True)
        )
        transport.serve(
            f"/{name}/correct", select, lambda request: self._answer(select, self._select, request, False)
        )
        forget = "streamvos_msgs/srv/ForgetObject"
        transport.serve(
            f"/{name}/forget", forget, lambda request: self._answer(forget, self._forget, request)
        )
        transport.serve(
            f"/{name}/list",
            "streamvos_msgs/srv/ListObjects",
            lambda _: self._answer("streamvos_msgs/srv/ListObjects", self._list),
        )
        reset = "std_srvs/srv/Trigger"
        transport.serve(f"/{name}/reset", reset, lambda _: self._answer(reset, self._reset))
        kind = COMPRESSED if self.options.compressed else IMAGE
        qos = Qos(self.options.reliable, depth=_PICTURE_DEPTH)
        transport.subscribe(self.options.image, kind, qos, self._take)

    # ---- in the transport's threads

    def _take(self, content: bytes) -> None:
        if self.lifecycle.state == ACTIVE:
            self._inbox.put_picture(content)

    def _answer(self, service: str, function: Callable[..., dict[str, Any]], *given: Any) -> Any:
        response = f"{service}_Response"
        try:
            return make(response, success=True, **function(*given))
        except StreamvosError as error:
            logger.warning("%s: %s", service.rsplit("/", 1)[-1], error)
            return make(response, success=False, message=" ".join(str(error).split()))

    def _select(self, request: Any, is_new: bool) -> dict[str, Any]:
        if self.lifecycle.state != ACTIVE:
            raise InputError(
                f"the node is {STATES[self.lifecycle.state]}, not active, and looks at no picture"
            )
        name, points, box, stamp = request.id, _points(request), _box(request.box), time_ns(request.stamp)

        def mask_in(image: np.ndarray) -> tuple[str, int, np.ndarray]:
            label = self._followed.label_for(name) if is_new else self._followed.label_of(name)
            shown = self._history.picture(stamp) if stamp else image
            given = mask_of(request.mask, (shown.shape[0], shown.shape[1]))
            before = None if is_new or stamp or self._label_map is None else self._label_map == label
            mask = object_mask(self._selecting(), shown, points, box, given, before)
            if stamp and shown is not image:
                vos = Segmenter(self._segmenter.method, self._segmenter.device)
                mask = self._history.follow(vos, stamp, mask, image)
            return name, label, mask

        label = self._inbox.ask(mask_in, _FRAME_SECONDS, with_frame=True)
        return {"message": f"{name!r} has the value {label} in the label map"}

    def _forget(self, request: Any) -> dict[str, Any]:
        def forget() -> None:
            label = self._followed.label_of(request.id)
            self._segmenter.forget(label)
            del self._followed.labels[request.id]
            self._objects.pop(label, None)
            self._tell_labels()

        self._inbox.ask(forget, _TURN_SECONDS)
        return {"message": f"{request.id!r} is forgotten"}

    def _list(self) -> dict[str, Any]:
        def look() -> list[tuple[str, int, ObjectResult | None]]:
            return [(name, label, self._objects.get(label)) for name, label in self._followed.labels.items()]

        found = self._inbox.ask(look, _TURN_SECONDS)
        return {
            "message": f"{len(found)} objects are followed",
            "ids": [name for name, _, _ in found],
            "labels": np.array([label for _, label, _ in found], np.uint8),
            "states": ["lost" if one is None else one.state for _, _, one in found],
            "scores": np.array([0 if one is None else one.score for _, _, one in found], np.float32),
        }

    def _reset(self) -> dict[str, Any]:
        self._inbox.ask(self._forget_all, _TURN_SECONDS)
        return {"message": "every object is forgotten; pictures may have another size now"}

    # ---- in the loop

    def run(self) -> None:
        """Follow objects until the state is finalized.

        Raises:
            InputError: the first mask, boxes or points do not fit the first picture.
            SourceError: the transport fails.
        """
        if self.options.autostart:
            self.lifecycle.do("configure")
            self.lifecycle.do("activate")
        while self.lifecycle.state != FINALIZED:
            rest = self._rest()
            timeout = min(self._diagnostics.due(), rest) if rest > 0 else self._diagnostics.due()
            wanted = self.lifecycle.state == ACTIVE and rest <= 0
            picture, orders = self._inbox.wait(timeout, wanted)
            with_frame = [one for one in orders if one.with_frame]
            for order in orders:
                if not order.with_frame:
                    carry_out(order)
            try:
                if picture is not None and self.lifecycle.state == ACTIVE:
                    self._step(*picture, with_frame)
            finally:  # who asked waits for an answer, also where the node has been deactivated or fails
                for order in with_frame:
                    if not order.done.done():
                        order.done.set_exception(InputError("the node is not active any more"))
            if self._diagnostics.due() <= 0:
                self._report()

    def _rest(self) -> float:
        """Seconds for which max_rate lets no picture in."""
        rate = self._parameters["max_rate"]
        return 0.0 if rate <= 0 else self._last_step + 1 / rate - time.monotonic()

    def _step(self, content: bytes, arrived_ns: int, orders: list[Order]) -> None:
        self._last_step = time.monotonic()
        try:
            message = decode(content, COMPRESSED if self.options.compressed else IMAGE)
            image = rgb_of(message)
        except InputError as error:
            self._refuse(error, orders)
            return
        self._history.add(stamp_ns(message.header), image)
        masks = self._first_masks(image)
        accepted: list[tuple[Order, str, int]] = []
        known = dict(self._followed.labels)
        for order in orders:
            try:
                name, label, mask = order.work(image)
            except Exception as error:
                order.done.set_exception(error)
                continue
            masks[label] = mask
            self._followed.labels[name] = label
            accepted.append((order, name, label))
        try:
            self._follow(image, merged(masks, (image.shape[0], image.shape[1])), message.header, arrived_ns)
        except InputError as error:
            self._followed.labels = known
            self._refuse(error, [order for order, _, _ in accepted])
            return
        self._first = (None, Pointing())
        for order, _, label in accepted:
            order.done.set_result(label)

    def _follow(self, image: np.ndarray, mask: np.ndarray | None, header: Any, arrived_ns: int) -> None:
        vos = self._segmenter
        if mask is None and not vos.object_ids:
            label_map, objects = np.zeros(image.shape[:2], np.uint8), {}
        else:
            result = vos.step(image, mask)
            label_map, objects = result.mask, dict(result.objects)
        self._label_map, self._objects, self._header = label_map, objects, header
        if self._parameters["label_map"]:
            self._publish_map(label_map_image(label_map, header))
        if self._parameters["detections"]:
            self._publish_detections(detections(objects, self._followed.names, header))
        if mask is not None:
            self._tell_labels()
        self.frames += 1
        self._diagnostics.frame(stamp_ns(header), arrived_ns)

    def _refuse(self, error: InputError, orders: list[Order]) -> None:
        """A picture cannot be used: say it, once for many of the same kind."""
        for order in orders:
            order.done.set_exception(error)
        text = " ".join(str(error).split())
        if self._diagnostics.refused(text):
            logger.warning("a picture was refused: %s", text)

    def _first_masks(self, image: np.ndarray) -> dict[int, np.ndarray]:
        """The masks of the objects that the node was started with, in its first picture."""
        label_map, pointing = self._first
        if label_map is None and not pointing.ids:
            return {}
        whole = np.zeros(image.shape[:2], np.uint8)
        if pointing.ids:
            whole = select_objects(self._selecting(), image, pointing)
        if label_map is not None:
            if label_map.shape != whole.shape:
                raise _unfit(label_map.shape, whole.shape)
            whole = np.where(label_map != 0, label_map, whole)
        found = object_ids(whole)
        self._followed.labels.update({str(one): one for one in found})
        return {one: whole == one for one in found}

    def _configure(self) -> None:
        self._vos = self._load()

    def _activate(self) -> None:
        self._tell_labels()

    def _clean_up(self) -> None:
        self._forget_all()
        self._vos = self._selector = None

    def _forget_all(self) -> None:
        if self._vos is not None:
            self._vos.reset()
        self._followed.labels.clear()
        self._history.clear()
        self._objects, self._label_map = {}, None
        self._tell_labels()

    def _tell_labels(self) -> None:
        threshold = float(self._segmenter.method.options.uncertain_below)
        self._publish_labels(label_info(self._followed.names, self._header, threshold))

    def _selecting(self) -> Selects:
        if self._selector is None:
            self._selector = self._make_selector()
        return self._selector

    @property
    def _segmenter(self) -> Segmenter:
        if self._vos is None:
            raise InputError(f"the node is {STATES[self.lifecycle.state]}: it has no networks loaded")
        return self._vos

    def _report(self) -> None:
        states = [one.state for one in self._objects.values()]
        state = STATES[self.lifecycle.state]
        self._diagnostics.report(state, self.options.image, self._inbox.arrived, self._inbox.dropped, states)


def _points(request: Any) -> list[tuple[float, float, int]]:
    signs = [int(one) for one in request.signs] or [1] * len(request.points)
    if len(signs) != len(request.points):
        raise InputError(f"{len(request.points)} points have {len(signs)} signs; give one each, or none")
    return [(float(one.x), float(one.y), sign) for one, sign in zip(request.points, signs, strict=True)]


def _box(box: Any) -> tuple[float, float, float, float] | None:
    if not box.size_x and not box.size_y:
        return None
    if box.center.theta:
        raise InputError(f"the box is turned by {box.center.theta:g} rad; expected 0")
    x, y = float(box.center.position.x), float(box.center.position.y)
    values = x - box.size_x / 2, y - box.size_y / 2, x + box.size_x / 2, y + box.size_y / 2
    if not np.isfinite(values).all():
        raise InputError("the box has sides that are no finite numbers")
    return values


def _unfit(mask: tuple[int, ...], frame: tuple[int, ...]) -> InputError:
    return InputError(
        f"the mask is {mask[1]} x {mask[0]}, the pictures are {frame[1]} x {frame[0]} (W x H); both must "
        "agree"
    )
