"""Look at a running pipeline, give it a mask, and read the masks that it publishes.

    streamvos serve --source camera:0 --mask first.png --name door          # in another terminal
    python examples/client.py door door more.png

The arguments are the pipeline's name, the stream's name, and a label map of the frames' size.
"""

import sys
from itertools import islice

import streamvos


def main(pipeline: str, stream: str, mask: str) -> None:
    with streamvos.Client(pipeline) as client:
        for name, state in client.status()["streams"].items():
            print(f"{name}: {state['state']}, objects {state['objects']}")
        seq = client.annotate(stream, streamvos.read_label_map(mask))
        print(f"the mask was applied to frame {seq}")
        for one in islice(client.masks(stream), 10):
            areas = {object_id: item.area for object_id, item in one.objects.items()}
            print(f"frame {one.seq}: label map of {one.label_map.shape}, areas {areas}")


if __name__ == "__main__":
    main(*sys.argv[1:])
