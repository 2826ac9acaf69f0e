from __future__ import annotations

import pytest
import torch
from joint_weights import golden, part, relative

from streamvos.methods.joint.network import TwoHeadLabelEncoder


@torch.inference_mode()
def test_encodings_are_the_authors():
    expected, encoder = golden("label_encoder"), TwoHeadLabelEncoder()
    encoder.load_state_dict(part("label_encoder."))
    labels = encoder(torch.from_numpy(expected["masks"]))
    # an independent float32 computation came within 8e-7
    assert relative(labels.induction[:, None], expected["enc_tm"]) < 8e-7
    assert relative(labels.transduction[:, None], expected["enc_tr"]) < 8e-7
    assert relative(labels.importance[:, None], expected["sw_tm"]) < 8e-7


def test_in_the_beginning_every_label_counts_alike():
    labels = TwoHeadLabelEncoder()(torch.rand(2, 1, 32, 48))
    assert (labels.importance == 1).all()
    assert (labels.induction >= 0).all()
    assert (labels.transduction >= 0).all()


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (16, 16)])
def test_a_cell_is_sixteen_pixels(size):
    labels = TwoHeadLabelEncoder(outputs=5)(torch.rand(1, 1, *size))
    assert labels.induction.shape == (1, 5, -(-size[0] // 16), -(-size[1] // 16))
