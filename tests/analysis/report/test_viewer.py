"""The pictures inside the page: what a reader without JavaScript is shown, and what the viewer reads."""

import base64
import html
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from analysis.report.forms import forms
from analysis.report.html.details import Details
from analysis.report.html.viewer import picture, viewer
from analysis.report.markup import one_line
from analysis.report.pictures import Pixels, Strip
from tests.analysis.report.test_markup import HOSTILE
from tests.harness.strips import a_strip


def pixels_in(page: str) -> list[Pixels]:
    """The embedded pictures, 0 to 255."""
    found = re.findall(r'src="data:image/bmp;base64,([^"]*)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


@pytest.mark.parametrize("colours", [1, 3], ids=["grey", "colour"])
def test_every_picture_is_embedded_once_with_its_own_pixels(colours: int) -> None:
    strip = a_strip(colours)
    shown = pixels_in(viewer(strip))
    assert len(shown) == len(strip.tiles)
    for found, tile in zip(shown, strip.tiles, strict=True):
        assert np.array_equal(found, np.rint(255 * tile.pixels))


def test_a_picture_has_the_same_bytes_everywhere() -> None:
    found = base64.b64decode(picture(np.array([[[1.0, 0.5, 0.0]]])).partition(",")[2])
    assert found[:2] == b"BM"
    assert found[54:] == bytes([0, 128, 255, 0])  # not compressed: blue, green, red, and zeros up to four bytes


def test_a_caption_names_the_picture_its_seed_and_both_scores() -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", viewer(a_strip()), flags=re.DOTALL)
    words = [" ".join(re.sub("<[^>]*>", " ", caption).split()) for caption in captions]
    assert words[0] == "input"
    assert re.fullmatch(r"bicubic 28\.50 dB on Set5 \d\d\.\d\d dB in the frame", words[1])
    assert re.fullmatch(r"good cell seed 0 31\.00 dB on Set5 \d\d\.\d\d dB in the frame", words[2])
    assert words[4] == "truth"


def test_a_cell_without_an_error_in_the_frame_says_so() -> None:
    assert "no error in the frame" in viewer(a_strip(errors=(0.0, 0.2)))


def test_every_picture_has_a_description_and_the_frame_in_the_pixels_of_the_truth() -> None:
    strip = a_strip()
    page = viewer(strip)
    descriptions = re.findall(r'alt="([^"]*)"', page)
    assert descriptions == [f"bird of Set5: {tile.title}" for tile in strip.tiles]
    assert re.findall(r'viewBox="([^"]*)"', page) == ["0 0 48 48"] * len(strip.tiles)
    top, left, rows, columns = strip.place
    frame = f'x="{left}" y="{top}" width="{columns}" height="{rows}"'
    assert page.count(frame) == 2 * len(strip.tiles)
    assert re.findall(r'<img [^>]*width="(\d+)"', page)[:2] == ["24", "48"]


def test_an_input_that_the_baseline_shows_is_not_embedded_twice() -> None:
    strip = a_strip(scale=1)
    assert [tile.title for tile in strip.tiles][:2] == ["input", "bicubic"]
    assert len(pixels_in(viewer(strip))) == len(strip.tiles) - 1
    other = Strip(strip.test_set, strip.picture, strip.tiles[:1] + strip.tiles[2:], strip.place)
    assert len(pixels_in(viewer(other))) == len(other.tiles)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_a_text_in_a_viewer(name: str) -> None:
    title, alternatives = f"good cell{one_line(name)}", []
    tags, attributes = set[str](), set[str]()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            attributes.update(key for key, _ in attrs)
            alternatives.extend(value for key, value in attrs if key == "alt")

    page = viewer(a_strip(name=name))
    Reader().feed(page)
    assert tags == {"div", "figure", "img", "svg", "rect", "figcaption", "strong", "span"}
    assert attributes <= {
        *("class", "role", "aria-label", "aria-hidden", "data-kind"),
        *("src", "alt", "width", "height", "viewbox", "x", "y"),
    }
    assert alternatives[2] == f"bird{one_line(name)} of Set5{one_line(name)}: {title}"
    assert f"<strong>{html.escape(title)}" in page.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


def test_a_page_shows_the_viewer_of_each_strip_in_the_place_of_its_file() -> None:
    text = "# Study\n\nOne:\n\n![one](one.png)\n\nOther:\n\n![other](other.png)\n"
    strips = {"one.png": a_strip(), "other.png": a_strip(colours=1)}
    page = forms({"report.md": text.encode(), "one.png": b"", "other.png": b""}, Details(strips=strips))["report.html"]
    body = page.decode().partition("<main")[2].partition("</main>")[0]
    assert body.count('<div class="viewer"') == 2
    assert body.count("<p>") == 2
    assert len(pixels_in(body)) == 2 * len(a_strip().tiles)
