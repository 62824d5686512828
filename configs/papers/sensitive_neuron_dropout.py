"""Hallucination Detox: Sensitivity Dropout for large language models, its training protocol."""

import ml_collections

from configs.papers.common import arm, check, paper

NONE, RANDOM, SENSITIVE = "no dropout", "random units", "sensitive units"


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Hallucination Detox: Sensitivity Dropout (SenD) for Large Language Model Training",
        arxiv="2410.15460",
        functions=("dropout.sensitivity_score", "dropout.sensitive_unit_mask", "dropout.push_window"),
        claim="Switching off the units that move most between checkpoints steadies what a language model knows.",
        headline="Pythia and Llama on medical, legal and general text: up to 17 % (first version: 40 %) more reliable at "
        "test time than normal training",
        study="sensitive_neuron_dropout",
        seeds=5,
    )
    config.settings = {
        "shared": {
            "subjects": 80,
            "relations": 4,
            "objects": 10,
            "background": 40,  # subjects of the first training
            "told": (0, 2),  # forms in which new facts are told; they are asked in the other four
            "held_out": 20,  # new facts that are never told
            "width": 64,
            "depth": 2,
            "heads": 4,
            "batch": 32,
            "steps": 500,
            "learning_rate": 3e-3,
        },
        "dropped": "none",
        "fraction": 0.2,  # of the units
        "window": 3,  # checkpoints that are compared
        "every": 3,  # epochs a set is kept; the first epochs have none
        "tracked": 40,
        "epochs": 12,
        "batch": 28,
        "learning_rate": 3e-3,
        "last": 6,  # checkpoints over which the accuracy is to be steady
        "prompts": 40,
        "answers": 10,  # sampled for each prompt
    }
    config.smoke = {
        "shared": {
            "subjects": 8,
            "relations": 2,
            "objects": 3,
            "background": 4,
            "held_out": 2,
            "width": 8,
            "heads": 2,
            "batch": 4,
            "steps": 2,
        },
        "tracked": 4,
        "epochs": 4,
        "batch": 4,
        "last": 2,
        "prompts": 4,
        "answers": 3,
    }
    config.arms = (
        arm(NONE, dropped="none"),
        arm(RANDOM, dropped="random"),
        arm(SENSITIVE, dropped="sensitive"),
    )
    baselines = ((NONE, "without dropout"), (RANDOM, "with random units off"))
    config.checks = (
        *(
            check(
                f"accuracy varies less from checkpoint to checkpoint than {words}",
                "accuracy_deviation",
                SENSITIVE,
                baseline,
                compare="ratio",
                at_most=1.0,
                over="share of seeds",
                share=0.8,
            )
            for baseline, words in baselines
        ),
        *(
            check(
                f"at most 2 points less accurate in the end than {words}",
                "accuracy",
                SENSITIVE,
                baseline,
                at_least=-0.02,
                condition=True,
            )
            for baseline, words in baselines
        ),
    )
    config.side = tuple(
        check(f"lower EigenScore of sampled answers than {words}", "eigen_score", SENSITIVE, baseline, at_most=0.0)
        for baseline, words in baselines
    )
    config.remarks = (
        "Not seen in a network this small: training without dropout is the steadiest, and on average sensitive units are "
        "no better to switch off than random ones. A likely reason, not tested: checkpoints are judged with all units on, "
        "so every change of the set is itself a disturbance. A learning rate of 1e-3 in all arms gives the same picture."
    )
    return config
