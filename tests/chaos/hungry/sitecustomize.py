"""Python imports this before anything else where its folder is on PYTHONPATH: the process then takes memory, MB after MB without an end,
once a file with its number lies in the folder CLEANSWEEP_CHAOS_HUNGER. The file says how many MB a second."""

import os
import threading
import time

HUNGER = "CLEANSWEEP_CHAOS_HUNGER"
POLL_S = 0.05
BITE = 16 << 20
"""Bytes that are taken at a time."""


def eat(folder: str) -> None:
    path = os.path.join(folder, str(os.getpid()))
    while not os.path.exists(path):
        time.sleep(POLL_S)
    with open(path) as file:
        rate = float(file.read()) * 1e6
    eaten = []
    while True:
        eaten.append(b"x" * BITE)
        time.sleep(BITE / rate)


if os.environ.get(HUNGER):
    threading.Thread(target=eat, args=(os.environ[HUNGER],), daemon=True, name="hunger").start()
