"""torch and transformers, unmodified, load from a mount what they load from a plain directory."""

import pytest
import torch
from conftest import mounted, run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

QUALITIES = {"lossless": ["--lossless"], "small": ["--quality", "small"]}
PROMPT = "The file system"


def equal(a, b):
    """Bit for bit; NaN equals itself."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.fixture(params=QUALITIES)
def quality(request):
    return request.param


@pytest.fixture
def reference(quality, model, image_of, tools, tmp_path):
    """What the mount has to look like: the source itself, or what fsck.hyperfs extracts."""
    if quality == "lossless":
        return model
    run([tools.fsck, f"--extract={tmp_path / 'extracted'}", image_of(model, *QUALITIES[quality])])
    return tmp_path / "extracted"


def test_torch_load_file(quality, reference, model, image_of):
    expected = load_file(reference / "model.safetensors")
    with mounted(image_of(model, *QUALITIES[quality])) as mnt:
        found = load_file(mnt / "model.safetensors")
        assert found.keys() == expected.keys()
        for name in expected:
            assert equal(found[name], expected[name]), name
        del found


def load(directory):
    return (AutoModelForCausalLM.from_pretrained(directory).eval(),
            AutoTokenizer.from_pretrained(directory))


def text(loaded):
    model, tokenizer = loaded
    with torch.inference_mode():
        out = model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=16,
                             do_sample=False)
    return tokenizer.decode(out[0])


def test_from_pretrained(quality, reference, model, image_of):
    expected = load(reference)
    with mounted(image_of(model, *QUALITIES[quality])) as mnt:
        found = load(mnt)
        for (name, a), (_, b) in zip(found[0].state_dict().items(), expected[0].state_dict().items(),
                                     strict=True):
            assert equal(a, b), name
        assert text(found) == text(expected)
        del found, a
