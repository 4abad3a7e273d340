"""The table of scores on a card, by hand."""

from gamut.evals.claims import facts


def test_a_score_stands_once_with_its_conditions_beside_it():
    scores = {"sum/text": 0.98765, "sum/text/constant": 0.25, "wer": 0.5, "wer/constant": 1.0, "wer/chance": 0.125}
    assert facts(scores) == (
        "| score |  | constant |\n| --- | --: | --: |\n| sum/text | 0.9877 | 0.25 |\n| wer | 0.5 | 1 |\n"
        "| wer/chance | 0.125 |  |\n"
    )
    assert facts({"a/b": 1.0, "a/c": 2.0}) == "| score |  |\n| --- | --: |\n| a/b | 1 |\n| a/c | 2 |\n"
