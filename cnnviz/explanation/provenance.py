"""Where a result comes from: everything needed to make it again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import SaveError


@dataclass(frozen=True)
class Provenance:
    """How a result was made. JSON values throughout.

    Attributes:
        technique: name of the technique.
        distribution: the installed distribution that brought it.
        version: that distribution's version.
        options: every option's value, defaults included.
        target: what was explained, in words.
        layer: full name of the layer, or of several.
        model: name of the model.
        model_fingerprint: fast checksum of the weights; the same for the same weights.
        input_fingerprint: fast checksum of the inputs.
        seed: seed of the random numbers.
        memory: budget in bytes.
        batch_sizes: sizes of the batches run, largest first.
        out_of_memory: how often a batch did not fit and was halved.
        hooks_left_out: forward hooks found on the model, which an explanation does not run.
        device: where it ran, such as "cpu" or "cuda:0".
        dtype: floating type of the inputs.
        versions: of cnnviz, torch and Python.
        seconds: wall time.
    """

    technique: str
    distribution: str | None = None
    version: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    target: str | None = None
    layer: str | list[str] | None = None
    model: str | None = None
    model_fingerprint: str | None = None
    input_fingerprint: str | None = None
    seed: int = 0
    memory: int = 0
    batch_sizes: list[int] = field(default_factory=list)
    out_of_memory: int = 0
    hooks_left_out: int = 0
    device: str | None = None
    dtype: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Provenance:
        """Return what `to_json` wrote.

        Raises:
            SaveError: a field is unknown or missing.
        """
        unknown = values.keys() - {f.name for f in fields(cls)}
        if unknown or "technique" not in values:
            raise SaveError(
                f"provenance has unknown fields {sorted(unknown)} or no technique; written by a newer cnnviz?"
            )
        return cls(**values)
