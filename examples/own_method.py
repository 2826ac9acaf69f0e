"""A method of your own: a pixel belongs to the object whose mean color is nearest.

    vos = streamvos.Segmenter(MeanColor())
    vos.step(frame, mask)

In a pipeline.toml: `name = "own_method:MeanColor"` under [method], with this folder on PYTHONPATH.
"""

import torch

from streamvos.methods import Method, MethodOptions, Target
from streamvos.nn.aggregation import insert_given
from streamvos.types import Evidence, Features


class Pixels(torch.nn.Module):
    def forward(self, frames):  # (B, 3, H, W) float32 RGB in 0..1
        return Features({"image": frames}, tuple(frames.shape[2:]))


class Colors(Target):
    """The state of one stream: the mean color of each object, (3,), and of the background as object 0."""

    def __init__(self):
        self.colors = {}

    @property
    def object_ids(self):
        return tuple(sorted(set(self.colors) - {0}))

    def annotate(self, features, label_map, object_ids, named=None, probabilities=None):
        for i in (0, *(named or object_ids)):
            pixels = features["image"][0][:, label_map == i]  # (3, N)
            self.colors[i] = pixels.sum(1) / max(pixels.shape[1], 1)

    def read(self, features):
        colors = torch.stack([self.colors[i] for i in (0, *self.object_ids)])  # (1 + K, 3)
        distances = (features["image"] - colors[:, :, None, None]).norm(dim=1)  # (1 + K, H, W)
        return Evidence({"scores": -20 * distances}, self.object_ids)

    def write(self, features, probabilities):
        pass  # colors are learned where the user gives a mask

    def forget(self, object_id):
        del self.colors[object_id]

    def state_dict(self):
        return {str(i): color for i, color in self.colors.items()}

    def load_state_dict(self, state):
        self.colors = {int(i): color for i, color in state.items()}


class MeanColor(Method):
    name, options, extractor = "mean-color", MethodOptions(), Pixels()

    def target(self):
        return Colors()

    def decoder(self, evidence, size, annotation=None):
        soft = evidence["scores"].softmax(dim=0)  # (1 + K, H, W)
        return soft if annotation is None else insert_given(soft, evidence.object_ids, annotation)
