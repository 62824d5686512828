"""Multi-Sample Dropout for Accelerated Training and Better Generalization."""

import ml_collections

from configs.papers.common import arm, check, paper


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Multi-Sample Dropout for Accelerated Training and Better Generalization",
        arxiv="1905.09788",
        functions=("dropout.multi_sample_dropout_loss", "dropout.multi_sample_masks", "dropout.bernoulli_mask"),
        claim="Several masks of the same features train in fewer iterations than one, to an equal or lower test error.",
        headline="CIFAR-10, CIFAR-100, ImageNet: the same training loss in fewer iterations, lower error with 8 masks",
        study="multi_sample_dropout",
        seeds=5,
    )
    config.settings = {
        "shared": {},
        "train": 400,
        "test": 1397,
        "widths": (256, 256),
        "batch": 64,
        "steps": 400,
        "learning_rate": 0.05,
        "num_samples": 1,
        "rate": 0.8,
        "threshold": 0.05,  # of the dropout-free training loss
        "early": 100,
        "redraws": 256,
    }
    config.smoke = {"train": 64, "test": 64, "widths": (16,), "batch": 16, "steps": 8, "early": 4, "redraws": 16}
    config.arms = tuple(
        arm(_name(rate, samples), num_samples=samples, rate=rate) for rate in (0.5, 0.8, 0.9) for samples in (1, 8, 32)
    )
    config.checks = (
        *(
            check(
                f"at rate {rate}, 8 masks reach the threshold in 5 % fewer steps than 1",
                "steps_to_threshold",
                _name(rate, 8),
                _name(rate, 1),
                compare="ratio",
                at_most=0.95,
            )
            for rate in (0.8, 0.9)
        ),
        *(
            check(
                f"the gradient's covariance over masks falls {samples}-fold with {samples} masks",
                "gradient_covariance",
                _name(0.8, samples),
                _name(0.8, 1),
                compare="ratio",
                at_least=0.8 / samples,
                at_most=1.2 / samples,
            )
            for samples in (8, 32)
        ),
    )
    config.side = (
        check(
            "8 masks at rate 0.8 are more accurate on test digits than 1",
            "test_accuracy",
            _name(0.8, 8),
            _name(0.8, 1),
            at_least=0.0,
            over="paired interval",
        ),
    )
    config.remarks = "A gain in accuracy is not expected at this scale: the digits are nearly solved either way."
    return config


def _name(rate: float, samples: int) -> str:
    return f"rate {rate}, {samples} mask{'s' * (samples > 1)}"
