import math
from collections.abc import Callable

import pytest

from filmlet.core.guide import Guide, parse_keyframe
from filmlet.core.lora import Lora, parse_lora
from filmlet.core.model_card import ModelCard
from filmlet.core.request import (
    FOREIGN_NAMES,
    ClipOptions,
    ClipRequest,
    build_request,
    parse_float,
    parse_int,
    parse_size,
)
from filmlet.core.shape import ShapeConstraints, resolve_shape
from filmlet.errors import InvalidRequest
from filmlet.jobs import Limits
from filmlet.models import MAX_UNKNOWN, REGISTRY, check_prompt

GRID = ShapeConstraints(max_side=512)


def shape_of(**settings: object) -> tuple[int, ...]:
    shape, _ = resolve_shape(build_request("a ball", **settings), GRID)
    return shape.width, shape.height, shape.frames


def test_legal_shape_is_made_as_asked_and_nothing_is_reported() -> None:
    shape, changes = resolve_shape(build_request("a ball", size="320x192", frames=49), GRID)
    assert (shape.width, shape.height, shape.frames) == (320, 192, 49)
    assert not shape.needs_crop
    assert changes == []


def test_odd_shapes_are_made_larger_and_cut_to_exactly_what_was_asked() -> None:
    shape, changes = resolve_shape(build_request("a ball", size="250x130", frames=20), GRID)
    assert (shape.width, shape.height, shape.frames) == (250, 130, 20)
    assert (shape.generated_width, shape.generated_height, shape.generated_frames) == (256, 160, 25)
    assert {c.field for c in changes} == {"generated_width", "generated_height"}


@pytest.mark.parametrize("frames", range(1, 60))
def test_made_frames_are_the_nearest_8k_plus_1_above(frames: int) -> None:
    made = GRID.round_up_frames(frames)
    assert made % 8 == 1
    assert frames <= made < frames + 8


def test_seconds_become_whole_frames_and_the_rounding_is_told() -> None:
    shape, changes = resolve_shape(build_request("a ball", seconds=1.03, fps=24.0), GRID)
    assert shape.frames == 25
    assert math.isclose(shape.frames / shape.fps, 1.0417, abs_tol=1e-4)
    assert [c.field for c in changes] == ["seconds"]


def test_frames_made_beyond_the_end_are_no_change() -> None:
    shape, changes = resolve_shape(build_request("a ball", seconds=2), GRID)
    assert (shape.frames, shape.generated_frames) == (48, 49)
    assert changes == []


def test_uneven_side_becomes_even_with_a_reason() -> None:
    shape, changes = resolve_shape(build_request("a ball", size="255x256"), GRID)
    assert shape.width == 256
    assert changes[0].field == "width"
    assert changes[0].requested == 255


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"size": "1x1"}, "size"),
        ({"size": "513x256"}, "size"),
        ({"size": "big"}, "size"),
        ({"size": "256"}, "size"),
        ({"size": "-256x256"}, "size"),
        ({"frames": 0}, "frames"),
        ({"frames": 258}, "frames"),
        ({"frames": 10.5}, "frames"),
        ({"frames": "25"}, "frames"),
        ({"frames": True}, "frames"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": 1000.0}, "seconds"),
        ({"seconds": math.nan}, "seconds"),
        ({"fps": 0.5}, "fps"),
        ({"fps": 61}, "fps"),
        ({"fps": math.inf}, "fps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"steps": 0}, "steps"),
        ({"guidance": -1.0}, "guidance"),
        ({"frames": 9, "seconds": 1.0}, "frames"),
        ({"colour": "red"}, "settings"),
    ],
)
def test_what_no_model_could_do_is_refused_by_the_name_of_its_setting(
    settings: dict[str, object], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        shape_of(**settings)
    assert refused.value.param == param
    assert refused.value.code == f"invalid_{param}"


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ClipRequest(prompt)
    assert refused.value.code == "invalid_prompt"


def test_size_reads_both_kinds_of_cross() -> None:
    assert parse_size("256x384") == parse_size("256×384") == parse_size("256X384") == (256, 384)


def test_asked_lists_what_was_given_and_no_defaults() -> None:
    request = build_request("a ball", frames=9, size="64x96")
    assert request.explicit_settings() == {
        "prompt": "a ball",
        "frames": 9,
        "width": 64,
        "height": 96,
    }


HUGE = int("9" * 400)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClipRequest("a", frames=HUGE),
        lambda: ClipRequest("a", steps=10**5000),
        lambda: ClipRequest("a", seed=10**5000),
        lambda: ClipRequest("a", width=HUGE),
        lambda: ClipRequest("a", seconds=HUGE),
        lambda: ClipRequest("a", seconds=1e308),
        lambda: ClipRequest("a", seconds=-0.0),
        lambda: ClipRequest("a", fps=math.inf),
        lambda: ClipRequest("a", guidance=math.nan),
        lambda: build_request("a", size="9" * 5000 + "x64"),
        lambda: parse_int("9" * 5000, "steps"),
        lambda: parse_float("9" * 5000 + "x", "seconds"),
        lambda: Guide("a.png", 10**5000),
        lambda: Guide("a.png", strength=HUGE),
        lambda: Guide("a.png", frames=10**5000),
        lambda: parse_keyframe("a.png@" + "9" * 5000),
        lambda: Lora("a/b", HUGE),
        lambda: parse_lora("a/b:" + "9" * 5000),
        lambda: Limits(HUGE, 1, 0).check(),
        lambda: Limits(1, 1, math.nan).check(),
    ],
    ids=range(20),
)
def test_number_of_any_size_is_refused_in_one_sentence(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make()
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(("fps", "seconds"), [(1e-310, None), (24, 1e-310), (1e9, 1e9)])
def test_tiny_or_large_rate_is_fitted_or_refused(fps: float, seconds: float | None) -> None:
    try:
        shape, _ = resolve_shape(ClipRequest("a", fps=fps, seconds=seconds), GRID)
    except InvalidRequest:
        return
    assert shape.frames == 1


def test_words_are_counted_and_listed_within_bounds() -> None:
    card = REGISTRY["pocket"]
    words = " ".join(f"xq{number:06d}z" for number in range(30_000))
    for prompt in (words, "q" * 300_000, "\ud800" * 9, "\U0001f600" * 9):
        read = check_prompt(card, prompt)
        assert read
        assert len(read.unknown) <= MAX_UNKNOWN
        assert all(len(word) <= 40 for word in read.unknown)
    unknown = check_prompt(card, "a reed bal").unknown
    assert "red" in unknown["reed"]
    assert "ball" in unknown["bal"]


@pytest.mark.parametrize("card", REGISTRY.values(), ids=lambda card: card.name)
@pytest.mark.parametrize(
    "size", ["720x1280", "1280x720", "1024x1792", "1792x1024", "4096x64", "1x1", "9x99999"]
)
def test_size_out_of_bounds_is_refused_with_one_that_is_taken(card: ModelCard, size: str) -> None:
    try:
        resolve_shape(build_request("a ball", size=size), card.grid)
    except InvalidRequest as error:
        nearest = str(error).partition("the nearest size is ")[2].rstrip(".")
        shape, changes = resolve_shape(build_request("a ball", size=nearest, frames=9), card.grid)
        assert (shape.generated_width, shape.generated_height) == (shape.width, shape.height)
        assert not changes
        wide, high = parse_size(size)
        assert (shape.width >= shape.height) == (wide >= high)
    else:
        assert max(parse_size(size)) <= card.grid.max_side


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_keyword_of_other_libraries_is_refused_with_ours(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"no setting '{name}'.*{FOREIGN_NAMES[name]}"):
        build_request("a ball", **{name: 9})
    assert FOREIGN_NAMES[name] in ClipOptions.__annotations__
    assert name not in ClipOptions.__annotations__
