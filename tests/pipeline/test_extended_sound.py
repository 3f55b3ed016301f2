"""A clip with sound that is extended by a model without: it keeps its own over its frames."""

from pathlib import Path

import numpy as np
import pytest

import filmlet
from filmlet.core.events import Stage
from filmlet.media import read_audio
from tests.helpers.clips import changes, film, frames_in, work_for
from tests.helpers.sounds import FlashClip, find_flash, look_at_audio

pytestmark = pytest.mark.usefixtures("forked_decoders")
GIVEN = FlashClip(frames=25, flash=8)
SAMPLE = 1 / 48_000


@pytest.fixture
def given(tmp_path: Path) -> str:
    return str(GIVEN.write(tmp_path / "given.mp4"))


@pytest.mark.parametrize(("backward", "first"), [(False, 0), (True, 10)])
def test_sound_stays_with_its_frames_and_new_ones_are_silent(
    tiny_guided: Path, tmp_path: Path, given: str, backward: bool, first: int
) -> None:
    work = work_for(tiny_guided, frames=10, extend=given, extend_backward=backward)
    assert work.effective.audio
    assert "keeps its own" in changes(work)["extend_sound"].reason
    path = tmp_path / "long.mp4"
    film(work, path)
    assert len(frames_in(path)) == 35
    if not backward:
        assert find_flash(path) == pytest.approx(8 / 24, abs=1e-3)
    found = look_at_audio(path)
    assert found.click_s == pytest.approx((first + 8) / 24, abs=2 * SAMPLE)
    assert found.length_s == pytest.approx(35 / 24, abs=SAMPLE)
    new = found.samples[:19_000] if backward else found.samples[51_000:69_000]
    assert np.abs(new).max() < 1e-2


def test_sound_of_a_longer_chain_of_extensions_stays(tmp_path: Path, given: str) -> None:
    """Encoded anew each time, it must not move by the encoder's priming."""
    path = Path(given)
    for number in range(3):
        clip = filmlet.generate("a red circle", extend=path, frames=8, steps=2, seed=1)
        assert clip.audio is not None
        path = clip.save(tmp_path / f"{number}.mp4")
    audio = read_audio(path, 48_000)
    assert audio is not None
    assert len(audio.samples) == (25 + 24) * 2000
    click = np.flatnonzero(np.abs(audio.samples[:, 0]) > 0.3)[0]
    assert click == pytest.approx(16_000, abs=2)


def test_sound_that_is_not_wanted_is_left_out(
    tiny_guided: Path, tmp_path: Path, given: str
) -> None:
    work = work_for(tiny_guided, frames=10, extend=given, audio=False)
    assert not work.effective.audio
    path = tmp_path / "long.mp4"
    film(work, path)
    assert read_audio(path, 48_000) is None


def test_extension_left_while_it_grows_goes_on_to_the_same_sound(
    tiny_guided: Path, tmp_path: Path, given: str
) -> None:
    film(work_for(tiny_guided, frames=10, extend=given), tmp_path / "straight.mp4")
    work = work_for(tiny_guided, frames=10, extend=given)
    work.keep_in(tmp_path / "kept")
    film(work, tmp_path / "clip.mp4", Stage.DECODE)
    again = work_for(tiny_guided, frames=10, extend=given)
    again.keep_in(work.folder)
    film(again, tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes() == (tmp_path / "straight.mp4").read_bytes()
