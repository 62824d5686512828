"""Settings of the miniature that papers on distillation share; see experiments/papers/digits_noise.py."""

from typing import Any

TABLE = "digits-noise"
NOISY, CLEAN, WRONG = "noise", "no noise", "wrong labels"  # columns of the table, and their settings:
SETTINGS: dict[str, dict[str, Any]] = {
    NOISY: {},
    CLEAN: {"examples": 200, "widths": (64,), "noise": 0.0},
    WRONG: {"examples": 400, "noise": 0.0, "wrong_labels": 0.3},
}
CROSS_ENTROPY = "cross_entropy"


def settings(**changed: Any) -> dict[str, Any]:
    """Those of the noisy variant, with some changed or added."""
    return {
        "shared": {
            "train": 1200,
            "test": 597,
            "classes": 10,  # the first so many digits
            "teacher_widths": (256, 256),
            "teacher_steps": 800,
            "teacher_learning_rate": 1e-3,
            "teacher_batch": 64,
            "teacher_mixup": 0.0,  # share of its examples
        },
        "objective": CROSS_ENTROPY,
        "widths": (32,),
        "examples": 100,
        "noise": 0.3,  # standard deviation on pixels in [-0.5, 0.5]
        "wrong_labels": 0.0,  # share drawn anew from all classes
        "mixup": 0.0,  # share of the student's examples
        "steps": 600,
        "batch": 64,
        "learning_rate": 3e-3,  # falls to 0 along a cosine
        **changed,
    }


def smoke(**changed: Any) -> dict[str, Any]:
    """Sizes of seconds, for `config.smoke`."""
    shared = {"train": 64, "test": 32, "teacher_widths": (16,), "teacher_steps": 4, "teacher_batch": 16}
    return {"shared": shared, "widths": (8,), "examples": 24, "batch": 8, "steps": 4, **changed}


def distilled(divergence: str, *, more: str = "") -> str:
    """The objective of the miniature: 0.1 of cross-entropy and 0.9 of a divergence, and what else is added."""
    return " + ".join(filter(None, (f"0.1 * {CROSS_ENTROPY}", f"0.9 * {divergence}", more)))
