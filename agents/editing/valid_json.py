"""JSON that every reader takes: a model that broke has figures that are no numbers, and NaN is not JSON."""

import json
import math
from collections.abc import Mapping
from typing import Any


def valid_json(value: Any, **options: Any) -> str:
    """The value as JSON, with null for NaN and infinity.

    Args:
        value: Of objects, lists, texts, numbers, booleans and None.
        options: Of :func:`json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
