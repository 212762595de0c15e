"""What attempts have taken, by their log: alike for the worker that goes on and for whoever records a death."""

from typing import Any

from vitscale.results.spent import of_pretraining, of_trainings


def line(event: str, **facts: Any) -> dict[str, Any]:
    return {"event": event, **facts}


def test_steps_behind_the_checkpoint_that_the_next_attempt_began_with_are_lost() -> None:
    log = [line("start"), line("step", step=10), line("start"), line("lost", steps=4)]
    found = of_pretraining([log])
    assert (found.reached, found.steps, found.lost) == (6, 6, 4)
    found = of_pretraining([[*log, line("step", step=9)]])
    assert (found.reached, found.steps, found.lost) == (9, 9, 4)


def test_an_attempt_that_logged_no_step_lets_nobody_forget_where_it_began() -> None:
    """The checkpoint that it went on from may be damaged when the next one comes: that begins at an older one."""
    log = [line("start"), line("step", step=10), line("start"), line("lost", steps=2), line("start")]
    assert of_pretraining([log]).reached == 8


def test_a_branch_that_leaves_its_trunk_again_has_lost_its_own_steps() -> None:
    log = [line("branch", step=12), line("step", step=14), line("start"), line("branch", step=12)]
    assert of_pretraining([log]).reached == 14
    found = of_pretraining([[*log, line("lost", steps=2)]])
    assert (found.reached, found.steps, found.lost) == (12, 0, 2)


def test_a_checkpoint_behind_the_last_line_says_that_it_came_so_far() -> None:
    found = of_pretraining([[line("start"), line("branch", step=4), line("step", step=10)]])
    assert (found.as_saved(12).steps, found.as_saved(12).reached) == (8, 12)
    assert found.as_saved(8) == found.as_saved(None) == found


def test_a_rate_that_diverged_took_the_steps_that_it_says() -> None:
    """Not all of them are logged, and of one that diverged there is no last line."""
    whole = [line("engine"), line("step", step=1), line("step", step=40), line("scored", flops_eval=7.0)]
    diverged = [line("engine"), line("step", step=1), line("diverged", step=5)]
    found = of_trainings([[line("start"), *whole, *diverged, *whole]])
    assert (found.steps, found.flops_eval) == (85, 14.0)


def training(number: int, begins: int, *reached: int) -> list[dict[str, Any]]:
    return [line("training", number=number, step=begins), line("engine"), *(line("step", step=s) for s in reached)]


def test_a_fine_tuning_loses_what_the_checkpoint_that_it_went_on_from_did_not_have() -> None:
    first = [line("start"), *training(1, 0, 1, 40), line("scored", flops_eval=7.0), *training(2, 0, 1, 30)]
    found = of_trainings([first])
    assert (found.steps, found.lost) == (70, 0)
    second = [line("start"), *training(2, 20, 21, 40), line("scored", flops_eval=7.0), *training(3, 0, 1)]
    found = of_trainings([first, second])
    assert (found.steps, found.lost, found.flops_eval) == (81, 10, 14.0)
    third = [line("start"), *training(1, 40), line("scored", flops_eval=7.0), *training(2, 0, 1)]
    found = of_trainings([first, second, third])
    assert (found.steps, found.lost) == (41, 10 + 40 + 1), "its scores were damaged: what came after them is made anew"


def test_a_fine_tuning_that_saved_nothing_began_anew() -> None:
    """Its clock, too, counted each training by itself."""
    once = [line("start"), line("engine"), line("step", step=40, device_seconds=2.0), line("engine")]
    once += [line("step", step=3, device_seconds=1.0)]
    found = of_trainings([once, once])
    assert (found.steps, found.lost, found.device_seconds) == (43, 43, 6.0)
    found = of_trainings([once, [line("start"), *training(1, 0), line("step", step=5, device_seconds=3.5)]])
    assert (found.steps, found.lost, found.device_seconds) == (5, 43, 3.5)
