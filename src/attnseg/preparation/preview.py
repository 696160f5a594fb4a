"""The command `preview`: a contact sheet of training slices as the network receives them."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from attnseg.config.build import build
from attnseg.config.training import Config
from attnseg.data.slices import SliceDataset
from attnseg.drawing.cases import draw_class_legend, draw_slice, fullest_slice
from attnseg.errors import ConfigError
from attnseg.preparation.datasets import load_dataset, open_reader, slice_view

ROWS, EPOCHS = 6, 5


def draw_contact_sheet(config: Config) -> Path:
    """Draw a few training slices with their masks, as loaded and as augmented in five epochs.

    Each row shows the slice of one case with the most classes. Of several channels the middle one
    is shown; three channels of one slice are shown as colours.

    Returns:
        The PNG file.

    Raises:
        AttnsegError: as for training.
    """
    reader = open_reader(config)
    data = load_dataset(config, reader)
    transforms = build("augment", config.augment)
    try:
        augmented = SliceDataset(data.train, slice_view(config), transforms, config.seed)
    except ValueError as error:
        raise ConfigError(f"augment: {error}") from error
    plain = SliceDataset(data.train, slice_view(config))
    height, width = config.dataset.image_size
    rows = _choose_rows(plain)
    size = (2.0 * (EPOCHS + 1), 2.0 * height / width * len(rows) + 1)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), EPOCHS + 1, squeeze=False)
    for row, index in zip(axes, rows, strict=True):
        for column, axis in enumerate(row):
            sample = plain[0, index] if column == 0 else augmented[column - 1, index]
            if "draws" in sample:
                batch = transforms({name: torch.as_tensor(v)[None] for name, v in sample.items()})
                sample = {name: value[0] for name, value in batch.items()}
            image = sample["image"].numpy().transpose(1, 2, 0) / 2 + 0.5
            colours = image.shape[-1] == 3 and config.dataset.slices == 1
            shown = image if colours else image[..., image.shape[-1] // 2]
            masks = reader.labels.split(sample["mask"].numpy())
            draw_slice(axis, shown, masks, 1.0)
        case = data.train[plain.index[index][0]].case
        row[0].set_ylabel(f"{case}\nslice {plain.index[index][1] + 1}", fontsize=8)
    for column, axis in enumerate(axes[0]):
        axis.set_title("as loaded" if column == 0 else f"epoch {column}", fontsize=10)
    draw_class_legend(figure, reader.classes)
    name = f"{config.dataset_name}-{config.choices['augment']}"
    figure.suptitle(f"{name}, {height}x{width}", fontsize=12)
    path = Path(config.paths.outputs, "previews", f"{name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def _choose_rows(data: SliceDataset) -> list[int]:
    """Return the index of the slice with the most classes, for each of a few cases."""
    chosen = np.linspace(0, len(data.cases) - 1, min(ROWS, len(data.cases))).astype(int)
    return [data.index.index((int(case), fullest_slice(data.cases[case]))) for case in chosen]
