#!/usr/bin/env python3
"""How many messages a second go from one process to another: tbus, pyzmq over ipc://, multiprocessing.Queue.

Side by side in one run: in every round each takes its turn; figures are medians over the rounds. The receiver's process times
from its first message to its last. `plain` sends and receives one message a call; `many` hands lists over. Needs pyzmq, and
tbusmgr on the PATH or in $TBUS_BIN. Exit status 1 if one of tbus's ways is below --least times pyzmq.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tbus
import zmq

BATCH = 100
RING = 1 << 22


def timed(connection, first, rest):
    """Receives, and tells the parent how long the messages after the first took."""
    connection.send("ready")
    first()
    begun = time.perf_counter()
    rest()
    connection.send(time.perf_counter() - begun)


def tbus_receives(connection, _place, count, many):
    with tbus.Bus(1).bind("0.0.3.1").receiver("0.0.1.1") as receiver:

        def plain_rest():
            recv = receiver.recv
            for _ in range(count - 1):
                recv()

        def many_rest():
            left = count - 1
            while left > 0:
                left -= len(receiver.recv_many(min(left, BATCH)))

        timed(connection, receiver.recv, many_rest if many else plain_rest)


def tbus_sends(_place, count, message, many):
    with tbus.Bus(1).bind("0.0.1.1").sender("0.0.3.1") as sender:
        if not many:
            send, try_send = sender.send, sender.try_send
            for _ in range(count):
                if not try_send(message):
                    send(message, None)
            return
        batch = [message] * BATCH
        for _ in range(count // BATCH):
            sender.send_many(batch, None)


def zmq_receives(connection, place, count, _many):
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.setsockopt(zmq.RCVHWM, 100_000)
        socket.bind(f"ipc://{place}/socket")

        def rest():
            recv = socket.recv
            for _ in range(count - 1):
                recv()

        timed(connection, socket.recv, rest)


def zmq_sends(place, count, message, _many):
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.setsockopt(zmq.SNDHWM, 100_000)
        socket.connect(f"ipc://{place}/socket")
        send = socket.send
        for _ in range(count):
            send(message)


def queue_receives(connection, queue, count, _many):
    def rest():
        get = queue.get
        for _ in range(count - 1):
            get()

    timed(connection, queue.get, rest)


def queue_sends(queue, count, message, _many):
    put = queue.put
    for _ in range(count):
        put(message)


WAYS = {
    "tbus, plain": (tbus_sends, tbus_receives, False),
    "tbus, many": (tbus_sends, tbus_receives, True),
    "pyzmq ipc://": (zmq_sends, zmq_receives, False),
    "multiprocessing.Queue": (queue_sends, queue_receives, False),
}


def turn(way, place, count, size):
    """Messages a second."""
    sends, receives, many = WAYS[way]
    if way == "multiprocessing.Queue":
        place = multiprocessing.Queue()
    here, there = multiprocessing.Pipe()
    receiver = multiprocessing.Process(target=receives, args=(there, place, count, many))
    receiver.start()
    assert here.recv() == "ready"
    sends(place, count, bytes(size), many)
    if not here.poll(120):
        receiver.kill()
        raise SystemExit(f"{way}: no end within two minutes")
    seconds = here.recv()
    receiver.join()
    return (count - 1) / seconds


def make_channel(place):
    os.environ["TBUS_SHM_DIR"] = place
    file = Path(place) / "channels.toml"
    file.write_text(
        f'gcim_shm_key = 1\n[[channels]]\naddress = ["0.0.1.1", "0.0.3.1"]\nsend_size = {RING}\nrecv_size = {RING}\n'
    )
    path = os.environ.get("TBUS_BIN", "") + os.pathsep + os.environ["PATH"]
    manager = shutil.which("tbusmgr", path=path)
    if manager is None:
        raise SystemExit("tbusmgr is not on the PATH: cargo build --release, then add target/release to it")
    subprocess.run([manager, "-C", file, "-W"], check=True, stdout=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000, help="messages a turn (200000), a multiple of 100")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (5)")
    parser.add_argument("--size", type=int, default=64, help="bytes a message (64)")
    parser.add_argument("--least", type=float, default=5.0, help="times pyzmq's rate (5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args()
    if given.count < BATCH or given.count % BATCH or given.rounds < 1:
        parser.error(f"--count must be a multiple of {BATCH}, --rounds at least 1")
    multiprocessing.set_start_method("fork")
    place = tempfile.mkdtemp(prefix="tbus-compare-", dir="/dev/shm")
    try:
        make_channel(place)
        rates = {way: [] for way in WAYS}
        for _ in range(given.rounds):
            for way in WAYS:
                rates[way].append(turn(way, place, given.count, given.size))
    finally:
        shutil.rmtree(place)
    medians = {way: statistics.median(all_) for way, all_ in rates.items()}
    ratios = {way: medians[way] / medians["pyzmq ipc://"] for way in ("tbus, plain", "tbus, many")}
    if given.json:
        result = {"size": given.size, "count": given.count, "rounds": rates, "medians": medians, "times_pyzmq": ratios}
        print(json.dumps(result, indent=1))
    else:
        print(f"{'messages/s, ' + str(given.size) + ' B':24}{'median':>12}{'least':>12}{'most':>12}{'x pyzmq':>9}")
        for way, all_ in rates.items():
            times = medians[way] / medians["pyzmq ipc://"]
            print(f"{way:24}{medians[way]:12,.0f}{min(all_):12,.0f}{max(all_):12,.0f}{times:9.2f}")
    slow = {way: ratio for way, ratio in ratios.items() if ratio < given.least}
    for way, ratio in slow.items():
        print(f"{way}: {ratio:.2f} times pyzmq's rate, less than {given.least}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
