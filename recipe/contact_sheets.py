"""What a checkpoint makes of held-out prompts: contact sheets to look at, the README's gallery.

`python -m recipe.contact_sheets --prompts 100` writes build/sheets/*.png, a row of frames a prompt;
`python -m recipe.contact_sheets --gallery docs/pocket.webp` writes one animation of 8 prompts.
Nothing is picked: prompts are the first held-out ones of a seed, and each decides its noise.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from recipe.evaluate import classify_clip
from recipe.prompts import Example, examples
from recipe.renderer import FPS
from recipe.sampling import Sampler

SEED = 6  # of the prompts; the judge's are another's
ROWS = 10  # of a sheet
FRAMES = (0, 6, 12, 18, 24)
CELL = 128  # pixels
COLUMNS, GALLERY = 4, 8
GALLERY_CELL = 192
CAPTION = 30  # pixels under a picture
BYTES = 2_000_000  # the most that the gallery may weigh
PAPER, INK, WRONG = "white", "black", "#b00020"


def list_held_out_examples(count: int) -> list[Example]:
    """The first examples of the seed that no training saw."""
    return list(islice(examples(SEED, held_out=True), count))


def write_sheets(maker: Sampler, count: int, folder: Path) -> Iterator[Path]:
    """A row a prompt, ROWS to a sheet; what the judge sees otherwise is said in red."""
    folder.mkdir(parents=True, exist_ok=True)
    told = list_held_out_examples(count)
    for first in range(0, count, ROWS):
        some = told[first : first + ROWS]
        size = (CELL * len(FRAMES), (CELL + CAPTION) * len(some))
        sheet = Image.new("RGB", size, PAPER)
        for row, example in enumerate(some):
            clip = maker.make(example.prompt)
            top = row * (CELL + CAPTION)
            for column, frame in enumerate(FRAMES):
                sheet.paste(_picture(clip, frame, CELL), (column * CELL, top))
            _caption(sheet, (4, top + CELL), CELL * len(FRAMES), example.prompt)
            if wrong := _describe_errors(example, clip):
                ImageDraw.Draw(sheet).text((4, top + CELL + 14), wrong, WRONG, font=_font())
        path = folder / f"{first:03}.png"
        sheet.save(path)
        yield path


def write_gallery(maker: Sampler, path: Path) -> None:
    """Eight clips side by side over their prompts, as one animated WebP of at most BYTES."""
    told = list_held_out_examples(GALLERY)
    clips = [maker.make(example.prompt) for example in told]
    height = (GALLERY_CELL + CAPTION) * (GALLERY // COLUMNS)
    pages = []
    for frame in range(clips[0].shape[1]):
        page = Image.new("RGB", (GALLERY_CELL * COLUMNS, height), PAPER)
        for k, (example, clip) in enumerate(zip(told, clips, strict=True)):
            left, top = k % COLUMNS * GALLERY_CELL, k // COLUMNS * (GALLERY_CELL + CAPTION)
            page.paste(_picture(clip, frame, GALLERY_CELL), (left, top))
            _caption(page, (left + 2, top + GALLERY_CELL), GALLERY_CELL - 4, example.prompt)
        pages.append(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in (85, 75, 65, 50):
        pages[0].save(
            path, save_all=True, append_images=pages[1:], duration=round(1000 / FPS), loop=0,
            quality=quality, method=6,
        )  # fmt: skip
        if path.stat().st_size <= BYTES:
            return
    raise ValueError(f"{path} does not fit into {BYTES} bytes")


def _picture(clip: Tensor, frame: int, side: int) -> Image.Image:
    pixels = ((clip[:, frame].clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((side, side))


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(11)


def _caption(page: Image.Image, place: tuple[int, int], width: int, text: str) -> None:
    """Two lines at most, broken between words."""
    pen, lines = ImageDraw.Draw(page), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=_font()) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    pen.multiline_text(place, "\n".join(lines[:2]), INK, font=_font(), spacing=1)


def _describe_errors(example: Example, clip: Tensor) -> str:
    """What the judge sees otherwise than it was asked, empty where all is right."""
    asked = example.scenario
    verdict = classify_clip(clip, len(asked.actors))
    pairs = [("scene", verdict.scene, asked.scene)]
    for seen, actor in zip(verdict.actors, asked.actors, strict=True):
        pairs += [
            ("subject", seen.subject, actor.subject),
            ("motion", seen.motion, actor.motion),
        ]
    return ", ".join(f"{row} seen: {found}" for row, found, wanted in pairs if found != wanted)


def main() -> None:
    options = argparse.ArgumentParser(prog="recipe.contact_sheets", description=__doc__)
    options.add_argument("--checkpoint", type=Path, default=Path("src/filmlet/pocket"))
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--guidance", type=float, default=1.0)
    options.add_argument("--prompts", type=int, default=100, help="of the contact sheets")
    options.add_argument("--folder", type=Path, default=Path("build/sheets"))
    options.add_argument("--gallery", type=Path, help="write this WebP instead of sheets")
    chosen = options.parse_args()
    maker = Sampler.from_checkpoint(chosen.checkpoint, chosen.steps, chosen.guidance)
    if chosen.gallery:
        write_gallery(maker, chosen.gallery)
        print(f"{chosen.gallery}: {chosen.gallery.stat().st_size / 1e6:.2f} MB")
        return
    for sheet in write_sheets(maker, chosen.prompts, chosen.folder):
        print(sheet)


if __name__ == "__main__":
    main()
