"""Runs every block of docs/python.md, in order, in one process; and the benchmark, in small."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_block_runs(directory):
    text = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 11
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], check=True, timeout=60)


def test_the_benchmark(directory):
    """The figures are for a quiet machine: here only that tbus is not slower."""
    compare = ROOT / "bus" / "python" / "bench" / "compare.py"
    command = [sys.executable, compare, "--json", "--least", "1", "--rounds", "1", "--count", "20000"]
    output = subprocess.run(command, check=True, timeout=200, stdout=subprocess.PIPE, env=os.environ).stdout
    assert min(json.loads(output)["times_pyzmq"].values()) > 1
