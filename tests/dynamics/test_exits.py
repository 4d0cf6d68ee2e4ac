"""Exit at rest: the one pass against real generation, the cached generation against looping everything anew, and Anderson's
acceleration against the secant method and the plain loop."""

import pytest
import torch
from other_model import OtherModel

from looped_lib.config import ModelConfig
from looped_lib.dynamics.anderson import Iterate, advance
from looped_lib.dynamics.depth import depth_curve
from looped_lib.dynamics.exits import NEAR, exit_curve, generate
from looped_lib.models.looped import LoopedTransformer
from looped_lib.tasks.addition import CHARACTERS, EOS, PAD, generate_problems
from looped_lib.tasks.problems import Problems, exact_match

PROMPTS = generate_problems(2, 24, seed=0).ids[:, :6]
WIDTH = 4  # characters of an answer
TOLERANCES = [0.3, 0.1, 0.03, 0.01, 1e-4]


def transformer(**changes) -> LoopedTransformer:
    """Random weights, small enough for its states to rest, each problem's at another loop."""
    torch.manual_seed(1)
    config = {"d_model": 16, "n_heads": 2, "d_ff": 32, "max_len": 12, "init_std": 0.2, "dropout": 0.1, **changes}
    return LoopedTransformer(ModelConfig(norm_placement="post_norm", **config)).double().train()  # dropout must not matter


def answered_by(model) -> Problems:
    """Problems whose answers are what the model says at rest; every third has its last character changed, so is never right."""
    model.eval()
    ids = PROMPTS
    with torch.no_grad():
        for _ in range(WIDTH):
            h = model.embed(ids)
            for _ in range(500):
                h = model.step(h)
            ids = torch.cat([ids, model.readout(h)[:, -1:].argmax(-1)], 1)
    ids[::3, -1] = (ids[::3, -1] + 1) % 13
    ids[:, PROMPTS.shape[1] :] = ids[:, PROMPTS.shape[1] :].where(ids[:, PROMPTS.shape[1] :] != PAD, EOS)
    return Problems(ids, torch.full((len(ids),), PROMPTS.shape[1]), CHARACTERS)


@pytest.fixture(scope="module", params=[{}, {"k_layers": 2, "prelude_layers": 1}], ids=str)
def model(request):
    return transformer(**request.param)


@pytest.fixture(scope="module")
def problems(model):
    return answered_by(model)


def residual(image, x):
    return (image - x).norm(dim=-1) / x.norm(dim=-1)


def looped_anew(model, ids, new_tokens, tolerance, max_loops, anderson=0):
    """The definition: for every character the whole text is looped from its embedding until all of it rests. One row."""
    loops = []
    model.eval()
    with torch.no_grad():
        for _ in range(new_tokens):
            now = Iterate(model.embed(ids))
            for t in range(1, max_loops + 1):
                image = model.step(now.x)
                worst = residual(image, now.x).cummax(1).values
                if worst[0, -1] <= tolerance or t == max_loops:
                    loops.append(t)
                    break
                now = advance(now, image, anderson, worst <= NEAR)
            ids = torch.cat([ids, model.readout(image)[:, -1:].argmax(-1)], 1)
    return ids, loops


@pytest.mark.parametrize("anderson", [0, 2])
@pytest.mark.parametrize("tolerance", [0.3, 0.01, 1e-4])
def test_cached_generation_is_looping_everything_anew(model, tolerance, anderson):
    prompts = PROMPTS[:6]
    mine = generate(model, prompts, WIDTH, tolerance, max_loops=60, anderson=anderson)
    for i, prompt in enumerate(prompts):
        ids, loops = looped_anew(model, prompt[None], WIDTH, tolerance, 60, anderson)
        assert mine.ids[i].tolist() == ids[0].tolist() and mine.loops[i].tolist() == loops
    assert len(set(mine.loops[:, -1].tolist())) > 1  # rows stop on their own


@pytest.mark.parametrize("anderson", [0, 2])
def test_one_pass_says_what_generation_does(model, problems, anderson):
    curve = exit_curve(model, problems, TOLERANCES, max_loops=60, anderson=anderson, problems_at_once=7)
    for j, tolerance in enumerate(TOLERANCES):
        text = generate(model, PROMPTS, WIDTH, tolerance, max_loops=60, anderson=anderson)
        assert torch.equal(curve.correct[:, j], exact_match(text.ids, problems))
        right = curve.correct[:, j]  # there the text is the true one, so its loops are those of the one pass
        torch.testing.assert_close(curve.loops[right, j], text.loops[right].float().mean(1))
    assert 0 < curve.accuracy[0] < curve.accuracy[-1] < 1


def test_a_tolerance_never_met_is_plain_depth(model, problems):
    curve = exit_curve(model, problems, [0.0], max_loops=9)
    assert torch.equal(curve.correct[:, 0], depth_curve(model, problems, 9).correct[:, 9]) and (curve.loops == 9).all()


def test_smaller_tolerances_take_more_loops_and_end_at_the_deep_answer(model, problems):
    curve = exit_curve(model, problems, [*TOLERANCES, 1e-9], max_loops=400)
    assert (curve.loops.diff(dim=1) >= 0).all() and (curve.mean_loops < 400).all()
    assert torch.equal(curve.correct[:, -1], depth_curve(model, problems, 400).correct[:, -1])


def test_anderson_rests_sooner(model, problems):
    plain, mixed = (exit_curve(model, problems, [1e-6], max_loops=400, anderson=m) for m in (0, 3))
    assert mixed.mean_loops.item() < 0.8 * plain.mean_loops.item()
    assert torch.equal(mixed.correct, plain.correct)


def test_exit_curve_works_on_any_looped_model():
    torch.manual_seed(0)
    model = OtherModel().double()
    problems = answered_by(model)
    curve = exit_curve(model, problems, [0.1, 0.0], max_loops=12)
    assert torch.equal(curve.correct[:, 1], depth_curve(model, problems, 12).correct[:, 12])
    assert curve.mean_loops[0] < 12


def test_a_model_whose_state_overflows_uses_all_loops(problems):
    model = transformer()
    model.step = lambda h: h * 1e200
    assert (exit_curve(model, problems, [0.1], max_loops=5).loops == 5).all()


def linear_map(radius: float = 0.9, seed: int = 0):
    torch.manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.tensor([radius, 0.6, -0.5, 0.3, 0.1, 0.0], dtype=torch.float64)) @ basis.T
    return lambda x: x @ matrix.T + 1.0


def run(step, x, m, loops):
    now = Iterate(x)
    for _ in range(loops):
        now = advance(now, step(now.x), m, torch.ones(x.shape[:2], dtype=torch.bool))
    return residual(step(now.x), now.x).max().item()


def test_with_as_many_differences_as_dimensions_a_linear_map_is_solved():
    """Anderson with m = n is GMRES in disguise: n + 1 loops reach the fixed point of an n-dimensional linear map."""
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    assert run(linear_map(), x, 6, 8) < 1e-6 < 1e-2 < run(linear_map(), x, 0, 8)


def test_m_of_zero_is_the_plain_loop_and_far_positions_are_not_mixed():
    step, x = linear_map(), torch.randn(2, 3, 6, dtype=torch.float64)
    first, near = Iterate(x), torch.tensor([[True, False, True]] * 2)
    for m in (0, 2):
        now = advance(advance(first, step(x), m, near), step(step(x)), m, near)
        assert torch.equal(now.x[:, 1], step(step(x))[:, 1])
        assert torch.equal(now.x[:, 0], step(step(x))[:, 0]) == (m == 0)


def test_positions_have_coefficients_of_their_own():
    """What a position does depends on its own past: batches and neighbours do not matter."""
    step, x = linear_map(), torch.randn(2, 3, 6, dtype=torch.float64)

    def path(x):
        now = Iterate(x)
        for _ in range(6):
            now = advance(now, step(now.x), 2, torch.ones(x.shape[:2], dtype=torch.bool))
        return now.x

    torch.testing.assert_close(path(x)[1:, 2:], path(x[1:, 2:]), rtol=1e-9, atol=1e-12)


def test_moves_that_are_equal_or_zero_do_no_harm():
    x = torch.ones(1, 1, 4)
    assert torch.isfinite(torch.tensor(run(lambda x: x + 1.0, x, 3, 6)))  # no fixed point: all moves alike
    assert run(lambda x: x, x, 3, 6) == 0.0


def test_bad_input_is_refused(problems):
    model = transformer(coda_layers=1)
    for tolerances in ([-0.1], []):
        with pytest.raises(ValueError, match="tolerances of at least 0, got"):
            exit_curve(model, problems, tolerances)
    with pytest.raises(ValueError, match="at least 1 loop, got 24 and 0"):
        exit_curve(model, problems, [0.1], max_loops=0)
    for new_tokens, max_loops in ((0, 5), (2, 0)):
        with pytest.raises(ValueError, match=f"1 new token and 1 loop, got {new_tokens} and {max_loops}"):
            generate(model, PROMPTS, new_tokens, 0.1, max_loops)
    with pytest.raises(ValueError, match="coda"):
        generate(model, PROMPTS, 2, 0.1)
