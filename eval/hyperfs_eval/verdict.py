"""Figures in words. The limits stand in hyperfs-eval(1) too."""

# Mean of the divergence and its 99th percentile, both in nats a token; the worse of the two counts.
LANGUAGE = [
    (0.001, 0.02, "practically indistinguishable from the original"),
    (0.005, 0.1, "very close to the original: measurable, hard to notice in use"),
    (0.02, 0.4, "close to the original: some answers are worded differently"),
    (0.1, 2.0, "visibly different from the original: check it on your own task before use"),
]
WORST = "damaged: store it with a higher quality"

# Least mean cosine of the vectors, and least rank correlation of the similarities.
SENTENCES = [
    (0.9999, 0.9999, "practically indistinguishable from the original"),
    (0.999, 0.999, "very close to the original: nearly the same order of similarity"),
    (0.99, 0.99, "close to the original: neighbours of like similarity change places"),
    (0.95, 0.95, "visibly different from the original: check it on your own task before use"),
]


def of_language(mean: float, percentile: float, same: bool) -> str:
    """same: every probability of every prediction is equal."""
    if same:
        return "identical: every prediction is the original's"
    return next((words for limit, tail, words in LANGUAGE if mean < limit and percentile < tail),
                WORST)


def of_sentences(cosine: float, ranks: float, same: bool) -> str:
    if same:
        return "identical: every vector is the original's"
    return next((words for limit, order, words in SENTENCES if cosine >= limit and ranks >= order),
                WORST)
