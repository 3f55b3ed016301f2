"""A field of a request is known to every way in: Python, command line, HTTP, page."""

from dataclasses import fields

from filmlet.api.schemas import VideoCreate, VideoExtend
from filmlet.cli.main import build_parser
from filmlet.cli.options import build_clip_request
from filmlet.core.request import ClipOptions, ClipRequest
from filmlet.ui.form import Form
from filmlet.ui.form_settings import FormSettings

FIELDS = {field.name for field in fields(ClipRequest)}
SIZE = {"width", "height"}


def test_python_takes_every_field() -> None:
    options = set(ClipOptions.__annotations__) - {"size", "image", "last_image"}
    # A prompt may be what `enhance_prompt` returns.
    assert options == FIELDS - SIZE - {"prompt", "enhanced_prompts"}


def test_command_line_takes_every_field() -> None:
    """Options in the words of the command line; --image and --last-image are guides."""
    names = {
        "then": "extra_prompts", "backward": "extend_backward", "lora": "loras",
        "keyframe": "guides", "image": "guides", "last_image": "guides",
        "enhance": "enhanced_prompts",
    }  # fmt: skip
    for command in ("generate", "submit", "plan"):
        options = vars(build_parser().parse_args([command, "a ball"]))
        taken = {names.get(name, name) for name in options}
        assert taken >= FIELDS - SIZE, command
        assert "size" in taken


def test_api_takes_every_field() -> None:
    """Guides are uploads; a server takes no guidance that its models are not made for."""
    taken = VideoCreate.model_fields.keys() | VideoExtend.model_fields.keys()
    uploads = {"guides", "extend"}
    names = {"enhance_prompt": "enhanced_prompts"}
    taken_fields = {names.get(name, name) for name in taken - {"size", "priority"}}
    assert taken_fields == FIELDS - SIZE - uploads - {"force_guidance"}
    # Size and frame rate are the video's that is extended, which has no draft.
    only_new = {"size", "fps", "draft"}
    assert VideoCreate.model_fields.keys() - only_new == VideoExtend.model_fields.keys() - {
        "extend_backward"
    }


def test_form_has_what_a_new_video_takes() -> None:
    """Steps and guidance are the model's on the page; length is in seconds."""
    components = {field.name for field in fields(Form)}
    taken = VideoCreate.model_fields.keys() - {"size", "priority", "steps", "guidance", "frames"}
    taken -= {"enhance_prompt"}  # a button puts the text into the prompt
    assert taken | SIZE <= components
    settings = FormSettings.model_fields.keys()
    assert taken | SIZE | {"frames"} <= settings
    assert settings <= FIELDS | {"extend_id", "start"}


def test_command_line_asks_for_no_sound() -> None:
    for command in ("generate", "submit", "plan"):
        for words, audio in (([], True), (["--no-audio"], False)):
            options = build_parser().parse_args([command, "a ball", *words])
            assert build_clip_request(options).audio is audio
