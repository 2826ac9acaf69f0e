"""Add an object while the stream runs, and forget it again later.

    python examples/add_object_midstream.py clip.mp4 first.png 20 more.png 40

first.png names the objects of the first frame, more.png those that appear with frame 20: ids that are new
start new objects, ids that are known correct theirs. The new objects are forgotten at frame 40.
"""

import sys

import streamvos


def main(address: str, first: str, begin: str, more: str, end: str) -> None:
    masks = {0: streamvos.read_label_map(first), int(begin): streamvos.read_label_map(more)}
    vos = streamvos.load()
    with streamvos.open_source(address) as source:
        for frame in source:
            if frame.index == int(begin):
                known = set(vos.object_ids)
            if frame.index == int(end):
                for object_id in set(vos.object_ids) - known:
                    vos.forget(object_id)
            result = vos.step(frame.image, masks.get(frame.index))
            states = {object_id: one.state for object_id, one in result.objects.items()}
            print(f"frame {frame.index}: {states}")


if __name__ == "__main__":
    main(*sys.argv[1:])
