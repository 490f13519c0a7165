"""Pictures on their way to the encoder: the same values however they get there, and a GPU that need not wait for them."""

from __future__ import annotations

import threading

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from tiny_world import jpeg

from curation.base import images
from curation.base.errors import CocuError
from curation.config import EncoderConfig
from curation.decoding import Decoder, split
from curation.encoder import Encoder, load
from curation.samples import Reject, Sample


@pytest.fixture(scope="module")
def samples():
    return [Sample(str(number), jpeg(60 + 7 * number, a="red", b="blue"), f"thing {number}") for number in range(7)]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_bytes_normalised_on_the_device_have_the_bits_of_the_whole_preprocessing(samples, mode):
    preprocess = image_transform(48, is_train=False, resize_mode=mode)
    cut, normalisation = split(preprocess)
    expected = torch.stack([preprocess(images.decode(sample.image, 48)) for sample in samples])
    pixels = torch.stack([torch.from_numpy(Decoder(cut, 48)(sample)[1]) for sample in samples])
    assert pixels.dtype == torch.uint8
    found = normalisation(pixels)
    assert found.is_contiguous()  # in another layout, a model's convolution may add up in another order
    assert torch.equal(found, expected)


@pytest.mark.parametrize("preprocess", [lambda picture: torch.zeros(3, 2, 2), image_transform(48, is_train=True)])
def test_another_preprocessing_is_left_as_it_is(preprocess, samples):
    cut, normalisation = split(preprocess)
    if normalisation is None:
        assert cut is preprocess
        assert Decoder(cut, 48)(samples[0])[1].shape == (3, 2, 2)
    else:  # of training: random, but it ends as the others do
        assert normalisation.mean == open_clip.OPENAI_DATASET_MEAN


def test_processes_decode_what_threads_do(tiny_clip, samples):
    stream = [samples[0], Reject("r", "no image"), *samples[1:4], Sample("x", b"junk", "junk"), *samples[4:]]
    config = EncoderConfig(f"local-dir:{tiny_clip}", precision="fp32", batch_size=3, device="cpu")
    found = [
        list(load(c).encode_samples(iter(stream))) for c in (config, EncoderConfig(**vars(config) | {"decoders": 1}))
    ]
    for one, other in zip(*found, strict=True):
        if isinstance(one, Reject):
            assert one == other
        else:
            assert [sample.key for sample in one[0]] == [sample.key for sample in other[0]]
            assert all(sample.image == b"" for sample in other[0])
            np.testing.assert_array_equal(one[1], other[1])


class OnGpu(Encoder):
    """An encoder that is said to be on a GPU: ``encode`` stands for its work."""

    def __init__(self, encode, batch_size):
        self.device, self.batch_size, self.side = "cuda:0", batch_size, 32
        self.preprocess = image_transform(32, is_train=False)
        self.encode_images = encode


def test_a_gpu_works_while_the_next_batch_is_gathered(samples):
    read = {number: threading.Event() for number in range(len(samples) + 1)}

    def stream():
        for number, sample in enumerate(samples[:6]):
            read[number].set()
            yield sample
            if number == 2:
                yield Reject("r", "no image")

    batches = []

    def encode(pixels):
        batches.append(len(pixels))
        if len(batches) == 1:  # the last sample of the second batch is read before the first batch is done
            assert read[3].wait(60)
        return np.full((len(pixels), 2), len(batches), np.float32)

    items = list(OnGpu(encode, 2).encode_samples(stream()))
    assert [item.key if isinstance(item, Reject) else [s.key for s in item[0]] for item in items] == [
        ["0", "1"], "r", ["2", "3"], ["4", "5"],
    ]  # fmt: skip
    assert [item[1][0, 0] for item in items if not isinstance(item, Reject)] == [1, 2, 3]


def test_an_error_of_a_gpu_reaches_the_caller(samples):
    def encode(pixels):
        raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="device-side"):
        list(OnGpu(encode, 2).encode_samples(samples))


def test_decoders_must_not_be_negative():
    with pytest.raises(CocuError, match=r"encoder\.decoders: -1 must not be negative"):
        EncoderConfig(decoders=-1)
