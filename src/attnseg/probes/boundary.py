"""Fine boundary, coarse context: far away is told at which of two contours an organ ends."""

from attnseg.probes.far_place import draw_liver
from attnseg.probes.probe import Canvas, Drawn, Probe, label_pair, paint, pair_with_mirrored


class Boundary(Probe):
    """An organ at the bottom with a rim, which is its wall or fat around it.

    The side of the liver far above tells which, as in `FarPlace`. The rim is about three pixels
    wide, less than a token, and lies anywhere. The second picture of a group is the first with its
    upper rows mirrored. Chance: as in `FarPlace`.
    """

    name = "boundary"
    question = "Does the organ end at the inner or at the outer contour, as is told far above?"
    tests = "fine boundary from coarse context"
    classes = ("wall", "fat", "core")

    def _draw(self, canvas: Canvas, level: int | None) -> Drawn:
        image = canvas.background(0.35)
        side, evidence = draw_liver(canvas, image)
        y, x = canvas.uniform(25.8, 26.4), canvas.uniform(9, 23)
        tall, wide = canvas.uniform(2, 2.6), canvas.uniform(2.5, 4.5)
        rim = canvas.ellipse(y, x, tall + 3, wide + 3)
        core = canvas.ellipse(y, x, tall, wide)
        paint(image, rim, 0.65)
        paint(image, core, 0.95)
        image += canvas.noise()
        upper, inside = canvas.rows(0, 10), core > 0.5
        labels = label_pair((rim > 0.5) & ~inside, side) + 3 * inside[:, None]
        return pair_with_mirrored(image, upper), labels, pair_with_mirrored(evidence, upper)
