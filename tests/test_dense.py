"""Places of CLIP's image towers against formulas written out in float64, and where the models come from."""

from __future__ import annotations

import json
import math

import numpy as np
import open_clip
import pytest
import torch
from tiny_clip import MEAN, STD, VISION, model_config, save_clip, tiny_clip
from torch.nn import functional as F

from curation.base.errors import CocuError
from segmenters.dense import DenseCLIP, DenseConfig
from segmenters.groupvit import MEAN as OURS
from segmenters.groupvit import STD as SPREAD
from segmenters.opening import open_segmenter
from segmenters.pretrained import PretrainedError, open_pretrained, save_folder
from segmenters.readings import READINGS, Reading
from segmenters.towers import read_block

PIXELS = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32))


# --- readings, written out ------------------------------------------------------------------------------------------------


def softmax(row: np.ndarray) -> np.ndarray:
    exponentials = np.exp(row - row.max())
    return exponentials / exponentials.sum()


def layer_norm(x: np.ndarray, weights: dict, name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{name}.weight"]
        + weights[f"{name}.bias"]
    )


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attended(kind: str, query: np.ndarray, key: np.ndarray, value: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """One head, token by token; the class token is token 0."""
    size = math.sqrt(query.shape[1])
    rows = []
    for i in range(len(query)):
        if kind == "maskclip":
            rows.append(value[i])
        elif kind == "sclip":
            by_query = softmax(np.array([query[i] @ other / size for other in query]))
            by_key = softmax(np.array([key[i] @ other / size for other in key]))
            rows.append(sum((by_query[j] + by_key[j]) * value[j] for j in range(len(value))))
        else:
            logits = [key[i] @ other / size for other in key]
            for j in range(1, len(key)):
                if i > 0:
                    down = (i - 1) // grid[1] - (j - 1) // grid[1]
                    across = (i - 1) % grid[1] - (j - 1) % grid[1]
                    logits[j] += math.exp(-(down**2 + across**2) / (2 * 5.0**2))
            shares = softmax(np.array(logits))
            rows.append(sum(shares[j] * value[j] for j in range(len(value))))
    return np.array(rows)


def literal_block(x: np.ndarray, w: dict, name: str, kind: str | None, grid: tuple[int, int], heads: int) -> np.ndarray:
    """A block on one image (N, W); ``kind`` None: ordinary attention."""
    y = layer_norm(x, w, f"{name}.ln_1") @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]
    query, key, value = np.split(y, 3, axis=1)
    parts = []
    for head in range(heads):
        own = slice(head * query.shape[1] // heads, (head + 1) * query.shape[1] // heads)
        q, k, v = query[:, own], key[:, own], value[:, own]
        if kind is None:
            parts.append(np.array([softmax(k @ row / math.sqrt(q.shape[1])) @ v for row in q]))
        else:
            parts.append(attended(kind, q, k, v, grid))
    mixed = np.concatenate(parts, 1) @ w[f"{name}.attn.out_proj.weight"].T + w[f"{name}.attn.out_proj.bias"]
    if kind == "naclip":
        return mixed
    x = x + mixed
    hidden = gelu(layer_norm(x, w, f"{name}.ln_2") @ w[f"{name}.mlp.c_fc.weight"].T + w[f"{name}.mlp.c_fc.bias"])
    return x + hidden @ w[f"{name}.mlp.c_proj.weight"].T + w[f"{name}.mlp.c_proj.bias"]


def cubic(size: int, target: int) -> np.ndarray:
    """The shares (target, size) of ``size`` values in as many as ``target`` between them: bicubic in one dimension."""
    shares = np.zeros((target, size))
    for row in range(target):
        centre = (row + 0.5) * size / target - 0.5
        for near in range(math.floor(centre) - 1, math.floor(centre) + 3):
            far = abs(centre - near)
            weight = 1.25 * far**3 - 2.25 * far**2 + 1 if far <= 1 else -0.75 * (far**3 - 5 * far**2 + 8 * far - 4)
            shares[row, min(max(near, 0), size - 1)] += weight
    return shares


def literal_places(model, pixels: torch.Tensor, kind: str, stride: int = 8) -> np.ndarray:
    """Embeddings (D, h, w) of one image (3, H, W), from the weights alone."""
    w = {name: value.double().numpy() for name, value in model.clip.visual.state_dict().items()}
    image = pixels.double().numpy() * np.array(SPREAD)[:, None, None] + np.array(OURS)[:, None, None]
    image = (image - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    around = ((8 - stride) // 2, 8 - stride - (8 - stride) // 2)  # a patch is around its cell
    image = np.pad(image, ((0, 0), around, around), mode="edge")
    grid = (image.shape[1] - 8) // stride + 1, (image.shape[2] - 8) // stride + 1
    corners = [(stride * row, stride * column) for row in range(grid[0]) for column in range(grid[1])]
    patches = [image[:, top : top + 8, left : left + 8] for top, left in corners]
    tokens = [np.einsum("wcij,cij->w", w["conv1.weight"], patch) for patch in patches]
    whole, *places = w["positional_embedding"]
    places = np.einsum("rh,cw,hwd->rcd", cubic(4, grid[0]), cubic(4, grid[1]), np.array(places).reshape(4, 4, -1))
    x = np.array([w["class_embedding"], *tokens]) + np.array([whole, *places.reshape(-1, len(whole))])
    x = layer_norm(x, w, "ln_pre")
    x = literal_block(x, w, "transformer.resblocks.0", None, grid, 3)
    x = literal_block(x, w, "transformer.resblocks.1", kind, grid, 3)
    return (layer_norm(x, w, "ln_post") @ w["proj"])[1:].T.reshape(-1, *grid)


@pytest.mark.parametrize("kind", READINGS)
def test_readings_equal_the_formulas_in_double_precision(kind):
    model = tiny_clip("transformer", reading=kind)
    found = model.encode_places(PIXELS)
    assert found.shape == (2, 12, 4, 4)
    for image, places in zip(PIXELS, found, strict=True):
        np.testing.assert_allclose(places.detach().numpy(), literal_places(model, image, kind), atol=2e-4)


def test_places_of_a_finer_stride_and_another_size_equal_the_formulas():
    model = tiny_clip("transformer", reading="naclip", stride=5)
    model.clip.visual.positional_embedding.data *= 5  # so that they matter
    pixels = torch.from_numpy(np.random.default_rng(4).normal(size=(1, 3, 32, 40)).astype(np.float32))
    found = model.encode_places(pixels)
    assert found.shape == (1, 12, 6, 8)
    np.testing.assert_allclose(found[0].detach().numpy(), literal_places(model, pixels[0], "naclip", 5), atol=2e-4)


def test_a_block_that_is_read_with_its_own_attention_is_the_block():
    block = tiny_clip("transformer").clip.visual.transformer.resblocks[-1].double()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    own = Reading(lambda q, k, v, grid: (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v, True, "")
    torch.testing.assert_close(read_block(block, x, (2, 2), own), block(x))


def test_the_whole_of_an_image_is_what_open_clip_makes_of_it():
    own = (
        PIXELS * torch.tensor(SPREAD)[:, None, None]
        + torch.tensor(OURS)[:, None, None]
        - torch.tensor(MEAN)[:, None, None]
    )
    own = own / torch.tensor(STD)[:, None, None]
    for kind in ("transformer", "timm"):
        model = tiny_clip(kind)
        torch.testing.assert_close(model.encode(PIXELS).image, model.clip.encode_image(own), atol=1e-4, rtol=1e-4)


# --- towers ---------------------------------------------------------------------------------------------------------------


def test_resnets_keep_the_values_of_the_attention_that_pools():
    model = tiny_clip("resnet")
    visual = model.clip.visual
    taken = {}
    visual.layer4.register_forward_hook(lambda module, inputs, output: taken.update(map=output))
    places = model.encode_places(torch.randn(1, 3, 64, 96))
    assert places.shape == (1, 12, 2, 3)
    value = visual.attnpool.v_proj.weight @ taken["map"][0, :, 1, 2] + visual.attnpool.v_proj.bias
    torch.testing.assert_close(places[0, :, 1, 2], visual.attnpool.c_proj.weight @ value + visual.attnpool.c_proj.bias)


@pytest.mark.parametrize(("kind", "own", "finer"), [("transformer", 8, 4), ("timm", 32, 8)])
def test_a_finer_stride_has_more_places_and_the_same_weights(kind, own, finer):
    pixels = torch.randn(1, 3, 64, 64)
    coarse, fine = tiny_clip(kind), tiny_clip(kind, stride=finer)
    fine.load_state_dict(coarse.state_dict())
    assert coarse.encode_places(pixels).shape[2:] == (64 // own, 64 // own)
    assert fine.encode_places(pixels).shape[2:] == (64 // finer, 64 // finer)


@pytest.mark.parametrize("stride", [16, 8])
def test_a_finer_resnet_loses_its_first_strides(stride):
    model, coarse = tiny_clip("timm", stride=stride), tiny_clip("timm")
    model.load_state_dict(coarse.state_dict())
    trunk, pixels = coarse.clip.visual.trunk, torch.randn(1, 3, 64, 64)
    if stride == 8:
        trunk.conv1[0].stride = (1, 1)
    x = trunk.act1(trunk.bn1(trunk.conv1(coarse._own(pixels))))
    x = F.max_pool2d(x, 3, stride=1, padding=1)
    for layer in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        x = layer(x)
    expected = torch.einsum("bchw,dc->bdhw", x, coarse.clip.visual.head.proj.weight)
    torch.testing.assert_close(model.encode_places(pixels), expected)


def test_networks_without_a_first_pooling_are_dilated():
    options = {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
    model = DenseCLIP(DenseConfig({**model_config("timm"), "vision_cfg": options}, stride=16))
    assert model.encode_places(torch.randn(1, 3, 64, 64)).shape[2:] == (4, 4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_timm_network_of_one_size_is_one_line(name):
    """SigLIP's towers and Swin refuse the picture that a stride is measured on."""
    options = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 224}
    with pytest.raises(CocuError, match="does not pool a map of places"):
        DenseCLIP(DenseConfig({**model_config("timm"), "vision_cfg": options}))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("transformer", {"reading": "map"}, "one of maskclip, sclip, naclip"),
        ("transformer", {"stride": 9}, "not in 1..8"),
        ("timm", {"reading": "sclip"}, "one of map"),
        ("timm", {"stride": 5}, "asked for 5, but this timm network has places 32 pixels apart"),
        ("resnet", {"stride": 8}, "no finer ones"),
    ],
)
def test_what_a_tower_cannot_do_is_one_line(kind, options, message):
    with pytest.raises(CocuError, match=message) as error:
        tiny_clip(kind, **options)
    assert "\n" not in str(error.value)


# --- where models come from -----------------------------------------------------------------------------------------------


def test_folders_of_open_clip_are_opened_and_ours_are_read_by_open_clip(tmp_path):
    model = tiny_clip("timm")
    folder = save_clip(model, tmp_path / "clip")
    opened = open_segmenter(f"local-dir:{folder}@stride=16")
    assert (opened.kind, opened.model.tower.stride, opened.model.config.mean) == ("open_clip", 16, tuple(MEAN))

    save_folder(opened.model, tmp_path / "ours")
    again = open_segmenter(tmp_path / "ours")
    assert again.model.tower.stride == 16
    torch.testing.assert_close(again.model.encode_places(PIXELS), opened.model.encode_places(PIXELS))

    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'ours'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'ours'}")(["a red fox"])
    torch.testing.assert_close(
        theirs.eval().encode_text(tokens), again.model.encode_text(again.model.tokenize(["a red fox"]))
    )
    assert tuple(preprocess.transforms[-1].std) == tuple(STD)


def test_models_of_open_clip_are_opened_by_name(tmp_path):
    config = tmp_path / "tiny-vit.json"
    config.write_text(json.dumps(model_config("transformer")))
    open_clip.add_model_config(config)
    model = tiny_clip("transformer")
    weights = tmp_path / "weights.pt"
    torch.save(model.clip.state_dict(), weights)

    opened = open_segmenter(f"open_clip:tiny-vit/{weights}@maskclip,stride=4")
    assert (opened.model.tower.reading, opened.model.tower.stride) == ("maskclip", 4)
    assert torch.equal(opened.model.clip.visual.proj, model.clip.visual.proj)
    assert opened.model.config.image_size == VISION["transformer"]["image_size"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-16", "write open_clip:MODEL/TAG"),
        ("open_clip:ViT-B-61/openai", "did you mean"),
        ("open_clip:ViT-B-16/opnai", "neither weights of ViT-B-16 nor a file; there are"),
        ("local-dir:nowhere", "open_clip_config.json: missing"),
        ("local-dir:clip@stride=fine", "stride=fine is no option"),
        ("local-dir:clip@stride=0", "stride=0 is no option"),
    ],
)
def test_names_of_nothing_are_one_line(name, message, elsewhere):
    with pytest.raises(PretrainedError, match=message) as error:
        open_pretrained(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["me@home/clip", "clip@v2"])
def test_an_at_in_a_path_is_no_option(path, tmp_path):
    folder = save_clip(tiny_clip("transformer"), tmp_path / path)
    assert open_segmenter(folder).model.tower.stride == 8
    assert open_segmenter(f"local-dir:{folder}@maskclip,stride=4").model.tower.stride == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"preprocess_cfg": [1]}, "open_clip_config.json: "),
        ({"preprocess_cfg": {"mean": ["a", "b", "c"]}}, "could not convert"),
        ({"model_cfg": {"embed_dim": 12, "vision_cfg": "ViT", "text_cfg": {}}}, "vision_cfg: 'ViT' is no mapping"),
        ({"model_cfg": {"embed_dim": 12, "vision_cfg": {}, "text_cfg": None}}, "open_clip_config.json: "),
    ],
)
def test_a_configuration_of_something_else_is_one_line(config, message, tmp_path):
    folder = save_clip(tiny_clip("timm"), tmp_path / "clip")
    written = {"model_cfg": model_config("timm"), **config}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    with pytest.raises(PretrainedError, match=message) as error:
        open_pretrained(f"local-dir:{folder}")
    assert "\n" not in str(error.value)


def test_a_folder_without_preprocessing_has_ours(tmp_path):
    folder = save_clip(tiny_clip("timm"), tmp_path / "clip")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_config("timm"), "preprocess_cfg": None})
    )
    assert open_segmenter(folder).model.config.mean == (0.485, 0.456, 0.406)


def test_weights_of_another_model_are_one_line(tmp_path):
    folder = save_clip(tiny_clip("timm"), tmp_path / "clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_config("transformer")}))
    with pytest.raises(PretrainedError, match="weights of another model") as error:
        open_pretrained(f"local-dir:{folder}")
    assert "\n" not in str(error.value)


def test_vision_transformers_are_converted_for_transformers(tmp_path):
    from transformers import CLIPModel

    from segmenters.convert import main

    model = tiny_clip("transformer")
    folder = save_clip(model, tmp_path / "clip")
    assert main([f"local-dir:{folder}", str(tmp_path / "hf"), "--to", "huggingface"]) == 0
    theirs = CLIPModel.from_pretrained(tmp_path / "hf").eval()
    tokens = model.tokenize(["a photo of a red fox", "grass"])
    found = theirs(input_ids=tokens, pixel_values=PIXELS)
    torch.testing.assert_close(found.text_embeds, F.normalize(model.encode_text(tokens), dim=-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        found.image_embeds, F.normalize(model.clip.encode_image(PIXELS), dim=-1), atol=1e-5, rtol=1e-4
    )
    settings = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert (settings["image_mean"], settings["crop_size"]["height"]) == (MEAN, 32)


def test_what_transformers_has_no_model_for_is_one_line(tmp_path, capsys):
    from segmenters.convert import main

    folder = save_clip(tiny_clip("timm"), tmp_path / "clip")
    assert main([f"local-dir:{folder}", str(tmp_path / "hf"), "--to", "huggingface"]) == 1
    assert "convert it --to cocu, for open_clip" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("model", {"init_logit_bias": -10.0}),
        ("vision_cfg", {"no_ln_pre": True}),
        ("vision_cfg", {"ls_init_value": 0.1}),
        ("vision_cfg", {"act_kwargs": {"approximate": "tanh"}}),
        ("text_cfg", {"proj_bias": True}),
        ("text_cfg", {"proj_type": "none", "width": 12}),
        ("text_cfg", {"embed_cls": True}),
        ("text_cfg", {"pool_type": "last"}),
        ("text_cfg", {"no_causal_mask": True}),
    ],
)
def test_a_transformer_that_transformers_computes_otherwise_is_refused(part, changed):
    from segmenters.hf_clip import clip_to_huggingface

    config = model_config("transformer")
    (config if part == "model" else config[part]).update(changed)
    with pytest.raises(CocuError, match="convert it --to cocu"):
        clip_to_huggingface(DenseCLIP(DenseConfig(config)))
