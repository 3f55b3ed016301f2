import math

import pytest

from filmlet.errors import InvalidRequest
from filmlet.request import ClipRequest, clip_request, parse_size
from filmlet.shape import Grid, fit

GRID = Grid(max_side=512)


def shape_of(**settings: object) -> tuple[int, ...]:
    shape, _ = fit(clip_request("a ball", **settings), GRID)
    return shape.width, shape.height, shape.frames


def test_a_legal_shape_is_made_as_asked_and_nothing_is_reported() -> None:
    shape, changes = fit(clip_request("a ball", size="320x192", frames=49), GRID)
    assert (shape.width, shape.height, shape.frames) == (320, 192, 49)
    assert not shape.is_cut
    assert changes == []


def test_odd_shapes_are_made_larger_and_cut_to_exactly_what_was_asked() -> None:
    shape, changes = fit(clip_request("a ball", size="250x130", frames=20), GRID)
    assert (shape.width, shape.height, shape.frames) == (250, 130, 20)
    assert (shape.made_width, shape.made_height, shape.made_frames) == (256, 160, 25)
    assert {c.field for c in changes} == {"made_width", "made_height", "made_frames"}


@pytest.mark.parametrize("frames", range(1, 60))
def test_made_frames_are_the_nearest_8k_plus_1_above(frames: int) -> None:
    made = GRID.next_frames(frames)
    assert made % 8 == 1
    assert frames <= made < frames + 8


def test_seconds_become_whole_frames_and_the_rounding_is_told() -> None:
    shape, changes = fit(clip_request("a ball", seconds=1.03, fps=24.0), GRID)
    assert shape.frames == 25
    assert math.isclose(shape.frames / shape.fps, 1.0417, abs_tol=1e-4)
    assert [c.field for c in changes] == ["seconds"]
    assert fit(clip_request("a ball", seconds=2), GRID)[1][0].field == "made_frames"


def test_an_uneven_side_becomes_even_with_a_reason() -> None:
    shape, changes = fit(clip_request("a ball", size="255x256"), GRID)
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
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ClipRequest(prompt)
    assert refused.value.code == "invalid_prompt"


def test_size_reads_both_kinds_of_cross() -> None:
    assert parse_size("256x384") == parse_size("256×384") == parse_size("256X384") == (256, 384)


def test_asked_lists_what_was_given_and_no_defaults() -> None:
    request = clip_request("a ball", frames=9, size="64x96")
    assert request.asked() == {"prompt": "a ball", "frames": 9, "width": 64, "height": 96}
