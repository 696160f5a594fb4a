"""The subject of an acceptance run: device, size of the networks, and where it writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnseg.gpu.training_step import Shape

Row = dict[str, Any]  # figures by name; `name`, and `problem` if there is one
ATTENTIONS = ("qkv", "kv", "kv_pos", "efficient", "transpose")
PUBLISHED = {"setr": "base", "transunet": "base", "cvt": "cvt-13", "dae_former": "base"}


@dataclass(frozen=True)
class Settings:
    """The subject of an acceptance run.

    Attributes:
        device: `cuda`, or `cpu` for a rehearsal with tiny networks and fewer of them.
        folder: for phantoms, run folders and the log.
    """

    device: str
    folder: str

    @property
    def on_gpu(self) -> bool:
        """Whether this is no rehearsal."""
        return self.device == "cuda"

    @property
    def log(self) -> str:
        """The file of everything that the sections print."""
        return str(Path(self.folder, "check-gpu.log"))

    @property
    def shape(self) -> Shape:
        """The batch of published networks; of tiny ones in a rehearsal."""
        return Shape(24, 3, 224, 8) if self.on_gpu else Shape()

    @property
    def models(self) -> dict[str, str]:
        """The size of each model that is measured."""
        return PUBLISHED if self.on_gpu else {"setr": "tiny", "cvt": "tiny"}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of a model and an attention, which are measured at tiny size."""
        if self.on_gpu:
            return [(model, attn) for model in PUBLISHED for attn in ATTENTIONS]
        return [("setr", "kv_pos"), ("dae_former", "transpose")]

    @property
    def options(self) -> list[str]:
        """Options of every training run, of the device and of the folder."""
        folders = [f"paths.data={self.folder}/data", f"paths.outputs={self.folder}/outputs"]
        return [f"trainer={'gpu' if self.on_gpu else 'cpu'}", *folders]
