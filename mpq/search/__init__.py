"""Bit search: KL sensitivity, Hessian trace, architecture search, one-stage, baselines; each ends in one `BitPlan`."""

from __future__ import annotations

from mpq.search.baseline import random_costs, read_rule, rule_costs, uniform_plan_within
from mpq.search.budget import solve_budget, solve_sizes
from mpq.search.costs import LEVELS, Costs, Grid, read_candidates
from mpq.search.data import AmSearchData, LmSearchData, SearchData
from mpq.search.hessian import HessianConfig, hessian_costs, row_traces
from mpq.search.kl import kl_costs, row_divergences
from mpq.search.nas import NasConfig, nas_costs
from mpq.search.one_stage import OneStageConfig, search_one_stage
from mpq.search.ratio import plan_of_ratio, uniform_plan_of_ratio

__all__ = [
    "LEVELS",
    "AmSearchData",
    "Costs",
    "Grid",
    "HessianConfig",
    "LmSearchData",
    "NasConfig",
    "OneStageConfig",
    "SearchData",
    "hessian_costs",
    "kl_costs",
    "nas_costs",
    "plan_of_ratio",
    "random_costs",
    "read_candidates",
    "read_rule",
    "row_divergences",
    "row_traces",
    "rule_costs",
    "search_one_stage",
    "solve_budget",
    "solve_sizes",
    "uniform_plan_of_ratio",
    "uniform_plan_within",
]
