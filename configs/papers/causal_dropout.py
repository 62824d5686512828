"""Gene Regulatory Network Inference in the Presence of Dropouts: a Causal View."""

from typing import Any

import ml_collections

from configs.papers.common import arm, check, paper

SEARCHES = {"pc": "PC", "ges": "GES"}
MECHANISMS = ("random", "truncated", "logistic")
METHODS = {
    "conditioning": "zero deletion",
    "all": "zero deletion, tested genes too",
    "keep": "zeros kept",
    "mean": "mean imputation",
}
FEW, SOME, MANY = 1000, 5000, 20000  # cells


def get_config() -> ml_collections.ConfigDict:
    config = paper(
        title="Gene Regulatory Network Inference in the Presence of Dropouts: a Causal View",
        arxiv="2403.15500",
        functions=(
            "causal.zero_deleted_independence_test",
            "causal.zero_deleted_p_values",
            "causal.pc_skeleton",
            "causal.greedy_equivalence_search",
            "causal.zero_deleted_score_changes",
            "causal.sample_dropout",
        ),
        claim="Deleting, test by test, the cells with a zero in a gene conditioned on finds the network that keeping or "
        "imputing the zeros misses.",
        headline="PC and GES on 10 to 30 genes and 10,000 cells: closer to the graph than full-sample tests and MAGIC, near "
        "those on data without dropouts",
        study="causal_dropout",
        seeds=10,
    )
    config.settings = {
        "shared": {},
        "genes": 10,
        "edges": 15,
        "search": "pc",
        "cells": (FEW, SOME, MANY),
        "method": "conditioning",
        "mechanism": "random",
        "rates": (0.4, 0.7),  # of dropout, uniform over genes
        "slope": 2.0,  # of the logistic mechanism, a standard deviation
        "alpha": 0.05,  # of PC
        "penalty": 1.0,  # of GES, as in the paper's runs: twice that of BIC
        "max_conditioning": 3,
        "chain": {
            "coefficients": (0.8, 0.8),
            "noise_mean": (0.0, 0.5, -0.4),  # b is shifted by 0.5, and c is not
            "noise_std": (1.0, 0.6, 0.6),
            "rate": 0.5,
            "cells": 20000,
            "repeats": 200,
        },
    }
    config.smoke = {"genes": 5, "edges": 5, "max_conditioning": 1, "chain": {"cells": 200, "repeats": 10}}
    config.smoke_arms = (_oracle("pc"), _name("pc", "logistic", "conditioning"), _name("ges", "random", "conditioning"))
    config.arms = tuple(
        each
        for search in SEARCHES
        for each in (
            arm(_oracle(search), search=search, method="oracle"),
            *(
                arm(_name(search, mechanism, method), search=search, mechanism=mechanism, method=method)
                for mechanism in MECHANISMS
                for method in METHODS
                if search == "pc" or method != "all"
            ),
        )
    )
    config.checks = (
        *(
            check(
                f"{SEARCHES[search]}, {mechanism} dropout: zero deletion's F1 rises from {low:,} to {high:,} cells",
                f"f1_n{high}",
                _name(search, mechanism, "conditioning"),
                _name(search, mechanism, "conditioning"),
                against_metric=f"f1_n{low}",
                at_least=0.001,
            )
            for search in SEARCHES
            for mechanism in MECHANISMS
            for low, high in ((FEW, SOME), (SOME, MANY))
        ),
        *(
            _above(search, mechanism, other)
            for search in SEARCHES
            for mechanism in ("random", "logistic")
            for other in ("keep", "mean")
        ),
        check(
            "chain, random dropout: the zero-deleted test rejects at most 15 % at a level of 5 %",
            "false_alarms",
            _name("pc", "random", "conditioning"),
            at_most=0.15,
        ),
        check(
            "chain, random dropout: the test that keeps zeros rejects at least 95 %",
            "false_alarms",
            _name("pc", "random", "keep"),
            at_least=0.95,
        ),
        *(
            check(
                f"chain, {mechanism} dropout: deleting zeros of the tested genes too rejects at most 10 %",
                "false_alarms",
                _name("pc", mechanism, "all"),
                at_most=0.10,
            )
            for mechanism in ("random", "logistic")
        ),
    )
    config.side = (
        *(
            check(
                f"{SEARCHES[search]}, random dropout: keeping zeros gets worse from 1,000 to 20,000 cells",
                f"f1_n{MANY}",
                _name(search, "random", "keep"),
                _name(search, "random", "keep"),
                against_metric=f"f1_n{FEW}",
                at_most=-0.001,
            )
            for search in SEARCHES
        ),
        *(
            check(
                f"{SEARCHES[search]}, {mechanism} dropout: with 1,000 cells zero deletion is no worse than keeping zeros",
                f"f1_n{FEW}",
                _name(search, mechanism, "conditioning"),
                _name(search, mechanism, "keep"),
                at_least=0.0,
            )
            for search in SEARCHES
            for mechanism in MECHANISMS
        ),
        *(_above(search, "truncated", other) for search in SEARCHES for other in ("keep", "mean")),
        *(
            check(
                f"{SEARCHES[search]}, {mechanism} dropout, {MANY:,} cells: F1 of zero deletion is within 0.05 of that "
                "without dropout",
                f"f1_n{MANY}",
                _name(search, mechanism, "conditioning"),
                _oracle(search),
                at_least=-0.05,
            )
            for search in SEARCHES
            for mechanism in MECHANISMS
        ),
        *(
            check(
                f"{SEARCHES[search]}, {mechanism} dropout, {MANY:,} cells: structural Hamming distance of zero deletion "
                f"is below that of {METHODS[other]}",
                f"distance_n{MANY}",
                _name(search, mechanism, "conditioning"),
                _name(search, mechanism, other),
                at_most=-0.1,
            )
            for search in SEARCHES
            for mechanism in MECHANISMS
            for other in ("keep", "mean")
        ),
        *(
            check(
                f"PC, {mechanism} dropout, {MANY:,} cells: deleting zeros of the tested genes too costs no F1",
                f"f1_n{MANY}",
                _name("pc", mechanism, "all"),
                _name("pc", mechanism, "conditioning"),
                at_least=0.0,
            )
            for mechanism in MECHANISMS
        ),
        check(
            "chain, logistic dropout: the zero-deleted test rejects at most 15 %",
            "false_alarms",
            _name("pc", "logistic", "conditioning"),
            at_most=0.15,
        ),
        check(
            "chain, logistic dropout: the test that keeps zeros rejects at least 95 %",
            "false_alarms",
            _name("pc", "logistic", "keep"),
            at_least=0.95,
        ),
    )
    config.remarks = (
        "PC and GES, without MAGIC; the penalty of GES is that of the paper's runs, twice that of BIC. "
        "The advantage comes with the number of cells: with 1,000, keeping the zeros is better. Fisher's z sees "
        "linear relations only: where dropout depends on the value, deleting by the genes conditioned on still raises "
        "false alarms on the chain, and deleting zeros of the tested genes too repairs it for logistic dropout but not "
        "for truncated."
    )
    return config


def _oracle(search: str) -> str:
    return f"{SEARCHES[search]}, no dropout"


def _name(search: str, mechanism: str, method: str) -> str:
    return f"{SEARCHES[search]}, {mechanism} dropout, {METHODS[method]}"


def _above(search: str, mechanism: str, other: str) -> dict[str, Any]:
    return check(
        f"{SEARCHES[search]}, {mechanism} dropout, {MANY:,} cells: F1 of zero deletion is 0.05 above that of "
        f"{METHODS[other]}",
        f"f1_n{MANY}",
        _name(search, mechanism, "conditioning"),
        _name(search, mechanism, other),
        at_least=0.05,
    )
