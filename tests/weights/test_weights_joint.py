from __future__ import annotations

import pytest
import torch
from joint_weights import published, with_overrides

from streamvos.methods.joint import JOINT, JOINTOptions
from streamvos.types import InputError
from streamvos.weights.joint import from_authors, is_authors_layout

SMALL = {
    "depth": 18,
    "planes": (4, 4, 8, 8),
    "channels": 8,
    "keys": 4,
    "labels": 4,
    "label_widths": (2, 4, 4),
    "widths": (8, 4, 4, 4),
}


def authors_names(method: JOINT) -> dict[str, torch.Tensor]:
    """The state of a method under the names of the authors' checkpoints, unused layers included."""
    from streamvos.weights.joint import PREFIXES

    state = {}
    for name, value in method.networks.state_dict().items():
        theirs, ours = next((t, o) for t, o in PREFIXES.items() if name.startswith(o))
        state[theirs + name.removeprefix(ours)] = value
    for name in [n for n in state if ".encoder.self_attn." in n]:
        state[name.replace("encoder", "decoder")] = state[name].clone()
        state[name.replace("WK", "WV")] = torch.zeros(3)
    return state


def test_published_files_fill_the_default_network():
    tensors = published()
    assert is_authors_layout(list(tensors))
    converted, options = from_authors(tensors)
    assert JOINTOptions(**options) == JOINTOptions()
    method = JOINT()
    own = {
        n: v.shape for n, v in method.networks.state_dict().items() if not n.endswith("num_batches_tracked")
    }
    assert own == {n: v.shape for n, v in converted.items()}
    method.networks.load_state_dict(converted, strict=False)
    key = method.network.transformer.cross_attention.weight
    assert torch.equal(key, tensors["transformer.decoder.cross_attn.WK.weight"])
    reg = tensors["target_model.filter_optimizer.residual_module.filter_reg"]
    assert torch.equal(method.network.learner.regularization, reg)


@pytest.mark.parametrize("depth", [18, 50])
def test_names_go_there_and_back_and_the_widths_follow(depth):
    options = {**SMALL, "depth": depth}
    method = JOINT(JOINTOptions(network=options))
    state = authors_names(method)
    wrapped = {f"module.{name}": value for name, value in state.items()}
    assert is_authors_layout(list(wrapped))
    converted, follows = from_authors(wrapped)
    assert JOINTOptions(**follows) == method.options
    own = method.networks.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in converted.items())
    assert all(n in converted for n in own if not n.endswith("num_batches_tracked"))


def test_what_does_not_fit_is_refused():
    tensors = dict(with_overrides())
    name = "transformer.decoder.self_attn.WK.weight"
    with pytest.raises(InputError, match="copy of the encoder"):
        from_authors({**tensors, name: tensors[name] + 1})
    with pytest.raises(InputError, match="not an entry of a JOINT checkpoint"):
        from_authors({**tensors, "iounet.weight": torch.zeros(1)})
    del tensors["label_encoder.conv_block.0.weight"]
    with pytest.raises(InputError, match=r"lacks 'label_encoder\.stem"):
        from_authors(tensors)
    assert not is_authors_layout(["backbone.conv1.weight", "refiner.project.weight"])
