"""Parameters of the node, with the services that `ros2 param` calls.

Those that may be set hold from the next frame on; the others say how the node was started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamvos.ros2.transport import Transport
from streamvos.rosmsg.types import make

NOT_SET, BOOL, INTEGER, DOUBLE, STRING = 0, 1, 2, 3, 4
_FIELDS = {BOOL: "bool_value", INTEGER: "integer_value", DOUBLE: "double_value", STRING: "string_value"}
_TYPES = {bool: BOOL, int: INTEGER, float: DOUBLE, str: STRING}


@dataclass
class Parameter:
    """Attributes:
    value: bool, int, float or str; a new one must have the same type.
    description: one line.
    range: least and greatest value of a float that may be set.
    read_only: whether it may not be set.
    """

    value: Any
    description: str
    range: tuple[float, float] | None = None
    read_only: bool = True


class Parameters:
    """The parameters by name, and their services.

    Args:
        transport: where the services are.
        name: the node's name.
        parameters: name -> parameter.
    """

    def __init__(self, transport: Transport, name: str, parameters: Mapping[str, Parameter]) -> None:
        self._parameters = dict(parameters)
        for service, answer in (
            ("list_parameters", self._list),
            ("get_parameters", self._get),
            ("get_parameter_types", self._types),
            ("describe_parameters", self._describe),
            ("set_parameters", self._set),
            ("set_parameters_atomically", self._set_all),
        ):
            kind = "".join(word.capitalize() for word in service.split("_"))
            transport.serve(f"/{name}/{service}", f"rcl_interfaces/srv/{kind}", answer)

    def __getitem__(self, name: str) -> Any:
        return self._parameters[name].value

    def _list(self, request: Any) -> Any:
        names = [
            one
            for one in self._parameters
            if not request.prefixes or any(f"{one}.".startswith(f"{prefix}.") for prefix in request.prefixes)
        ]
        result = make("rcl_interfaces/msg/ListParametersResult", names=names)
        return make("rcl_interfaces/srv/ListParameters_Response", result=result)

    def _get(self, request: Any) -> Any:
        values = [_as_value(self._parameters.get(name)) for name in request.names]
        return make("rcl_interfaces/srv/GetParameters_Response", values=values)

    def _types(self, request: Any) -> Any:
        import numpy as np

        types = [_as_value(self._parameters.get(name)).type for name in request.names]
        return make("rcl_interfaces/srv/GetParameterTypes_Response", types=np.array(types, np.uint8))

    def _describe(self, request: Any) -> Any:
        found = [_description(name, self._parameters.get(name)) for name in request.names]
        return make("rcl_interfaces/srv/DescribeParameters_Response", descriptors=found)

    def _set(self, request: Any) -> Any:
        results = []
        for one in request.parameters:
            reason = self._refusal(one)
            if not reason:
                self._accept(one)
            results.append(_result(reason))
        return make("rcl_interfaces/srv/SetParameters_Response", results=results)

    def _set_all(self, request: Any) -> Any:
        reason = next(filter(None, map(self._refusal, request.parameters)), "")
        if not reason:
            for one in request.parameters:
                self._accept(one)
        return make("rcl_interfaces/srv/SetParametersAtomically_Response", result=_result(reason))

    def _accept(self, one: Any) -> None:
        self._parameters[one.name].value = getattr(one.value, _FIELDS[one.value.type])

    def _refusal(self, one: Any) -> str:
        """Why a new value is refused; "" if it is not."""
        parameter = self._parameters.get(one.name)
        if parameter is None:
            return f"there is no parameter {one.name!r}; there are {', '.join(self._parameters)}"
        if parameter.read_only:
            return f"{one.name} can only be set when the node is started"
        if one.value.type != _TYPES[type(parameter.value)]:
            return f"{one.name} is a {type(parameter.value).__name__}, got type {one.value.type}"
        value = getattr(one.value, _FIELDS[one.value.type])
        if parameter.range is not None and not parameter.range[0] <= value <= parameter.range[1]:
            return f"{one.name} must lie within {parameter.range[0]:g}..{parameter.range[1]:g}, got {value!r}"
        return ""


def _as_value(parameter: Parameter | None) -> Any:
    if parameter is None:
        return make("rcl_interfaces/msg/ParameterValue")
    kind = _TYPES[type(parameter.value)]
    fields: dict[str, Any] = {_FIELDS[kind]: parameter.value}
    return make("rcl_interfaces/msg/ParameterValue", type=kind, **fields)


def _description(name: str, parameter: Parameter | None) -> Any:
    if parameter is None:
        return make("rcl_interfaces/msg/ParameterDescriptor", name=name)
    ranges = []
    if parameter.range is not None:
        low, high = parameter.range
        ranges = [make("rcl_interfaces/msg/FloatingPointRange", from_value=low, to_value=high)]
    return make(
        "rcl_interfaces/msg/ParameterDescriptor",
        name=name,
        type=_TYPES[type(parameter.value)],
        description=parameter.description,
        read_only=parameter.read_only,
        floating_point_range=ranges,
    )


def _result(reason: str) -> Any:
    return make("rcl_interfaces/msg/SetParametersResult", successful=not reason, reason=reason)
