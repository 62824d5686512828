"""ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws."""

import ml_collections

from configs.papers.common import arm, check, paper

OPTIMIZERS = ("SGD", "Adam")
DROPOUT_RATES = (0.0, 0.05, 0.5)
ETA_SQUARED = (1.0, 2.0, 4.0)
GRIDS = {
    "sgd": (0.035, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28),
    "adam": (0.006, 0.0085, 0.012, 0.017, 0.024, 0.034, 0.048),
}
ACCURACIES = tuple(f"accuracy_lr_{index}" for index in range(7))  # a learning rate of the grid each


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws",
        arxiv="2410.09692",
        functions=(
            "adapters.adaptive_low_rank",
            "adapters.low_rank_row_scale",
            "adapters.adaptive_low_rank_gradients",
            "adapters.output_dependent_scale",
            "adapters.merge_low_rank",
            "dropout.expected_squared_loss",
        ),
        claim="In short fine-tuning dropout only adds noise to low-rank adapters, and a learning rate for every row that "
        "starts high and falls as the row grows replaces it and the scaling factor at no loss of accuracy.",
        headline="Qwen2-0.5B on Emotion, rank 4 to 64: LoRA 33.1 to 38.1 %, ALLoRA 33.5 to 38.3 %; +0.3 % over twelve tasks",
        study="adaptive_low_rank",
        seeds=10,
    )
    config.settings = {
        "shared": {
            "pretrain": 900,
            "adapt": 256,
            "test": 641,
            "quarter_turns": 1,  # of the digits that the network is pretrained on; it is adapted to upright ones
            "widths": (256, 256),
            "batch": 32,
            "pretrain_steps": 400,
            "learning_rate": 1e-3,  # of pretraining, with Adam
            "rank": 4,
            "steps": 100,
        },
        "optimizer": "sgd",
        "method": "plain",
        "eta_squared": 1.0,  # of the adaptive method; plain LoRA has its learning rate multiplied by eta
        "rate": 0.0,  # of dropout in the rank space
        "grids": GRIDS,
        "base": 1,  # which learning rate of the grid the norms are taken at
        "early": 10,
    }
    config.smoke = {
        "shared": {
            "pretrain": 64,
            "adapt": 32,
            "test": 64,
            "widths": (16, 16),
            "batch": 16,
            "pretrain_steps": 4,
            "steps": 4,
        },
        "early": 2,
    }
    config.smoke_arms = (_plain("SGD", 0.5), _adaptive("Adam", 4.0))
    config.arms = tuple(each for optimizer in OPTIMIZERS for each in _arms(optimizer))
    config.checks = (
        *(each for optimizer in OPTIMIZERS for each in _norm_checks(optimizer)),
        *(each for optimizer in OPTIMIZERS for each in _accuracy_checks(optimizer)),
    )
    config.side = (
        *(
            check(
                f"{optimizer}: the mean row scale has fallen below eta by step 100",
                "row_scale",
                _adaptive(optimizer, 4.0),
                at_most=0.99,
            )
            for optimizer in OPTIMIZERS
        ),
        *(
            check(
                f"{optimizer}: at the base rate, dropout 0.5 costs a point",
                ACCURACIES[1],
                _plain(optimizer, 0.0),
                _plain(optimizer, 0.5),
                at_least=0.01,
            )
            for optimizer in OPTIMIZERS
        ),
        *(
            check(
                f"{optimizer}: the adaptive rate gains accuracy over LoRA, each at its best rate",
                ACCURACIES,
                tuple(_adaptive(optimizer, each) for each in ETA_SQUARED),
                _rivals(optimizer),
                at_least=0.0,
                over="paired interval",
            )
            for optimizer in OPTIMIZERS
        ),
    )
    config.remarks = (
        "With SGD every check holds. Adam cancels a constant factor: after 10 steps the adapters are 1 % larger, not 56 %. "
        "The two failures are there, each against LoRA with dropout 0.05, which comes out a point above the best of all "
        "others, within the noise of ten seeds (standard error one point). LoRA without dropout and the adaptive rate are "
        "equal."
    )
    return config


def _arms(optimizer: str) -> tuple:
    name = optimizer.lower()
    return (
        *(arm(_plain(optimizer, rate), optimizer=name, rate=rate) for rate in DROPOUT_RATES),
        arm(_faster(optimizer), optimizer=name, eta_squared=4.0),
        *(arm(_adaptive(optimizer, each), optimizer=name, method="adaptive", eta_squared=each) for each in ETA_SQUARED),
    )


def _norm_checks(optimizer: str) -> tuple:
    return (
        check(
            f"{optimizer}: after 10 steps the adapters of eta 2 are larger than LoRA's",
            "norm_early",
            _adaptive(optimizer, 4.0),
            _plain(optimizer, 0.0),
            at_least=0.0,
        ),
        check(
            f"{optimizer}: their last 10 steps add less than the first 10",
            "late_growth",
            _adaptive(optimizer, 4.0),
            at_most=1.0,
        ),
    )


def _accuracy_checks(optimizer: str) -> tuple:
    return (
        check(
            f"{optimizer}: dropout 0.05 does not help LoRA, each at its best rate",
            ACCURACIES,
            _plain(optimizer, 0.0),
            _plain(optimizer, 0.05),
            at_least=0.0,
        ),
        check(
            f"{optimizer}: dropout 0.5 costs LoRA a point, each at its best rate",
            ACCURACIES,
            _plain(optimizer, 0.0),
            _plain(optimizer, 0.5),
            at_least=0.01,
        ),
        check(
            f"{optimizer}: the best of the adaptive rate is within 0.3 points of the best of LoRA",
            ACCURACIES,
            tuple(_adaptive(optimizer, each) for each in ETA_SQUARED),
            _rivals(optimizer),
            at_least=-0.003,
        ),
    )


def _plain(optimizer: str, rate: float) -> str:
    return f"{optimizer}, LoRA, dropout {rate:g}"


def _faster(optimizer: str) -> str:
    return f"{optimizer}, LoRA, rate x 2"


def _rivals(optimizer: str) -> tuple[str, ...]:
    return (*(_plain(optimizer, rate) for rate in DROPOUT_RATES), _faster(optimizer))


def _adaptive(optimizer: str, eta_squared: float) -> str:
    return f"{optimizer}, adaptive, eta² {eta_squared:g}"
