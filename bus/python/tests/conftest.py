"""Each test gets a bus of its own, made by tbusmgr, in a directory that is removed afterwards."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import tbus

BIN = Path(os.environ["TBUS_BIN"])  # where tbusmgr is, and the example echo
KEY = 1000
A, B, C = "0.0.1.1", "0.0.3.1", "0.0.5.1"
SIZE = 65536


def write_channels(directory, pairs):
    channels = "".join(
        f'[[channels]]\naddress = ["{a}", "{b}"]\nsend_size = {SIZE}\nrecv_size = {SIZE}\n' for a, b in pairs
    )
    file = Path(directory) / "channels.toml"
    file.write_text(f"gcim_shm_key = {KEY}\n{channels}")
    subprocess.run([BIN / "tbusmgr", "-C", file, "-W", "--force"], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def directory(monkeypatch):
    path = tempfile.mkdtemp(prefix="tbus-python-", dir="/dev/shm")
    monkeypatch.setenv("TBUS_SHM_DIR", path)
    write_channels(path, [(A, B), (C, B)])
    yield path
    shutil.rmtree(path)


@pytest.fixture
def bus(directory):
    return tbus.Bus(KEY)


@pytest.fixture
def pair(bus):
    """The sender from A to B and its receiver."""
    with bus.bind(A).sender(B) as sender, bus.bind(B).receiver(A) as receiver:
        yield sender, receiver
