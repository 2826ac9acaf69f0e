"""The states of a managed node, as ROS 2 defines them (design.ros2.org, "Managed nodes").

    unconfigured --configure--> inactive --activate--> active
                 <--cleanup----          <-deactivate-           shutdown leads from each to finalized

Here, inactive has the networks loaded, and only active takes pictures. Deactivating keeps the objects,
cleaning up forgets them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from streamvos.ros2.transport import Qos, Transport
from streamvos.rosmsg.types import make
from streamvos.types import InputError, StreamvosError

UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = 1, 2, 3, 4
STATES = {UNCONFIGURED: "unconfigured", INACTIVE: "inactive", ACTIVE: "active", FINALIZED: "finalized"}
TRANSITIONS = {  # id -> its name, where it begins, and where it leads
    1: ("configure", UNCONFIGURED, INACTIVE),
    2: ("cleanup", INACTIVE, UNCONFIGURED),
    3: ("activate", INACTIVE, ACTIVE),
    4: ("deactivate", ACTIVE, INACTIVE),
    5: ("shutdown", UNCONFIGURED, FINALIZED),
    6: ("shutdown", INACTIVE, FINALIZED),
    7: ("shutdown", ACTIVE, FINALIZED),
}


class Lifecycle:
    """The state, its services, and the topic that tells changes.

    Args:
        transport: where the services are.
        name: the node's name.
        actions: name of a transition -> what it does; an error leaves the state.
        ask: carries a change out in the node's loop.

    Attributes:
        state: the id of the state.
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        actions: Mapping[str, Callable[[], None]],
        ask: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self.state = UNCONFIGURED
        self._actions, self._ask = actions, ask
        event = "lifecycle_msgs/msg/TransitionEvent"
        self._tell = transport.publisher(f"/{name}/transition_event", event, Qos(depth=10))
        for service, answer in (
            ("GetState", lambda _: {"current_state": _state(self.state)}),
            ("ChangeState", self._change),
            ("GetAvailableStates", lambda _: {"available_states": [_state(one) for one in STATES]}),
            ("GetAvailableTransitions", self._available),
        ):
            kind, place = f"lifecycle_msgs/srv/{service}", f"/{name}/{_snake(service)}"
            transport.serve(place, kind, _answering(answer, f"{kind}_Response"))

    def do(self, transition: str) -> None:
        """Go through a transition; InputError if it does not begin here."""
        found = [
            key for key, (name, start, _) in TRANSITIONS.items() if (name, start) == (transition, self.state)
        ]
        if not found:
            possible = ", ".join(name for name, start, _ in TRANSITIONS.values() if start == self.state)
            raise InputError(
                f"{transition!r} is not possible in the state {STATES[self.state]}; possible: "
                f"{possible or 'none'}"
            )
        before, (_, _, after) = self.state, TRANSITIONS[found[0]]
        self._actions[transition]()
        self.state = after
        self._tell(
            make(
                "lifecycle_msgs/msg/TransitionEvent",
                timestamp=time.time_ns(),
                transition=make("lifecycle_msgs/msg/Transition", id=found[0], label=transition),
                start_state=_state(before),
                goal_state=_state(after),
            )
        )

    def _change(self, request: Any) -> dict[str, Any]:
        wanted = request.transition
        name = TRANSITIONS[wanted.id][0] if wanted.id in TRANSITIONS else wanted.label
        try:
            self._ask(lambda: self.do(name))
        except StreamvosError:
            return {"success": False}  # the answer has no room for a reason; the log has
        return {"success": True}

    def _available(self, _: Any) -> dict[str, Any]:
        here = [
            make(
                "lifecycle_msgs/msg/TransitionDescription",
                transition=make("lifecycle_msgs/msg/Transition", id=key, label=name),
                start_state=_state(start),
                goal_state=_state(goal),
            )
            for key, (name, start, goal) in TRANSITIONS.items()
            if start == self.state
        ]
        return {"available_transitions": here}


def _answering(answer: Callable[[Any], dict[str, Any]], response: str) -> Callable[[Any], Any]:
    return lambda request: make(response, **answer(request))


def _state(number: int) -> Any:
    return make("lifecycle_msgs/msg/State", id=number, label=STATES[number])


def _snake(name: str) -> str:
    return "".join(f"_{one.lower()}" if one.isupper() else one for one in name).lstrip("_")
