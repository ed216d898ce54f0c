"""What hyperfs-eval does between reading its options and printing."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402

from . import Problem, language, models, sentences, text, verdict  # noqa: E402
from .progress import Progress  # noqa: E402

DEFAULT_WINDOWS, DEFAULT_CONTEXT = 40, 512
DEFAULT_LINES = 1000


def vocabulary_of(config) -> int:
    return getattr(config.get_text_config(), "vocab_size", 0) or 0


def context_of(config, path, asked: int | None) -> int:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if asked is None:
        known = isinstance(positions, int) and positions > 1
        return min(DEFAULT_CONTEXT, positions) if known else DEFAULT_CONTEXT
    if isinstance(positions, int) and 1 < positions < asked:
        raise Problem(f"--context={asked} is too large: {path} has {positions} positions")
    return asked


def check_tokens(paths, largest: int, configs):
    for path, config in zip(paths, configs):
        if largest >= vocabulary_of(config):
            raise Problem(f"token {largest} of the text is out of range: {path} has a vocabulary "
                          f"of {vocabulary_of(config)}; its tokenizer belongs to another model")


def same_tokens(paths, tokenizers, content: str):
    """The text as tokens; both tokenizers have to agree on all of it."""
    found = [text.tokens_of(one, content) for one in tokenizers]
    if len(found) > 1 and (found[0] != found[1]
                           or text.prefix_of(tokenizers[0]) != text.prefix_of(tokenizers[1])):
        raise Problem(f"the vocabularies differ: the tokenizers of {paths[0]} and {paths[1]} cut "
                      "the text into different tokens")
    return found[0]


def language_model(options, paths, content: str) -> dict:
    configs = [models.load_config(path) for path in paths]
    sizes = [vocabulary_of(config) for config in configs]
    if len(set(sizes)) > 1:
        raise Problem(f"the vocabularies differ: {sizes[0]} tokens in {paths[0]}, {sizes[1]} in "
                      f"{paths[1]}")
    tokenizers = [models.load_tokenizer(path) for path in paths]
    tokens = same_tokens(paths, tokenizers, content)
    prefix = text.prefix_of(tokenizers[0])
    context = min(context_of(c, p, options.context) for c, p in zip(configs, paths))
    if context - len(prefix) < 2:
        raise Problem(f"--context={context} is too small")
    count = DEFAULT_WINDOWS if options.windows is None else options.windows
    if options.tokens is not None:
        count = max(1, options.tokens // (context - len(prefix)))
    windows = text.cut(tokens, prefix, context, count, options.seed, text.shown(options.text))
    check_tokens(paths, max(max(window) for window in windows.tokens), configs)
    models.check_memory(paths, options.dtype, together=not options.low_memory)
    batches = language.batches_of(windows, sizes[0])

    def live(path):
        return language.Live(models.load_causal(path, options.dtype), batches, windows.given,
                             str(path))

    original = None
    if options.against and options.low_memory:
        with Progress("predictions of the original", len(windows.tokens), options.quiet) as bar:
            original = language.Stored(live(paths[1]), bar)
    elif options.against:
        original = live(paths[1])
    copy = live(paths[0])
    with Progress("evaluating", len(windows.tokens), options.quiet) as bar:
        found = language.evaluate(copy, batches, windows.given, original, bar)
    result = language.summary(found) | {"context": context}
    if original:
        same = result["kl_max"] == 0 and result["change"] == 0 and result["top1_agreement"] == 1
        result["verdict"] = verdict.of_language(result["kl_mean"], result["kl_p99"], same)
    return result


def embedding_model(options, paths, content: str) -> dict:
    if not options.against:
        raise Problem(f"{paths[0]} is an embedding model, which has no perplexity: name the "
                      "original with --against")
    poolings = [sentences.pooling_of(path) for path in paths]
    if poolings[0] != poolings[1]:
        raise Problem(f"the models pool differently: {poolings[0]}, {poolings[1]} in the original")
    paths = [models.encoder_directory(path) for path in paths]
    count = DEFAULT_LINES if options.windows is None else options.windows
    lines = text.lines_of(content, count, options.seed, text.shown(options.text))
    configs = [models.load_config(path) for path in paths]
    length = min(sentences.length_of(config, options.context or DEFAULT_CONTEXT)
                 for config in configs)
    encoded = []
    for path in paths:
        tokenizer = models.load_tokenizer(path)
        encoded.append(tokenizer(lines, truncation=True, max_length=length).input_ids)
        if min(map(len, encoded[-1])) == 0:
            raise Problem(f"the tokenizer of {path} makes no token of one of the lines")
    if encoded[0] != encoded[1]:
        raise Problem(f"the vocabularies differ: the tokenizers of {paths[0]} and {paths[1]} cut "
                      "the text into different tokens")
    check_tokens(paths, max(map(max, encoded[0])), configs)
    models.check_memory(paths, options.dtype, together=False)
    found = []
    with Progress("embedding", 2 * len(lines), options.quiet) as bar:
        for path, config in zip(paths, configs):  # vectors are small: one model at a time
            model = models.load_encoder(path, models.read_json(path / "config.json"), options.dtype)
            padding = getattr(config, "pad_token_id", None) or 0
            found.append(sentences.vectors(model, encoded[0], padding, poolings[0], str(path), bar))
            del model
    if found[0].shape != found[1].shape:
        raise Problem(f"the vectors have different sizes: {found[0].shape[1]}, {found[1].shape[1]} "
                      "in the original")
    result = sentences.compare(*found) | {"pooling": poolings[0], "context": length}
    result["verdict"] = verdict.of_sentences(result["cosine_mean"], result["rank_correlation"],
                                             result.pop("same"))
    return result


def run(options) -> dict:
    models.quiet_transformers()
    if options.threads:
        torch.set_num_threads(options.threads)
    content = text.read(options.text)
    paths = [models.find(path) for path in (options.model, options.against) if path]
    kinds = []
    for path in paths:
        config = models.read_json(models.encoder_directory(path) / "config.json")
        kinds.append(options.embedding or models.is_embedding(path, config))
        if kinds[-1]:
            models.check_type(path, config)
        else:
            models.check_causal(path, config)
    if len(set(kinds)) > 1:
        raise Problem(f"{paths[0]} and {paths[1]} are different kinds of model")
    measure = embedding_model if kinds[0] else language_model
    head = {"kind": "embedding" if kinds[0] else "language", "model": options.model,
            "against": options.against, "text": options.text, "dtype": options.dtype,
            "seed": options.seed}
    with models.enough_memory():
        return head | measure(options, paths, content)
