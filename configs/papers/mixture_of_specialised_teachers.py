"""MST-Distill: Mixture of Specialized Teachers for Cross-Modal Knowledge Distillation."""

import ml_collections

from configs.papers.common import arm, check, paper

LABELS, FUSION, OTHER, MEAN = "labels alone", "fusion teacher", "other modality's teacher", "mean of both teachers"
ROUTED, WEIGHTED, UNMASKED = "routed, specialised", "routed by weight, specialised", "routed, no masks"
SHORT = "30 epochs"
EVERY = "all four specialised, no routing"
CO_TRAINED, CO_LABELS = "fusion teacher, co-trained", "co-trained, then labels alone"


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="MST-Distill: Mixture of Specialized Teachers for Cross-Modal Knowledge Distillation",
        arxiv="2507.07015",
        functions=(
            "distillation.routed_teachers",
            "distillation.load_balance",
            "distillation.mutual",
            "attention.feature_gate",
            "distillation.kullback_leibler",
        ),
        claim="A student of one modality learns more from teachers of others whose features are masked for it, and of which "
        "a gate picks one for each example, than from one teacher.",
        headline="Better than other cross-modal distillation on AV-MNIST, RAVDESS, VGGSound-50k, CrisisMMD and NYU-Depth-V2 "
        "(direction only: the paper's tables were not at hand)",
        study="mixture_of_specialised_teachers",
        seeds=5,
    )
    config.settings = {
        "shared": {
            "data": "digits",  # or "mnist", "cifar10"
            "train": 900,
            "validation": 300,
            "test": 597,
            "noise": {
                "image": 0.1,  # deviation, of pixels in [0, 1]; a quarter of each image is hidden besides
                "alike": 0.7,  # what two classes share in sound: 1 is all
                "speaker": 0.5,
                "spectrogram": 1.3,
            },
            "widths": (64, 64),  # of all networks
            "heads": 3,  # of masks
            "batch": 50,
            "epochs": 30,  # of teachers, alone or together
            "mask_epochs": 10,
            "learning_rate": 1e-3,
        },
        "teachers": "alone",  # or "together", "specialised"
        "of": (0,),  # which of them: both modalities, the other one; of specialised ones two masks of each
        "k": 1,
        "weighted": False,
        "detached": True,
        "distilled": 1.0,  # times the weight of distillation; 0: labels alone
        "batch": 50,
        "epochs": 60,  # after those of co-training, which who begins anew has too
        "learning_rate": 1e-3,
    }
    config.smoke = {
        "shared": {
            "train": 20,
            "validation": 20,
            "test": 20,
            "widths": (8, 8),
            "heads": 1,
            "batch": 10,
            "epochs": 2,
            "mask_epochs": 2,
        },
        "batch": 10,
        "epochs": 2,
    }
    config.smoke_arms = (ROUTED,)
    four = {"teachers": "specialised", "of": (0, 1, 2, 3)}
    config.arms = (
        arm(LABELS, distilled=0.0),
        arm(FUSION),
        arm(OTHER, of=(1,)),
        arm(MEAN, of=(0, 1), k=2),
        arm(_short(LABELS), distilled=0.0, epochs=0),
        arm(_short(FUSION), epochs=0),
        arm(_short(OTHER), of=(1,), epochs=0),
        arm(_short(MEAN), of=(0, 1), k=2, epochs=0),
        arm(ROUTED, detached=False, **four),
        arm(WEIGHTED, k=2, weighted=True, **four),
        arm(UNMASKED, teachers="together", of=(0, 1), detached=False),
        arm(EVERY, k=4, **four),
        arm(CO_TRAINED, teachers="together"),
        arm(CO_LABELS, teachers="together", distilled=0.0),
    )
    accuracy = "test_accuracy"
    single = tuple(name for teacher in (FUSION, OTHER) for name in (teacher, _short(teacher)))
    config.checks = (
        check("no worse than the best single teacher", accuracy, ROUTED, single, at_least=-0.003),
        check("a point better than labels alone", accuracy, ROUTED, (LABELS, _short(LABELS)), at_least=0.01),
    )
    config.side = (
        check("better than the mean of both teachers", accuracy, ROUTED, (MEAN, _short(MEAN)), at_least=0.0),
        check(
            "what follows co-training helps",
            accuracy,
            ROUTED,
            ROUTED,
            against_metric="own_together_accuracy",
            at_least=0.0,
        ),
        check("masks help", accuracy, ROUTED, UNMASKED, at_least=0.0),
        check(
            "masks bring teachers nearer to the student",
            "apart",
            ROUTED,
            ROUTED,
            against_metric="apart_without_masks",
            at_most=0.0,
        ),
        check("to route by weight is no worse than as in the code", accuracy, WEIGHTED, ROUTED, at_least=0.0),
        check("routing is no worse than all four at once", accuracy, ROUTED, EVERY, at_least=0.0),
        check("and than one co-trained teacher", accuracy, ROUTED, CO_TRAINED, at_least=0.0),
        check("and than labels alone after co-training", accuracy, ROUTED, CO_LABELS, at_least=0.0),
        check("the code's gate sends less than half to one teacher", "most_used_share", ROUTED, at_most=0.5),
        check(
            "the fusion teacher is better than the student can be",
            "fusion_accuracy",
            LABELS,
            LABELS,
            against_metric=accuracy,
            at_least=0.05,
        ),
    )
    config.remarks = (
        "The claims hold, but not for the gate or the masks: the student is as good once it has learned together with its "
        "teachers (77.1 %), and what follows, whoever teaches then, or labels alone, leaves it within a point of that. A "
        "single teacher of frozen predictions, which knows the training examples by heart, is worth no more than labels. "
        "Of the code's gate, which even use alone trains, no teacher gets half of the examples; one that is weighted, and "
        "learns with k = 2, serves the student no better. Masks bring the teachers' predictions nearer to the student's, "
        "from 0.38 to 0.28, and lower their accuracy from 90 % on average to 89 %. Teachers and co-training take 30 "
        "epochs in place of the code's one, as 18 steps teach nothing here. Students that begin anew have as many epochs "
        "as both stages, 90; as that may be too long for them, also 30, and the best counts. All students are kept at "
        "their best epoch on 300 validation images, no gain: 30 epochs of labels give 74.7 %, and the last of them from "
        "another start 75.6 %. The noise was chosen by how accurate the three networks are with labels alone on another "
        "seed, of seven settings; nothing else was searched. On MNIST (shared.data mnist, 3 seeds, the other settings "
        "as chosen for digits; not kept) neither claim holds: routed 60.6 ± 2.1 %, labels alone 64.4 ± 5.5 %, the best "
        "single teacher 64.4 ± 3.9 %, after learning together 59.7 ± 4.4 %. With cifar10 it has not been run to its end."
    )
    return config


def _short(says: str) -> str:
    return f"{says}, {SHORT}"
