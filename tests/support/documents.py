"""The examples of the documents, each by its first words."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples() -> list[str]:
    """All examples in Python, in the order of the documents."""
    return [
        block
        for document in DOCUMENTS
        for block in re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    ]


def example(begins: str) -> str:
    """The one that begins so."""
    (found,) = (block for block in examples() if block.startswith(begins))
    return found


def said() -> str:
    """All documents as one text."""
    return "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
