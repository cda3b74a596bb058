"""The options about findings that are known, and what they make of what was found."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from ..core import InvalidRequestError
from ..ledger.findings import LASTING, Finding
from ..ledger.known import Accepted, Known, accept, read_known, write_known
from .terminal import Refusal

KnownOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", show_default=False, help="the findings that were accepted; keep it where the head is"),
]
AcceptOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND[=ID]",
        show_default=False,
        help="write new findings of that kind (with that id among theirs) to the --known file; may be repeated",
    ),
]
ByOption = Annotated[str | None, typer.Option(metavar="NAME", show_default=False, help="who accepts them")]
ReasonOption = Annotated[str | None, typer.Option(metavar="TEXT", show_default=False, help="and why")]


class Acceptance:
    """What is known of findings, and what an operator says is to be known from now on.

    ``met`` are the known ones that were there. Raises ``Refusal``, and ``InvalidRequestError`` for a file that is none.
    """

    def __init__(
        self, file: Path | None, wanted: list[str] | None = None, by: str | None = None, reason: str | None = None
    ) -> None:
        self.asked = file is not None
        self.met: list[Accepted] = []
        self._file, self._wanted, self._by, self._reason = file, wanted or [], by, reason
        if self._wanted and not (file and by and reason):
            raise Refusal("--accept needs --known FILE, --by NAME and --reason TEXT")
        if not self._wanted and (by or reason):
            raise Refusal("--by and --reason are for --accept")
        for kind in (each.partition("=")[0] for each in self._wanted):
            if kind not in LASTING:
                raise Refusal(f"{kind} cannot be accepted: what the ledger does not keep for ever can be put right")
        self._known = _read(file, missing=bool(self._wanted)) if file else Known()

    def new(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """The findings that are not known. What is to be accepted is written when all have been seen."""
        made: list[Accepted] = []
        for finding in findings:
            if known := self._known.of(finding):
                self.met.append(known)
            elif any(_is_meant(each, finding) for each in self._wanted):
                made.append(accept(finding, by=self._by or "", reason=self._reason or ""))
            else:
                yield finding
        self._write(made)

    def _write(self, made: list[Accepted]) -> None:
        for each in self._wanted:
            if not any(_is_meant(each, accepted.finding) for accepted in [*made, *self.met]):
                raise Refusal(f"nothing is accepted: there is no finding {each}")
        if made and self._file:
            with self._file.open("a", encoding="utf-8") as file:
                write_known(file, made)
                file.flush()
                os.fsync(file.fileno())
        self.met += made


def _is_meant(wanted: str, finding: Finding) -> bool:
    kind, given, id_ = wanted.partition("=")
    named = (str(one) for value in finding.ids.values() for one in (value if isinstance(value, list) else [value]))
    return kind == finding.kind and (not given or id_ in named)


def _read(path: Path, *, missing: bool) -> Known:
    if missing and not path.exists():
        return Known()
    try:
        with path.open(encoding="utf-8") as file:
            return read_known(file)
    except (InvalidRequestError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} is no file of known findings: {error}") from None
