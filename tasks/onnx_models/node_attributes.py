"""Attributes of an ONNX node by name."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import NodeProto


class NodeAttributes:
    """A node and its attributes, as Python values; bytes as text."""

    def __init__(self, node: NodeProto) -> None:
        self.node = node
        self.values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or the default of an attribute that the node does not have."""
        value = self.values.get(name, default)
        return value.decode() if isinstance(value, bytes) else value
