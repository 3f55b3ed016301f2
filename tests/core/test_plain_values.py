"""Numbers and paths of other libraries are taken as what they are, or refused with a sentence."""

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from filmlet.core.guide import Guide
from filmlet.core.lora import Lora
from filmlet.core.request import ClipRequest, build_request
from filmlet.errors import InvalidRequest

TAKEN = {
    "frames": [np.int64(9), np.uint8(9), np.array(9)],
    "seed": [np.int64(9), np.uint64(9)],
    "seconds": [np.float64(2), np.float32(2), np.int32(2), Decimal(2), Fraction(2), np.array(2.0)],
    "guidance": [np.float16(2)],
    "size": [(64, 32), [64, 32], np.array([64, 32]), (np.int64(64), np.int16(32)), "64x32"],
    "draft": [np.True_, np.bool_(True), 1],
    "model": [Path("folder"), np.str_("folder")],
    "extend": [Path("a.mp4"), b"a.mp4"],
    "image": [Path("a.png"), np.str_("a.png")],
    "extra_prompts": [[np.str_("a cat")]],
    "guides": [[Guide(Path("a.png"), np.int64(8), np.float32(0.5), np.int8(1))]],  # type: ignore[arg-type]
    "loras": [[Lora(Path("a.safetensors"), np.float32(0.5))], [Path("a.safetensors")]],  # type: ignore[arg-type]
}
REFUSED = {
    "frames": [9.0, "9", True, np.True_, np.array([9, 9]), np.array([9]), None.__class__, 9j],
    "seed": [np.int64(-1), [1]],
    "seconds": ["2", True, np.array([1.0, 2.0]), np.nan, Decimal("nan"), 2j, np.complex64(2)],
    "fps": [np.float32("inf"), object()],
    "size": [(64,), (64, 32, 3), 64, (64.0, 32.0), np.zeros((2, 2)), "64", {"w": 64}, (1, None)],
    "draft": ["no", 2, [], np.array([True, False])],
    "model": [3, b"pocket"],
    "extend": [3, "", np.zeros(3)],
    "image": [3, "", ["a.png"]],
    "extra_prompts": ["a cat", [3], np.array(["a cat"])],
    "guides": [[3], "a.png", [{"file": 3}], 3, np.zeros(3)],
    "loras": [[3], "a.safetensors", [{"source": np.zeros(3)}], 3],
}  # fmt: skip


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return type(value) in (str, int, float, bool, type(None))


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in TAKEN.items() for v in vs])
def test_values_of_other_libraries_become_plain_ones(name: str, value: object) -> None:
    request = build_request(np.str_("a ball"), **{name: value})  # type: ignore[arg-type]
    settings = request.explicit_settings()
    assert is_plain(settings)
    assert json.loads(json.dumps(settings))
    first = build_request("a ball", **{name: TAKEN[name][0]})  # type: ignore[arg-type]
    if name != "loras":
        assert request == first
    assert ClipRequest(**settings) == request  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in REFUSED.items() for v in vs])
def test_what_is_no_value_of_a_setting_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        build_request("a ball", **{name: value})  # type: ignore[arg-type]
    assert refused.value.param in (name, "guides")


def test_number_of_another_library_is_the_same_number() -> None:
    make: Callable[..., ClipRequest] = build_request
    assert make("x", frames=np.int64(9), fps=np.float32(0.5)) == make("x", frames=9, fps=0.5)
    assert make("x", size=(64, 32)) == make("x", size="64x32")
