r"""Small word problems in NuminaMath's columns: `problem`, `solution`, and `answer` as text.

    {"problem": "Ann has 14 pens, buys 23 more and loses 9. How many are left?",
     "solution": "14+23=37. 37-9=28. The answer is \\boxed{28}.", "answer": "28"}

A story is a text whose names, things and numbers are open, with the sums that solve it: one or two, of + and - only. Numbers in
the text are from 2 to 60, results from 1 to 99. A text says how it is solved, so each problem has one right answer and one
solution. The words are few and short: a tokenizer of 512 tokens writes a whole conversation in about 55.
"""

import random

from looped_lib.tasks.problems import distinct

NUMBERS, RESULTS = range(2, 61), range(1, 100)

HER = ("Amy", "Ann", "Eva", "Ida", "Ivy", "Kim", "Lea", "Mia", "Pia", "Sue", "Una", "Zoe")
HIM = ("Ben", "Bob", "Dan", "Jim", "Jon", "Kai", "Leo", "Max", "Ned", "Sam", "Tim", "Tom")
FOOD = ("buns", "eggs", "figs", "nuts", "pears", "plums")
TOYS = ("balls", "beads", "bells", "blocks", "cards", "cars", "dolls", "games", "kites", "masks")
THINGS = (*FOOD, *TOYS, "books", "caps", "coins", "cups", "hats", "keys", "maps", "pens", "pins", "rings")
PLACES = ("bag", "box", "case", "sack")
GAINS = ("buys", "finds", "gets", "wins")
LOSSES = ("gives away", "loses", "sells")

# The drawn numbers are a, b and c; x and y are the results of the first and the second sum. he and him speak of A.
ONE_SUM = (
    ("{A} has {a} {things} and {gains} {b} more. How many {things} does {he} have now?", "a+b"),
    ("{A} has {a} {things}. {B} gives {him} {b} more. How many does {he} have now?", "a+b"),
    ("{A} has {a} {things} and {B} has {b}. How many {things} do they have in all?", "a+b"),
    ("{A} has {a} {things}. {B} has {b} more than {A}. How many does {B} have?", "a+b"),
    ("{A} {gains} {a} {things} and then {b} more. How many is that in all?", "a+b"),
    ("There are {a} {things} in a {place}. {A} puts in {b} more. How many are in it now?", "a+b"),
    ("{A} has {a} {things} and {loses} {b}. How many {things} are left?", "a-b"),
    ("{A} has {a} {things} and gives {B} {b}. How many does {he} have now?", "a-b"),
    ("{A} has {a} {things} and {B} has {b}. How many more does {A} have?", "a-b"),
    ("{A} has {a} {things}. {B} has {b} fewer than {A}. How many does {B} have?", "a-b"),
    ("{A} needs {a} {things} and has {b}. How many more does {he} need?", "a-b"),
    ("Of {a} {things} {b} are old, the rest are new. How many are new?", "a-b"),
    ("There are {a} {things} in a {place}. {A} takes out {b}. How many are left?", "a-b"),
)
TWO_SUMS = (
    ("{A} has {a} {things}, {B} has {b} and {C} has {c}. How many do they have in all?", "a+b x+c"),
    ("{A} has {a} {things}. {B} has {b} more than {A}. How many do they have in all?", "a+b a+x"),
    ("{A} has {a} {things}. {B} has {b} fewer than {A}. How many do they have in all?", "a-b a+x"),
    ("{A} has {a} {things}, {gains} {b} more and {loses} {c}. How many are left?", "a+b x-c"),
    ("{A} has {a} {things} and {B} has {b}. They sell {c}. How many are left?", "a+b x-c"),
    ("{A} has {a} {things}, {loses} {b} and {gains} {c} more. How many does {he} have now?", "a-b x+c"),
    ("There are {a} {things} in a {place}. {A} takes out {b} and puts in {c}. How many are in it now?", "a-b x+c"),
    ("{A} has {a} {things} and gives {B} {b} and {C} {c}. How many are left?", "a-b x-c"),
    ("{A} needs {a} {things}, has {b} and {gains} {c}. How many more does {he} need?", "a-b x-c"),
    ("Of {a} {things} {B} gets {b} and {C} gets {c}. How many are left?", "a-b x-c"),
)


def generate(n: int, seed: int, skip: int = 0) -> list[dict[str, str]]:
    """`n` different problems, each with `problem`, `solution` and `answer`; half of them take one sum, half two.

    The seed fixes one endless list of different problems; `skip` leaves out its first entries, so sets that do not overlap in
    the list share no problem.
    """

    def draw(rng: random.Random) -> tuple[str, dict[str, str]]:
        row = _draw(rng)
        return row["problem"], row

    return [row for _, row in distinct(draw, n, seed, skip)]


def final_answer(text: str) -> str | None:
    r"""What stands in the last \boxed{...} of `text`, inner braces included; None if there is none or it is not closed."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    inside, depth = text[start + len(r"\boxed{") :], 1
    for place, c in enumerate(inside):
        depth += (c == "{") - (c == "}")
        if depth == 0:
            return inside[:place]
    return None


def _draw(rng: random.Random) -> dict[str, str]:
    text, sums = rng.choice(rng.choice((ONE_SUM, TWO_SUMS)))
    a, b, c = rng.sample(HER + HIM, 3)
    things = rng.choice(THINGS)
    words = {
        "A": a,
        "B": b,
        "C": c,
        "he": "she" if a in HER else "he",
        "him": "her" if a in HER else "him",
        "things": things,
        "place": rng.choice(PLACES),
        "gains": rng.choice(GAINS),
        "loses": rng.choice(LOSSES + ("eats",) * (things in FOOD)),
    }
    while True:
        numbers = {name: rng.choice(NUMBERS) for name in "abc"}
        steps = _solve(sums, numbers)
        if all(result in RESULTS for *_, result in steps):
            break
    answer = str(steps[-1][-1])
    worked = " ".join(f"{left}{sign}{right}={result}." for left, sign, right, result in steps)
    return {
        "problem": text.format(**words, **numbers),
        "solution": rf"{worked} The answer is \boxed{{{answer}}}.",
        "answer": answer,
    }


def _solve(sums: str, numbers: dict[str, int]) -> list[tuple[int, str, int, int]]:
    known, steps = dict(numbers), []
    for name, (left, sign, right) in zip("xy", sums.split(), strict=False):
        known[name] = known[left] + known[right] if sign == "+" else known[left] - known[right]
        steps.append((known[left], sign, known[right], known[name]))
    return steps
