"""The subject of an acceptance run: device, size of the networks, and where it writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnseg.gpu.published import SIZES
from attnseg.gpu.training_step import Shape
from attnseg.training.precision import fastest_precision

Row = dict[str, Any]  # figures by name; `name`, and `problem` if there is one
ATTENTIONS = ("qkv", "kv", "kv_pos", "efficient", "transpose")


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
        """True, unless this is a rehearsal on a CPU."""
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
    def precision(self) -> str:
        """The 16-bit precision that training would choose on this device."""
        return str(fastest_precision("gpu")[0]) if self.on_gpu else "bf16-mixed"

    @property
    def precisions(self) -> list[str]:
        """The 16-bit precisions that this device does not merely emulate, its own first."""
        return list(dict.fromkeys([self.precision, *["16-mixed"] * self.on_gpu]))

    @property
    def models(self) -> dict[str, str]:
        """The size of each of the four models that are measured, two in a rehearsal."""
        return SIZES if self.on_gpu else {"setr": "tiny", "cvt": "tiny"}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of a model and an attention, which are measured at tiny size."""
        if self.on_gpu:
            return [(model, attn) for model in SIZES for attn in ATTENTIONS]
        return [("setr", "kv_pos"), ("dae_former", "transpose")]

    @property
    def options(self) -> list[str]:
        """Options of every training run, of the device and of the folder."""
        folders = [f"paths.data={self.folder}/data", f"paths.outputs={self.folder}/outputs"]
        return [f"trainer={'gpu' if self.on_gpu else 'cpu'}", *folders]
