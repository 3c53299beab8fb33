"""A strip of pictures inside the page: each with its caption, side by side; ``viewer.js`` lays any two on each other.

The pictures are uncompressed bitmaps. What a compressor makes of a picture depends on its version and on the processor,
and the page has the same bytes everywhere. They are made from the pixels that the report read, so nothing else of a
stranger's file gets into the page.
"""

import base64
import io

import numpy as np
from PIL import Image

from analysis.report.markup import one_line
from analysis.report.pictures import Pixels, Strip, Tile
from analysis.report.words import environment


def viewer(strip: Strip) -> str:
    """Return the HTML of a strip."""
    frame = environment()
    frame.filters |= {"one_line": one_line, "picture": picture}
    height, width = max(tile.pixels.shape[:2] for tile in strip.tiles)
    name = one_line(f"{strip.picture} of {strip.test_set}")
    return frame.get_template("viewer.html.j2").render(
        strip=strip, tiles=different(strip.tiles), name=name, height=height, width=width
    )


def different(tiles: tuple[Tile, ...]) -> list[Tile]:
    """Return the tiles without the input if it is what the baseline shows, as in denoising."""
    baselines = [tile.pixels for tile in tiles if tile.kind == "baseline"]
    return [
        tile for tile in tiles if tile.kind != "input" or not any(np.array_equal(tile.pixels, b) for b in baselines)
    ]


def picture(pixels: Pixels) -> str:
    """Return a picture (height x width, perhaps x 3, 0 to 1) as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * pixels).astype(np.uint8)).save(buffer, format="BMP")
    return f"data:image/bmp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
