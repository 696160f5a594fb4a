"""Draws where the token of one pixel attends in an image, and tabulates it by run and layer."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from attnseg.drawing.cases import pixel_aspect, slice_image
from attnseg.errors import ConfigError
from attnseg.evaluation.evaluate import FinishedRun
from attnseg.explain import attention_pictures
from attnseg.explain.attention_pictures import Scene
from attnseg.explain.evidence import load_evidence
from attnseg.explain.layer_table import print_layers, tabulate_layers
from attnseg.explain.options import Explain
from attnseg.explain.recording import recorded_part
from attnseg.explain.run_attention import RunAttention, record_run
from attnseg.explain.selection import choose_point, choose_slice, chosen_run_folders, load_same_case
from attnseg.files import write_text
from attnseg.preparation.datasets import dataset_root
from attnseg.progress import track
from attnseg.runs.run_folder import RunFolder

log = logging.getLogger(__name__)

MAX_TRUSTED_ERROR = 1e-3  # relative; above it, a warning is logged


def explain_runs(config: Explain) -> pd.DataFrame:
    """Draw and measure the attention of one token; print tables and write pictures and a table.

    Returns:
        The rows of `layers.csv`: one per run, layer and head.
    """
    runs = [FinishedRun(RunFolder(folder), config) for folder in chosen_run_folders(config)]
    for run in runs:
        if run.config.model.tokens is not None:
            raise ConfigError(
                f"{run.folder.path}: merged or pruned tokens have no places to draw attention at; "
                "choose runs with tokens=none"
            )
    cases = [run.cases(config, "explain") for run in runs]
    case = load_same_case(runs, config.case, config.split, cases)
    index = choose_slice(case, config.slice)
    labels = runs[0].data.reader.labels
    masks = labels.split(case.mask[index])
    point = choose_point(masks, config.point)
    shown = track(runs, "Recording attention", "runs")
    attentions = [record_run(run, case, index, point, config.layer) for run in shown]

    unit = "pixels" if case.spacing is None else "mm"
    title = f"{config.split} case {case.case}, slice {index + 1}"
    evidence = load_evidence(dataset_root(runs[0].config), case.case)
    truth = None if evidence is None else (np.asarray(masks.any(0)), evidence)
    tables = [tabulate_layers(attention, case, unit, truth) for attention in attentions]
    table = pd.concat(tables, ignore_index=True)
    for attention in attentions:
        print_layers(attention, table, f"{title}, pixel {list(point)}", unit)
    report_exactness(attentions)
    for attention in attentions:
        for layer, record in attention.records.items():
            for finding in recorded_part(record).findings():
                log.warning("%s: %s is %s", attention.run.folder, layer, finding)

    default = "outputs/attention" if config.run is None else RunFolder(config.run).attention
    folder = Path(config.outputs or default)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "layers.csv", table.to_csv(index=False, lineterminator="\n"))
    scene = Scene(title, slice_image(case, index), masks, labels.names, pixel_aspect(case), point)
    attention_pictures.draw_maps(folder / "maps.png", scene, attentions)
    if config.heads:
        attention_pictures.draw_heads(folder / "heads.png", scene, attentions)
    if config.scores:
        attention_pictures.draw_scores(folder / "scores.png", scene, attentions)
    log.info("Written: %s", folder)
    return table


def report_exactness(attentions: Sequence[RunAttention]) -> None:
    """Log how exactly the attention maps, applied to the values, reproduce the layers' outputs.

    Above `MAX_TRUSTED_ERROR`, warn that a layer is not linear in its values.
    """
    error = max(weights.error for one in attentions for weights in one.weights.values())
    text = "Attention maps applied to the values give each layer's output to %.0e of its maximum"
    if error > MAX_TRUSTED_ERROR:
        text += "; a layer is not linear in its values, and its map shows the linear part only"
        log.warning(text, error)
    else:
        log.info(text, error)
