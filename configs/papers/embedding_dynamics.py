"""An Embedding-Dynamic Approach to Self-supervised Learning."""

import ml_collections

from configs.papers.common import arm, check, paper

CENTROID, BROWNIAN, SINGULAR, ALL = "centroid", "centroid, Brownian", "centroid, singular values", "all three"
ALL_TWO_VIEWS = "all three, 2 views"


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="An Embedding-Dynamic Approach to Self-supervised Learning",
        arxiv="2207.03552",
        functions=(
            "representation.embedding_dynamics",
            "representation.centroid_attraction",
            "representation.random_directions",
            "representation.brownian_drift",
            "representation.singular_value_dispersion",
            "metrics.effective_rank",
        ),
        claim="Attraction to the centroid of views, local diffusion and dispersion of singular values together learn "
        "embeddings that do not collapse, without negatives, a predictor or batch norm.",
        headline="On ImageNet as good as or better than methods like BYOL (direction only: the paper's tables were not at "
        "hand)",
        study="embedding_dynamics",
        seeds=3,
    )
    config.settings = {
        "shared": {},
        "data": "digits",  # or "mnist", "cifar10"
        "train": 1200,
        "test": 597,
        "widths": (128, 128),
        "dimension": 32,
        "views": 4,
        "shift": 1.0,  # eighths of the side, which are pixels of digits
        "degrees": 15.0,
        "noise": 0.1,
        "batch": 64,
        "steps": 400,  # 22 epochs
        "learning_rate": 2e-3,  # falls to 0 along a cosine
        "decay": 0.99,  # of the target; rises to 1 along a cosine
        "singular_weight": 1.0,
        "brownian_weight": 0.1,
    }
    config.smoke = {"train": 64, "test": 48, "widths": (16, 16), "dimension": 8, "batch": 16, "steps": 4}
    config.smoke_arms = (ALL,)
    config.arms = (
        arm(CENTROID, singular_weight=0.0, brownian_weight=0.0),
        arm(BROWNIAN, singular_weight=0.0),
        arm(SINGULAR, brownian_weight=0.0),
        arm(ALL),
        arm(ALL_TWO_VIEWS, views=2),
        arm("all three, Brownian x 20", brownian_weight=2.0),
    )
    probe = "embedding_probe"
    config.checks = (
        check("the centroid alone collapses", "effective_rank", CENTROID, at_most=2.0),
        check("all three do not", "effective_rank", ALL, at_least=4.0),
        check("all three 5 points above the centroid alone", probe, ALL, CENTROID, at_least=0.05),
        check(
            "all three within a point of the best of fewer",
            probe,
            ALL,
            (CENTROID, BROWNIAN, SINGULAR),
            at_least=-0.01,
        ),
        check("4 views at most half a point behind 2", probe, ALL, ALL_TWO_VIEWS, at_least=-0.005),
    )
    config.side = (
        check("diffusion alone does not stop the collapse", "effective_rank", BROWNIAN, at_most=2.0),
        check("diffusion adds to singular values", probe, ALL, SINGULAR, at_least=0.0, over="paired interval"),
        check("4 views better than 2", probe, ALL, ALL_TWO_VIEWS, at_least=0.0, over="paired interval"),
        check("below the embedding too: better than the centroid alone", "backbone_probe", ALL, CENTROID, at_least=0.0),
    )
    config.remarks = (
        "The singular values do the work here, and the diffusion is neutral at the default weight. The collapsed embedding "
        "still tells classes apart in what little it varies, and the linear probe standardises it first: 5 points, the "
        "margin of a pilot, are too many to ask for. Only 3 seeds and 22 epochs of batches of 64, against 40 of 256; the "
        "form and the weight of the term on singular values are inferred."
    )
    return config
