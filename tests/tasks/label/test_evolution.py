import pytest

from patchword.errors import ConfigError
from patchword.models.fusion.prompt_search import SearchSpace, genes_of, trained_parameters
from patchword.tasks.label.evolution import Evolution, EvolutionConfig, key_of

SPACE = SearchSpace(
    fused_layers=(1, 2, 3), query=(0, 2, 4), query_context=(0, 4), fusion_context=(0, 4), map_width=(8, 16)
)
SETTINGS = EvolutionConfig(generations=6, population=20, parents=5, mutations=10, crossings=6)


def cost(structure):
    return trained_parameters(structure, 16, 16)


def score(structure):
    """Known to be best with three layers of 4 query, 0 query-context and 4 fusion-context prompts and narrow
    maps.
    """
    return sum(
        gene.query + gene.fusion_context - gene.query_context - gene.map_width / 100
        for gene in genes_of(structure)
    )


def run(budget=1e9, seed=0, known=None):
    asked, told = [], []

    def counted(structure):
        asked.append(structure)
        return score(structure)

    def tell(generation, scored):
        told.append((generation, scored))

    ranked = Evolution(SPACE, 3, counted, cost, budget, SETTINGS).run(seed, known or {}, tell)
    return ranked, asked, told


def test_it_finds_the_best_structure_of_a_known_score():
    ranked, asked, told = run()
    assert genes_of(ranked[0].structure) == [(4, 0, 4, 8)] * 3
    assert len(asked) == len(set(map(key_of, asked))) == len(ranked) == len(told)
    assert [generation for generation, _ in told] == sorted(generation for generation, _ in told)


def test_the_budget_is_kept():
    ranked, asked, _ = run(budget=1200)
    assert ranked and all(cost(structure) <= 1200 for structure in asked)
    assert ranked[0].score < 3 * (8 - 0.08)  # what the best structure scores, which costs more


def test_an_interrupted_search_goes_on_as_if_it_had_not_been():
    whole, asked, told = run(seed=4)
    for stop in (1, 70):
        known = {key_of(scored.structure): scored.score for _, scored in told[:stop]}
        resumed, asked_again, _ = run(seed=4, known=known)
        assert resumed == whole and asked_again == asked[stop:]


def test_a_budget_below_everything_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"no structure of the search space costs 10 or less, the cheapest one found costs \d+: raise",
    ):
        run(budget=10)


def test_a_space_smaller_than_the_population_ends():
    tiny = SearchSpace(
        fused_layers=(1,), query=(2,), query_context=(0,), fusion_context=(0, 1), map_width=(8,)
    )
    evolution = Evolution(tiny, 3, score, cost, 1e9, EvolutionConfig(generations=2))
    ranked = evolution.run(0, {}, lambda generation, scored: None)
    assert len(ranked) == 2
