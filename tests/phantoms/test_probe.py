"""The probes' phantoms: the pictures that a probe draws, group by group in one role."""

import json

import numpy as np
import pandas as pd
from PIL import Image

from attnseg.config.training import parse_config
from attnseg.phantoms.probe import PROBE_PRESETS, make_probe
from attnseg.preparation.datasets import load_dataset, open_reader
from attnseg.probes.probe import find_probe
from tests.contracts.groups import compose


def pixels(path):
    return np.asarray(Image.open(path))


def test_files_hold_what_the_probe_draws(tmp_path):
    make_probe(tmp_path / "made", "resolution", "tiny", 3)
    probe = find_probe("resolution")
    for part, letter, split in (("Tr", "G", "train"), ("Ts", "T", "test")):
        drawn = probe.pictures(4, 3, split=split)
        for index, name in enumerate(("0001_a", "0001_b", "0002_a", "0002_b")):
            image = pixels(tmp_path / "made" / f"images{part}" / f"{letter}{name}_0000.png")
            labels = pixels(tmp_path / "made" / f"labels{part}" / f"{letter}{name}.png")
            assert np.array_equal(image, np.rint((drawn.images[index, 0] + 1) * 127.5))
            assert np.array_equal(labels, drawn.labels[index])
    description = json.loads((tmp_path / "made" / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "solitus": 1, "inversus": 2}
    assert description["numTraining"] == 2 * PROBE_PRESETS["tiny"].train


def test_a_group_has_one_role_and_no_picture_occurs_twice(tmp_path):
    node = compose("dataset=probe_counting", "phantom_size=tiny", f"paths.data={tmp_path}")
    config = parse_config(node)
    data = load_dataset(config, open_reader(config))
    assert data.reader.classes == ("two", "three", "four")
    (tmp_path / "split.csv").write_text(data.split)
    table = pd.read_csv(tmp_path / "split.csv")
    assert (table.groupby("patient").size() == 3).all()
    assert (table.groupby("patient")["role"].nunique() == 1).all()
    assert (table["patient"].str[0] == "T").equals(table["role"] == "test")
    assert set(table["role"]) == {"train", "val", "test"}
