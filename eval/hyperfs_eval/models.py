"""Models and tokenizers, loaded by unmodified transformers from a directory, not from a network.
Code that a model brings along is never run."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from . import Problem, size

MAX_JSON = 64 << 20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F32": 32,
        "I32": 32, "U32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64}  # others 8


def first_line(e: BaseException) -> str:
    text = str(e).strip()
    return text.splitlines()[0] if text else type(e).__name__


@contextmanager
def enough_memory():
    """Failed allocations become a Problem."""
    advice = ("not enough memory: try --low-memory, a smaller --context, or --dtype=bfloat16, "
              "which takes half")
    try:
        yield
    except MemoryError as e:
        raise Problem(advice) from e
    except RuntimeError as e:
        if "can't allocate memory" in str(e) or "out of memory" in str(e):
            raise Problem(advice) from e
        raise


def read_json(path: Path) -> dict:
    try:
        if path.stat().st_size > MAX_JSON:
            raise Problem(f"{path} is too large for a configuration")
        found = json.loads(path.read_bytes())
    except OSError as e:
        raise Problem(f"{path} cannot be read: {e.strerror}") from e
    except ValueError as e:
        raise Problem(f"{path} is no JSON: {first_line(e)}") from e
    if not isinstance(found, dict):
        raise Problem(f"{path} is no configuration of a model")
    return found


def sentence_modules(path: Path) -> list | None:
    """modules.json of sentence-transformers."""
    try:
        found = json.loads((path / "modules.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, list) else None


def encoder_directory(path: Path) -> Path:
    """Where the encoder itself is: sentence-transformers may keep it in a folder below."""
    for module in sentence_modules(path) or []:
        if isinstance(module, dict) and str(module.get("type", "")).endswith("Transformer"):
            below = str(module.get("path", ""))
            if below and "/" not in below and (path / below / "config.json").is_file():
                return path / below
    return path


def find(directory: str) -> Path:
    """The directory itself, after a look at what has to be there."""
    path = Path(directory)
    if path.is_file():
        raise Problem(f"{path} is a file: give a model's directory; mount an image first "
                      f"(hyperfs {path} DIRECTORY)")
    if not path.is_dir():
        raise Problem(f"{path} is no directory")
    inner = encoder_directory(path)
    if not (inner / "config.json").is_file():
        raise Problem(f"{path} holds no model: it has no config.json")
    if not any(inner.glob("*.safetensors")) and not any(inner.glob("pytorch_model*.bin")):
        raise Problem(f"{path} holds no model: it has no *.safetensors")
    return path


def is_embedding(path: Path, config: dict) -> bool:
    architecture = (config.get("architectures") or [""])[0]
    causal = architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return sentence_modules(path) is not None or (architecture.endswith("Model") and not causal)


def check_type(path: Path, config: dict):
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES:
        own = " and code of its own, which is never run" if "auto_map" in config else ""
        raise Problem(f"{path} has model type '{kind}'{own}: transformers "
                      f"{transformers.__version__} does not know it")


def check_causal(path: Path, config: dict):
    check_type(path, config)
    architectures = config.get("architectures") or []
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if not known & set(architectures) or \
            config["model_type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise Problem(f"{path} is no causal language model "
                      f"({', '.join(architectures) or 'unnamed'}): --embedding compares the "
                      "vectors of an encoder")


# ---- memory ----

def elements(path: Path) -> int:
    """Weights in the safetensors files, by their headers; damaged ones are told when loading."""
    total = 0
    for file in path.glob("*.safetensors"):
        try:
            with open(file, "rb") as f:
                length = int.from_bytes(f.read(8), "little")
                header = json.loads(f.read(length)) if length <= MAX_JSON else {}
            for name, tensor in header.items():
                if name != "__metadata__":
                    begin, end = tensor["data_offsets"]
                    total += (end - begin) * 8 // BITS.get(tensor["dtype"], 8)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return total


def available() -> int | None:
    """Bytes of memory that are free or can be freed; the control group's limit counts too."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return free


def check_memory(paths: list[Path], dtype: str, together: bool):
    """Better a sentence now than the kernel's out-of-memory killer later."""
    sizes = [elements(path) * DTYPES[dtype].itemsize for path in paths]
    need, free = (sum(sizes) if together else max(sizes)), available()
    if free is not None and need > free:
        advice = [] if not together or len(paths) == 1 else ["--low-memory"]
        advice += ["--dtype=bfloat16"] if dtype == "float32" else []
        raise Problem(f"not enough memory: the weights take {size(need)}, {size(free)} are "
                      "available" + (f"; try {' or '.join(advice)}" if advice else ""))


# ---- loading ----

LOADING = {"local_files_only": True, "trust_remote_code": False}


def load_tokenizer(path: Path):
    try:
        return AutoTokenizer.from_pretrained(path, model_max_length=1 << 30, **LOADING)
    except Exception as e:  # transformers raises whatever its parts raise
        raise Problem(f"{path} has no tokenizer that transformers can load: {first_line(e)}") from e


def load_config(path: Path):
    try:
        return AutoConfig.from_pretrained(path, **LOADING)
    except Exception as e:
        raise Problem(f"transformers cannot read {path / 'config.json'}: {first_line(e)}") from e


def _load(kind, path: Path, dtype: str, optional: str | None = None):
    """optional: tensors whose name contains it may be missing. transformers fills what is missing
    with random numbers, which no comparison would survive."""
    try:
        with enough_memory():
            model, told = kind.from_pretrained(path, dtype=DTYPES[dtype], output_loading_info=True,
                                               **LOADING)
    except Problem:
        raise
    except Exception as e:
        raise Problem(f"transformers cannot load {path}: {first_line(e)}") from e
    missing = [name for name in told["missing_keys"] if not optional or optional not in name]
    if missing:
        raise Problem(
            f"{path} lacks {len(missing)} of the model's tensors, {min(missing)} among them")
    if told["mismatched_keys"]:
        raise Problem(f"{path} has tensors of another shape than its config.json says")
    return model.eval()


def load_causal(path: Path, dtype: str):
    return _load(AutoModelForCausalLM, path, dtype)


def load_encoder(path: Path, config: dict, dtype: str):
    architecture = (config.get("architectures") or [""])[0]
    kind = AutoModel
    if architecture.endswith("EncoderModel"):  # the encoder of a model that has a decoder as well
        kind = getattr(transformers, architecture, AutoModel)
    return _load(kind, path, dtype, optional="pooler")


def quiet_transformers():
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
