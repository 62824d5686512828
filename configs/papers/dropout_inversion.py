"""Dropout is NOT All You Need to Prevent Gradient Leakage."""

import ml_collections

from configs.papers.common import arm, check, paper

RATES = (0.25, 0.5)
ATTACKS = ("plain", "inversion", "informed")


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Dropout is NOT All You Need to Prevent Gradient Leakage",
        arxiv="2208.06163",
        functions=(
            "privacy.invert_gradients",
            "privacy.dropout_inversion_objective",
            "privacy.gradient_cosine_distance",
            "dropout.mask_rate_penalty",
            "dropout.project_mask",
            "vision.total_variation",
        ),
        claim="Dropout hides a client's images from a gradient inversion only until its masks are optimised with them.",
        headline="MNIST, CIFAR-10, ImageNet with an MLP, LeNet and ViT: from rate 0.1 on the plain inversion fails, "
        "the one with masks is about as good as without dropout",
        study="dropout_inversion",
        seeds=5,
    )
    config.settings = {
        "shared": {},
        "widths": (128, 128),
        "batch": 1,
        "rate": 0.25,
        "attack": "inversion",
        "shuffled": False,  # the values of the shared gradient, a control without information
        "steps": 1000,
        "learning_rate": 0.1,
        "cuts": (0.5, 0.75),  # parts of the steps after which the learning rate falls to a tenth
        "tv_weight": 1e-5,
        "mask_weight": 1e-4,
        "others": 1000,  # digits whose mean is the guess that needs no gradient
    }
    config.smoke = {"batch": 2, "widths": (8, 8), "steps": 3, "others": 50}
    config.arms = (
        arm(_name(1, 0.0, "plain"), batch=1, rate=0.0, attack="plain"),
        *(
            arm(_name(batch, rate, attack), batch=batch, rate=rate, attack=attack)
            for batch in (1, 8)
            for rate in RATES
            for attack in ATTACKS
        ),
        arm(SHUFFLED, batch=1, rate=0.25, attack="inversion", shuffled=True),
    )
    config.checks = (
        check(
            "without dropout the plain attack reconstructs the image",
            "error",
            _name(1, 0.0, "plain"),
            at_most=1e-3,
            over="median",
            condition=True,
        ),
        *(
            each
            for rate in RATES
            for each in (
                check(
                    f"at rate {rate}, finding the masks too leaves a fifth of the plain attack's error or less",
                    "error",
                    _name(1, rate, "inversion"),
                    _name(1, rate, "plain"),
                    compare="ratio",
                    at_most=0.2,
                    over="median",
                ),
                check(
                    f"at rate {rate}, finding the masks too reconstructs the image",
                    "error",
                    _name(1, rate, "inversion"),
                    at_most=1e-3,
                    over="median",
                ),
            )
        ),
    )
    config.side = (
        *(
            check(
                f"a batch of {batch} at rate {rate}: an attacker who knows the masks reconstructs it",
                "error",
                _name(batch, rate, "informed"),
                at_most=1e-3,
                over="median",
            )
            for batch in (1, 8)
            for rate in RATES
        ),
        *(
            check(
                f"a batch of 8 at rate {rate}: finding the masks too leaves a fifth of the plain attack's error or less",
                "error",
                _name(8, rate, "inversion"),
                _name(8, rate, "plain"),
                compare="ratio",
                at_most=0.2,
                over="median",
            )
            for rate in RATES
        ),
        *(
            check(
                f"at rate {rate}, nine of ten mask entries are found",
                "masks_recovered",
                _name(1, rate, "inversion"),
                at_least=0.9,
                over="median",
            )
            for rate in RATES
        ),
        check(
            "shuffled values of the gradient give nothing better than the mean digit",
            "error",
            SHUFFLED,
            SHUFFLED,
            against_metric="error_of_the_mean_digit",
            compare="ratio",
            at_least=1.0,
            over="median",
        ),
    )
    config.remarks = (
        "Labels are known to the attacker and the network is random. Errors are means over pixels in [0, 1], after the best "
        "assignment within the batch, whose order no gradient shows; a mask entry counts as kept from one half on."
    )
    return config


def _name(batch: int, rate: float, attack: str) -> str:
    words = {"plain": "plain", "inversion": "with masks", "informed": "masks known"}[attack]
    return f"batch {batch}, rate {rate:g}, {words}"


SHUFFLED = "batch 1, rate 0.25, with masks, shuffled gradient"
