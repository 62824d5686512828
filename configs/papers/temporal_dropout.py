"""An Analysis of Temporal Dropout in Earth Observation Time Series for Regression Tasks."""

from typing import Any

import ml_collections

from configs.papers.common import arm, check, paper

HIDDEN, LEARNED = "Monte Carlo dropout 0.2", "temporal dropout, learned rate"
FIXED = (0.1, 0.3, 0.5)


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="An Analysis of Temporal Dropout in Earth Observation Time Series for Regression Tasks",
        arxiv="2504.06915",
        functions=(
            "dropout.temporal_mask",
            "dropout.sample_concrete_mask",
            "uncertainty.monte_carlo_predict",
            "uncertainty.predictive_moments",
            "uncertainty.gaussian_negative_log_likelihood",
            "uncertainty.regression_calibration_error",
        ),
        claim="Dropping whole time steps in training and at inference makes predictions better, and their uncertainty "
        "truer, where steps are missing; the rate can be learned instead of searched.",
        headline="R2 with learned rate / rate 0.3 / plain Monte Carlo dropout: SwissYield 0.79/0.76/0.78, "
        "LFMC 0.72/0.69/0.72, PM2.5 0.77/0.71/0.74",
        study="temporal_dropout",
        seeds=5,
    )
    config.settings = {
        "shared": {},
        "train": 1500,
        "test": 500,
        "length": 24,
        "frequencies": (1, 1, 2, 3),
        "amplitudes": (0.5, 2.0),
        "noise_coefficient": 0.6,
        "noise_deviation": 0.5,
        "quiet": 0.1,  # noise of the target, and where the fourth amplitude passes the threshold
        "loud": 0.4,
        "threshold": 1.5,
        "width": 32,
        "hidden_rate": 0.2,
        "mechanism": "temporal",
        "rate": 0.3,
        "rate_logit": -1.0,  # a rate of 0.269, from where it is learned
        "temperature": 0.1,
        "batch": 64,
        "steps": 700,
        "learning_rate": 3e-3,
        "samples": 20,
        "samples_at_once": 4,
        "missing": (0, 20, 40),  # per cent of the steps of the test series
    }
    config.smoke = {"train": 64, "test": 32, "width": 4, "batch": 16, "steps": 4, "samples": 4}
    config.smoke_arms = (HIDDEN, LEARNED)
    config.arms = (
        arm(HIDDEN, mechanism="hidden"),
        *(arm(_name(rate), rate=rate) for rate in FIXED),
        arm(LEARNED, mechanism="concrete"),
    )
    temporal = tuple(_name(rate) for rate in FIXED)
    config.checks = (
        *(
            check(
                f"{name}: lower error than Monte Carlo dropout with 40 % of the steps missing",
                "rmse_40",
                name,
                HIDDEN,
                at_most=0.0,
                over="share of seeds",
                share=0.8,
            )
            for name in (*temporal, LEARNED)
        ),
        *(
            check(
                f"{name}: the same error without missing steps, within 3 %",
                "rmse_0",
                name,
                HIDDEN,
                compare="ratio",
                at_least=0.97,
                at_most=1.03,
                condition=True,
            )
            for name in (*temporal, LEARNED)
        ),
        *(_trend(name, *pair, at_least=0.0) for name in temporal for pair in ((0, 20), (20, 40))),
        *(_trend(HIDDEN, *pair, at_most=0.0) for pair in ((0, 20), (20, 40))),
        check("the learned rate ends below its start of 0.269", "rate", LEARNED, at_most=0.2689, over="every seed"),
    )
    config.side = (
        *(_trend(LEARNED, *pair, at_least=0.0) for pair in ((0, 20), (20, 40))),
        check(
            "a rate that was learned on complete series is too low for 40 %",
            "rmse_40",
            LEARNED,
            _name(0.3),
            at_least=0.0,
        ),
        *(
            check(
                f"calibration at {percent} % missing: learned rate at least as good as {against}",
                f"calibration_{percent}",
                LEARNED,
                against,
                at_most=0.0,
            )
            for percent in (0, 20, 40)
            for against in (_name(0.3), HIDDEN)
        ),
    )
    return config


def _name(rate: float) -> str:
    return f"temporal dropout {rate}"


def _trend(name: str, low: int, high: int, **bounds: Any) -> dict[str, Any]:
    verb = "rises" if "at_least" in bounds else "falls"
    says = f"{name}: epistemic variance {verb} from {low} to {high} % missing"
    return check(says, f"epistemic_{high}", name, name, against_metric=f"epistemic_{low}", **bounds)
