"""Records of a run in its folder and log: its setup before training, and how it ended."""

import contextlib
import logging
from collections.abc import Iterator

from attnseg.config import cost
from attnseg.config.identity import short_digest
from attnseg.data.closed_test import count_cases
from attnseg.errors import first_line
from attnseg.files import write_text
from attnseg.models.model import SegmentationModel
from attnseg.preparation.datasets import describe_input
from attnseg.runs.active_run import ActiveRun
from attnseg.training.attention_kernels import find_attention_kernels
from attnseg.training.callbacks.history import EndedEarly
from attnseg.training.loggers.run_loggers import RunLoggers
from attnseg.training.setup import TrainingSetup, network_input_shape

log = logging.getLogger(__name__)


def record_setup(run: ActiveRun, setup: TrainingSetup) -> None:
    """Write split, metric convention, input, digests and cost of a run to its folder."""
    data, model, loaded = setup.data, setup.components.model, setup.components.loaded
    shape = network_input_shape(setup.config, data)
    macs, _, inside = cost.count_all_macs(model, shape)
    study = None if setup.config.compare is None else setup.config.compare.model_dump()
    write_text(run.folder.split_file, data.split)
    run.save(
        profile=setup.components.profile.describe(),
        data=describe_input(data),
        data_digest=data.digest,
        split_digest=setup.data.split_digest,
        parameters=cost.count_parameters(model),
        macs=macs,
        attention={"parameters": cost.count_attention_parameters(model), "macs": inside},
        attention_kernels=find_attention_kernels(model, shape, setup.config.trainer),
        **({} if study is None else {"declared": {**study, "digest": short_digest(study)}}),
        **({} if data.watermark is None else {"watermark": data.watermark}),
        **({} if loaded is None else {"pretrained": str(loaded).splitlines()}),
    )


def announce_run(run: ActiveRun, setup: TrainingSetup) -> None:
    """Log model, dataset and run folder before training starts."""
    choices, facts, config, data = run.facts.choices, run.facts, setup.config, setup.data
    log.info(
        "%s with %s attention, %.2f M parameters, %.2f GMAC per %dx%d slice",
        choices["model"],
        choices["attn"],
        facts.parameters["total"] / 1e6,
        facts.macs / 1e9,
        *config.dataset.image_size,
    )
    counts = {"train": count_cases(data.train), "val": count_cases(data.val)}
    roles = [
        f"{role} " + ", ".join(f"{count} {unit}" for unit, count in units.items())
        for role, units in {**counts, "test": data.test.counts}.items()
    ]
    log.info("%s: %s", config.dataset_name, "; ".join(roles))
    log.info("Run folder: %s", run.folder)


def warn_of_findings(model: SegmentationModel) -> None:
    """Warn of attentions that are remarkable after training, such as an inverted one."""
    for layer, mixer in cost.find_attentions(model).items():
        for finding in mixer.findings():
            log.warning("%s is %s", layer, finding)


@contextlib.contextmanager
def recorded_outcome(run: ActiveRun, loggers: RunLoggers) -> Iterator[None]:
    """Record in run folder and trackers how the block ends: done, stopped or failed."""
    handler = run.log_to_file()
    try:
        yield
        loggers.finish("success")
        run.end("done")
        log.info("Done in %.0f s: %s", run.facts.seconds["total"], run.folder)
    except (KeyboardInterrupt, SystemExit, EndedEarly) as error:
        loggers.finish("stopped")
        run.end("stopped", str(error) if isinstance(error, EndedEarly) else type(error).__name__)
        raise
    except BaseException as error:
        loggers.finish("failed")
        run.end("failed", f"{type(error).__name__}: {first_line(error)}")
        log.debug("The run failed", exc_info=True)
        raise
    finally:
        logging.getLogger("attnseg").removeHandler(handler)
        handler.close()
