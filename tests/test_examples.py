import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(example: Path) -> None:
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout


def test_there_are_examples() -> None:
    assert EXAMPLES


def test_the_example_policy_serves_long_prompts_last() -> None:
    example = next(path for path in EXAMPLES if path.stem == "own_policy")
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=60, check=True)
    assert ["a1", "b2", "a3", "a0"] == [line.partition(":")[0] for line in done.stdout.splitlines()]
