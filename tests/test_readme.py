"""The README's program does what the README says it prints."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_program_prints_what_the_readme_shows(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    program, printed = re.findall(r"```python\n(.*?)```\s+```text\n(.*?)```", readme, re.DOTALL)[0]
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == (printed, "")


def test_every_make_target_that_is_documented_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        assert set(re.findall(r"`make ([a-z-]+)", document.read_text())) <= targets, document.name


def test_the_seal_recomputed_by_hand_is_the_head(tmp_path: Path) -> None:
    """The example of the document on operating, run on an export of the README's own program."""
    readme, document = (ROOT / "README.md").read_text(), (ROOT / "docs" / "OPERATING.md").read_text()
    (program,) = re.findall(r"```python\n(from points_platform.*?)```", readme, re.DOTALL)
    (recompute,) = re.findall(r"```python\n(import hashlib.*?)```", document, re.DOTALL)

    def run(*arguments: str) -> str:
        result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True)
        return result.stdout

    run(sys.executable, "-c", program)
    command = [str(Path(sys.executable).with_name("points-platform"))]
    run(*command, "export", "ledger.jsonl", "--database", "sqlite:///points.db")
    head = run(*command, "seal", "--print-head", "--database", "sqlite:///points.db")
    assert run(sys.executable, "-c", recompute) == head
