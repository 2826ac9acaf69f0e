"""A sink of your own: a CSV file with one line for each object of each frame.

    python examples/own_sink.py clip.mp4 first.png boxes.csv

The file gets its name when it is complete; until then, and after a failure, it is boxes.RANDOM.partial.csv.
"""

import csv
import sys

import streamvos
from streamvos.sinks import Sink
from streamvos.sinks.record import new_partial


class BoxSink(Sink):
    def __init__(self, path):
        super().__init__(path)
        self.partial, descriptor = new_partial(self.path)
        self.file = open(descriptor, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self.lines = csv.writer(self.file)
        self.lines.writerow(["seconds", "object", "state", "left", "top", "right", "bottom"])

    def _write(self, frame, result):
        for object_id, one in result.objects.items():
            self.lines.writerow([f"{frame.pts:.3f}", object_id, one.state, *(one.box or ())])

    def _finish(self):
        self.file.close()
        self.partial.replace(self.path)

    def _abandon(self):
        self.file.close()


if __name__ == "__main__":
    address, mask, path = sys.argv[1:]
    vos, first = streamvos.load(), streamvos.read_label_map(mask)
    with streamvos.open_source(address) as source, BoxSink(path) as sink:
        for frame in source:
            sink.write(frame, vos.step(frame.image, first if frame.index == 0 else None))
