"""The encoder, against open_clip used by hand."""

from __future__ import annotations

import io

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tiny_world import jpeg

from curation.base.errors import CocuError
from curation.config import EncoderConfig
from curation.encoder import identity, load
from curation.samples import Reject, Sample

COLOURS = ["red", "green", "blue", "white", "black", "yellow", "purple"]


@pytest.fixture(scope="module")
def config(tiny_clip):
    return EncoderConfig(model=f"local-dir:{tiny_clip}", precision="fp32", batch_size=3)


@pytest.fixture(scope="module")
def samples():
    return [
        Sample(str(n), jpeg(40 + n, ground=colour, a="red"), f"a {colour} thing") for n, colour in enumerate(COLOURS)
    ]


@pytest.fixture(scope="module")
def by_hand(config):
    model, _, preprocess = open_clip.create_model_and_transforms(config.model)
    return model.eval(), preprocess, open_clip.get_tokenizer(config.model)


def test_image_embeddings_equal_open_clips(config, samples, by_hand):
    model, preprocess, _ = by_hand
    images = torch.stack([preprocess(Image.open(io.BytesIO(sample.image))) for sample in samples])
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True).numpy()
    ours = np.concatenate([embeddings for _, embeddings in load(config).encode_samples(samples)])
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_text_embeddings_equal_open_clips(config, samples, by_hand):
    model, _, tokenizer = by_hand
    texts = [sample.caption for sample in samples]
    with torch.no_grad():
        expected = model.encode_text(tokenizer(texts), normalize=True).numpy()
    np.testing.assert_allclose(load(config).encode_texts(texts), expected, atol=1e-5)
    assert load(config).encode_texts([]).shape == (0, 32)


def test_batches_fill_across_rejects_and_keep_the_order(config, samples):
    stream = [samples[0], Reject("r", "no image"), samples[1], Sample("x", b"junk", "junk"), *samples[2:]]
    items = list(load(config).encode_samples(iter(stream)))
    batches = [[sample.key for sample in item[0]] for item in items if not isinstance(item, Reject)]
    assert batches == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    rejects = [item for item in items if isinstance(item, Reject)]
    assert [reject.key for reject in rejects] == ["r", "x"]
    assert (
        rejects[1].reason
        == "image cannot be decoded (not an image in JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF, or its header is damaged)"
    )


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1", "I;16"])
def test_every_pixel_format_is_embedded(config, mode):
    image = Image.fromarray((np.arange(1600) * 40).astype(np.uint16).reshape(40, 40)) if mode == "I;16" else None
    image = image or Image.new("RGB", (40, 40), "green").convert(mode)
    out = io.BytesIO()
    image.save(out, "JPEG" if mode == "CMYK" else "PNG")
    ((_, embeddings),) = load(config).encode_samples([Sample("k", out.getvalue(), "green")])
    assert np.linalg.norm(embeddings) == pytest.approx(1, abs=1e-5)


def test_a_truncated_image_is_a_reject(config, samples):
    (item,) = load(config).encode_samples([Sample("k", samples[0].image[:300], "x")])
    assert isinstance(item, Reject)
    assert "cannot be decoded" in item.reason


def test_bf16_is_close_to_fp32(config, samples):
    from dataclasses import replace

    (batch, exact), *_ = load(config).encode_samples(samples)
    images = samples[: len(batch)]  # those of the batch have been decoded, and are no longer held
    (_, rough), *_ = load(replace(config, precision="bf16")).encode_samples(images)
    assert (exact * rough).sum(1).min() > 0.999
    assert not np.array_equal(exact, rough)


def test_identity_follows_the_weights(config, tiny_clip, tmp_path):
    import shutil

    other = shutil.copytree(tiny_clip, tmp_path / tiny_clip.name)
    same = identity(EncoderConfig(model=f"local-dir:{other}", precision="fp32"))
    assert same == identity(config)
    weights = other / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert identity(EncoderConfig(model=f"local-dir:{other}", precision="fp32")) != same


def test_the_hash_of_weights_follows_every_bit(config):
    model = load(config)
    before = model.weights
    parameter = next(model.model.parameters())
    del model.__dict__["weights"]
    assert model.weights == before
    with torch.no_grad():
        old = parameter.view(-1)[0].item()
        parameter.view(-1)[0] = float(np.nextafter(np.float32(old), np.float32(9)))
        del model.__dict__["weights"]
        assert model.weights != before
        parameter.view(-1)[0] = old


def test_weights_that_need_quickgelu_get_it(monkeypatch, config):
    from curation import encoder

    asked = {}

    def create(*arguments, **options):
        asked.update(options)
        raise RuntimeError("no weights here")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    monkeypatch.setattr(encoder, "require_weights", lambda *arguments: None)
    with pytest.raises(CocuError, match="no weights here"):
        encoder.Encoder(EncoderConfig(model="ViT-B-16", pretrained="openai"), "cpu", "fp32")
    assert asked["force_quick_gelu"] is True
    with pytest.raises(CocuError):
        encoder.Encoder(EncoderConfig(model="ViT-B-16", pretrained="laion2b_s34b_b88k"), "cpu", "fp32")
    assert asked["force_quick_gelu"] is False
