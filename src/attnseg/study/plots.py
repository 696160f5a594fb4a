"""A comparison as pictures: differences with their intervals, and quality over cost."""

from pathlib import Path

from matplotlib.figure import Figure

from attnseg.study.comparison import Comparison


def forest(found: Comparison, path: Path) -> None:
    """Draw every variant's difference from the baseline, over the margin of equivalence.

    Thick lines are intervals of one comparison, thin ones are corrected for all; a filled point
    is a difference that was shown.
    """
    contrasts = found.against
    height = 1.8 + 0.4 * len(contrasts)
    figure = Figure(figsize=(8, height), dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-found.margin, found.margin, color="0.9", label="margin of equivalence")
    axis.axvline(0, color="0.4", linewidth=1)
    for at, c in enumerate(contrasts):
        axis.plot([c.simultaneous_low, c.simultaneous_high], [at, at], color="C0", linewidth=1)
        axis.plot([c.low, c.high], [at, at], color="C0", linewidth=3)
        face = "C0" if c.different else "white"
        axis.plot(c.difference, at, "o", markeredgecolor="C0", markerfacecolor=face)
    axis.set_yticks(range(len(contrasts)), [c.variant for c in contrasts])
    axis.set_ylim(len(contrasts) - 0.5, -0.5)
    way = "higher" if found.metric.up else "lower"
    axis.set_xlabel(f"difference from {found.baseline}, {found.metric.label} ({way} is better)")
    _finish(figure, found, path)


def pareto(found: Comparison, path: Path) -> None:
    """Draw quality over MACs; variants that no other beats are filled and joined."""
    figure = Figure(figsize=(8, 4.8), dpi=100, layout="constrained")
    axis = figure.subplots()
    table = found.variants
    macs = table["macs"] / 1e9
    for name, row in table.iterrows():
        x, y = row["macs"] / 1e9, row["mean"]
        axis.plot([x, x], [row["low"], row["high"]], color="0.7", linewidth=1)
        face = "C0" if row["pareto_front"] else "white"
        axis.plot(x, y, "o", markeredgecolor="C0", markerfacecolor=face)
        axis.annotate(str(name), (x, y), xytext=(5, 5), textcoords="offset points")
    front = table[table["pareto_front"]].sort_values("macs")
    axis.plot(macs[front.index], front["mean"], color="C0", linewidth=1, zorder=0)
    axis.set_xlabel("MACs per slice, G")
    axis.set_ylabel(found.metric.label)
    axis.margins(0.1)
    _finish(figure, found, path)


def _finish(figure: Figure, found: Comparison, path: Path) -> None:
    mark = "" if found.watermark is None else f"\n{found.watermark}"
    figure.suptitle(found.title + mark, fontsize=9, wrap=True)
    figure.savefig(path, metadata={"Software": None})
