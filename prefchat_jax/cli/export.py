"""`prefchat export`: the parameters of a run as one file."""

import dataclasses
import pathlib
from collections.abc import Sequence

from prefchat_jax.cli import flags
from prefchat_jax.cli.console import output
from prefchat_jax.errors import UserError
from prefchat_jax.training.export import ExportFormat, export

_FORMATS: dict[str, ExportFormat] = {".safetensors": "safetensors", ".npz": "npz"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Write the parameters of a run as safetensors or npz, by dotted path."""

    weights: str
    """Run directory of `prefchat finetune`; may come first, without its flag."""
    output: str
    """File to write; one that is there is replaced."""
    format: ExportFormat | None = None
    """What to write [by the ending of --output]."""

    def file_format(self) -> ExportFormat:
        """The format that was asked for, by either flag."""
        ending = _FORMATS.get(pathlib.Path(self.output).suffix)
        if self.format is None and ending is None:
            raise UserError(
                f"--output {self.output}: end it in {' or '.join(_FORMATS)}, or give "
                "--format."
            )
        if self.format and ending and self.format != ending:
            raise UserError(
                f"--format {self.format}: --output {self.output} ends like {ending}."
            )
        return self.format or ending or "npz"


def main(argv: Sequence[str]) -> None:
    """Writes the file and says what is in it."""
    given = flags.parse(ExportFlags, "export", argv, first="weights")
    replaced = " (replaced)" * pathlib.Path(given.output).exists()
    tensors, numbers = export(given.weights, given.output, given.file_format())
    output().print(
        f"{given.output}{replaced}: {tensors} tensors, {numbers:,} numbers",
        highlight=False,
    )
