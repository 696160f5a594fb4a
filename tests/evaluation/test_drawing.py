"""The picture of a case: each slice as image, truth and prediction."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from attnseg.drawing.cases import draw_comparison
from attnseg.prediction.overlay import COLOURS, OPACITY, magnify, outline_masks

PANEL = 320  # pixels of a side of a panel
STEP = 328  # from one panel to the next
LEFT, ABOVE = 28, 50  # of the first


@pytest.fixture
def drawn(tmp_path):
    """Two slices with pixels twice as high as wide; brightness falls from left to right."""
    ramp = np.linspace(1, 0, 80, dtype=np.float32)[None, :, None].repeat(40, 0)
    case = SimpleNamespace(shape=(2, 40, 80), spacing=(1.0, 2.0, 1.0), scaled=lambda index: ramp)
    truth, prediction = np.zeros((2, 2, 2, 40, 80), bool)
    truth[0, 0, 10:20, 40:60] = True
    prediction[1, 1, 20:40, :20] = True
    draw_comparison(tmp_path / "a.png", "a title", case, (0, 1), truth, prediction, ("a", "b"))
    return np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)


def look(picture, slice_, column, y, x):
    """Return the colour at a point of a panel, in fractions of its height and width."""
    top, left = ABOVE + slice_ * STEP, LEFT + column * STEP
    return picture[top + int(y * PANEL), left + int(x * PANEL)]


def tinted(brightness, k):
    colour = np.array(ImageColor.getrgb(COLOURS[k]))
    return (1 - OPACITY) * 255 * brightness + OPACITY * colour


def test_masks_are_where_they_belong(drawn):
    for *where, k in ((0, 1, 0.375, 0.625, 0), (1, 2, 0.75, 0.125, 1)):
        np.testing.assert_allclose(look(drawn, *where), tinted(1 - where[3], k), atol=4)


def test_everywhere_else_is_the_image(drawn):
    for slice_, column, y, x in ((0, 0, 0.375, 0.625), (0, 2, 0.375, 0.625), (1, 1, 0.75, 0.125)):
        np.testing.assert_allclose(look(drawn, slice_, column, y, x), 255 * (1 - x), atol=4)


def test_outlines_have_the_full_colour(drawn):
    edge = look(drawn, 0, 1, 0.375, 0.5)
    np.testing.assert_array_equal(edge, ImageColor.getrgb(COLOURS[0]))


@pytest.mark.parametrize("size", [(200, 30), (30, 200), (8, 8), (700, 700), (2000, 60)])
def test_any_size_leaves_room_for_its_words(tmp_path, monkeypatch, size):
    """Titles, names and the legend overlap neither each other nor the slices, and are not cut."""
    figures = []

    class Kept(Figure):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            figures.append(self)

    monkeypatch.setattr("attnseg.drawing.cases.Figure", Kept)
    image = np.zeros((*size, 3), np.float32)
    case = SimpleNamespace(shape=(120, *size), spacing=None, scaled=lambda index: image)
    masks, names = np.zeros((9, 2, *size), bool), [f"organ {k}" for k in range(9)]
    title = "median test case a_name: mean Dice 0.912 (strict)\nnot for publication"
    draw_comparison(tmp_path / "a.png", title, case, (99, 119), masks, masks, names)
    (figure,) = figures
    slices = np.asarray(Image.open(tmp_path / "a.png").convert("L")) == 0
    height, width = slices.shape
    words = [*figure.texts, *figure.legends]
    boxes = [word.get_window_extent() for word in words]
    assert len(boxes) == 3 + 2 + 1 + 1
    for at, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, words[at]
        assert not any(box.overlaps(other) for other in boxes[at + 1 :]), words[at]
        rows, columns = (
            slice(int(height - box.y1) + 1, int(height - box.y0)),
            slice(int(box.x0) + 1, int(box.x1)),
        )
        # Letters are black, too, but a slice is black in a whole row of a box.
        assert not slices[rows, columns].all(1).any(), words[at]


@pytest.mark.parametrize(
    ("shape", "tall"), [((700, 700), 1), ((2000, 1500), 1), ((64, 64), 1), ((100, 100), 0.2)]
)
def test_the_smallest_object_is_seen(shape, tall):
    height, width = shape
    for y, x in ((1, 1), (height // 2 + 1, width // 2), (height - 1, width - 1)):
        masks = np.zeros((1, *shape), bool)
        masks[0, y, x] = True
        drawn = outline_masks(magnify(np.zeros((*shape, 1), np.float32), tall), masks)
        assert drawn.any()
        found = (np.argwhere(drawn.any(2)).mean(0) + 0.5) / drawn.shape[:2]
        np.testing.assert_allclose(found, ((y + 0.5) / height, (x + 0.5) / width), atol=0.01)
