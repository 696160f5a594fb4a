"""The picture of a case: each slice as image, truth and prediction."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageColor

from attnseg.drawing.cases import draw_comparison
from attnseg.prediction.overlay import COLOURS, OPACITY

PANEL, STEP, LEFT, ABOVE = 320, 328, 28, 50  # pixels of a slice, from one to the next, and outside


@pytest.fixture
def drawn(tmp_path):
    """Two slices, of pixels twice as high as wide; brightness falls from left to right."""
    ramp = np.linspace(1, 0, 80, dtype=np.float32)[None, :, None].repeat(40, 0)
    case = SimpleNamespace(shape=(2, 40, 80), spacing=(1.0, 2.0, 1.0), scaled=lambda index: ramp)
    truth, prediction = np.zeros((2, 2, 2, 40, 80), bool)
    truth[0, 0, 10:20, 40:60] = True
    prediction[1, 1, 20:40, :20] = True
    draw_comparison(tmp_path / "a.png", "a title", case, (0, 1), truth, prediction, ("a", "b"))
    return np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)


def look(picture, slice_, column, y, x):
    """Colour at a place of a panel, whose sides are 1."""
    top, left = ABOVE + slice_ * STEP, LEFT + column * STEP
    return picture[top + int(y * PANEL), left + int(x * PANEL)]


def tinted(brightness, k):
    colour = np.array(ImageColor.getrgb(COLOURS[k]))
    return (1 - OPACITY) * 255 * brightness + OPACITY * colour


def test_masks_are_where_they_belong(drawn):
    for place in ((0, 1, 0.375, 0.625, 0), (1, 2, 0.75, 0.125, 1)):
        *where, k = place
        np.testing.assert_allclose(look(drawn, *where), tinted(1 - where[3], k), atol=4)


def test_everywhere_else_is_the_image(drawn):
    for slice_, column, y, x in ((0, 0, 0.375, 0.625), (0, 2, 0.375, 0.625), (1, 1, 0.75, 0.125)):
        np.testing.assert_allclose(look(drawn, slice_, column, y, x), 255 * (1 - x), atol=4)


def test_outlines_have_the_full_colour(drawn):
    edge = look(drawn, 0, 1, 0.375, 0.5)
    np.testing.assert_array_equal(edge, ImageColor.getrgb(COLOURS[0]))


@pytest.mark.parametrize("size", [(200, 30), (30, 200), (8, 8), (700, 700)])
def test_any_size_fits_with_its_title(tmp_path, size):
    image = np.zeros((*size, 3), np.float32)
    case = SimpleNamespace(shape=(1, *size), spacing=None, scaled=lambda index: image)
    masks = np.zeros((1, 1, *size), bool)
    draw_comparison(tmp_path / "a.png", "a title", case, (0,), masks, masks, ("a",))
    width, height = Image.open(tmp_path / "a.png").size
    assert 900 <= width <= 1020 and height <= 450
