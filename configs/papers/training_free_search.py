"""DisWOT: Student Architecture Search for Distillation WithOut Training."""

import ml_collections

from configs.papers.common import arm, check, paper

SCORE = "both similarities"
PARAMETERS, NORM, RANDOM, LABELS = "parameter count", "gradient norm", "random", "accuracy after training on labels"
SCORES = {
    SCORE: "both",
    "relations alone": "relations",
    "semantics alone": "semantics",
    PARAMETERS: "parameters",
    NORM: "gradient_norm",
    RANDOM: "random",
    LABELS: "labels",
}


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="DisWOT: Student Architecture Search for Distillation WithOut Training",
        arxiv="2303.15678",
        functions=(
            "architecture_search.training_free_student_score",
            "architecture_search.semantic_similarity",
            "architecture_search.relation_similarity",
            "architecture_search.classifier_weight_gradient",
            "architecture_search.aging_evolution",
        ),
        claim="How alike a random student and a random teacher relate images and channels, on one batch, tells how accurate "
        "the student will be once distilled: the search needs no training, and is 180 times as fast.",
        headline="At least 180 times faster than searches that train, with state-of-the-art students on CIFAR, ImageNet and "
        "NAS-Bench-201",
        study="training_free_search",
        seeds=3,
    )
    config.settings = {
        "shared": {
            "data": "digits",  # or "mnist", "cifar10"
            "train": 1000,
            "test": 797,
            "batch": 50,
            "teacher_steps": 600,
            "steps": 160,  # of a student: 8 epochs
            "peak": 2e-2,  # learning rate of both, falls to 0 along a cosine
            "temperature": 4.0,
            "students": 32,  # that are trained, of the 128 of the space
            "runs": 2,  # of each
            "score_batch": 64,
            "inits": 3,  # random pairs of networks that a score is the mean of
        },
        "score": "both",  # or "relations", "semantics", "parameters", "gradient_norm", "random", "labels"
        "population": 12,
        "evaluations": 60,
    }
    config.smoke = {
        "shared": {
            "train": 40,
            "test": 20,
            "batch": 10,
            "teacher_steps": 3,
            "steps": 3,
            "students": 6,
            "runs": 1,
            "score_batch": 8,
            "inits": 1,
        },
        "population": 8,
        "evaluations": 10,
    }
    config.smoke_arms = (SCORE, LABELS)
    config.arms = tuple(arm(says, score=name) for says, name in SCORES.items())
    order, top = "spearman", "top_five_over_median"
    config.checks = (
        check("the score orders students as distillation does", order, SCORE, at_least=0.3),
        check("its five best are better than the median", top, SCORE, at_least=1e-6, over="every seed"),
    )
    config.side = (
        *(
            check(f"it orders students better than {says}", order, SCORE, says, at_least=0.0)
            for says in (PARAMETERS, NORM, RANDOM, LABELS)
        ),
        check(
            "within half of the sizes, what a search by it finds is better than the median",
            "found_over_median",
            SCORE,
            at_least=1e-6,
            over="every seed",
        ),
        *(
            check(f"and no worse than what a search by {says} finds", "found_accuracy", SCORE, says, at_least=0.0)
            for says in (PARAMETERS, NORM, RANDOM)
        ),
        check("a student is scored in a fiftieth of the time of training", "training_over_scoring", SCORE, at_least=50),
    )
    config.remarks = (
        "Here size is the better guide: the number of parameters and the norm of the gradient order students as they come "
        "out, and so does training on labels. The score is nearly the semantic part alone, a thousand times as large as "
        "that of relations, and lower for students with an average pool, though these are more accurate than others with "
        "as many 3x3 convolutions. It stays so with 12 pairs of random networks in place of 3, with batches of 256, and "
        "with relations of feature maps before their average (two seeds, rank correlations from -0.34 to 0.27); with "
        "features less their means over the batch the semantic part came to 0.56 and -0.09. The learning rate, 2e-2 of "
        "5e-3, 1e-2 and 2e-2, is the one of the most accurate students, whatever their order; 8 epochs. Times are "
        "processor seconds, without compiling."
    )
    return config
