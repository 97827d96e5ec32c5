"""The module of old programs."""

import glob
import os

import libtbus
import pytest
from conftest import A, B, C, SIZE, write_channels


@pytest.fixture
def ends(directory):
    ends = libtbus.Tbus("1000", A, B), libtbus.Tbus(1000, B, A)
    assert all(end.init() is True for end in ends)
    yield ends
    for end in ends:
        end.finit()


def test_both_ways(ends):
    a, b = ends
    assert b.recv_message() == "None"
    for message in ("hello", "", "grüße 消息", "x" * 30000):
        assert a.send_message(message) == 0
        assert b.recv_message() == message
        assert b.send_message(message.encode()) == 0
        assert a.recv_message() == message
    assert a.send_message(b"\xff\x00") == 0
    assert b.recv_message().encode("utf-8", "surrogateescape") == b"\xff\x00"


def test_codes(ends):
    a, _ = ends
    code = 0
    while code == 0:
        code = a.send_message(b"x" * 1000)
    # 0x80000000 | level << 24 | module << 16 | (1024 + n)
    assert code < 0 and code & 0xFFFFFFFF == 0x81010402
    assert "no room" in libtbus.tbus_error_string(code) == libtbus.tbus_error_string(code & 0xFFFFFFFF)
    assert "longer" in libtbus.tbus_error_string(a.send_message(bytes(SIZE)))
    for wrong in (5, "\ud800"):
        assert "argument" in libtbus.tbus_error_string(a.send_message(wrong))
    a.finit()
    a.finit()
    assert "init" in libtbus.tbus_error_string(a.send_message("x")) and a.recv_message() == "None"
    assert libtbus.tbus_error_string(0) == "no error"
    for other in (1, -1, 2**31 - 1, -(2**31), 2**32 - 1):
        assert "no error code" in libtbus.tbus_error_string(other)


def test_init_that_fails(directory):
    for key, send, recv in (("77", A, B), ("x", A, B), (None, A, B), (1000, "0.0.9.9", B), (1000, A, "9"), (1000, 1.5, B), ("\ud800", A, B), (1000, "\ud800", B)):
        assert libtbus.Tbus(key, send, recv).init() is False
    first, second = libtbus.Tbus(1000, A, B), libtbus.Tbus(1000, A, B)
    assert first.init() and not second.init()
    first.finit()
    assert second.init() and second.init()


def test_receiving_after_the_channel_was_deleted(directory, ends):
    a, b = ends
    assert a.send_message("last") == 0
    write_channels(directory, [(C, B)])
    assert [b.recv_message() for _ in range(3)] == ["last", "None", "None"]


def test_a_wrong_crc_is_passed_over(directory, bus):
    with bus.bind(A).sender(B) as sender:
        sender.set_extensions(crc=True)
        sender.send_many([b"needle in the ring", b"whole"])
        # What the rules forbid.
        for name in glob.glob(f"{directory}/**/*", recursive=True):
            if os.path.isfile(name) and b"needle in the ring" in open(name, "rb").read():
                with open(name, "r+b") as file:
                    file.seek(file.read().index(b"needle in the ring"))
                    file.write(b"NEEDLE")
    other = libtbus.Tbus(1000, B, A)
    assert other.init() and other.recv_message() == "whole" and other.recv_message() == "None"
    other.finit()


def test_fork(ends):
    child = os.fork()
    if child == 0:
        code = ends[0].send_message("x")
        ends[0].finit()
        os._exit("fork" not in libtbus.tbus_error_string(code))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
