"""Weights that open_clip downloads: whether they are here, and if not, whether they can be had at all.

The libraries that download them try for minutes, file after file, and then say the reason only. One look decides first.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request

from curation.base.errors import CocuError

PATIENCE = 15.0  # seconds for a server to answer: a busy machine on a slow line takes some
OPENAI_CACHE = "~/.cache/clip"  # where open_clip keeps what is at an address of its own
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # of a repository that names none


def missing_weights(model: str, pretrained: str | None) -> str | None:
    """The address of weights that have to be downloaded, of an open_clip name with a tag or ``hf-hub:ORG/NAME``.

    None where they are here, or where it is not known what they are.
    """
    import open_clip  # takes seconds

    if model.startswith("hf-hub:"):
        return _missing_in_hub(model.removeprefix("hf-hub:"), "")
    if ":" in model or not pretrained or os.path.isfile(pretrained):
        return None
    name = model.replace("/", "-")
    tokenizer = ((open_clip.get_model_config(name) or {}).get("text_cfg") or {}).get("hf_tokenizer_name")
    if tokenizer and _missing_in_hub(tokenizer, "tokenizer_config.json"):
        return _missing_in_hub(tokenizer, "tokenizer_config.json")
    source = open_clip.get_pretrained_cfg(name, pretrained)
    if source.get("hf_hub"):
        repository, _, file = source["hf_hub"].rpartition("/")
        return _missing_in_hub(repository, file)
    url = source.get("url")
    if url and not os.path.isfile(os.path.join(os.path.expanduser(OPENAI_CACHE), os.path.basename(url))):
        return str(url)
    return None


def _missing_in_hub(repository: str, name: str) -> str | None:
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    safer = [f"{name.rpartition('.')[0]}.safetensors", FILES[0]] if name.endswith((".bin", ".pth", ".pt")) else []
    names = [name, *safer] if name else [*FILES]  # open_clip prefers those that cannot run code
    if any(isinstance(try_to_load_from_cache(repository, item), str) for item in names):
        return None
    return str(hf_hub_url(repository, names[0]))


def unreachable(address: str) -> str | None:
    """Why nothing can be downloaded from an address, after one try of some seconds; None where a server answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return None  # somebody answers; what is wrong will be said when it is downloaded
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        is_network = isinstance(reason, OSError) and "CERTIFICATE" not in str(reason).upper()
        return str(getattr(reason, "strerror", None) or reason) if is_network else None
    return None


def require_weights(key: str, model: str, pretrained: str | None, instead: str) -> None:
    """Raises CocuError within seconds where weights must be downloaded and cannot be.

    ``key`` names the setting in the message, and ``instead`` says what to write for weights that are here.
    """
    address = missing_weights(model, pretrained)
    reason = unreachable(address) if address else None
    if address is None or reason is None:
        return
    from huggingface_hub import constants

    host = address.partition("://")[2].partition("/")[0]
    cache = constants.HF_HUB_CACHE if "huggingface" in host else os.path.expanduser(OPENAI_CACHE)
    what = f"{model}/{pretrained}" if pretrained else model
    raise CocuError(
        f"{key}: the weights of {what} are not here, and {host} cannot be reached ({reason}); load them once where it "
        f"can be, and copy {cache}, or {instead}"
    )
