"""Segment the sequences of a folder and score them as DAVIS does.

    python examples/evaluate_folder.py DAVIS

The folder holds JPEGImages/480p/NAME/*.jpg and Annotations/480p/NAME/*.png with a label map for each frame.
A sequence starts with its first label map; `streamvos eval` does the same and more.
"""

import sys

import streamvos
from streamvos.datasets.davis import DavisDataset
from streamvos.metrics.evaluation import evaluate_sequence
from streamvos.metrics.scores import summarize


def main(folder: str) -> None:
    vos = streamvos.load()
    scores = []
    for sequence in DavisDataset(folder):
        vos.reset()
        masks = [vos.step(sequence.image(0), sequence.first_mask()).mask]
        for index in range(1, len(sequence)):
            masks.append(vos.step(sequence.image(index)).mask)
        scores.append(evaluate_sequence(sequence.masks(), masks, sequence.object_ids, name=sequence.name))
        print(f"{sequence.name}: J&F {scores[-1].percent()['J&F']:.1f}")
    print(f"mean J&F {summarize(scores).mean['J&F']:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
