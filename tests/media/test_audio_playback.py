"""Chromium hears the click when it sees the flash: finished and growing files, to the sample."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.helpers.browsers import browser, needs_chromium
from tests.helpers.sounds import BRIGHT, FlashClip

__all__ = ["browser"]
pytestmark = [pytest.mark.browser, needs_chromium]
FRAMES, FLASH = 49, 24
# What WebAudio decodes, and how bright the picture is in the middle of two frames.
# Chromium 156 leaves out 24 samples of Opus more than libopus, which decodes the same file to the
# sample: as if the delay of 6.5 ms (312 samples) in the file were rounded up to 7.
OPUS_SAMPLES = 24
PLAY = """async ({ data, type, times }) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const audio = new OfflineAudioContext(2, 48000, 48000);
  const sound = await audio.decodeAudioData(bytes.buffer.slice(0));
  const click = sound.getChannelData(0).findIndex((value) => Math.abs(value) > 0.3);
  const player = document.createElement("video");
  Object.assign(player, { muted: true, src: URL.createObjectURL(new Blob([bytes], { type })) });
  await new Promise((resolve, reject) => {
    player.onloadeddata = resolve;
    player.onerror = () => reject(new Error(player.error.message));
  });
  const canvas = Object.assign(document.createElement("canvas"), { width: 96, height: 64 });
  const context = canvas.getContext("2d");
  const brightness = [];
  for (const time of times) {
    // A frame may be drawn a moment after its seek; none is where it is the same one.
    const drawn = new Promise((resolve) => {
      player.requestVideoFrameCallback(resolve);
      setTimeout(resolve, 1000);
    });
    const sought = new Promise((resolve) => { player.onseeked = resolve; });
    player.currentTime = time;
    await Promise.all([sought, drawn]);
    context.drawImage(player, 0, 0);
    brightness.push(context.getImageData(48, 32, 1, 1).data[0]);
  }
  return { click, samples: sound.length, duration: player.duration, brightness };
}"""


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_context().new_page()
    yield page
    page.context.close()


def play(page: Page, path: Path, clip: FlashClip) -> dict[str, Any]:
    times = [float((number + 0.5) * clip.tick) for number in (clip.flash - 1, clip.flash)]
    data = base64.b64encode(path.read_bytes()).decode()
    kind = f"video/{path.suffix.removeprefix('.')}"
    found: dict[str, Any] = page.evaluate(PLAY, {"data": data, "type": kind, "times": times})
    return found


@pytest.mark.parametrize("kind", ["clip.mp4", "growing.mp4", "clip.webm"])
@pytest.mark.parametrize("sample_rate", [24_000, 48_000])
@pytest.mark.parametrize("fps", [24.0, 25.0, 29.97, 30.0])
def test_click_is_heard_when_the_flash_is_seen(
    page: Page, tmp_path: Path, fps: float, sample_rate: int, kind: str
) -> None:
    clip, path = FlashClip(fps, FRAMES, FLASH, sample_rate), tmp_path / kind
    if kind.startswith("growing"):
        clip.write_growing(path)
    else:
        clip.write(path)
    found = play(page, path, clip)
    early = OPUS_SAMPLES if kind.endswith("webm") else 0
    assert found["click"] == pytest.approx(float(FLASH * clip.tick * 48_000), abs=early + 2)
    before, at = found["brightness"]
    assert before < BRIGHT < at
    assert found["samples"] == pytest.approx(float(FRAMES * clip.tick * 48_000), abs=early + 1)
    assert found["duration"] == pytest.approx(float(FRAMES * clip.tick), abs=1024 / 48_000 + 1e-3)


def test_clip_of_one_frame_is_played(page: Page, tmp_path: Path) -> None:
    clip = FlashClip(frames=1, flash=0)
    path = clip.write(tmp_path / "clip.mp4")
    data = base64.b64encode(path.read_bytes()).decode()
    found = page.evaluate(PLAY, {"data": data, "type": "video/mp4", "times": [0.01]})
    assert found["click"] == pytest.approx(0, abs=2)
    assert found["samples"] == pytest.approx(2000, abs=1)  # its microseconds
    assert found["brightness"][0] > BRIGHT
